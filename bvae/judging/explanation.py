"""Why an option predicts what it predicts: thresholds, origin of the gradient, confusion of classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bvae.judging.comparison import OptionSummary
from bvae.records import EpochRecord
from bvae.verdict import broken_rule


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What explains an option, over its seeds.

    Attributes:
        thresholds: `[C - 1]`, see `bvae.judging.comparison.painting_threshold`.
        gradient_shares: for each seed by epoch, the part of the gradient that foreground cells have.
        confusion: `[C, C]` validation cells by true class (row) and predicted class (column), last epoch, all
            seeds together; zero where no epoch was completed.
    """

    thresholds: tuple[float | None, ...]
    gradient_shares: tuple[tuple[float | None, ...], ...]
    confusion: npt.NDArray[np.int64]

    @classmethod
    def of(cls, option: OptionSummary, histories: Sequence[Sequence[EpochRecord]]) -> Diagnosis:
        """Gather it from an option's summary and the epoch records of its runs."""
        size = len(option.painting_threshold) + 1
        confusion = np.zeros((size, size), np.int64)
        for history in histories:
            if history:
                confusion += np.array(history[-1].validation.confusion)
        return cls(
            thresholds=option.painting_threshold,
            gradient_shares=tuple(
                tuple(record.validation.foreground_gradient_share for record in history)
                for history in histories
                if history
            ),
            confusion=confusion,
        )

    @property
    def foreground_rate(self) -> float | None:
        """The share of validation cells that are not background."""
        cells = int(self.confusion.sum())
        return float(self.confusion[1:].sum() / cells) if cells else None

    @property
    def last_gradient_share(self) -> float | None:
        """The mean over seeds after the last epoch."""
        last = [share for shares in self.gradient_shares if (share := shares[-1]) is not None]
        return float(np.mean(last)) if last else None


def explain_why(why: Diagnosis) -> tuple[str, str, str]:
    """What the three panels show, a plain sentence each."""
    return _explain_thresholds(why), _explain_gradient(why), _explain_confusion(why)


def describe_why(why: Diagnosis) -> str:
    """The same in one sentence, the text alternative of the picture."""
    return " ".join(explain_why(why)).replace(". ", "; ")


def _explain_thresholds(why: Diagnosis) -> str:
    known = {c: share for c, share in enumerate(why.thresholds, 1) if share is not None}
    if not known:
        return "No foreground class occurs in training."
    rarest, commonest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if known[commonest] - known[rarest] < 1e-6:
        return (
            f"A class is predicted only once it is more than {percent(known[rarest])} likely against the "
            "background, whichever class it is: when in doubt, background wins."
        )
    return (
        f"Class {rarest}, the rarest, is predicted once it is {percent(known[rarest])} likely "
        f"against the background, and class {commonest}, the most frequent, from "
        f"{percent(known[commonest])} on, where an unweighted loss asks for 50 %."
    )


def _explain_gradient(why: Diagnosis) -> str:
    if why.last_gradient_share is None or why.foreground_rate is None:
        return "Where the gradient comes from is not known, as no epoch was completed."
    ratio = why.last_gradient_share / why.foreground_rate if why.foreground_rate else 0.0
    return (
        f"Foreground cells are {percent(why.foreground_rate)} of all and give "
        f"{percent(why.last_gradient_share)} of the loss's gradient after the last epoch: "
        f"each counts {_times(ratio, why.last_gradient_share, why.foreground_rate)}."
    )


def _times(ratio: float, share: float, rate: float) -> str:
    if share >= 1 or rate <= 0 or rate >= 1:
        return f"{ratio:.1f} times its part"
    each = (share / rate) / ((1 - share) / (1 - rate))
    return f"as much as {each:.1f} background cells"


def _explain_confusion(why: Diagnosis) -> str:
    objects, background = why.confusion[1:].sum(), why.confusion[0].sum()
    if not objects or not background:
        return "What is taken for what is not known, as no epoch was completed."
    right, erased = np.diag(why.confusion)[1:].sum() / objects, why.confusion[1:, 0].sum() / objects
    flooded = why.confusion[0, 1:].sum() / background
    return (
        f"Of the object cells {percent(right)} get their class, {percent(erased)} are erased to background "
        f"and {percent(max(0.0, 1 - right - erased))} get another class; {percent(flooded)} of the "
        "background is predicted as foreground."
    )


def percent(share: float) -> str:
    """A share in words, with as many digits as tell something."""
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


class RulesMet(NamedTuple):
    """Epochs, counted from 1; None for what did not happen.

    Attributes:
        first: the first epoch in which no rule was broken.
        lost: the epoch from which on a rule was broken until the end.
        again: the epoch from which on no rule was broken until the end, after one was in between.
    """

    first: int | None
    lost: int | None
    again: int | None


def when_rules_met(history: Sequence[EpochRecord]) -> RulesMet:
    """Return the epochs in which a run began to meet the rules of the verdict, and ceased to."""
    met = [broken_rule(record.validation) is None for record in history]
    if not any(met):
        return RulesMet(None, None, None)
    tail = sum(1 for _ in takewhile(lambda state: state == met[-1], reversed(met)))
    first, turn = met.index(True), len(met) - tail
    return RulesMet(
        first=history[first].epoch,
        lost=None if met[-1] else history[turn].epoch,
        again=history[turn].epoch if met[-1] and turn > first else None,
    )


def describe_rules_met(history: Sequence[EpochRecord]) -> str:
    """Return a sentence on when a run met the rules, with the numbers of those epochs."""
    if not history:
        return "No epoch was completed, so nothing was learned."
    first, lost, again = when_rules_met(history)
    if first is None:
        nearest = max(history, key=lambda record: _number(record.validation.object_iou))
        return (
            "The rules of the verdict were never met: "
            f"the nearest was epoch {nearest.epoch} ({_evidence(nearest)})."
        )
    records = {record.epoch: record for record in history}
    met = f"The rules of the verdict were first met in epoch {first} ({_evidence(records[first])})"
    if lost is not None:
        return f"{met} and broken again in epoch {lost} ({_evidence(records[lost])})."
    if again is not None:
        numbers = _evidence(records[again])
        return f"{met}, broken in between, and met to the end from epoch {again} on ({numbers})."
    return f"{met}{', the last.' if first == history[-1].epoch else ' and met to the end.'}"


def describe_last_epoch(history: Sequence[EpochRecord]) -> str:
    """Return a sentence on what the last epoch changed; empty where there was no epoch before it."""
    if len(history) < 2:
        return ""
    before, last = history[-2].validation, history[-1].validation
    ious = [_number(record.object_iou) for record in (before, last)]
    if not all(map(math.isfinite, ious)):
        return ""
    return (
        f"The last epoch took object IoU from {ious[0]:.3f} to {ious[1]:.3f} and "
        f"validation loss from {before.loss:.4g} to {last.loss:.4g}."
    )


def _evidence(record: EpochRecord) -> str:
    found = record.validation
    if found.object_iou is None or found.object_recall is None:
        return "without objects to judge by"
    return (
        f"object IoU {found.object_iou:.3f}, object recall {found.object_recall:.3f}, "
        f"{found.classes_learned} of {found.classes_present} classes"
    )


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value
