"""Metrics of reconstructions, computed from the true and the predicted grids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bvae.config import DEFAULT_CLASSES, OUTSIDE
from bvae.evaluation.objects import GridObjects, score_objects
from bvae.records import ControlledMetrics, ReconstructionMetrics

Grids = NDArray[np.uint8]

PRESENT = 0.001
"""Minimum share of the cells for a foreground class to be present."""

CLASS_GAIN = 0.20
"""Minimum recall of a learned class above the shuffled control."""


class Tally:
    """Counts of cells and grids, accumulated over batches.

    Attributes:
        confusion: `[C, C]` cells by true class (row) and predicted class (column).
        background, foreground: the background class, and the other classes `[C - 1]`.
        perfect, grids: how many grids have no wrong cell, and how many there are.
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
        """The foreground classes with at least `PRESENT` of the cells."""
        true = self.confusion.sum(1)
        return [label for label in self.foreground if true[label] >= PRESENT * true.sum() > 0]

    def learned(self, shuffled: Tally) -> list[int]:
        """The present classes whose recall exceeds that of the shuffled control by `CLASS_GAIN`."""
        mine, control = self.recall, shuffled.recall
        return [label for label in self.present if (mine[label] or 0) - (control[label] or 0) >= CLASS_GAIN]

    def metrics(self, objects: GridObjects, predicted: Grids) -> ReconstructionMetrics:
        """Return all metrics; those of objects come from the predictions `[N, H, W]` for `objects.grids`."""
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
    """Return counts `[C, C]` of cells inside grids by true class (row) and predicted class (column)."""
    inside = target != OUTSIDE
    index = target[inside].astype(np.int64) * classes + predicted[inside]
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def score_with_control(
    objects: GridObjects, predicted: Grids, shuffled: Grids, background: int = 0
) -> ControlledMetrics:
    """Return the metrics of reconstructions `[N, H, W]` beside those of another grid's reconstructions."""
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
