"""The comparison of loss options: verdicts on options over their seeds, the gate, and the recommendation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from bvae.config import (
    AccuracyBand,
    ExperimentConfig,
    LossOption,
    Setting,
    TrainingConfig,
    weight_ratio,
    weights_of_option,
)
from bvae.records import ControlledMetrics, CorpusRecord, Evaluation, MeanStd, RunResult, VerdictName
from bvae.verdict import SEVERITY, Verdict, judge_option, words

OPTION_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Palette of Okabe and Ito, Color Universal Design, without yellow, which is hard to see on white."""


def colour_of(option: int) -> str:
    """Return the colour of the option at a position in the experiment."""
    return OPTION_COLOURS[option % len(OPTION_COLOURS)]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A run of an option; `path` is relative to the session folder."""

    seed: int
    verdict: VerdictName
    reason: str
    metrics: Evaluation | None
    path: str


class Metric(NamedTuple):
    """A metric by which options are compared: a fraction with a shuffled control; more is better.

    Attributes:
        heading: the name of the metric in tables and sentences.
        column: "terminal" if tables in the terminal and in reports show the metric with its control, "report"
            if only reports do, "own" if `bvae.report.tables` defines the column.
        in_baseline: whether the metric is compared with a baseline.
    """

    heading: str
    column: Literal["terminal", "report", "own"] = "report"
    in_baseline: bool = True


LISTED = 10
"""Maximum number of runs, options or sentences that a text lists; the others are only counted."""


def listed(texts: Sequence[str]) -> list[str]:
    """Return the first `LISTED` texts; if there are more, the last text gives the number of the others."""
    more = len(texts) - LISTED
    return [*texts[:LISTED], *([f"and {more} more"] if more > 0 else [])]


METRICS = {
    "object_iou": Metric("object IoU", "terminal"),
    "object_recall": Metric("object recall", "terminal"),
    "objects_recognised": Metric("objects recognised", "terminal"),
    "pixel_accuracy": Metric("accuracy", "own"),
    "minor_object_recall": Metric("minor object recall", in_baseline=False),
    "foreground_iou": Metric("foreground IoU"),
    "foreground_recall": Metric("foreground recall"),
}
"""The metrics of an option by field of `bvae.records.ReconstructionMetrics`, in the order of tables."""

if TYPE_CHECKING:

    class MetricsOverSeeds:
        def __getattr__(self, name: str) -> MeanStd: ...
else:
    MetricsOverSeeds = dataclasses.make_dataclass(
        "MetricsOverSeeds",
        [(f"{control}{name}", MeanStd) for control in ("", "shuffled_") for name in METRICS],
        frozen=True,
        kw_only=True,
    )
"""`METRICS` over the seeds of an option; the names for the shuffled control start with `shuffled_`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionSummary(MetricsOverSeeds):
    """An option over its seeds; `kl` is in nats.

    Attributes:
        class_weights: name of the class-weight method; `explicit` if weights were given.
        weighting: the method with its parameter, see `LossOption.weighting`.
        weight_ratio: the largest class weight divided by the smallest.
        classes_learned: a number of classes, not a fraction.
        painting_threshold: see `prediction_thresholds`; the name of the field is that in `comparison.json`.
        training: the training settings that the option changes, see `LossOption.training`.
    """

    gamma: float
    class_weights: str
    weighting: str
    weight_ratio: float
    verdict: VerdictName
    reason: str
    healthy: bool
    classes_learned: MeanStd
    kl: MeanStd
    active_units: MeanStd
    painting_threshold: tuple[float | None, ...]
    runs: tuple[RunSummary, ...]
    training: Mapping[str, Setting] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def learned(self) -> bool:
        """Whether every seed trained stably and learned the objects, whatever its accuracy."""
        return Verdict(self.verdict, self.reason).learned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether at least one candidate is healthy."""

    candidates: tuple[str, ...]
    passed: bool
    passed_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedCorpus(CorpusRecord):
    """The corpus of a comparison, with the metrics of predictors other than the trained models.

    Attributes:
        controls: the predictors that the verdict uses besides the shuffled control: `extent`.
        references: simple predictors that are shown beside the options, see
            `bvae.evaluation.measure.references`.
    """

    controls: dict[str, ControlledMetrics]
    references: dict[str, ControlledMetrics]


Schema = Literal[2]
"""Version of `comparison.json`; increment it whenever the fields change."""

LARGE = 24
"""Minimum number of runs of a large session. Its report shows the pictures of only some runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The content of `comparison.json`."""

    schema: Schema = 2
    corpus: ComparedCorpus
    grid_size: int
    training: TrainingConfig
    band: tuple[float, float]
    options: dict[str, OptionSummary]
    gate: Gate
    recommended: str | None
    recommendation: str

    @property
    def is_large(self) -> bool:
        """Whether reports show a map of verdicts, and the pictures of only some runs."""
        return sum(len(option.runs) for option in self.options.values()) >= LARGE

    def training_of(self, option: str) -> TrainingConfig:
        """Return the training settings of an option's runs."""
        return self.training.changed(self.options[option].training)


