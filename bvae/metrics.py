"""How well grids were reconstructed, in numbers; what is measured of a model is in `bvae.evaluation`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bvae.config import CLASSES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionMetrics:
    """How reconstructed grids compare with the originals; fractions, null where nothing was there to count.

    Attributes:
        pixel_accuracy: cells with the right class.
        background_rate: background cells, which is the accuracy of painting everything background.
        foreground_rate, predicted_foreground_rate: cells that are, and that were painted, non-background.
        foreground_iou: intersection over union of the painted and the true foreground masks.
        foreground_recall: non-background cells with exactly the right class.
        balanced_accuracy: mean over the classes that occur of the share of their cells that is right.
        perfect_rate: grids with no wrong cell.
    """

    pixel_accuracy: float | None
    background_rate: float | None
    foreground_rate: float | None
    predicted_foreground_rate: float | None
    foreground_iou: float | None
    foreground_recall: float | None
    balanced_accuracy: float | None
    perfect_rate: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(ReconstructionMetrics):
    """The metrics of a model on the validation split, decoded from the posterior mean.

    Attributes:
        loss, reconstruction, kl: the training objective and its terms, nats.
        kl_per_dim: KL divergence of each latent dimension, nats, averaged over grids.
        active_units: dimensions whose KL exceeds 0.05 nats.
        confusion: `[C, C]` cells by true class (row) and predicted class (column).
        foreground_gradient_share: the part of Σ|∂loss/∂logits| that comes from foreground cells, on the
            first grids of the split: what the loss tells the model to care about.
        shuffled: the same metrics when each grid is decoded from another grid's latent. What survives the
            shuffle the decoder knew without looking.
    """

    loss: float
    reconstruction: float
    kl: float
    kl_per_dim: tuple[float, ...]
    active_units: int
    confusion: tuple[tuple[int, ...], ...]
    foreground_gradient_share: float | None
    shuffled: ReconstructionMetrics


def confusion_matrix(target: NDArray[np.integer], predicted: NDArray[np.integer]) -> NDArray[np.int64]:
    """Counts `[C, C]` of cells by true class (row) and predicted class (column)."""
    index = target.astype(np.int64).ravel() * CLASSES + predicted.astype(np.int64).ravel()
    return np.bincount(index, minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)


def reconstruction_metrics(confusion: NDArray[np.int64], perfect: int, grids: int) -> ReconstructionMetrics:
    """Metrics from a confusion matrix `[C, C]` (rows true), the number of perfect grids and of all grids."""
    cells, true = int(confusion.sum()), confusion.sum(1)
    right = np.diag(confusion)
    either = cells - int(confusion[0, 0])
    present = true > 0
    return ReconstructionMetrics(
        pixel_accuracy=_ratio(right.sum(), cells),
        background_rate=_ratio(true[0], cells),
        foreground_rate=_ratio(true[1:].sum(), cells),
        predicted_foreground_rate=_ratio(confusion[:, 1:].sum(), cells),
        foreground_iou=_ratio(confusion[1:, 1:].sum(), either),
        foreground_recall=_ratio(right[1:].sum(), true[1:].sum()),
        balanced_accuracy=float((right[present] / true[present]).mean()) if present.any() else None,
        perfect_rate=_ratio(perfect, grids),
    )


def _ratio(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation over seeds; None where undefined (a value is, or one seed)."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None
