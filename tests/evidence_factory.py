"""Constructed evidence: records and results with exactly the values that a test needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bvae.records import (
    ControlledMetrics,
    CorpusRecord,
    EpochRecord,
    Evaluation,
    ReconstructionMetrics,
    RunResult,
    TrainingMeans,
)

Changes = Mapping[str, Any]

CORPUS = CorpusRecord(
    name="made-up",
    fingerprint="0" * 64,
    train=100,
    val=10,
    class_counts=(10_000, *[1000] * 3, *[400] * 3, *[100] * 3),
    background_rate=0.8,
    weight_ratio={"inverse": 100.0, "sqrt_inverse": 10.0},
    has_outside=False,
    duplicates=0,
    duplicates_sampled=False,
)

BLIND: dict[str, Any] = {
    "pixel_accuracy": 0.6,
    "background_rate": 0.8,
    "foreground_rate": 0.2,
    "predicted_foreground_rate": 0.25,
    "flooded_rate": 0.25,
    "foreground_iou": 0.15,
    "foreground_recall": 0.05,
    "balanced_accuracy": 0.15,
    "perfect_rate": 0.0,
    "class_recall": (0.75, *[0.05] * 9),
    "classes_present": 9,
    "object_recall": 0.08,
    "minor_object_recall": 0.06,
    "object_iou": 0.03,
    "objects_recognised": 0.01,
}
"""Metrics of a good model that decodes the latents of other grids."""

HEALTHY: dict[str, Any] = BLIND | {
    "pixel_accuracy": 0.76,
    "flooded_rate": 0.1,
    "foreground_iou": 0.5,
    "foreground_recall": 0.4,
    "balanced_accuracy": 0.5,
    "perfect_rate": 0.1,
    "class_recall": (0.9, *[0.4] * 9),
    "object_recall": 0.6,
    "minor_object_recall": 0.5,
    "object_iou": 0.2,
    "objects_recognised": 0.12,
}
"""Metrics of a model that learned the objects and is accurate within the band."""


def controlled(*, shuffled: Changes | None = None, **changes: Any) -> ControlledMetrics:
    """Return metrics of a model that learned nothing, with `changes`; `shuffled` changes its control."""
    control = ReconstructionMetrics(**BLIND | {**(shuffled or {})})
    return ControlledMetrics(**BLIND | {"classes_learned": 0} | changes, shuffled=control)


def evaluation(
    *, shuffled: Changes | None = None, extent: Changes | None = None, **changes: Any
) -> Evaluation:
    """Return the evaluation of a model with `HEALTHY` metrics, except for `changes`.

    Args:
        shuffled, extent: changes to the metrics of these controls.
    """
    rest: dict[str, Any] = {
        "classes_learned": 9,
        "loss": 1.0,
        "reconstruction": 0.9,
        "kl": 4.0,
        "kl_per_dim": (0.25,) * 16,
        "active_units": 16,
        "confusion": ((1,) * 10,) * 10,
        "foreground_gradient_share": 0.5,
    }
    return Evaluation(
        **HEALTHY | rest | changes,
        shuffled=ReconstructionMetrics(**BLIND | {**(shuffled or {})}),
        extent=controlled(**{"object_iou": 0.05, **(extent or {})}),
    )


REFERENCES = {
    "background only": controlled(pixel_accuracy=0.8, predicted_foreground_rate=0.0, object_iou=0.0),
    "nearest training grid": controlled(object_iou=0.10, objects_recognised=0.07),
    "nearest training grid, weighted": controlled(object_iou=0.12, objects_recognised=0.09),
    "PCA": controlled(object_iou=0.11, objects_recognised=0.20),
}
"""References of a comparison. `HEALTHY` has more recognised objects than the nearest training grids."""


def history(
    *losses: float, last: Evaluation | None = None, before: Evaluation | None = None, steps: int = 300
) -> list[EpochRecord]:
    """Return one epoch record for each training loss.

    Args:
        last: the evaluation of the last epoch.
        before: the evaluation of all earlier epochs; `last` by default.
        steps: the steps per epoch.
    """
    last = last or evaluation()
    return [
        EpochRecord(
            epoch=epoch,
            step=steps * epoch,
            learning_rate=1e-3,
            seconds=1.0,
            train=TrainingMeans(loss=loss, reconstruction=loss, kl=0.0, pixel_accuracy=0.7),
            validation=last if epoch == len(losses) else before or last,
        )
        for epoch, loss in enumerate(losses, 1)
    ]


def result(option: str, seed: int, verdict: str = "healthy", **changes: Any) -> RunResult:
    """Return the result of a complete run with a verdict. Its metrics are `HEALTHY`, except for `changes`."""
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
