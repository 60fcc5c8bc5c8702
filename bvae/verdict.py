"""From evidence to a verdict: did a run train stably, and did its model learn the objects?

Accuracy alone proves nothing: on a corpus that is 86 % background, predicting only background scores 86 %. So
the band is judged last, after the loss was stable and the evidence of objects held against what is scored
without seeing any. Where the thresholds come from: docs/verdicts.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import get_args

from bvae.config import AccuracyBand
from bvae.records import Divergence, EpochRecord, Evaluation, MeanStd, VerdictName

SEVERITY = {name: rank for rank, name in enumerate(get_args(VerdictName))}

REBOUND = 0.05
"""An epoch's training loss may exceed the best before it by this fraction."""

FEW_STEPS = 500
STILL_RISING = 0.02
"""With fewer steps, or a foreground recall that rose by more in the last epoch, training may be too short."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict and the reason for it, a sentence with its numbers."""

    name: VerdictName
    reason: str

    @property
    def healthy(self) -> bool:
        """Stable, learned, and accurate within the band."""
        return self.name == "healthy"

    @property
    def learned(self) -> bool:
        """Stable and learned the objects, whatever the band says."""
        return SEVERITY[self.name] > SEVERITY["partial_collapse"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A number that decides, and the bound that it must keep for a model to have learned the objects.

    Attributes:
        verdict: of a model that does not keep the bound.
        quantity: what the number is, in words.
        measure: the number, None where there was nothing to count; the rule then does not apply.
        bound: the least value that keeps, or the greatest where `is_limit`.
        finding: what a broken bound says of the model, with the numbers behind it.
    """

    verdict: VerdictName
    quantity: str
    measure: Callable[[Evaluation], float | None]
    bound: float
    finding: Callable[[Evaluation], str]
    is_limit: bool = False

    def is_broken(self, evaluation: Evaluation) -> bool:
        """Whether the number is beyond the bound."""
        value = self.measure(evaluation)
        if value is None:
            return False
        return value > self.bound if self.is_limit else value < self.bound

    @property
    def requirement(self) -> str:
        """The bound in words, such as "at least 0.25"."""
        return f"{'at most' if self.is_limit else 'at least'} {self.bound:g}"


def _foreground_ratio(e: Evaluation) -> float | None:
    return _quotient(e.predicted_foreground_rate, e.foreground_rate)


def _gain(e: Evaluation) -> float | None:
    gains = [
        _difference(e.foreground_recall, e.shuffled.foreground_recall),
        _difference(e.foreground_iou, e.shuffled.foreground_iou),
    ]
    return max((gain for gain in gains if gain is not None), default=None)


def _object_iou_gain(e: Evaluation) -> float | None:
    controls = (e.shuffled.object_iou, e.extent.object_iou)
    return _difference(e.object_iou, max((iou for iou in controls if iou is not None), default=None))


RULES = (
    Rule(
        "mode_collapse",
        "predicted foreground / true foreground",
        _foreground_ratio,
        0.25,
        lambda e: (
            f"predicts {e.predicted_foreground_rate:.1%} of cells as foreground where "
            f"{e.foreground_rate:.1%} are; accuracy {_text(e.pixel_accuracy)}, of predicting background only "
            f"{_text(e.background_rate)}"
        ),
    ),
    Rule(
        "posterior_collapse",
        "foreground recall or IoU above its shuffled control",
        _gain,
        0.10,
        lambda e: (
            f"from another grid's latent foreground recall is {_text(e.shuffled.foreground_recall)} instead "
            f"of {_text(e.foreground_recall)} and foreground IoU {_text(e.shuffled.foreground_iou)} instead "
            f"of {_text(e.foreground_iou)}: the decoder predicts without looking"
        ),
    ),
    Rule(
        "flooding",
        "predicted foreground / true foreground",
        _foreground_ratio,
        4.0,
        lambda e: (
            f"predicts {e.predicted_foreground_rate:.1%} of cells as foreground where "
            f"{e.foreground_rate:.1%} are"
        ),
        is_limit=True,
    ),
    Rule(
        "flooding",
        "background predicted as foreground",
        lambda e: e.flooded_rate,
        0.60,
        lambda e: f"predicts {e.flooded_rate:.1%} of the background as foreground",
        is_limit=True,
    ),
    Rule(
        "partial_collapse",
        "classes learned / classes present",
        lambda e: _quotient(e.classes_learned, e.classes_present),
        0.5,
        lambda e: f"learned {e.classes_learned} of {e.classes_present} foreground classes",
    ),
    Rule(
        "partial_collapse",
        "object IoU above the larger of its controls",
        _object_iou_gain,
        0.05,
        lambda e: (
            f"object IoU is {_text(e.object_iou)}, where another grid's latent gives "
            f"{_text(e.shuffled.object_iou)} and the extent of the objects in one class "
            f"{_text(e.extent.object_iou)}"
        ),
    ),
    Rule(
        "partial_collapse",
        "object recall",
        lambda e: e.object_recall,
        0.40,
        lambda e: f"only {_text(e.object_recall)} of the objects have half of their cells right",
    ),
    Rule(
        "partial_collapse",
        "minor object recall above its shuffled control",
        lambda e: _difference(e.minor_object_recall, e.shuffled.minor_object_recall),
        0.15,
        lambda e: (
            f"of the objects that are not of their grid's main object class only "
            f"{_text(e.minor_object_recall)} have half of their cells right, and "
            f"{_text(e.shuffled.minor_object_recall)} from another grid's latent"
        ),
    ),
)
"""In the order in which they are applied; the first that is broken gives the verdict."""

MEANINGS: dict[VerdictName, str] = {
    "incomplete": "the run did not finish",
    "diverged": "a loss or gradient norm was not finite",
    "unstable": f"an epoch's training loss rebounded by more than {REBOUND:.0%}, or did not fall at all",
    "mode_collapse": "it predicts less than a quarter of the foreground there is",
    "posterior_collapse": "it predicts nearly as well from another grid's latent: the decoder does not look",
    "flooding": "it predicts foreground nearly everywhere",
    "partial_collapse": "some objects are there, but too few classes, too few objects, or only the main one",
    "below_band": "stable, learned, but the accuracy is below the band",
    "above_band": "stable, learned, but the accuracy is above the band",
    "healthy": "stable, learned, and accurate within the band",
}
"""What each verdict says, worst first; numbers that decide are in `RULES`."""


def judge_run(history: Sequence[EpochRecord], divergence: Divergence | None, band: AccuracyBand) -> Verdict:
    """Return the verdict on one run from its epoch records; the first rule that is broken gives it.

    Raises:
        ValueError: where there is no epoch to judge and no divergence to blame.
    """
    if divergence is not None:
        terms = ", ".join(f"{name} {value}" for name, value in divergence.terms.items())
        return Verdict(
            "diverged", f"not finite at step {divergence.step} (epoch {divergence.epoch}): {terms}"
        )
    if not history:
        raise ValueError("history is empty; expected the record of at least one epoch")
    if (unstable := _instability([record.train.loss for record in history])) is not None:
        return unstable
    last = history[-1].validation
    if last.predicted_foreground_rate is None or not last.foreground_rate:
        raise ValueError("foreground metrics are undefined; expected validation grids with foreground")
    if (rule := broken_rule(last)) is not None:
        numbers = f"{rule.quantity} {rule.measure(last):.3f}, expected {rule.requirement}"
        return Verdict(rule.verdict, f"{rule.finding(last)} ({numbers}){_too_short(history, rule)}")
    return judge_accuracy(last.pixel_accuracy, band)


def broken_rule(evaluation: Evaluation) -> Rule | None:
    """Return the first rule that a model breaks, None for a model that learned."""
    return next((rule for rule in RULES if rule.is_broken(evaluation)), None)


def judge_accuracy(accuracy: float | None, band: AccuracyBand) -> Verdict:
    """Return where the pixel accuracy of a stable model that learned the objects lies."""
    if accuracy is None:
        raise ValueError("accuracy is undefined; expected a number, since there are cells to count")
    position: VerdictName = (
        "healthy" if accuracy in band else "below_band" if accuracy < band.lo else "above_band"
    )
    where = {"healthy": "within", "below_band": "below", "above_band": "above"}[position]
    return Verdict(position, f"stable, no rule broken, accuracy {accuracy:.3f} {where} the band {band}")


def judge_option(
    verdicts: Sequence[Verdict], accuracies: Sequence[float | None], band: AccuracyBand
) -> Verdict:
    """Return the verdict on an option: the worst failure of a seed or, without one, by the mean accuracy."""
    if not verdicts:
        return Verdict("incomplete", "no run of this option was selected")
    failures = [verdict for verdict in verdicts if not verdict.learned]
    if failures:
        worst = min(failures, key=lambda verdict: SEVERITY[verdict.name])
        count = sum(verdict.name == worst.name for verdict in failures)
        return Verdict(worst.name, f"{count} of {len(verdicts)} seeds, the first: {worst.reason}")
    return judge_accuracy(MeanStd.of(accuracies).mean, band)


def _instability(losses: Sequence[float]) -> Verdict | None:
    for epoch in range(1, len(losses)):
        best = min(losses[:epoch])
        if losses[epoch] > best * (1 + REBOUND):
            return Verdict(
                "unstable",
                f"training loss rebounded to {losses[epoch]:.4g} in epoch {epoch + 1}, "
                f"more than {REBOUND:.0%} above the {best:.4g} reached before",
            )
    if len(losses) > 1 and losses[-1] >= losses[0]:
        return Verdict(
            "unstable", f"training loss did not fall: {losses[0]:.4g} at first, {losses[-1]:.4g} at last"
        )
    return None


def _too_short(history: Sequence[EpochRecord], rule: Rule) -> str:
    """A remark where the training may be at fault rather than the loss, else nothing."""
    if rule.verdict == "flooding":
        return ""
    signs = []
    if (steps := history[-1].step) < FEW_STEPS:
        signs.append(f"it had {steps} steps")
    if len(history) > 1:
        before, last = (record.validation.foreground_recall for record in history[-2:])
        rise = _difference(last, before)
        if rise is not None and rise > STILL_RISING:
            signs.append(f"foreground recall still rose by {rise:.3f} in the last epoch")
    return f"; perhaps too little training rather than the loss: {' and '.join(signs)}" if signs else ""


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _quotient(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
