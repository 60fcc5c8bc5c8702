"""Records of metrics, epochs, progress, divergence, results and corpora; events that a trainer sends."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from bvae.config import RunConfig

if TYPE_CHECKING:
    from bvae.beta_vae import GridModel
    from bvae.corpus import Corpus

VerdictName = Literal[
    "incomplete",
    "diverged",
    "unstable",
    "mode_collapse",
    "posterior_collapse",
    "flooding",
    "partial_collapse",
    "below_band",
    "above_band",
    "healthy",
]
"""Names of verdicts, worst first. A run that did not finish is `incomplete`."""


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over seeds.

    Both are None if the value of any seed is undefined. The deviation is also None for a single seed.
    """

    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> MeanStd:
        """Return mean and deviation of values, one for each seed."""
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
    """Metrics of reconstructed grids. Rates and recalls are fractions, None if there was nothing to count.

    Cells outside a grid do not count. An object is an 8-connected set of at least two cells of one class,
    other than the most frequent class of its grid. Objects are measured in a sample of at most 2,000 grids.

    Attributes:
        pixel_accuracy: fraction of cells with the right class.
        background_rate: fraction of background cells: the accuracy of predicting background everywhere.
        foreground_rate, predicted_foreground_rate: fraction of foreground cells, true and predicted.
        flooded_rate: fraction of background cells that are predicted as foreground.
        foreground_iou: intersection over union of the predicted and the true foreground.
        foreground_recall: fraction of foreground cells with the right class.
        balanced_accuracy: mean of `class_recall` over the classes that occur.
        perfect_rate: fraction of grids without a wrong cell.
        class_recall: `[C]`, fraction of the cells of each class that are predicted correctly.
        classes_present: number of foreground classes with at least 0.1 % of the cells.
        object_recall: fraction of objects with at least half of their cells predicted correctly.
        minor_object_recall: the same, without objects of the main class of their grid (see the glossary).
        object_iou: best IoU of an object with a predicted 8-connected set of its class, mean over objects.
        objects_recognised: fraction of objects whose best IoU is at least 0.5.
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
    """Metrics of a model or reference, and the same metrics of its shuffled control.

    Attributes:
        classes_learned: number of present foreground classes with a recall at least 0.20 above the control.
        shuffled: metrics of the control, in which each grid is reconstructed from another grid's latent.
    """

    classes_learned: int
    shuffled: ReconstructionMetrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(ControlledMetrics):
    """Metrics of a model on the validation split, decoded from the posterior mean.

    Attributes:
        extent: metrics of the control that predicts one filled box per grid, see
            `bvae.evaluation.metrics.extent`.
        loss, reconstruction, kl: the loss and its terms, in nats; the reconstruction term is a mean over
            cells, the KL divergence a mean over grids.
        kl_per_dim: `[Z]`, KL divergence of each latent dimension, in nats, averaged over grids.
        active_units: number of latent dimensions whose KL divergence exceeds 0.05 nats.
        confusion: `[C, C]`, number of cells by true class (row) and predicted class (column).
        foreground_gradient_share: fraction of Σ|∂loss/∂logits| at foreground cells, measured on the first
            grids of the split.
    """

    extent: ControlledMetrics
    loss: float
    reconstruction: float
    kl: float
    kl_per_dim: tuple[float, ...]
    active_units: int
    confusion: tuple[tuple[int, ...], ...]
    foreground_gradient_share: float | None

    def __post_init__(self) -> None:
        scores = (self, self.shuffled, self.extent, self.extent.shuffled)
        counts = {len(row) for row in self.confusion} | {len(score.class_recall) for score in scores}
        if counts | {len(self.confusion)} != {self.classes}:
            raise ValueError("confusion and class_recall have different numbers of classes")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.confusion)

    def numbers(self) -> dict[str, float | None]:
        """Return the metrics that are single numbers, by name, also those of `shuffled` and `extent`."""
        metrics = msgspec.to_builtins(self)
        shuffled, extent = (_numbers(metrics[name], f"{name}_") for name in ("shuffled", "extent"))
        return _numbers(metrics) | shuffled | extent


@dataclasses.dataclass(frozen=True)
class TrainingMeans:
    """Means over the batches of an epoch during training, where latents are sampled from the posterior.

    `pixel_accuracy` is the accuracy of `bvae.losses.LossTerms`, in which tied logits count as wrong.
    """

    loss: float
    reconstruction: float
    kl: float
    pixel_accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of `metrics.jsonl`: losses in nats, learning rate and β of the last step, wall time in s.

    Losses use the full β and no free bits. `beta` is null in files of older versions.
    """

    epoch: int
    step: int
    learning_rate: float
    seconds: float
    train: TrainingMeans
    validation: Evaluation
    beta: float | None = None

    def numbers(self) -> dict[str, float | None]:
        """Return all numbers by name; names of means over training batches begin with `train_`."""
        record = msgspec.to_builtins(self)
        return _numbers(record) | _numbers(record["train"], "train_") | self.validation.numbers()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """The step at which training stopped because a loss or gradient norm was not finite.

    Steps and epochs count from 1. `batch` holds the indices of the step's training grids. For a validation
    loss, `step` is the last step of the epoch, and `batch` is empty. `terms` are text: JSON has no NaN.
    """

    epoch: int
    step: int
    batch: tuple[int, ...]
    terms: dict[str, str]


