"""What is better or worse than in a baseline, as far as the noise of the seeds lets one tell."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from bvae.judging.baseline import Baseline
from bvae.judging.comparison import Comparison
from bvae.records import MeanStd

METRICS = {
    "pixel_accuracy": "accuracy",
    "foreground_iou": "foreground IoU",
    "foreground_recall": "foreground recall",
    "object_iou": "object IoU",
    "object_recall": "object recall",
    "objects_recognised": "objects recognised",
}
"""What is compared; more is better in each."""

DIFFERENCE_HEADINGS = ("option", "metric", "baseline", "now", "difference", "95 % interval", "in words")

CAPTION = (
    "Difference: the mean over seeds now, less that of the baseline, with its 95 % confidence interval by "
    "Welch's t for unequal variances. Better or worse: the whole interval lies above or below 0; of equal "
    "options, one in forty comparisons comes out as worse by chance. Cannot tell: fewer than two seeds on a "
    "side, or an undefined number."
)

CONFIDENCE = 0.95

Judgement = Literal["better", "worse", "no difference beyond noise", "cannot tell"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How a metric of an option differs from the baseline, in fractions.

    Attributes:
        mean: now − baseline, None where a number is undefined.
        interval: its 95 % confidence interval, None where seeds or numbers are lacking.
    """

    option: str
    metric: str
    baseline: MeanStd
    now: MeanStd
    mean: float | None
    interval: tuple[float, float] | None

    @property
    def judgement(self) -> Judgement:
        """The interval in words."""
        if self.interval is None:
            return "cannot tell"
        low, high = self.interval
        if low > 0.0:
            return "better"
        return "worse" if high < 0.0 else "no difference beyond noise"


def compare_with(baseline: Baseline | None, comparison: Comparison) -> tuple[Difference, ...]:
    """The difference in each metric of each option that one of both has; none without a baseline."""
    if baseline is None:
        return ()
    found: list[Difference] = []
    for name in {**comparison.options, **baseline.options}:
        old, new = baseline.options.get(name), comparison.options.get(name)
        old_metrics = [run.metrics for run in old.runs] if old else []
        new_metrics = [run.metrics for run in new.runs] if new else []
        for metric in METRICS:
            then = [getattr(scores, metric, None) for scores in old_metrics]
            now = [getattr(evaluation, metric, None) for evaluation in new_metrics]
            found.append(difference(name, metric, then, now))
    return tuple(found)


def difference(
    option: str, metric: str, baseline: Sequence[float | None], now: Sequence[float | None]
) -> Difference:
    """The difference in one metric of one option, from the value of each seed."""
    old, new = ([value for value in side if value is not None] for side in (baseline, now))
    defined = len(old) == len(baseline) and len(new) == len(now) and bool(old) and bool(new)
    return Difference(
        option=option,
        metric=metric,
        baseline=MeanStd.of(baseline),
        now=MeanStd.of(now),
        mean=mean_difference(old, new) if defined else None,
        interval=welch_interval(old, new) if defined and min(len(old), len(new)) > 1 else None,
    )


def mean_difference(baseline: Sequence[float], now: Sequence[float]) -> float:
    """mean(now) − mean(baseline), rounded once, so that it is 0 exactly where the means are equal."""
    return float(statistics.mean(map(Fraction, now)) - statistics.mean(map(Fraction, baseline)))


def welch_interval(baseline: Sequence[float], now: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of mean(now) − mean(baseline), for unequal variances (Welch 1947).

    Its degrees of freedom are those of Welch and Satterthwaite. Without any variance it is one point.

    Args:
        baseline, now: one value a seed, two or more on each side.
    """
    # Loaded only by those who have a baseline; scipy.stats would take a second longer for this quantile.
    from scipy.special import stdtrit

    centre = mean_difference(baseline, now)
    # `statistics` computes exactly: the variance of equal values is 0, which numpy's need not be.
    old, new = (statistics.variance(side) / len(side) for side in (baseline, now))
    total = old + new
    if total == 0.0:
        return centre, centre
    freedom = 1.0 / ((old / total) ** 2 / (len(baseline) - 1) + (new / total) ** 2 / (len(now) - 1))
    half = float(stdtrit(freedom, (1.0 + CONFIDENCE) / 2.0)) * total**0.5
    return centre - half, centre + half


def difference_rows(found: Sequence[Difference]) -> list[tuple[str, ...]]:
    """The table of differences under `DIFFERENCE_HEADINGS`, a row each, as text."""
    return [
        (
            each.option,
            METRICS[each.metric],
            str(each.baseline),
            str(each.now),
            "undefined" if each.mean is None else f"{each.mean:+.4f}",
            "undefined" if each.interval is None else _interval(each.interval),
            each.judgement,
        )
        for each in found
    ]


def explain_regressions(found: Sequence[Difference]) -> str:
    """The metrics that are worse than in the baseline, with their numbers; empty where none is."""
    worse = [
        f"{METRICS[each.metric]} of {each.option} was {each.baseline} and is {each.now}, a difference of "
        f"{each.mean:+.4f} (95 % interval {_interval(each.interval)})"
        for each in found
        if each.judgement == "worse" and each.interval is not None
    ]
    return f"worse than the baseline beyond the noise of the seeds: {'; '.join(worse)}" if worse else ""


def _interval(bounds: tuple[float, float]) -> str:
    return " to ".join(f"{bound:+.4f}" for bound in bounds)
