"""Records of training: metrics, epochs, progress, divergence, results, and the events of a trainer."""

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
"""Names of verdicts, worst first; `incomplete` is the verdict on a run that did not finish."""


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over seeds.

    Both are null if a value is undefined. The deviation is also null if there is only one seed.
    """

    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> MeanStd:
        """Return mean and deviation of the values, one per seed."""
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
    """Metrics of reconstructed grids: fractions, null if there was nothing to count.

    Cells outside a grid do not count. An object is an 8-connected set of at least two cells of one class
    that is not the most frequent class of its grid. Metrics of objects use at most 2,000 grids, a seeded
    sample of a larger split.

    Attributes:
        pixel_accuracy: cells with the right class.
        background_rate: background cells; equals the accuracy of predicting background everywhere.
        foreground_rate, predicted_foreground_rate: non-background cells; cells predicted as non-background.
        flooded_rate: background cells that are predicted as foreground.
        foreground_iou: intersection over union of the predicted and the true foreground masks.
        foreground_recall: non-background cells with exactly the right class.
        balanced_accuracy: mean of the recall of each class that occurs.
        perfect_rate: grids with no wrong cell.
        class_recall: `[C]`, for each class, the share of its cells that is predicted correctly.
        classes_present: number of foreground classes with at least 0.1 % of the cells.
        object_recall: objects with at least half of their cells predicted correctly.
        minor_object_recall: the same, for objects whose class is not the most frequent among the object
            cells of their grid.
        object_iou: mean over objects of the best IoU with an 8-connected set of their class in the
            reconstruction.
        objects_recognised: objects whose best IoU is at least 0.5.
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
        classes_learned: number of present classes whose recall exceeds that of the control by at least 0.20.
        shuffled: the metrics of the control: each grid is reconstructed from another grid's latent, so the
            control scores what can be predicted without seeing the grid.
    """

    classes_learned: int
    shuffled: ReconstructionMetrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(ControlledMetrics):
    """The metrics of a model on the validation split, decoded from the posterior mean.

    Attributes:
        extent: the control that fills the bounding box of each grid's objects with their most frequent
            class, see `bvae.evaluation.metrics.extent`.
        loss, reconstruction, kl: the training objective and its terms, nats; the reconstruction term is a
            mean over cells, the KL divergence a mean over grids.
        kl_per_dim: KL divergence of each latent dimension, nats, averaged over grids.
        active_units: dimensions whose KL exceeds 0.05 nats.
        confusion: `[C, C]` cells by true class (row) and predicted class (column).
        foreground_gradient_share: the fraction of Σ|∂loss/∂logits| that comes from foreground cells,
            measured on the first grids of the split.
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
        """Return, by name, the metrics that are one number, including those of the controls."""
        metrics = msgspec.to_builtins(self)
        shuffled, extent = (_numbers(metrics[name], f"{name}_") for name in ("shuffled", "extent"))
        return _numbers(metrics) | shuffled | extent


@dataclasses.dataclass(frozen=True)
class TrainingMeans:
    """Means over the batches of an epoch, measured while training, decoded from posterior samples.

    Accuracy is that of `bvae.losses.LossTerms`, which counts a tie of logits as wrong.
    """

    loss: float
    reconstruction: float
    kl: float
    pixel_accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of `metrics.jsonl`: losses in nats, learning rate and β of the last step, wall time in s.

    Losses of training and validation have the full β and no free bits; β is null in lines of older versions.
    """

    epoch: int
    step: int
    learning_rate: float
    seconds: float
    train: TrainingMeans
    validation: Evaluation
    beta: float | None = None

    def numbers(self) -> dict[str, float | None]:
        """Return all numbers by name; means over training batches begin with `train_`."""
        record = msgspec.to_builtins(self)
        return _numbers(record) | _numbers(record["train"], "train_") | self.validation.numbers()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """The step at which a loss or gradient norm was not finite; terms are text, since JSON has no NaN."""

    epoch: int
    step: int
    batch: tuple[int, ...]
    terms: dict[str, str]


@dataclasses.dataclass(kw_only=True)
class Progress:
    """The state of training that a checkpoint stores besides tensors."""

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
        verdict, reason: the verdict on this run alone, and the sentence that explains it.
        metrics: of the validation split after the last completed epoch; null if none was completed.
        divergence: the step at which training stopped because a number was not finite, else null.
        seconds: wall time of training and evaluation.
        failed_pictures: the pictures that could not be drawn, each with its reason.
        digests: size and SHA-256 of the run's files that belong to this result, by name in its folder.
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
        """Return verdict and metrics by name, as properties for a JUnit XML report."""
        numbers = self.metrics.numbers() if self.metrics is not None else {}
        return {"verdict": self.verdict, "reason": self.reason, **numbers}


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Return the metrics that are one number (None: undefined), and the recall of each class."""
    recalls = {f"class_recall_{i}": recall for i, recall in enumerate(metrics.get("class_recall", ()))}
    found = {**metrics, **recalls}
    return {
        f"{prefix}{name}": value for name, value in found.items() if isinstance(value, int | float | None)
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """A corpus as a comparison stores it; rates are fractions.

    Attributes:
        class_counts: `[C]`, cells of each class in the training split.
        weight_ratio: by class-weight method, the largest weight divided by the smallest.
        background, has_outside, duplicates, duplicates_sampled: see `bvae.corpus.Corpus`.
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
    """Event after each step: `step` of `steps` in `epoch` (from 1), on a batch of `images` grids."""

    step: int
    steps: int
    epoch: int
    images: int


@dataclasses.dataclass(frozen=True)
class EpochEnded:
    """Event after an epoch was trained and evaluated, before its checkpoint is saved."""

    history: Sequence[EpochRecord]


@dataclasses.dataclass(frozen=True)
class CheckpointSaved:
    """Event after a checkpoint was written to each of `paths`, after `step` steps."""

    paths: tuple[Path, ...]
    epoch: int
    step: int
    model: GridModel


Event = Stepped | EpochEnded | CheckpointSaved
Listener = Callable[[Event], None]
