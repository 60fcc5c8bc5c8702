"""Why an option predicts what it predicts: thresholds, origin of the gradient, confusion of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bvae.judging.comparison import OptionSummary
from bvae.records import EpochRecord


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
