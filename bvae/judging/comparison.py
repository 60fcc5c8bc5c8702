"""The comparison of loss options: a verdict on each over its seeds, the gate, and a recommendation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from bvae.class_weights import weights_of_option
from bvae.config import AccuracyBand, ExperimentConfig, LossOption, TrainingConfig
from bvae.records import ControlledMetrics, CorpusRecord, Evaluation, MeanStd, RunResult, VerdictName
from bvae.verdict import SEVERITY, Verdict, judge_option


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
    """One option over its seeds.

    Accuracies, recalls and IoUs are fractions, see `bvae.records.ReconstructionMetrics`; those that begin
    with `shuffled_` are of the control. `kl` is in nats.

    Attributes:
        class_weights: the name of their method, `explicit` where they were given.
        weighting: the method with its parameter, see `LossOption.weighting`.
        weight_ratio: the largest class weight over the smallest.
        classes_learned: how many classes.
        painting_threshold: of each foreground class, see `painting_threshold`.
    """

    gamma: float
    class_weights: str
    weighting: str
    weight_ratio: float
    verdict: VerdictName
    reason: str
    healthy: bool
    pixel_accuracy: MeanStd
    foreground_iou: MeanStd
    foreground_recall: MeanStd
    object_recall: MeanStd
    minor_object_recall: MeanStd
    object_iou: MeanStd
    objects_recognised: MeanStd
    shuffled_pixel_accuracy: MeanStd
    shuffled_foreground_iou: MeanStd
    shuffled_foreground_recall: MeanStd
    shuffled_object_recall: MeanStd
    shuffled_minor_object_recall: MeanStd
    shuffled_object_iou: MeanStd
    shuffled_objects_recognised: MeanStd
    classes_learned: MeanStd
    kl: MeanStd
    active_units: MeanStd
    painting_threshold: tuple[float | None, ...]
    runs: tuple[RunSummary, ...]

    @property
    def learned(self) -> bool:
        """Whether every seed trained stably and learned the objects, whatever the band says."""
        return Verdict(self.verdict, self.reason).learned


CONTROLLED = (
    "pixel_accuracy",
    "foreground_iou",
    "foreground_recall",
    "object_recall",
    "minor_object_recall",
    "object_iou",
    "objects_recognised",
)
"""The metrics of an option that stand beside those of its shuffled control."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether at least one candidate is healthy."""

    candidates: tuple[str, ...]
    passed: bool
    passed_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedCorpus(CorpusRecord):
    """The corpus of a comparison, with what is scored on it without seeing objects.

    Attributes:
        controls: those that the verdict looks at and that need no model: `extent`.
        references: those that stand beside the options in the table, see `bvae.evaluation.controls`.
    """

    controls: dict[str, ControlledMetrics]
    references: dict[str, ControlledMetrics]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The content of `comparison.json`."""

    schema: Literal[2] = 2
    corpus: ComparedCorpus
    grid_size: int
    training: TrainingConfig
    band: tuple[float, float]
    options: dict[str, OptionSummary]
    gate: Gate
    recommended: str | None
    recommendation: str


OptionOutcomes = dict[int, RunResult | str]
RunOutcomes = dict[str, OptionOutcomes]

Outcomes = Mapping[str, Mapping[int, RunResult | str]]
"""Option → seed → the run's result, or why there is none."""


def compare(
    corpus: CorpusRecord,
    experiment: ExperimentConfig,
    outcomes: Outcomes,
    references: Mapping[str, ControlledMetrics] = MappingProxyType({}),
) -> Comparison:
    """Compare the options of which a run was asked for. A run without a result counts as a failure."""
    band = experiment.band
    asked = [option for option in experiment.options if outcomes.get(option.name)]
    summaries = {
        option.name: _summary(option, outcomes[option.name], band, corpus.class_counts) for option in asked
    }
    evaluations = [run.metrics for option in summaries.values() for run in option.runs if run.metrics]
    candidates = tuple(option.name for option in asked if option.candidate)
    passed_by = tuple(name for name in candidates if summaries[name].healthy)
    learned = [name for name in candidates if summaries[name].learned]
    recommended = max(learned, key=lambda name: _mean(summaries[name].object_iou), default=None)
    gate = Gate(candidates=candidates, passed=bool(passed_by), passed_by=passed_by)
    return Comparison(
        corpus=ComparedCorpus(
            **vars(corpus),
            controls={"extent": evaluations[0].extent} if evaluations else {},
            references=dict(references),
        ),
        grid_size=experiment.grid_size,
        training=experiment.training,
        band=(band.lo, band.hi),
        options=summaries,
        gate=gate,
        recommended=recommended,
        recommendation=_recommendation(recommended, gate, summaries, band),
    )


def painting_threshold(counts: Sequence[int], option: LossOption) -> tuple[float | None, ...]:
    """How likely each foreground class must be for a cell to be predicted as it and not as background.

    The expected focal loss under class weights w is least where the prediction ranks the classes by w·p, so
    class c is predicted over the background once p_c/p_0 > w_0/w_c. As p_c/(p_c + p_0), which is returned,
    that is w_0/(w_0 + w_c): a half where the weights are equal.

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

    def over_seeds(name: str) -> MeanStd:
        return MeanStd.of([getattr(e, name) if e else None for e in evaluations])

    def of_control(name: str) -> MeanStd:
        return MeanStd.of([getattr(e.shuffled, name) if e else None for e in evaluations])

    return OptionSummary(
        gamma=option.gamma,
        class_weights=option.weight_method,
        weighting=option.weighting,
        weight_ratio=(weights.max() / weights.min()).item(),
        verdict=verdict.name,
        reason=verdict.reason,
        healthy=verdict.healthy,
        **{name: over_seeds(name) for name in (*CONTROLLED, "classes_learned", "kl", "active_units")},
        **{f"shuffled_{name}": of_control(name) for name in CONTROLLED},
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
    """What to use and why, a sentence or two; where that does not open the gate, what does or why nothing."""
    if recommended is not None:
        best = options[recommended]
        rivals = [name for name in gate.candidates if name != recommended and options[name].learned]
        compared = "".join(f", more than the {options[name].object_iou} of {name}" for name in rivals) or (
            ", the only candidate that breaks no rule" if len(gate.candidates) > 1 else ""
        )
        advice = (
            f"Use option {recommended} (γ = {best.gamma:g}, class weights {best.weighting}): "
            f"object IoU {best.object_iou}, from another grid's latent {best.shuffled_object_iou}{compared}."
        )
        if recommended in gate.passed_by:
            return advice
        side = "above" if _mean(best.pixel_accuracy) > band.hi else "below"
        opened = (
            f"{' and '.join(gate.passed_by)} opens the gate, with object IoU "
            f"{' and '.join(str(options[name].object_iou) for name in gate.passed_by)}"
            if gate.passed_by
            else "so the gate stays closed"
        )
        return f"{advice} Its accuracy {best.pixel_accuracy} lies {side} the band {band}; {opened}."
    if not gate.candidates:
        return "Nothing can be recommended: no run of a candidate was selected."
    nearest = max(gate.candidates, key=lambda name: _nearness(options[name]))
    return (
        f"Nothing can be recommended: no candidate learned the objects. The nearest miss is {nearest} "
        f"({options[nearest].verdict.replace('_', ' ')}): {options[nearest].reason}."
    )


def _nearness(option: OptionSummary) -> tuple[int, float]:
    """Sorts misses: the milder verdict first, then the larger object IoU."""
    return SEVERITY[option.verdict], _mean(option.object_iou)


def _mean(value: MeanStd) -> float:
    return value.mean if value.mean is not None else 0.0
