"""The baseline is an earlier comparison of the same experiment: read it, check it, and compare with it."""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from collections.abc import Mapping, Sequence, Set
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import scipy
from msgspec import Meta

from bvae.config import MAX_CLASSES, OPTION_NAME, ExperimentConfig, Setting, TrainingConfig
from bvae.judging.comparison import METRICS, Comparison, Schema, prediction_thresholds
from bvae.records import CorpusRecord, MeanStd
from bvae.storage import differences, from_json, printable, read_bounded

BASELINE_FILE = "baseline.json"
"""Name of the copy of the baseline in the session folder; the workers read this copy."""

MAX_BYTES = 16 * 2**20
MAX_OPTIONS = 64

SAME_RESULT = ("device", "checkpoint_every", "checkpoint_every_steps", "keep_checkpoints", "log")
"""Training settings in which a baseline may differ.

Of these, only `device` changes results, because random numbers and rounding differ on a GPU.
"""

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Fingerprint = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
OptionName = Annotated[str, Meta(pattern=rf"^{OPTION_NAME.pattern}\Z")]


COMPARED = [name for name, metric in METRICS.items() if metric.in_baseline]
"""The metrics that are compared."""

if TYPE_CHECKING:
    Scores = object
else:
    Scores = dataclasses.make_dataclass(
        "Scores", [(name, Share | None) for name in COMPARED], frozen=True, kw_only=True
    )
"""The `COMPARED` metrics of a run: fractions, null if there was nothing to count."""


class BaselineError(ValueError):
    """A baseline cannot be used; the message is one line with the baseline and the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineRun:
    """A run of the baseline; `metrics` is null for a run without a result."""

    seed: int
    metrics: Scores | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineOption:
    """An option of the baseline; the fields are those of `bvae.judging.comparison.OptionSummary`."""

    gamma: float
    weighting: Annotated[str, Meta(max_length=64)]
    painting_threshold: Annotated[tuple[Share | None, ...], Meta(max_length=MAX_CLASSES)]
    runs: tuple[BaselineRun, ...]
    training: Mapping[str, Setting] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len({run.seed for run in self.runs}) < len(self.runs):
            raise ValueError("a seed occurs twice; expected each once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineCorpus:
    """The fingerprint of the baseline's corpus, its class counts `[C]` and its background class."""

    fingerprint: Fingerprint
    class_counts: Annotated[tuple[int, ...], Meta(max_length=MAX_CLASSES)]
    background: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """The part of a `comparison.json` that a later comparison needs; other keys are ignored."""

    schema: Schema
    corpus: BaselineCorpus
    grid_size: int
    training: TrainingConfig
    options: Annotated[dict[OptionName, BaselineOption], Meta(max_length=MAX_OPTIONS)]

    def __post_init__(self) -> None:
        for option in self.options.values():
            self.training.changed(option.training)  # raises ConfigError


def read_baseline(path: Path) -> Baseline:
    """Return the baseline in a comparison.json, a session folder, or its `comparison` folder.

    The file is not trusted: its size is bounded, and every field is checked.

    Raises:
        BaselineError: if there is no comparison, or it is damaged.
    """
    try:
        return from_json(read_bounded(_find(path.resolve()), MAX_BYTES), Baseline)
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RuntimeError) as error:  # up to Python 3.12 a loop of links is a RuntimeError
        reason = str(error)
    raise BaselineError(f"--baseline={printable(str(path))} cannot be used: {printable(reason)[:300]}")


def _find(path: Path) -> Path:
    candidates = [path / "comparison.json", path / "comparison/comparison.json"] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():  # not a pipe or a device, which may never end
            return candidate
    expected = "expected a comparison.json, or a session folder or comparison folder that contains one"
    raise BaselineError(f"no comparison found; {expected}")


def comparable_baseline(path: Path, experiment: ExperimentConfig, corpus: CorpusRecord) -> Baseline:
    """Return a baseline that is comparable with an experiment on a corpus.

    Raises:
        BaselineError: if the baseline cannot be read, or was measured with other settings.
    """
    baseline = read_baseline(path)
    if changes := incomparable(baseline, experiment, corpus):
        raise BaselineError(
            f"--baseline={printable(str(path))} is not comparable: {'; '.join(changes)}; "
            "expected the same corpus, grid size, training settings and options"
        )
    return baseline


def incomparable(baseline: Baseline, experiment: ExperimentConfig, corpus: CorpusRecord) -> list[str]:
    """Return the differences between a baseline and an experiment in settings that affect results.

    Seeds, the accuracy band and the settings in `SAME_RESULT` may differ. Options that only one side has are
    skipped, but both sides must share at least one option.
    """
    shared = [option for option in experiment.options if option.name in baseline.options]
    if not shared:
        return [f"it has none of the options {','.join(option.name for option in experiment.options)}"]
    now = _identity(corpus, experiment.size)
    then = _identity(baseline.corpus, baseline.grid_size)
    for new in shared:
        old = baseline.options[new.name]
        changed = {*new.training, *old.training}
        now |= _of_option(new.name, experiment.training.changed(new.training), changed)
        then |= _of_option(new.name, baseline.training.changed(old.training), changed)
        thresholds = prediction_thresholds(corpus.class_counts, new, corpus.background)
        now |= _loss(new.name, new.gamma, new.weighting, thresholds)
        then |= _loss(new.name, old.gamma, old.weighting, old.painting_threshold)
    return [change[:200] for change in differences(now, then)]


