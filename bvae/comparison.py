"""The comparison of loss options: a verdict on each over its seeds, the gate, and a recommendation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from bvae.config import AccuracyBand, ExperimentConfig, LossOption, TrainingConfig
from bvae.metrics import Evaluation, mean_and_sd
from bvae.results import RunResult
from bvae.session import CorpusRecord
from bvae.verdict import SEVERITY, Verdict, VerdictName, judge_option
from bvae.weighting import weights_of_option


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; null where undefined."""

    mean: float | None
    sd: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "undefined"
        return f"{self.mean:.3f}" + (f" ± {self.sd:.3f}" if self.sd is not None else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run of an option; `path` is relative to the session folder."""

    seed: int
    verdict: VerdictName
    reason: str
    metrics: Evaluation | None
    path: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionSummary:
    """One option over its seeds; accuracies, IoU and recalls are fractions, `kl` is in nats.

    Attributes:
        class_weights: the name of their method, `explicit` where they were given.
        weighting: the method with its parameter, see `LossOption.weighting`.
        weight_ratio: the largest class weight over the smallest.
        painting_threshold: of each foreground class, see `painting_threshold`.
    """

    gamma: float
    class_weights: str
    weighting: str
    weight_ratio: float
    verdict: VerdictName
    reason: str
    healthy: bool
    pixel_accuracy: Spread
    foreground_iou: Spread
    foreground_recall: Spread
    shuffled_pixel_accuracy: Spread
    shuffled_foreground_iou: Spread
    shuffled_foreground_recall: Spread
    kl: Spread
    active_units: Spread
    painting_threshold: tuple[float | None, ...]
    runs: tuple[RunSummary, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether at least one candidate is healthy."""

    candidates: tuple[str, ...]
    passed: bool
    passed_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The content of `comparison.json`."""

    schema: int = 1
    corpus: CorpusRecord
    grid_size: int
    training: TrainingConfig
    band: tuple[float, float]
    options: dict[str, OptionSummary]
    gate: Gate
    recommended: str | None
    recommendation: str


Outcomes = Mapping[str, Mapping[int, RunResult | str]]
"""Option → seed → the run's result, or why there is none."""


def compare(corpus: CorpusRecord, experiment: ExperimentConfig, outcomes: Outcomes) -> Comparison:
    """Compare the options of which a run was asked for. A run without a result counts as a failure."""
    band = experiment.band
    asked = [option for option in experiment.options if outcomes.get(option.name)]
    summaries = {
        option.name: _summary(option, outcomes[option.name], band, corpus.class_counts) for option in asked
    }
    candidates = tuple(option.name for option in asked if option.candidate)
    passed_by = tuple(name for name in candidates if summaries[name].healthy)
    recommended = max(passed_by, key=lambda name: _mean(summaries[name].foreground_iou), default=None)
    gate = Gate(candidates=candidates, passed=bool(passed_by), passed_by=passed_by)
    return Comparison(
        corpus=corpus,
        grid_size=experiment.grid_size,
        training=experiment.training,
        band=(band.lo, band.hi),
        options=summaries,
        gate=gate,
        recommended=recommended,
        recommendation=_recommendation(recommended, gate, summaries, band),
    )


def painting_threshold(counts: Sequence[int], option: LossOption) -> tuple[float | None, ...]:
    """How likely each foreground class must be for a cell to be painted with it and not as background.

    The expected focal loss under class weights w is least where the prediction ranks the classes by w·p, so
    class c is painted over the background once p_c/p_0 > w_0/w_c. In terms of p_c/(p_c + p_0), which is what
    is returned, that is w_0/(w_0 + w_c): a half where the weights are equal.

    Args:
        counts: `[C]`, cells of each class in the training split.

    Returns: `[C - 1]`, fractions; None for a class that never occurs.
    """
    background, *weights = weights_of_option(option, counts).tolist()
    return tuple(
        background / (background + weight) if count else None
        for weight, count in zip(weights, counts[1:], strict=True)
    )


def _summary(
    option: LossOption, runs: Mapping[int, RunResult | str], band: AccuracyBand, counts: Sequence[int]
) -> OptionSummary:
    summaries = tuple(_run_summary(option.name, seed, runs[seed]) for seed in sorted(runs))
    evaluations = [run.metrics for run in summaries]
    accuracies = [e.pixel_accuracy if e else None for e in evaluations]
    verdict = judge_option([Verdict(run.verdict, run.reason) for run in summaries], accuracies, band)
    weights = weights_of_option(option, counts)

    def spread(name: str) -> Spread:
        return Spread(*mean_and_sd([getattr(e, name) if e else None for e in evaluations]))

    def shuffled(name: str) -> Spread:
        return Spread(*mean_and_sd([getattr(e.shuffled, name) if e else None for e in evaluations]))

    return OptionSummary(
        gamma=option.gamma,
        class_weights=option.weight_method,
        weighting=option.weighting,
        weight_ratio=(weights.max() / weights.min()).item(),
        verdict=verdict.name,
        reason=verdict.reason,
        healthy=verdict.healthy,
        pixel_accuracy=spread("pixel_accuracy"),
        foreground_iou=spread("foreground_iou"),
        foreground_recall=spread("foreground_recall"),
        shuffled_pixel_accuracy=shuffled("pixel_accuracy"),
        shuffled_foreground_iou=shuffled("foreground_iou"),
        shuffled_foreground_recall=shuffled("foreground_recall"),
        kl=spread("kl"),
        active_units=spread("active_units"),
        painting_threshold=painting_threshold(counts, option),
        runs=summaries,
    )


def _run_summary(option: str, seed: int, outcome: RunResult | str) -> RunSummary:
    path = f"{option}-seed{seed}"
    if isinstance(outcome, str):
        return RunSummary(seed=seed, verdict="incomplete", reason=outcome, metrics=None, path=path)
    return RunSummary(
        seed=seed,
        verdict=outcome.verdict,
        reason=outcome.reason,
        metrics=outcome.metrics,
        path=path,
    )


def _recommendation(
    recommended: str | None, gate: Gate, options: Mapping[str, OptionSummary], band: AccuracyBand
) -> str:
    if recommended is not None:
        best = options[recommended]
        others = [name for name in gate.passed_by if name != recommended]
        rival = f", more than {' and '.join(others)}" if others else ", the only candidate that is healthy"
        return (
            f"Use option {recommended} (γ = {best.gamma:g}, class weights {best.weighting}): "
            f"foreground IoU {best.foreground_iou}{rival}."
        )
    if not gate.candidates:
        return "Nothing can be recommended: no run of a candidate was selected."
    nearest = max(gate.candidates, key=lambda name: _nearness(options[name], band))
    return (
        f"Nothing can be recommended: no candidate is healthy. The nearest miss is {nearest} "
        f"({options[nearest].verdict}): {options[nearest].reason}."
    )


def _nearness(option: OptionSummary, band: AccuracyBand) -> tuple[int, float, float]:
    """Sorts misses: the milder verdict first, then the smaller distance to the band, then the IoU."""
    accuracy = _mean(option.pixel_accuracy)
    learned = Verdict(option.verdict, option.reason).learned
    severity = SEVERITY["below_band"] if learned else SEVERITY[option.verdict]  # both sides miss alike
    return severity, -max(band.lo - accuracy, accuracy - band.hi), _mean(option.foreground_iou)


def _mean(spread: Spread) -> float:
    return spread.mean if spread.mean is not None else 0.0