@dataclasses.dataclass(kw_only=True)
class Progress:
    """State of training that a checkpoint stores in addition to tensors."""

    config: RunConfig
    step: int = 0
    noise_state: bytes = b""
    epoch_sums: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    epoch_seconds: float = 0.0
    history: list[EpochRecord] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The content of `result.json`.

    Attributes:
        verdict, reason: verdict on this run alone, and a sentence that explains it.
        metrics: metrics of the validation split after the last completed epoch; None without such an epoch.
        divergence: why training stopped early, if a number was not finite; else None.
        seconds: wall time of training and evaluation.
        failed_pictures: one sentence for each picture that could not be drawn.
        digests: size and SHA-256 of configuration, metrics and newest checkpoint, by path in the folder.
        seal: SHA-256 of this record with an empty seal, see `bvae.storage.sealed`.

    Raises:
        ValueError: if there are no metrics and the verdict is not `diverged`.
    """

    schema: Literal[2] = 2
    option: str
    seed: int
    verdict: VerdictName
    reason: str
    metrics: Evaluation | None
    divergence: Divergence | None
    seconds: float
    failed_pictures: tuple[str, ...]
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    seal: str = ""

    def __post_init__(self) -> None:
        if self.metrics is None and self.verdict != "diverged":
            raise ValueError(f"the verdict is {self.verdict} and there are no metrics")

    def properties(self) -> dict[str, str | float | None]:
        """Return verdict, reason and metrics by name, for a JUnit XML report."""
        numbers = self.metrics.numbers() if self.metrics is not None else {}
        return {"verdict": self.verdict, "reason": self.reason, **numbers}


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Return the metrics that are single numbers or undefined (None), and the recall of each class."""
    recalls = {f"class_recall_{i}": recall for i, recall in enumerate(metrics.get("class_recall", ()))}
    found = {**metrics, **recalls}
    return {
        f"{prefix}{name}": value for name, value in found.items() if isinstance(value, int | float | None)
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """Description of a corpus in `comparison.json`.

    Attributes:
        train, val: numbers of grids.
        weight_ratio: largest class weight divided by the smallest, by class-weight method.
        other attributes: see `bvae.corpus.Corpus`.
    """

    name: str
    fingerprint: str
    train: int
    val: int
    class_counts: tuple[int, ...]
    background_rate: float
    weight_ratio: dict[str, float]
    has_outside: bool
    duplicates: int
    duplicates_sampled: bool
    background: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.background < len(self.class_counts):
            raise ValueError(f"background is {self.background}; expected a class of the corpus")

    def remarks(self) -> list[str]:
        """Return one sentence on each unusual property of the corpus."""
        found = []
        if self.has_outside:
            found.append("Grids differ in size; cells outside a grid are ignored.")
        if self.duplicates:
            where = " (among a sample of the file)" if self.duplicates_sampled else ""
            found.append(
                f"{self.duplicates:,} training grids that are also validation grids were removed{where}."
            )
        elif self.duplicates_sampled:
            found.append("A sample of the file has no training grids that are also validation grids.")
        most, background = self.class_counts.index(max(self.class_counts)), self.background
        if self.class_counts[most] > self.class_counts[background]:
            found.append(
                f"Class {most} is more frequent than class {background}, which counts as the background: "
                "foreground metrics and the accuracy band mean less here; --background auto makes class "
                f"{most} the background."
            )
        elif background:
            found.append(f"Class {background} is the background.")
        return found

    @classmethod
    def of(cls, corpus: Corpus) -> CorpusRecord:
        """Return the record of a corpus."""
        ratios = {"inverse": corpus.imbalance, "sqrt_inverse": math.sqrt(corpus.imbalance)}
        own: dict[str, Any] = {"train": len(corpus.train), "val": len(corpus.val), "weight_ratio": ratios}
        names = [field.name for field in dataclasses.fields(CorpusRecord) if field.name not in own]
        return cls(**own, **{name: getattr(corpus, name) for name in names})


@dataclasses.dataclass(frozen=True)
class Stepped:
    """Event after step `step` of `steps` of a run, in `epoch` (from 1), on a batch of `grids` grids."""

    step: int
    steps: int
    epoch: int
    grids: int


@dataclasses.dataclass(frozen=True)
class EpochEnded:
    """Event after the training and evaluation of an epoch, before its checkpoint is saved."""

    history: Sequence[EpochRecord]


@dataclasses.dataclass(frozen=True)
class CheckpointSaved:
    """Event after the checkpoint of `step` completed steps was written to each of `paths`."""

    paths: tuple[Path, ...]
    epoch: int
    step: int
    model: GridModel


Event = Stepped | EpochEnded | CheckpointSaved
Listener = Callable[[Event], None]
