"""Metrics of cells, classes and objects from true and predicted grids, and the controls.

Controls are predictions without information about the single objects of a grid. The verdict compares a model
with them.

An object is an 8-connected set of at least two cells of one class, other than the most frequent class of the
grid. If that class is not the background of the corpus, connected background cells are objects too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bvae.config import DEFAULT_CLASSES, OUTSIDE
from bvae.records import ControlledMetrics, ReconstructionMetrics

Grids = NDArray[np.uint8]

PRESENT = 0.001
"""A foreground class is present if it has at least this share of the cells."""

CLASS_GAIN = 0.20
"""A class is learned if its recall exceeds that of the shuffled control by at least this value."""

SEED = 0
"""Seed of the shuffled control, of samples of grids, and of the PCA reference."""

MIN_CELLS = 2
BLOCK_CELLS = 10 * 2**19
"""One-hot cells that are searched for connected sets at once: 2,048 grids of 16×16 and 10 classes, 30 MB."""
HIT = 0.5
"""A recalled object has at least this share of its cells right; a recognised one has at least this IoU."""

WITHIN_A_GRID = np.zeros((3, 3, 3), np.bool_)
WITHIN_A_GRID[1] = True


class Tally:
    """Counts of cells and grids, accumulated over batches.

    Attributes:
        confusion: `[C, C]` cells by true class (row) and predicted class (column).
        background, foreground: the background class, and all other classes `[C - 1]`.
        perfect, grids: number of grids without a wrong cell, and of all grids.
    """

    def __init__(self, classes: int = DEFAULT_CLASSES, background: int = 0) -> None:
        self.confusion = np.zeros((classes, classes), np.int64)
        self.background = background
        self.foreground = [label for label in range(classes) if label != background]
        self.perfect = self.grids = 0

    def add(self, target: Grids, predicted: Grids) -> None:
        """Count grids `[B, H, W]`; predictions where the target is OUTSIDE are ignored."""
        self.confusion += confusion_matrix(target, predicted, len(self.confusion))
        right = (predicted == target) | (target == OUTSIDE)
        self.perfect += int(right.reshape(len(target), -1).all(1).sum())
        self.grids += len(target)

    @property
    def recall(self) -> tuple[float | None, ...]:
        """Recall per class `[C]`; None for a class without cells."""
        right, true = np.diag(self.confusion).tolist(), self.confusion.sum(1).tolist()
        return tuple(map(_ratio, right, true))

    @property
    def present(self) -> list[int]:
        """The foreground classes that are present, see `PRESENT`."""
        true = self.confusion.sum(1)
        return [label for label in self.foreground if true[label] >= PRESENT * true.sum() > 0]

    def learned(self, shuffled: Tally) -> list[int]:
        """Return the present classes whose recall is at least `CLASS_GAIN` above that of the control."""
        mine, control = self.recall, shuffled.recall
        return [label for label in self.present if (mine[label] or 0) - (control[label] or 0) >= CLASS_GAIN]

    def metrics(self, objects: GridObjects, predicted: Grids) -> ReconstructionMetrics:
        """Return all metrics; object metrics are those of the predictions `[N, H, W]` for `objects.grids`."""
        confusion, back, fore = self.confusion, self.background, self.foreground
        cells, true, right = int(confusion.sum()), confusion.sum(1), np.diag(confusion)
        known = [share for share in self.recall if share is not None]
        return ReconstructionMetrics(
            pixel_accuracy=_ratio(right.sum(), cells),
            background_rate=_ratio(true[back], cells),
            foreground_rate=_ratio(true[fore].sum(), cells),
            predicted_foreground_rate=_ratio(confusion[:, fore].sum(), cells),
            flooded_rate=_ratio(confusion[back, fore].sum(), true[back]),
            foreground_iou=_ratio(confusion[fore][:, fore].sum(), cells - int(confusion[back, back])),
            foreground_recall=_ratio(right[fore].sum(), true[fore].sum()),
            balanced_accuracy=float(np.mean(known)) if known else None,
            perfect_rate=_ratio(self.perfect, self.grids),
            class_recall=self.recall,
            classes_present=len(self.present),
            **score_objects(objects, predicted)._asdict(),
        )


def confusion_matrix(target: Grids, predicted: Grids, classes: int = DEFAULT_CLASSES) -> NDArray[np.int64]:
    """Count the cells inside grids by true class (row) and predicted class (column), `[C, C]`."""
    inside = target != OUTSIDE
    index = target[inside].astype(np.int64) * classes + predicted[inside]
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def score_with_control(
    objects: GridObjects, predicted: Grids, shuffled: Grids, background: int = 0
) -> ControlledMetrics:
    """Return the metrics of the predictions `[N, H, W]`, and of the shuffled predictions as their control."""
    seen, control = (Tally(objects.classes, background) for _ in range(2))
    seen.add(objects.grids, predicted)
    control.add(objects.grids, shuffled)
    return ControlledMetrics(
        **vars(seen.metrics(objects, predicted)),
        classes_learned=len(seen.learned(control)),
        shuffled=control.metrics(objects, shuffled),
    )


def _ratio(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None


class ConnectedSets(NamedTuple):
    """The 8-connected sets of cells of one class in grids `[N, H, W]`, numbered from 1.

    Attributes:
        label: int32 `[N, H, W]`, for each cell the number of its set; 0 outside.
        cells: `[K + 1]`, the size of each set in cells, by its number (0: outside); K is the number of sets.
    """

    label: NDArray[np.int32]
    cells: NDArray[np.int64]


class GridObjects(NamedTuple):
    """The objects of grids.

    Attributes:
        grids: uint8 `[N, H, W]`.
        classes: number of classes, C.
        sets: the connected sets of `grids`; some of them are objects.
        number: `[M]`, for each object, the number of its set in `sets`.
        grid: `[M]`, for each object, the index of its grid.
        is_minor: `[M]`, whether the class of the object is not the most frequent class among the cells of
            all objects of its grid.
    """

    grids: Grids
    classes: int
    sets: ConnectedSets
    number: NDArray[np.int64]
    grid: NDArray[np.int64]
    is_minor: NDArray[np.bool_]


class ObjectScores(NamedTuple):
    """Metrics of objects, see `bvae.records.ReconstructionMetrics`; None without an object to count."""

    object_recall: float | None
    minor_object_recall: float | None
    object_iou: float | None
    objects_recognised: float | None


def connected_sets(grids: Grids, classes: int = DEFAULT_CLASSES) -> ConnectedSets:
    """Find the 8-connected sets of cells of one class, in many grids and all classes at once."""
    labels = np.arange(classes, dtype=np.uint8)[:, None, None, None]
    numbers, count = np.zeros(grids.shape, np.int32), 0
    step = max(1, BLOCK_CELLS // (classes * grids[0].size))
    for start in range(0, len(grids), step):
        block = grids[start : start + step]
        of_class = (block == labels).reshape(-1, *block.shape[1:])
        label, found = ndimage.label(of_class, WITHIN_A_GRID, output=np.int32)
        merged = label.reshape(classes, *block.shape).sum(0, dtype=np.int32)
        numbers[start : start + step] = np.where(merged, merged + count, 0)
        count += found
    return ConnectedSets(numbers, np.bincount(numbers.ravel(), minlength=count + 1))


def class_counts(grids: Grids, classes: int = DEFAULT_CLASSES) -> NDArray[np.int64]:
    """Return the number of cells of each class in each grid `[N, H, W]`: `[N, C]`."""
    return np.stack([(grids == label).sum((1, 2)) for label in range(classes)], axis=1)


def find_objects(grids: Grids, classes: int = DEFAULT_CLASSES) -> GridObjects:
    """Find the objects of grids `[N, H, W]`.

    If several classes are equally frequent, the smallest of them counts as the most frequent.
    """
    sets = connected_sets(grids, classes)
    first_cell = np.unique(sets.label, return_index=True)
    number, position = (found[first_cell[0] > 0] for found in first_cell)
    grid, label = position // grids[0].size, grids.ravel()[position]
    is_object = (sets.cells[number] >= MIN_CELLS) & (label != class_counts(grids, classes).argmax(1)[grid])
    number, grid, label = number[is_object], grid[is_object], label[is_object]
    object_cells = np.zeros((len(grids), classes), np.int64)
    np.add.at(object_cells, (grid, label), sets.cells[number])
    return GridObjects(grids, classes, sets, number, grid, label != object_cells.argmax(1)[grid])


def score_objects(objects: GridObjects, predicted: Grids) -> ObjectScores:
    """Return the metrics of objects for reconstructions `[N, H, W]` of the grids."""
    right, iou = object_overlaps(objects, predicted)
    recalled = right >= HIT
    return ObjectScores(_mean(recalled), _mean(recalled[objects.is_minor]), _mean(iou), _mean(iou >= HIT))


def object_overlaps(
    objects: GridObjects, predicted: Grids
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compare each of M objects with reconstructions `[N, H, W]` of the grids.

    Returns: for each object, the share of its cells that are predicted as its class, `[M]`; and its largest
    IoU with an 8-connected set of its class in the reconstruction, `[M]`.
    """
    grids, sets, number = objects.grids, objects.sets, objects.number
    visible = np.where(grids == OUTSIDE, np.uint8(OUTSIDE), predicted)
    found = connected_sets(visible, objects.classes)
    agree = (grids == predicted) & (grids != OUTSIDE)
    right = np.bincount(sets.label[agree], minlength=len(sets.cells)) / np.maximum(sets.cells, 1)
    # In each cell with the right class, a set of the grid overlaps a set of the reconstruction.
    pairs = sets.label[agree].astype(np.int64) * len(found.cells) + found.label[agree]
    pair, shared = np.unique(pairs, return_counts=True)
    mine, other = np.divmod(pair, len(found.cells))
    best = np.zeros(len(sets.cells))
    np.maximum.at(best, mine, shared / (sets.cells[mine] + found.cells[other] - shared))
    return right[number], best[number]


