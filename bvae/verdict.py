"""The verdict on a run: whether it trained stably, and whether its model learned the objects.

Accuracy alone proves nothing: if 86 % of the cells are background, a model that predicts only background has
an accuracy of 86 %. Therefore, accuracy is judged last. First, the training loss must be stable, and the
metrics of objects must exceed those of controls, which know nothing about single objects.
`docs/verdicts.md` says how the bounds were chosen.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Callable, Sequence
from typing import Any, get_args

from bvae.config import AccuracyBand, TrainingConfig
from bvae.records import Divergence, EpochRecord, Evaluation, MeanStd, VerdictName

SEVERITY = {name: rank for rank, name in enumerate(get_args(VerdictName))}

REBOUND = 0.05
"""Fraction by which the training loss of an epoch may exceed the lowest loss of the epochs before it."""

FEW_STEPS = 500
STILL_RISING = 0.02
"""Training may be too short with fewer than FEW_STEPS steps, or if foreground recall rose by more than
STILL_RISING in the last epoch."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict, and the reason for it in words and numbers."""

    name: VerdictName
    reason: str

    @property
    def healthy(self) -> bool:
        """Whether the run or option is stable, learned the objects, and has an accuracy within the band."""
        return self.name == "healthy"

    @property
    def learned(self) -> bool:
        """Whether the run or option is stable and learned the objects, whatever its accuracy."""
        return SEVERITY[self.name] > SEVERITY["partial_collapse"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A bound on one number of an evaluation. Every model that learned the objects satisfies it.

    Attributes:
        verdict: the verdict on a model that breaks the bound.
        quantity: name of the number, in words.
        measure: returns the number, or None if there was nothing to count. The rule does not apply to None.
        bound: the lowest allowed value, or the highest if `is_limit`.
        finding: what the model did if the bound is broken: a template with the evaluation `e` as variable.
    """

    verdict: VerdictName
    quantity: str
    measure: Callable[[Evaluation], float | None]
    bound: float
    finding: str
    is_limit: bool = False

    def is_broken(self, evaluation: Evaluation) -> bool:
        """Return whether the number is beyond the bound."""
        value = self.measure(evaluation)
        return value is not None and (value > self.bound if self.is_limit else value < self.bound)

    def explain(self, evaluation: Evaluation) -> str:
        """Return the finding, followed by the measured number and its bound."""
        numbers = f"{self.quantity} {self.measure(evaluation):.3f}, expected {self.requirement}"
        return f"{_Template().format(self.finding, e=evaluation)} ({numbers})"

    @property
    def requirement(self) -> str:
        """Bound in words, such as "at least 0.25"."""
        return f"{'at most' if self.is_limit else 'at least'} {self.bound:g}"


class _Template(string.Formatter):
    """Formats like `str.format`, but shows None as "undefined"."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return "undefined" if value is None else format(value, format_spec)


def _foreground_ratio(e: Evaluation) -> float | None:
    return _quotient(e.predicted_foreground_rate, e.foreground_rate)


def _foreground_gain(e: Evaluation) -> float | None:
    return _max(
        _difference(e.foreground_recall, e.shuffled.foreground_recall),
        _difference(e.foreground_iou, e.shuffled.foreground_iou),
    )


def _object_iou_gain(e: Evaluation) -> float | None:
    return _difference(e.object_iou, _max(e.shuffled.object_iou, e.extent.object_iou))


RULES = (
    Rule(
        "mode_collapse",
        "predicted foreground / true foreground",
        _foreground_ratio,
        0.25,
        "predicts {e.predicted_foreground_rate:.1%} of the cells as foreground, but {e.foreground_rate:.1%} "
        "are foreground; accuracy {e.pixel_accuracy:.3f}, and {e.background_rate:.3f} for predicting only "
        "background",
    ),
    Rule(
        "posterior_collapse",
        "foreground recall or IoU minus that of the shuffled control",
        _foreground_gain,
        0.10,
        "the decoder ignores the latent: from another grid's latent, foreground recall is "
        "{e.shuffled.foreground_recall:.3f} instead of {e.foreground_recall:.3f}, and foreground IoU is "
        "{e.shuffled.foreground_iou:.3f} instead of {e.foreground_iou:.3f}",
    ),
    Rule(
        "flooding",
        "predicted foreground / true foreground",
        _foreground_ratio,
        4.0,
        "predicts {e.predicted_foreground_rate:.1%} of the cells as foreground, but only "
        "{e.foreground_rate:.1%} are foreground",
        is_limit=True,
    ),
    Rule(
        "flooding",
        "background predicted as foreground",
        lambda e: e.flooded_rate,
        0.60,
        "predicts {e.flooded_rate:.1%} of the background as foreground",
        is_limit=True,
    ),
    Rule(
        "partial_collapse",
        "classes learned / classes present",
        lambda e: _quotient(e.classes_learned, e.classes_present),
        0.5,
        "learned {e.classes_learned} of {e.classes_present} foreground classes",
    ),
    Rule(
        "partial_collapse",
        "object IoU minus that of the better control",
        _object_iou_gain,
        0.05,
        "object IoU is {e.object_iou:.3f}; it is {e.shuffled.object_iou:.3f} from another grid's latent, and "
        "{e.extent.object_iou:.3f} for a filled box around the objects",
    ),
    Rule(
        "partial_collapse",
        "object recall",
        lambda e: e.object_recall,
        0.40,
        "only {e.object_recall:.1%} of the objects have at least half of their cells right",
    ),
    Rule(
        "partial_collapse",
        "minor object recall minus that of the shuffled control",
        lambda e: _difference(e.minor_object_recall, e.shuffled.minor_object_recall),
        0.15,
        "{e.minor_object_recall:.1%} of the minor objects have at least half of their cells right, and "
        "{e.shuffled.minor_object_recall:.1%} from another grid's latent; an object is minor if its class is "
        "not the most frequent one among the object cells of its grid",
    ),
)
"""Rules in the order in which they are applied; the first broken rule gives the verdict."""

MEANINGS: dict[VerdictName, str] = {
    "incomplete": "the run did not finish",
    "diverged": "a loss or gradient norm was not finite",
    "unstable": f"the training loss rose by more than {REBOUND:.0%} above its lowest value, or did not fall",
    "mode_collapse": "it predicts less than a quarter of the true number of foreground cells",
    "posterior_collapse": "it ignores the latent: another grid's latent gives nearly the same scores",
    "flooding": "it predicts far too many cells as foreground",
    "partial_collapse": "it predicts foreground, but too few classes or objects are right, or its scores are "
    "hardly above those of a control",
    "below_band": "stable, learned the objects, but the accuracy is below the band",
    "above_band": "stable, learned the objects, but the accuracy is above the band",
    "healthy": "stable, learned the objects, and the accuracy is within the band",
}
"""Meaning of each verdict, worst first; the bounds are in `RULES`."""

SIGNS: dict[VerdictName, str] = {
    "incomplete": "?",
    "diverged": "∞",
    "unstable": "~",
    "mode_collapse": "M",
    "posterior_collapse": "P",
    "flooding": "F",
    "partial_collapse": "½",
    "below_band": "↓",
    "above_band": "↑",
    "healthy": "✔",
}
"""A sign for each verdict, used where many verdicts are shown."""

COLOURS: dict[VerdictName, tuple[str, str]] = {
    "incomplete": ("#EEEEEE", "#000000"),
    "diverged": ("#000000", "#FFFFFF"),
    "unstable": ("#BBBBBB", "#000000"),
    "mode_collapse": ("#E07020", "#000000"),
    "posterior_collapse": ("#E6A800", "#000000"),
    "flooding": ("#D890B8", "#000000"),
    "partial_collapse": ("#F0E442", "#000000"),
    "below_band": ("#8CC8F0", "#000000"),
    "above_band": ("#5AA0D0", "#000000"),
    "healthy": ("#0062A2", "#FFFFFF"),
}
"""The colour of each verdict in reports and pictures, and of text on it. The colours differ in lightness."""


def words(name: str) -> str:
    """Return the name of a verdict for use in a sentence."""
    return name.replace("_", " ")


def judge_run(history: Sequence[EpochRecord], divergence: Divergence | None, band: AccuracyBand) -> Verdict:
    """Return the verdict on a run from its epoch records; the first broken rule gives the verdict.

    Raises:
        ValueError: if there is neither an epoch nor a divergence, or if no validation cell is foreground.
    """
    if divergence is not None:
        terms = ", ".join(f"{name} {value}" for name, value in divergence.terms.items())
        place = f"step {divergence.step} (epoch {divergence.epoch})"
        return Verdict("diverged", f"not finite at {place}: {terms}")
    if not history:
        raise ValueError("history is empty; expected the record of at least one epoch")
    if reason := _instability([record.train.loss for record in history]):
        return Verdict("unstable", reason)
    last = history[-1].validation
    if last.predicted_foreground_rate is None or not last.foreground_rate:
        raise ValueError("foreground metrics are undefined; expected validation grids with foreground")
    if (rule := broken_rule(last)) is not None:
        return Verdict(rule.verdict, rule.explain(last) + _too_short(history, rule))
    return judge_accuracy(last.pixel_accuracy, band)


def on_plateau(history: Sequence[EpochRecord], training: TrainingConfig) -> bool:
    """Return whether training ends after these epochs because the validation loss no longer falls.

    That is so if none of the last `until_plateau` epochs has a lower loss than the best epoch before them.
    Epochs whose last step has less than the full β do not count.
    """
    losses, patience = [e.validation.loss for e in history if e.beta == training.beta], training.until_plateau
    before, recent = losses[:-patience], losses[-patience:]  # with a patience of 0, nothing is before
    return bool(before) and min(before) <= min(recent)


def broken_rule(evaluation: Evaluation) -> Rule | None:
    """Return the first rule that a model breaks, or None for a model that learned the objects."""
    return next((rule for rule in RULES if rule.is_broken(evaluation)), None)


def judge_accuracy(accuracy: float | None, band: AccuracyBand) -> Verdict:
    """Return the verdict on a stable model that learned the objects, from its pixel accuracy.

    Raises:
        ValueError: if the accuracy is undefined.
    """
    if accuracy is None:
        raise ValueError("accuracy is undefined; expected a number, since there are cells to count")
    name: VerdictName = (
        "healthy" if accuracy in band else "below_band" if accuracy < band.lo else "above_band"
    )
    where = "within" if name == "healthy" else name.removesuffix("_band")
    return Verdict(name, f"stable, no rule broken, accuracy {accuracy:.3f} {where} the band {band}")


def judge_option(
    verdicts: Sequence[Verdict], accuracies: Sequence[float | None], band: AccuracyBand
) -> Verdict:
    """Return the worst verdict of failed seeds; without failed seeds, the verdict on the mean accuracy."""
    if not verdicts:
        return Verdict("incomplete", "no run of this option was selected")
    failures = [verdict for verdict in verdicts if not verdict.learned]
    if failures:
        worst = min(failures, key=lambda verdict: SEVERITY[verdict.name])
        count = sum(verdict.name == worst.name for verdict in failures)
        return Verdict(worst.name, f"in {count} of {len(verdicts)} runs; first reason: {worst.reason}")
    return judge_accuracy(MeanStd.of(accuracies).mean, band)


def _instability(losses: Sequence[float]) -> str:
    """Return why the training loss is unstable; an empty text if it is stable."""
    least = itertools.accumulate(losses, min)
    for epoch, (loss, best) in enumerate(zip(losses[1:], least, strict=False), 2):
        if loss > best * (1 + REBOUND):
            return (
                f"training loss rebounded to {loss:.4g} in epoch {epoch}, "
                f"more than {REBOUND:.0%} above its lowest value before, {best:.4g}"
            )
    if len(losses) > 1 and losses[-1] >= losses[0]:
        return f"training loss did not fall: {losses[0]:.4g} in the first epoch, {losses[-1]:.4g} in the last"
    return ""


def _too_short(history: Sequence[EpochRecord], rule: Rule) -> str:
    """Return a remark if too little training, not the loss, may be the cause; else an empty text."""
    if rule.verdict == "flooding":
        return ""
    signs = []
    if (steps := history[-1].step) < FEW_STEPS:
        signs.append(f"the run had {steps} step{'s' * (steps > 1)}")
    if len(history) > 1:
        before, last = (record.validation.foreground_recall for record in history[-2:])
        if (rise := _difference(last, before)) is not None and rise > STILL_RISING:
            signs.append(f"foreground recall still rose by {rise:.3f} in the last epoch")
    return f"; perhaps too little training is the cause, not the loss: {' and '.join(signs)}" if signs else ""


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _quotient(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other


def _max(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)