OptionOutcomes = dict[int, RunResult | str]
RunOutcomes = dict[str, OptionOutcomes]

Outcomes = Mapping[str, Mapping[int, RunResult | str]]
"""By option and seed: the result of the run, or the reason why there is none."""


def compare(
    corpus: CorpusRecord,
    experiment: ExperimentConfig,
    outcomes: Outcomes,
    references: Mapping[str, ControlledMetrics] = MappingProxyType({}),
) -> Comparison:
    """Compare the options that have outcomes; a run without a result counts as a failure.

    Args:
        references: metrics of simple predictors, which are shown beside the options.
    """
    band = experiment.band
    asked = [option for option in experiment.options if outcomes.get(option.name)]
    summaries = {option.name: _summary(option, outcomes[option.name], band, corpus) for option in asked}
    evaluations = [run.metrics for option in summaries.values() for run in option.runs if run.metrics]
    candidates = tuple(option.name for option in asked if option.candidate)
    passed_by = tuple(name for name in candidates if summaries[name].healthy)
    learned = [name for name in candidates if summaries[name].learned]
    recommended = max(learned, key=lambda name: _mean(summaries[name].object_iou), default=None)
    gate = Gate(candidates=candidates, passed=bool(passed_by), passed_by=passed_by)
    recommendation = _recommendation(recommended, gate, summaries, band)
    if undecided := listed([name for name in candidates if _is_undecided(summaries[name])]):
        recommendation += f" This may change: runs of {', '.join(undecided)} are unfinished."
    return Comparison(
        corpus=ComparedCorpus(
            **vars(corpus),
            controls={"extent": evaluations[0].extent} if evaluations else {},
            references=dict(references),
        ),
        grid_size=experiment.size,
        training=experiment.training,
        band=(band.lo, band.hi),
        options=summaries,
        gate=gate,
        recommended=recommended,
        recommendation=recommendation,
    )


def prediction_thresholds(
    counts: Sequence[int], option: LossOption, background: int = 0
) -> tuple[float | None, ...]:
    """Return, for each foreground class c, the value of p_c/(p_c + p_b) above which a cell is predicted as c.

    p_c and p_b are the probabilities of class c and of the background. The prediction that minimizes the
    expected focal loss under class weights w ranks classes by w·p. Therefore, a cell is predicted as c
    instead of background if p_c/p_b > w_b/w_c. This is equivalent to p_c/(p_c + p_b) > w_b/(w_b + w_c).
    The right-hand side is returned; it is 0.5 for equal weights.

    Args:
        counts: `[C]`, cells of each class in the training split.

    Returns: `[C - 1]`, fractions; None for a class that never occurs.
    """
    weights = weights_of_option(option, counts).tolist()
    return tuple(
        weights[background] / (weights[background] + weight) if count else None
        for label, (weight, count) in enumerate(zip(weights, counts, strict=True))
        if label != background
    )


