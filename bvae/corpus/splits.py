"""The split of stored grids into training and validation grids, and the statistics of both splits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bvae.config import DEFAULT_CLASSES, MAX_CLASSES, OUTSIDE, Background, Classes
from bvae.corpus.array_files import CorpusError, Integers, walk

PREFETCH_BYTES = 2**16
"""Size of one read. A larger read would include more grids that are not needed soon."""


class LazyGrids:
    """Selected grids of an array, which are converted to uint8 `[…, S, S]` when they are accessed.

    Args:
        stored: `[N, H, W]`, with H and W at most S.
        rows: `[K]`, indices of the selected grids.
        grid_size: S.
        padding_value: stored value of positions outside a grid; None if there are no such positions.
    """

    def __init__(
        self, stored: Integers, rows: Integers, grid_size: int, padding_value: int | None = None
    ) -> None:
        self.rows = rows
        self.shape = (len(rows), grid_size, grid_size)
        self._stored = stored
        self._padding_value = padding_value

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | slice | Integers) -> npt.NDArray[np.uint8]:
        """Return grids by index: `[S, S]` for an integer, `[K, S, S]` for a slice or K integers."""
        return pad(self._stored[self.rows[item]], self.shape[-1], self._padding_value)

    def prefetch(self, item: slice | Integers) -> None:
        """Ask the operating system to read grids of a memory-mapped file before they are accessed.

        Read-ahead is turned off for the file, because grids are accessed in random order. The system would
        otherwise read neighbouring pages, megabytes on some systems, and discard them before they are needed.
        """
        stored, file = self._stored, self._stored.base
        if not (isinstance(stored, np.memmap) and isinstance(file, mmap.mmap) and stored.flags.c_contiguous):
            return
        if not hasattr(mmap, "MADV_WILLNEED"):  # on Windows
            return
        begin = stored.offset % mmap.ALLOCATIONGRANULARITY  # offset in the memory map, which starts at a page
        size = stored[:1].nbytes
        places = begin + self.rows[item].astype(np.int64) * size
        parts = np.zeros(len(file) // PREFETCH_BYTES + 1, np.bool_)
        parts[places // PREFETCH_BYTES] = parts[(places + size - 1) // PREFETCH_BYTES] = True
        with contextlib.suppress(OSError):  # this is only a hint
            file.madvise(mmap.MADV_RANDOM)
            for start in (np.flatnonzero(parts) * PREFETCH_BYTES).tolist():
                file.madvise(mmap.MADV_WILLNEED, start, min(PREFETCH_BYTES, len(file) - start))


Grids = npt.NDArray[np.uint8] | LazyGrids


def pad(stored: Integers, grid_size: int, padding_value: int | None = None) -> npt.NDArray[np.uint8]:
    """Copy grids `[…, H, W]` to the top left of arrays `[…, S, S]` that are `OUTSIDE` elsewhere."""
    *leading, height, width = stored.shape
    grids = np.full((*leading, grid_size, grid_size), OUTSIDE, np.uint8)
    grids[..., :height, :width] = stored
    if padding_value is not None:
        grids[..., :height, :width][stored == padding_value] = OUTSIDE
    return grids


def is_held_out(task_id: str) -> bool:
    """Return whether a task is held out: the SHA-256 of its id, as an integer, is a multiple of 10."""
    return int(hashlib.sha256(task_id.encode(errors="surrogatepass")).hexdigest(), 16) % 10 == 0


SPLIT_SEED = 0
# If the padded grids are larger than this, the splits are `LazyGrids` instead of arrays.
IN_MEMORY_BYTES = 64 * 2**20
BLOCK_BYTES = 2**20
SAMPLED_GRIDS = 20_000
"""Maximum number of grids per split of a memory-mapped file among which duplicates are searched."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Stored grids of the training split, of the validation split, or of both.

    Attributes:
        grids: integers `[N, H, W]`, in memory or memory-mapped.
        held_out: `[N]`, whether each grid is a validation grid.
        padding_value: stored value of positions outside a grid; None if there are no such positions.
    """

    grids: Integers
    held_out: npt.NDArray[np.bool_]
    padding_value: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Training and validation split with their statistics, see `bvae.corpus.Corpus`."""

    train: Grids
    val: Grids
    fingerprint: str
    class_counts: tuple[int, ...]
    background: int = 0
    background_rate: float
    has_outside: bool
    duplicates: int
    duplicates_sampled: bool


def named(train: Integers, val: Integers, padding_value: int | None = None) -> list[Source]:
    """Return the sources of a training and a validation split that are stored separately."""
    return [
        Source(train, np.zeros(len(train), np.bool_), padding_value),
        Source(val, np.ones(len(val), np.bool_), padding_value),
    ]