def grid_object_iou(grids: Grids, predicted: Grids, classes: int = DEFAULT_CLASSES) -> NDArray[np.float64]:
    """Return the mean object IoU of each grid, `[N]`; NaN for a grid without objects."""
    objects = find_objects(grids, classes)
    _, iou = object_overlaps(objects, predicted)
    count = np.bincount(objects.grid, minlength=len(grids))
    total = np.bincount(objects.grid, iou, minlength=len(grids))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def sample_rows(count: int, at_most: int) -> NDArray[np.int64]:
    """Return up to `at_most` random indices below `count`, in ascending order, always the same."""
    if count <= at_most:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, at_most, replace=False))


def derangement(n: int, seed: int = SEED) -> NDArray[np.int64]:
    """Return a random permutation of range(n) without fixed points: a single cycle.

    It is random, because neighbouring grids of a corpus are often alike.
    """
    cycle = np.random.default_rng(seed).permutation(n)
    successor = np.empty(n, np.int64)
    successor[cycle] = np.roll(cycle, -1)
    return successor


def extent(grids: Grids, classes: int = DEFAULT_CLASSES) -> Grids:
    """Return the predictions `[N, H, W]` of the `extent` control, which needs no model.

    The bounding box of all cells that are not of the grid's most frequent class is filled with the most
    frequent class among these cells. All other positions, even outside the grid, get the grid's most frequent
    class.
    """
    counts = class_counts(grids, classes)
    majority = counts.argmax(1)
    counts[np.arange(len(grids)), majority] = 0
    other = np.where(counts.any(1), counts.argmax(1), majority)
    is_object = (grids != majority[:, None, None]) & (grids != OUTSIDE)
    rows, columns = is_object.any(2), is_object.any(1)
    inside = _between(rows)[:, :, None] & _between(columns)[:, None, :]
    filled: Grids = np.where(inside, other[:, None, None], majority[:, None, None]).astype(np.uint8)
    return filled


def _between(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark all positions from the first to the last mark of each row `[N, K]`."""
    after_first = np.logical_or.accumulate(marked, axis=1)
    before_last = np.logical_or.accumulate(marked[:, ::-1], axis=1)[:, ::-1]
    return after_first & before_last