def _summary(
    option: LossOption, runs: Mapping[int, RunResult | str], band: AccuracyBand, corpus: CorpusRecord
) -> OptionSummary:
    summaries = tuple(_run_summary(option.name, seed, runs[seed]) for seed in sorted(runs))
    evaluations = [run.metrics for run in summaries]
    accuracies = [e.pixel_accuracy if e else None for e in evaluations]
    verdict = judge_option([Verdict(run.verdict, run.reason) for run in summaries], accuracies, band)
    weights = weights_of_option(option, corpus.class_counts)

    def over_seeds(metric: str) -> MeanStd:
        return MeanStd.of([attrgetter(metric)(e) if e else None for e in evaluations])

    return OptionSummary(
        gamma=option.gamma,
        class_weights=option.weight_method,
        weighting=option.weighting,
        weight_ratio=weight_ratio(weights),
        verdict=verdict.name,
        reason=verdict.reason,
        healthy=verdict.healthy,
        **{name: over_seeds(name) for name in (*METRICS, "classes_learned", "kl", "active_units")},
        **{f"shuffled_{name}": over_seeds(f"shuffled.{name}") for name in METRICS},
        painting_threshold=prediction_thresholds(corpus.class_counts, option, corpus.background),
        runs=summaries,
        training=option.training,
    )


def _run_summary(option: str, seed: int, outcome: RunResult | str) -> RunSummary:
    path = f"{option}-seed{seed}"
    if isinstance(outcome, str):
        return RunSummary(seed, "incomplete", outcome, None, path)
    return RunSummary(seed, outcome.verdict, outcome.reason, outcome.metrics, path)


def _recommendation(
    recommended: str | None, gate: Gate, options: Mapping[str, OptionSummary], band: AccuracyBand
) -> str:
    """Return sentences on the option to use and why, and on the gate if this option does not pass it."""
    if recommended is not None:
        best = options[recommended]
        rivals = [name for name in gate.candidates if name != recommended and options[name].learned]
        others = listed([f"{name} has {options[name].object_iou}" for name in rivals])
        reason = ""
        if others:
            reason = f", the highest of the stable candidates that break no rule ({', '.join(others)})"
        elif len(gate.candidates) > 1:
            reason = f". {recommended} is the only stable candidate that breaks no rule"
        advice = (
            f"Use option {recommended} (γ = {best.gamma:g}, class weights {best.weighting}). "
            f"Its object IoU is {best.object_iou}{reason}. "
            f"The shuffled control of {recommended} has an object IoU of {best.shuffled_object_iou}."
        )
        if recommended in gate.passed_by:
            return advice
        side = "above" if _mean(best.pixel_accuracy) > band.hi else "below"
        outside = f"The accuracy of {recommended}, {best.pixel_accuracy}, is {side} the band {band}"
        if not gate.passed_by:
            return f"{advice} {outside}, so the gate fails."
        passed = listed([f"{name} with object IoU {options[name].object_iou}" for name in gate.passed_by])
        return f"{advice} {outside}. The gate is passed by {', '.join(passed)}."
    if not gate.candidates:
        return "Nothing can be recommended: no run of a candidate was selected."
    if any(_is_undecided(options[name]) for name in gate.candidates):
        return "Nothing can be recommended yet."
    failed = "Nothing can be recommended: no trained candidate is stable and learned the objects."
    ended = [name for name in gate.candidates if options[name].verdict not in ("incomplete", "diverged")]
    if not ended:
        return failed
    nearest = max(ended, key=lambda name: _nearness(options[name]))
    return f"{failed} The nearest miss is {nearest} ({words(options[nearest].verdict)})."


def _is_undecided(option: OptionSummary) -> bool:
    """Return whether runs are incomplete, and every other run is stable and learned the objects."""
    ended = [Verdict(run.verdict, run.reason) for run in option.runs if run.verdict != "incomplete"]
    return option.verdict == "incomplete" and all(verdict.learned for verdict in ended)


def _nearness(option: OptionSummary) -> tuple[int, float]:
    """Return the sort key of an option that failed: verdict, then object IoU; the nearest miss is highest."""
    return SEVERITY[option.verdict], _mean(option.object_iou)


def _mean(value: MeanStd) -> float:
    return value.mean if value.mean is not None else 0.0
