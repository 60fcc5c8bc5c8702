"""When a run learned the objects, and whether it kept them: its epochs in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from bvae.records import EpochRecord
from bvae.verdict import broken_rule


class Learning(NamedTuple):
    """The epochs at which things changed, counted from 1; None for what did not happen.

    Attributes:
        first: no rule of the verdict was broken for the first time.
        lost: a rule was broken again, for the rest of the run.
        again: after a rule was broken in between, none was from here on.
    """

    first: int | None
    lost: int | None
    again: int | None


def learning(history: Sequence[EpochRecord]) -> Learning:
    """Return when objects were learned and lost, by the rules of the verdict."""
    learned = [broken_rule(record.validation) is None for record in history]
    if not any(learned):
        return Learning(None, None, None)
    tail = sum(1 for _ in takewhile(lambda state: state == learned[-1], reversed(learned)))
    first, turn = learned.index(True), len(learned) - tail
    return Learning(
        first=history[first].epoch,
        lost=None if learned[-1] else history[turn].epoch,
        again=history[turn].epoch if learned[-1] and turn > first else None,
    )


def tell_learning(history: Sequence[EpochRecord]) -> str:
    """Tell a run in one sentence with its numbers."""
    if not history:
        return "No epoch was completed, so nothing was learned."
    first, lost, again = learning(history)
    if first is None:
        best = max(history, key=lambda record: _number(record.validation.object_iou))
        nearest = f"the nearest was epoch {best.epoch} ({_evidence(best)})"
        return f"The rules of the verdict were never met: {nearest}."
    of = {record.epoch: record for record in history}
    story = f"The rules of the verdict were first met in epoch {first} ({_evidence(of[first])})"
    if lost is not None:
        return f"{story} and broken again in epoch {lost} ({_evidence(of[lost])})."
    if again is not None:
        return (
            f"{story}, broken in between, and met to the end from epoch {again} on ({_evidence(of[again])})."
        )
    return f"{story}{', the last.' if first == history[-1].epoch else ' and met to the end.'}"


def tell_trend(history: Sequence[EpochRecord]) -> str:
    """Say what the last epoch changed; nothing where there was no epoch before it."""
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
