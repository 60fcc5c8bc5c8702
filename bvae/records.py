"""What training leaves behind: metrics, an epoch's record, how far it came and where it broke off."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from bvae.config import RunConfig


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over seeds; null where undefined (a value is, or one seed)."""

    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> MeanStd:
        """Summarize one value a seed."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return cls(None, None)
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)

    def __str__(self) -> str:
        if self.mean is None:
            return "undefined"
        return f"{self.mean:.3f}" + (f" ± {self.sd:.3f}" if self.sd is not None else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionMetrics:
    """How reconstructed grids compare with the originals; fractions, null where nothing was there to count.

    Only cells of a grid count, none outside. An object is an 8-connected set of at least two cells of one
    class other than its grid's most frequent class; of more than 2,000 grids a seeded 2,000 serve for the
    metrics of objects.

    Attributes:
        pixel_accuracy: cells with the right class.
        background_rate: background cells, which is the accuracy of predicting background everywhere.
        foreground_rate, predicted_foreground_rate: cells that are, and that are predicted, non-background.
        flooded_rate: background cells that are predicted as foreground.
        foreground_iou: intersection over union of the predicted and the true foreground masks.
        foreground_recall: non-background cells with exactly the right class.
        balanced_accuracy: mean over the classes that occur of the share of their cells that is right.
        perfect_rate: grids with no wrong cell.
        class_recall: `[C]`, for each class, the share of its cells that is right.
        classes_present: number of foreground classes with at least 0.1 % of the cells.
        object_recall: objects at least half of whose cells get their class.
        minor_object_recall: the same, of objects whose class is not the most frequent among the cells of
            their grid's objects.
        object_iou: mean over objects of the best IoU with an 8-connected set of their class in the
            reconstruction.
        objects_recognised: objects with such an IoU of at least 0.5.
    """

    pixel_accuracy: float | None
    background_rate: float | None
    foreground_rate: float | None
    predicted_foreground_rate: float | None
    flooded_rate: float | None
    foreground_iou: float | None
    foreground_recall: float | None
    balanced_accuracy: float | None
    perfect_rate: float | None
    class_recall: tuple[float | None, ...]
    classes_present: int
    object_recall: float | None
    minor_object_recall: float | None
    object_iou: float | None
    objects_recognised: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlledMetrics(ReconstructionMetrics):
    """Metrics beside those of a control that sees the wrong grid.

    Attributes:
        classes_learned: number of the present classes whose recall exceeds that of the control by 0.20.
        shuffled: the same metrics when each grid is reconstructed from another grid. What survives the
            shuffle is known without looking.
    """

    classes_learned: int
    shuffled: ReconstructionMetrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(ControlledMetrics):
    """The metrics of a model on the validation split, decoded from the posterior mean.

    Attributes:
        extent: the control that fills the bounding box of each grid's objects with their most frequent
            class, see `bvae.evaluation.controls`.
        loss, reconstruction, kl: the training objective and its terms, nats; the reconstruction term is a
            mean over cells, the KL divergence a mean over grids.
        kl_per_dim: KL divergence of each latent dimension, nats, averaged over grids.
        active_units: dimensions whose KL exceeds 0.05 nats.
        confusion: `[C, C]` cells by true class (row) and predicted class (column).
        foreground_gradient_share: the part of Σ|∂loss/∂logits| that comes from foreground cells, on the
            first grids of the split: what the loss tells the model to care about.
    """

    extent: ControlledMetrics
    loss: float
    reconstruction: float
    kl: float
    kl_per_dim: tuple[float, ...]
    active_units: int
    confusion: tuple[tuple[int, ...], ...]
    foreground_gradient_share: float | None


@dataclasses.dataclass(frozen=True)
class TrainingMeans:
    """Means over the batches of an epoch while the model was learning, decoded from posterior samples.

    Accuracy is that of `bvae.losses.LossTerms`, for which a tie of logits is wrong.
    """

    loss: float
    reconstruction: float
    kl: float
    pixel_accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of `metrics.jsonl`: losses in nats, learning rate of the last step, wall time in seconds."""

    epoch: int
    step: int
    learning_rate: float
    seconds: float
    train: TrainingMeans
    validation: Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """Where a loss or gradient norm stopped being finite; the terms as text, since JSON has no NaN."""

    epoch: int
    step: int
    batch: tuple[int, ...]
    terms: dict[str, str]


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How far training has come: what a checkpoint holds beside tensors."""

    config: RunConfig
    step: int = 0
    noise_state: bytes = b""
    epoch_sums: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    epoch_seconds: float = 0.0
    history: list[EpochRecord] = dataclasses.field(default_factory=list)
