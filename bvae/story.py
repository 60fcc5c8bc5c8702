"""When a run learned the objects, and whether it kept them: its epochs in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from bvae.records import EpochRecord
from bvae.verdict import GAIN


class Learning(NamedTuple):
    """The epochs at which things changed, counted from 1; None for what did not happen.

    Attributes:
        first: the objects were learned for the first time.
        lost: they were lost, for the rest of the run.
        again: after they were lost in between, they were learned to stay.
    """

    first: int | None
    lost: int | None
    again: int | None


def gain(record: EpochRecord) -> float | None:
    """Validation foreground recall minus its shuffled control, a fraction; None where undefined."""
    recall, shuffled = record.validation.foreground_recall, record.validation.shuffled.foreground_recall
    return None if recall is None or shuffled is None else recall - shuffled


def learning(history: Sequence[EpochRecord]) -> Learning:
    """When objects were learned and lost; learned means a gain of at least `GAIN`."""
    learned = [(value := gain(record)) is not None and value >= GAIN for record in history]
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
    """The story of a run in one sentence with its numbers."""
    if not history:
        return "No epoch was completed, so nothing was learned."
    first, lost, again = learning(history)
    if first is None:
        best = max(history, key=lambda record: _number(gain(record)))
        return f"Objects were never learned: the nearest was epoch {best.epoch} ({_evidence(best)})."
    of = {record.epoch: record for record in history}
    story = f"Objects were first learned in epoch {first} ({_evidence(of[first])})"
    if lost is not None:
        return f"{story} and lost again in epoch {lost} ({_evidence(of[lost])})."
    if again is not None:
        return f"{story}, lost in between, and learned to stay in epoch {again} ({_evidence(of[again])})."
    return f"{story}{', the last.' if first == history[-1].epoch else ' and kept to the end.'}"


def tell_trend(history: Sequence[EpochRecord]) -> str:
    """What the last epoch changed, a sentence; nothing where there was no epoch before it."""
    if len(history) < 2:
        return ""
    before, last = history[-2].validation, history[-1].validation
    recalls = [_number(record.foreground_recall) for record in (before, last)]
    if not all(map(math.isfinite, recalls)):
        return ""
    return (
        f"The last epoch took foreground recall from {recalls[0]:.3f} to {recalls[1]:.3f} and "
        f"validation loss from {before.loss:.4g} to {last.loss:.4g}."
    )


def _evidence(record: EpochRecord) -> str:
    value = gain(record)
    if value is None:
        return "foreground recall undefined"
    return (
        f"foreground recall {record.validation.foreground_recall:.3f}, "
        f"from another grid's latent {record.validation.shuffled.foreground_recall:.3f}"
    )


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value
