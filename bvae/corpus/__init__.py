"""Corpora of categorical grids, built in or from files.

Grids may differ in size. In arrays `[N, S, S]`, cells outside a grid have the value `OUTSIDE`. The loss, the
metrics and the class counts ignore them.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bvae.config import DEFAULT_CLASSES, MAX_CLASSES, MAX_GRID_SIZE, OUTSIDE, Background, Classes, GridSize
from bvae.corpus import built_in
from bvae.corpus.array_files import CorpusError, naming, read_grids
from bvae.corpus.splits import Grids, LazyGrids, Source, Splits, hold_out, named, split
from bvae.corpus.task_files import is_array_file, read_tasks
from bvae.storage import printable

__all__ = ["OUTSIDE", "Corpus", "CorpusError", "Grids", "LazyGrids", "load_corpus"]

GRID_SIZES = range(1, MAX_GRID_SIZE + 1)
COUNTS = range(20, 1_000_001)
DEFAULT_COUNT = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Corpus(Splits):
    """Training and validation grids, and their statistics.

    Attributes:
        name: short name, such as `objects:20000` or the name of a file.
        spec: the argument of `load_corpus`.
        grid_size: S, height and width of the arrays that hold the grids.
        train, val: uint8 `[N, S, S]`, class indices and `OUTSIDE`. Large splits are read lazily.
        fingerprint: SHA-256 (hex) of the grid size and of both splits. It does not depend on name and path.
        class_counts: `[C]`, number of cells of each class in the training split.
        background: the background class; all other classes are foreground.
        background_rate: fraction of background cells in the validation split.
        has_outside: whether any grid is smaller than S×S.
        duplicates: number of training grids that were removed because they are also validation grids.
        duplicates_sampled: whether duplicates were searched in a sample only, because the file is large.
    """

    name: str
    spec: str
    grid_size: int

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.class_counts)

    @property
    def imbalance(self) -> float:
        """Ratio of the largest class count to the smallest that is not 0, in the training split."""
        return max(self.class_counts) / min(filter(None, self.class_counts))

    def sample_grids(self, count: int = 10) -> npt.NDArray[np.uint8]:
        """Draw at most `count` distinct training grids `[K, S, S]`. The seed is the fingerprint."""
        rng = np.random.default_rng(int(self.fingerprint, 16))
        order = rng.permutation(np.arange(len(self.train), dtype=np.uint32))
        distinct: dict[bytes, npt.NDArray[np.uint8]] = {}
        for start in range(0, len(order), 1024):
            for grid in self.train[order[start : start + 1024]]:
                distinct.setdefault(grid.tobytes(), grid)
                if len(distinct) == count:
                    return np.stack(list(distinct.values()))
        return np.stack(list(distinct.values()))


def is_built_in(spec: str) -> bool:
    """Return whether a corpus is built in, rather than read from a file."""
    return spec == "arc" or spec.partition(":")[0] in ("objects", "atomic")


def load_corpus(
    spec: str,
    grid_size: GridSize = "auto",
    *,
    padding_value: int | None = None,
    classes: Classes = DEFAULT_CLASSES,
    background: Background = 0,
) -> Corpus:
    """Load a corpus of grids with at most `grid_size` rows and columns.

    Training grids that are also validation grids are removed from the training split.

    Args:
        spec: "arc" (the grids of the public ARC-AGI-2 tasks), "objects" or "objects:N" (N training grids of
            ARC objects), "atomic" or "atomic:N" (N procedural grids), or a path. For array files, see
            `bvae.corpus.array_files.read_grids`; "FILE.npz#NAME" selects one array. For ARC tasks, see
            `bvae.corpus.task_files.read_tasks`. If there is neither a validation split nor several
            tasks, a seeded tenth of the grids is held out.
        grid_size: 1 to 64. "auto" is the smallest size that fits all grids of a file, and 16 for a built-in
            corpus. Larger grids of tasks are left out; arrays with larger grids are refused.
        padding_value: the integer that marks positions outside a grid in a file. It must not be a class.
        classes: number of classes, 2 to 64. "auto" is one more than the largest class of a file, and 10 for
            a built-in corpus.
        background: the background class. "auto" is the most frequent class in the training split; of several
            such classes, the smallest.

    Raises:
        CorpusError: if the corpus does not exist, cannot be read, or is not suitable for training.
    """
    if grid_size != "auto" and grid_size not in GRID_SIZES:
        raise CorpusError(
            f"grid size {grid_size} is not supported; expected --grid-size from 1 to {MAX_GRID_SIZE}, or auto"
        )
    size = built_in.SIZE if grid_size == "auto" else grid_size
    if is_built_in(spec):
        classes = DEFAULT_CLASSES if classes == "auto" else classes
        if classes < DEFAULT_CLASSES:
            raise CorpusError(
                f"{printable(spec)} has {DEFAULT_CLASSES} classes, not {classes}; expected --classes "
                f"{DEFAULT_CLASSES} or more"
            )
    _check_padding(padding_value, 0 if classes == "auto" else classes)
    bound = MAX_CLASSES if classes == "auto" else classes
    if is_built_in(spec):
        name, sources = _built_in(spec, size, padding_value)
    else:
        name, size, sources = _read(spec, grid_size, padding_value, bound)
    with naming(spec):
        found = split(sources, size, classes, background)
    _check_padding(padding_value, len(found.class_counts))
    return Corpus(name=name, spec=spec, grid_size=size, **vars(found))


def _check_padding(padding_value: int | None, classes: int) -> None:
    if padding_value is not None and 0 <= padding_value < classes:
        raise CorpusError(
            f"padding value {padding_value} is a class; expected an integer other than 0–{classes - 1}, such "
            f"as {classes} or -1"
        )


def _built_in(spec: str, grid_size: int, padding_value: int | None) -> tuple[str, list[Source]]:
    """Return the name and the grids of a built-in corpus."""
    if padding_value is not None:
        raise CorpusError(
            f"padding value {padding_value} is for files only, and {printable(spec)} is built in"
        )
    if spec == "arc":
        return spec, named(*built_in.load_arc(grid_size), OUTSIDE)
    count = _generated_count(spec, grid_size)
    if spec.startswith("objects"):
        return f"objects:{count}", named(*built_in.load_objects(count))
    return f"atomic:{count}", hold_out(built_in.generate_atomic(count).grids)


def _read(
    spec: str, grid_size: GridSize, padding_value: int | None, classes: int
) -> tuple[str, int, list[Source]]:
    """Return the name, the grid size and the grids of a corpus that is read from files."""
    path, member = spec, ""
    if _is_missing(spec):
        path, _, member = spec.rpartition("#")
    if _is_missing(path):
        known = f"objects, arc or atomic; objects:N or atomic:N with N of {COUNTS[0]} or more"
        start = f"; relative paths, also those that runs recorded, start in {printable(str(Path.cwd()))}"
        raise CorpusError(
            f"'{printable(spec)}' is neither a built-in corpus ({known}) nor an existing file or folder"
            f"{'' if Path(spec).is_absolute() else start}"
        )
    name = printable(Path(spec).name or spec)
    if not (member or is_array_file(path)):
        return name, *read_tasks(path, grid_size, padding_value, classes)
    limit = MAX_GRID_SIZE if grid_size == "auto" else grid_size
    train, val = read_grids(path, limit, padding_value, classes, member)
    size = max(train.shape[1:] + (() if val is None else val.shape[1:])) if grid_size == "auto" else limit
    # In a .npz, `read_grids` replaced the padding value. In a .npy, it is replaced when grids are accessed.
    marker = OUTSIDE if padding_value is not None and not isinstance(train, np.memmap) else padding_value
    if val is not None:
        return name, size, named(train, val, marker)
    if len(train) < 3:
        raise CorpusError(f"{printable(path)}: has {len(train)} grids; expected 3 or more, to hold out 2")
    return name, size, hold_out(train, marker)


def _is_missing(path: str) -> bool:
    try:
        return not (path and Path(path).exists())
    except OSError:
        return False  # it may exist and be inaccessible; reading it raises an error with the cause


def _generated_count(spec: str, grid_size: int) -> int:
    """Return N of "objects:N" or "atomic:N"."""
    if grid_size < built_in.SIZE:
        size = f"{built_in.SIZE}×{built_in.SIZE}"
        raise CorpusError(f"{printable(spec)}: grids of {size} do not fit the grid size {grid_size}")
    kind, colon, digits = spec.partition(":")
    if not colon:
        return DEFAULT_COUNT
    if not re.fullmatch("[0-9]{1,12}", digits) or int(digits) not in COUNTS:
        limits = f"{COUNTS[0]} to {COUNTS[-1]}"
        raise CorpusError(f"{printable(spec)}: expected {kind}:N with N from {limits}, enough for two splits")
    return int(digits)