def _loss(
    name: str, gamma: float, weighting: str, thresholds: Sequence[float | None]
) -> dict[str, float | str]:
    if weighting == "explicit":  # thresholds give the ratios of the weights, the corpus gives their scale
        known = (f"{threshold:.6g}" for threshold in thresholds if threshold is not None)
        weighting = f"explicit, with prediction thresholds {' '.join(known)}"
    return {f"gamma of {name}": gamma, f"class weights of {name}": weighting}


def _identity(corpus: CorpusRecord | BaselineCorpus, grid_size: int) -> dict[str, Any]:
    identity = {"corpus fingerprint": corpus.fingerprint, "classes": len(corpus.class_counts)}
    return identity | {"background": corpus.background, "grid_size": grid_size}


def _of_option(option: str, training: TrainingConfig, changed: Set[str]) -> dict[str, Any]:
    """Return an option's training settings by name; names in `changed` get the option's name added."""
    kept = {name: value for name, value in vars(training).items() if name not in SAME_RESULT}
    return {f"{name} of {option}" if name in changed else name: value for name, value in kept.items()}


DIFFERENCE_HEADINGS = ("option", "metric", "baseline", "now", "difference", "95 % interval", "in words")

CAPTION = (
    "Difference: the mean over seeds now, minus the mean over seeds in the baseline. Its 95 % confidence "
    "interval is by Welch's t-test, for unequal variances. Better or worse: the whole interval is above or "
    "below 0. If nothing changed, one comparison in forty is still worse by chance. Cannot tell: a side has "
    "fewer than two seeds, or a number is undefined."
)

CONFIDENCE = 0.95

Judgement = Literal["better", "worse", "no difference beyond noise", "cannot tell"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of one metric of one option from the baseline. Metrics are fractions.

    Attributes:
        mean: now − baseline, None if a number is undefined.
        interval: the 95 % confidence interval of `mean`; None if a side has fewer than two seeds or a number
            is undefined.
    """

    option: str
    metric: str
    baseline: MeanStd
    now: MeanStd
    mean: float | None
    interval: tuple[float, float] | None

    @property
    def judgement(self) -> Judgement:
        """Position of the interval relative to 0, in words."""
        if self.interval is None:
            return "cannot tell"
        low, high = self.interval
        return "better" if low > 0.0 else "worse" if high < 0.0 else "no difference beyond noise"


def compare_with(baseline: Baseline | None, comparison: Comparison) -> tuple[Difference, ...]:
    """Return the difference in each metric for each option of either side; empty without a baseline."""
    if baseline is None:
        return ()
    found: list[Difference] = []
    for name in {**comparison.options, **baseline.options}:
        sides = (baseline.options.get(name), comparison.options.get(name))
        old, new = ([run.metrics for run in option.runs] if option else [] for option in sides)
        for metric in COMPARED:
            then, now = ([getattr(scores, metric, None) for scores in side] for side in (old, new))
            found.append(difference(name, metric, then, now))
    return tuple(found)


def difference(
    option: str, metric: str, baseline: Sequence[float | None], now: Sequence[float | None]
) -> Difference:
    """Return the difference in one metric of one option.

    Args:
        baseline, now: one value per seed, None if undefined.
    """
    old, new = ([value for value in side if value is not None] for side in (baseline, now))
    defined = len(old) == len(baseline) and len(new) == len(now) and bool(old) and bool(new)
    mean = None
    if defined:  # exact fractions, so that equal means have a difference of 0
        mean = float(statistics.mean(map(Fraction, new)) - statistics.mean(map(Fraction, old)))
    return Difference(
        option=option,
        metric=metric,
        baseline=MeanStd.of(baseline),
        now=MeanStd.of(now),
        mean=mean,
        interval=welch_interval(old, new) if defined and min(len(old), len(new)) > 1 else None,
    )


def welch_interval(baseline: Sequence[float], now: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of mean(now) − mean(baseline), for unequal variances (Welch 1947).

    If neither side has variance, the interval is a single point.

    Args:
        baseline, now: one value per seed, two or more on each side.
    """
    if len(set(baseline)) == len(set(now)) == 1:
        return (now[0] - baseline[0],) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # raised for nearly equal values
        # SciPy loads `stats` at first use, which takes a second.
        test = scipy.stats.ttest_ind(sorted(now), sorted(baseline), equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return float(low), float(high)


def difference_rows(found: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Return the rows of the table of differences as text; its headings are `DIFFERENCE_HEADINGS`."""
    return [
        (
            *(each.option, METRICS[each.metric].heading, str(each.baseline), str(each.now)),
            "undefined" if each.mean is None else f"{each.mean:+.4f}",
            "undefined" if each.interval is None else _interval(each.interval),
            each.judgement,
        )
        for each in found
    ]


def explain_regressions(found: Sequence[Difference]) -> str:
    """Return a text on the metrics that are worse than in the baseline; empty if there are none."""
    worse = [
        f"{METRICS[each.metric].heading} of {each.option} was {each.baseline} and is {each.now}, "
        f"a difference of {each.mean:+.4f} (95 % interval {_interval(each.interval)})"
        for each in found
        if each.judgement == "worse" and each.interval is not None
    ]
    return (
        f"worse than the baseline by more than the noise between the seeds: {'; '.join(worse)}"
        if worse
        else ""
    )


def _interval(bounds: tuple[float, float]) -> str:
    return " to ".join(f"{bound:+.4f}" for bound in bounds)
