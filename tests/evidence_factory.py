"""Made-up evidence: records and results that say exactly what a test wants said."""

from __future__ import annotations

from typing import Any

from bvae.metrics import Evaluation, ReconstructionMetrics
from bvae.records import EpochRecord, TrainingMeans
from bvae.results import RunResult
from bvae.session import CorpusRecord

CORPUS = CorpusRecord(
    name="made-up",
    fingerprint="0" * 64,
    train=100,
    val=10,
    class_counts=(10_000, *[1000] * 3, *[400] * 3, *[100] * 3),
    background_rate=0.8,
    weight_ratio={"inverse": 100.0, "sqrt_inverse": 10.0},
)


def reconstruction(**changes: Any) -> ReconstructionMetrics:
    """What a good decoder scores with another grid's latent."""
    values: dict[str, Any] = {
        "pixel_accuracy": 0.6,
        "background_rate": 0.8,
        "foreground_rate": 0.2,
        "predicted_foreground_rate": 0.25,
        "foreground_iou": 0.15,
        "foreground_recall": 0.05,
        "balanced_accuracy": 0.15,
        "perfect_rate": 0.0,
    }
    return ReconstructionMetrics(**values | changes)


def evaluation(*, shuffled: ReconstructionMetrics | None = None, **changes: Any) -> Evaluation:
    """A model that learned the objects and is accurate within the band, except for `changes`."""
    values: dict[str, Any] = {
        "pixel_accuracy": 0.76,
        "background_rate": 0.8,
        "foreground_rate": 0.2,
        "predicted_foreground_rate": 0.25,
        "foreground_iou": 0.5,
        "foreground_recall": 0.4,
        "balanced_accuracy": 0.5,
        "perfect_rate": 0.1,
        "loss": 1.0,
        "reconstruction": 0.9,
        "kl": 4.0,
        "kl_per_dim": (0.25,) * 16,
        "active_units": 16,
        "confusion": ((1,) * 10,) * 10,
        "foreground_gradient_share": 0.5,
    }
    return Evaluation(**values | changes, shuffled=shuffled or reconstruction())


def history(*losses: float, last: Evaluation | None = None) -> list[EpochRecord]:
    """An epoch record for each training loss, all with the same evaluation."""
    return [
        EpochRecord(
            epoch=epoch,
            step=10 * epoch,
            learning_rate=1e-3,
            seconds=1.0,
            train=TrainingMeans(loss=loss, reconstruction=loss, kl=0.0, pixel_accuracy=0.7),
            validation=last or evaluation(),
        )
        for epoch, loss in enumerate(losses, 1)
    ]


def result(option: str, seed: int, verdict: str = "healthy", **changes: Any) -> RunResult:
    """A complete run with a verdict, its metrics good except for `changes`."""
    return RunResult(
        option=option,
        seed=seed,
        verdict=verdict,  # type: ignore[arg-type]
        reason=f"made up to be {verdict}",
        metrics=None if verdict == "diverged" else evaluation(**changes),
        divergence=None,
        seconds=1.0,
        failed_pictures=(),
    )