def hold_out(stored: Integers, padding_value: int | None = None) -> list[Source]:
    """Return the source of both splits: a seeded tenth of the grids, at least 2, is held out."""
    held_out = np.zeros(len(stored), np.bool_)
    held_out[: max(2, len(stored) // 10)] = True
    np.random.default_rng(SPLIT_SEED).shuffle(held_out)
    return [Source(stored, held_out, padding_value)]


def split(
    sources: Sequence[Source],
    grid_size: int,
    classes: Classes = DEFAULT_CLASSES,
    background: Background = 0,
) -> Splits:
    """Return both splits, without training grids that are also validation grids, and their statistics.

    First, grids are hashed to find duplicates. In a large memory-mapped file, only a sample of the grids is
    hashed. Then one pass checks, counts and fingerprints all grids.

    Args:
        sources: where the grids are stored; training grids are in the first source, validation grids in the
            last one.
        grid_size, classes, background: see `bvae.corpus.load_corpus`.

    Raises:
        CorpusError: if a value is not a class, if a split has too few grids or classes, or if a background
            other than 0 does not occur in the training split.
    """
    first, last = sources[0], sources[-1]
    train = _subset(first, ~first.held_out, grid_size)
    val = _subset(last, last.held_out, grid_size)
    if len(val) < 2:
        need = "expected 2 or more, because the control decodes each grid from another grid's latent"
        raise CorpusError(f"has {len(val)} validation grid; {need}")
    is_mapped = any(isinstance(source.grids, np.memmap) for source in sources)
    sampled = is_mapped and max(len(train), len(val)) > SAMPLED_GRIDS
    duplicates = _duplicates(train, val, SAMPLED_GRIDS if sampled else None)
    is_dropped = np.zeros(len(first.grids), np.bool_)
    is_dropped[train.rows[duplicates]] = True
    train = _subset(first, ~first.held_out & ~is_dropped, grid_size)
    bound = MAX_CLASSES if classes == "auto" else classes
    training, validation = _Census("training", bound), _Census("validation", bound)
    for source in sources:
        for rows, block in walk(source.grids, BLOCK_BYTES // grid_size**2, source.padding_value, bound):
            grids, held_out = pad(block, grid_size, source.padding_value), source.held_out[rows]
            trains = ~held_out & ~is_dropped[rows] if source is first else ~held_out
            training.add(grids[trains])
            validation.add(grids[held_out])
    if not len(train):
        raise CorpusError(
            f"all {len(duplicates)} training grids are also validation grids; expected some that are not"
        )
    counts, validating = training.cells(), validation.cells()
    if classes == "auto":
        counts = counts[: np.flatnonzero(counts + validating)[-1] + 1]
    if background == "auto":
        background = int(counts.argmax())
    occurring = {label: count for label, count in enumerate(counts.tolist()) if count}
    if background and background not in occurring:
        shown = ", ".join(f"{label}: {count:,}" for label, count in occurring.items())
        raise CorpusError(
            f"no training cell has the class {background} of --background; expected auto, or a class with "
            f"cells ({shown})"
        )
    in_memory = (len(train) + len(val)) * grid_size**2 <= IN_MEMORY_BYTES
    return Splits(
        train=train[:] if in_memory else train,
        val=val[:] if in_memory else val,
        fingerprint=hashlib.sha256(f"{grid_size} {training} {validation}\n".encode()).hexdigest(),
        class_counts=tuple(counts.tolist()),
        background=background,
        background_rate=float(validating[background] / validating.sum()),
        has_outside=training.has_outside or validation.has_outside,
        duplicates=len(duplicates),
        duplicates_sampled=sampled,
    )


class _Census:
    """Class counts and hash of a split. Grids are added in blocks, in their order."""

    def __init__(self, role: str, classes: int) -> None:
        self.role, self.grids, self.has_outside = role, 0, False
        self._cells, self._contents = np.zeros(classes, np.int64), hashlib.sha256()

    def add(self, grids: npt.NDArray[np.uint8]) -> None:
        self._contents.update(grids.data)
        counts = [np.count_nonzero(grids == label) for label in range(len(self._cells))]
        self._cells += counts
        self.grids += len(grids)
        self.has_outside = self.has_outside or bool(sum(counts) < grids.size)

    def cells(self) -> npt.NDArray[np.int64]:
        """Return the number of cells of each class. Raises CorpusError if all cells have the same class."""
        if np.count_nonzero(self._cells) < 2:
            only = int(self._cells.argmax())
            raise CorpusError(f"every {self.role} cell is {only}; expected two or more classes")
        return self._cells

    def __str__(self) -> str:
        return f"{self.grids} {self._contents.hexdigest()}"


def _subset(source: Source, chosen: npt.NDArray[np.bool_], grid_size: int) -> LazyGrids:
    rows = np.arange(len(source.grids), dtype=np.uint32)[chosen]
    return LazyGrids(source.grids, rows, grid_size, source.padding_value)


def _duplicates(train: LazyGrids, val: LazyGrids, sampled: int | None) -> npt.NDArray[np.int64]:
    """Return the indices of training grids that are also validation grids, among `sampled` grids or all."""
    known = {digest for _, digest in _digests(val, sampled)}
    found = [position for position, digest in _digests(train, sampled) if digest in known]
    return np.array(found, np.int64)


def _digests(grids: LazyGrids, sampled: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield index and hash of `sampled` evenly spaced grids, or of all grids if it is None."""
    count = len(grids) if sampled is None else min(sampled, len(grids))
    positions = np.linspace(0, len(grids) - 1, count).astype(np.int64)
    for start in range(0, count, 1024):
        block = positions[start : start + 1024]
        for position, grid in zip(block.tolist(), grids[block], strict=True):
            yield position, hashlib.blake2b(grid, digest_size=16).digest()
