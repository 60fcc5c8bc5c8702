"""When a run met the rules of the verdict, epoch by epoch, and that in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from bvae.judging.verdict import broken_rule
from bvae.records import EpochRecord


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
