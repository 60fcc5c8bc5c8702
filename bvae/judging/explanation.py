"""Explanations in sentences: why an option predicts what it does, and when its runs met the rules.

`Diagnosis` has prediction thresholds, gradient shares and the confusion of classes, over the seeds of an
option. `describe_rules_met`, `describe_last_epoch`, `describe_end` and `describe_strips` describe runs by
epoch.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, groupby, takewhile, zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bvae.config import AccuracyBand, TrainingConfig
from bvae.judging.comparison import OptionSummary, RunSummary
from bvae.records import EpochRecord, Evaluation, VerdictName
from bvae.verdict import SEVERITY, broken_rule, judge_run, on_plateau, words

MOST_PARTS = 8
"""Maximum number of phases of a run that a sentence lists."""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The evidence that explains the predictions of an option, over its seeds.

    Attributes:
        thresholds: `[C - 1]`, see `bvae.judging.comparison.prediction_thresholds`.
        gradient_shares: for each seed with an epoch, for each epoch, the fraction of the gradient that comes
            from foreground cells of the first validation grids; None if the gradient was zero.
        confusion: `[C, C]` validation cells by true class (row) and predicted class (column), summed over the
            last epochs of all seeds; zero if no epoch was completed.
        background: the background class.
    """

    thresholds: tuple[float | None, ...]
    gradient_shares: tuple[tuple[float | None, ...], ...]
    confusion: npt.NDArray[np.int64]
    background: int = 0

    @classmethod
    def of(
        cls, option: OptionSummary, histories: Sequence[Sequence[EpochRecord]], background: int
    ) -> Diagnosis:
        """Return the evidence in an option's summary and in the epoch records of its runs."""
        evaluations = [[record.validation for record in history] for history in histories if history]
        shape = (len(option.painting_threshold) + 1,) * 2
        return cls(
            thresholds=option.painting_threshold,
            gradient_shares=tuple(tuple(e.foreground_gradient_share for e in run) for run in evaluations),
            confusion=sum((np.array(run[-1].confusion) for run in evaluations), np.zeros(shape, np.int64)),
            background=background,
        )

    @property
    def foreground(self) -> list[int]:
        """The foreground classes `[C - 1]`, in the order of `thresholds`."""
        return [label for label in range(len(self.confusion)) if label != self.background]

    @property
    def foreground_rate(self) -> float | None:
        """Fraction of validation cells that are foreground; None if no epoch was completed."""
        cells = int(self.confusion.sum())
        return float(self.confusion[self.foreground].sum() / cells) if cells else None

    @property
    def last_gradient_share(self) -> float | None:
        """Mean gradient share over seeds after the last epoch; None without an epoch or gradient."""
        last = [share for shares in self.gradient_shares if (share := shares[-1]) is not None]
        return float(np.mean(last)) if last else None


def explain_why(why: Diagnosis) -> tuple[str, str, str]:
    """Return texts on the thresholds, on the gradient and on the confusion."""
    return _explain_thresholds(why), _explain_gradient(why), _explain_confusion(why)


def describe_why(why: Diagnosis) -> str:
    """Return the sentences of `explain_why` as the text alternative of the picture."""
    return " ".join(explain_why(why))


def _explain_thresholds(why: Diagnosis) -> str:
    by_class = zip(why.foreground, why.thresholds, strict=True)
    known = {c: share for c, share in by_class if share is not None}
    if not known:
        return "No foreground class occurs in training."
    lowest, highest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    low, high = percent(known[lowest]), percent(known[highest])
    best = (
        "Let p be the true probabilities of a cell. A model with the lowest possible loss predicts a class "
        "instead of background if p(class) / (p(class) + p(background)) is above the threshold of the class."
    )
    if known[highest] - known[lowest] < 1e-6:
        doubt = ": when in doubt, the model predicts background" if known[lowest] >= 0.5 else ""
        return f"{best} The threshold of every class is {low}{doubt}."
    return (
        f"{best} The lowest threshold is {low}, for class {lowest}; the highest is {high}, for class "
        f"{highest}. Without class weights, every threshold is 50 %."
    )


def _explain_gradient(why: Diagnosis) -> str:
    share, rate = why.last_gradient_share, why.foreground_rate
    if rate is None:
        return "The origin of the gradient is unknown, because no epoch was completed."
    if share is None:
        return "The gradient has no origin, because it was zero after the last epoch."
    ratio = share / rate if rate else 0.0
    if share < 1 and 0 < rate < 1:
        influence = f"as much as {ratio / ((1 - share) / (1 - rate)):.1f} background cells"
    else:
        influence = f"{ratio:.1f} times as much as the average cell"
    return (
        f"Foreground cells are {percent(rate)} of all cells and contribute {percent(share)} of the loss's "
        f"gradient after the last epoch: each counts {influence}."
    )


def _explain_confusion(why: Diagnosis) -> str:
    confusion, back, fore = why.confusion, why.background, why.foreground
    objects, background = int(confusion[fore].sum()), int(confusion[back].sum())
    if why.foreground_rate is None:
        return "The confusion of classes is unknown, because no epoch was completed."
    if not objects or not background:
        lacking = "background" if objects else "foreground"
        return f"The confusion of classes is not described, because no validation cell is {lacking}."
    right, erased = int(np.diag(confusion)[fore].sum()), int(confusion[fore, back].sum())
    flooded = int(confusion[back, fore].sum())
    return (
        f"Of the foreground cells, {percent(right / objects)} are predicted correctly, "
        f"{percent(erased / objects)} as background and {percent((objects - right - erased) / objects)} as "
        f"another class; {percent(flooded / background)} of the background is predicted as foreground."
    )


def percent(share: float) -> str:
    """Return a fraction as a percentage, with one decimal near 0 % and near 100 %."""
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    if 0.9995 <= share < 1:
        return "more than 99.9 %"
    whole = 0.0995 <= share < 0.995 or share in (0, 1)
    return f"{100 * share:.{0 if whole else 1}f} %"


class RulesMet(NamedTuple):
    """When a run met all rules of the verdict: epochs, counted from 1, or None for what did not happen.

    Attributes:
        first: the first epoch in which the rules were met.
        lost: the epoch from which the rules were broken to the end, after they had been met.
        again: the epoch from which the rules were met to the end, after they had been broken.
    """

    first: int | None
    lost: int | None
    again: int | None


def when_rules_met(history: Sequence[EpochRecord]) -> RulesMet:
    """Return the epochs in which a run began and ceased to meet the rules of the verdict."""
    met = [broken_rule(record.validation) is None for record in history]
    if not any(met):
        return RulesMet(None, None, None)
    tail = sum(1 for _ in takewhile(lambda state: state == met[-1], reversed(met)))
    first, turn = history[met.index(True)].epoch, history[len(met) - tail].epoch
    if not met[-1]:
        return RulesMet(first, lost=turn, again=None)
    return RulesMet(first, lost=None, again=turn if turn > first else None)


def describe_rules_met(history: Sequence[EpochRecord]) -> str:
    """Return a sentence on the epochs in which a run met the rules, with the metrics after these epochs."""
    if not history:
        return "No epoch was completed, so nothing was learned."
    first, lost, again = when_rules_met(history)
    numbers = {record.epoch: f"({_evidence(record.validation)})" for record in history}
    if first is None:
        nearest = max(history, key=lambda record: record.validation.object_iou or 0.0).epoch
        best = f"Object IoU was highest in epoch {nearest} {numbers[nearest]}."
        return f"The rules of the verdict were never met. {best}"
    met = f"The rules of the verdict were first met in epoch {first} {numbers[first]}"
    if lost is not None:
        return f"{met} and not met from epoch {lost} {numbers[lost]} to the end."
    if again is not None:
        return f"{met}, then broken, and met from epoch {again} {numbers[again]} to the end."
    return f"{met}{', the last epoch.' if first == history[-1].epoch else ' and met to the end.'}"


def describe_last_epoch(history: Sequence[EpochRecord]) -> str:
    """Return a sentence on what the last epoch changed; empty if it or the one before has no object IoU."""
    if len(history) < 2:
        return ""
    before, last = history[-2].validation, history[-1].validation
    if before.object_iou is None or last.object_iou is None:
        return ""
    return (
        f"The last epoch changed object IoU from {before.object_iou:.3f} to {last.object_iou:.3f} and "
        f"validation loss from {before.loss:.4g} to {last.loss:.4g}."
    )


def how_it_ended(history: Sequence[EpochRecord], training: TrainingConfig) -> str:
    """Return "plateau" or "limit"; empty if training did not end, or had no `until_plateau`."""
    if not training.until_plateau:
        return ""
    return "plateau" if on_plateau(history, training) else "limit" * (len(history) == training.epochs)


def in_epochs(count: int) -> str:
    """Return a number of epochs in words, such as "1 epoch" or "5 epochs"."""
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def describe_end(history: Sequence[EpochRecord], training: TrainingConfig) -> str:
    """Return sentences on why training ended; empty without `until_plateau`, or without an epoch."""
    if not training.until_plateau or not history:
        return ""
    last, best = len(history), min(history, key=lambda record: record.validation.loss)
    why = {
        "plateau": f"ended after epoch {last}, on a plateau: in {in_epochs(training.until_plateau)} the "
        "validation loss reached no new low",
        "limit": f"ended after epoch {last}, the limit, before the validation loss reached a plateau",
        "": f"stopped after epoch {last}, before a plateau or the limit of {in_epochs(training.epochs)}",
    }[how_it_ended(history, training)]
    return f"Training {why}. The lowest validation loss is {best.validation.loss:.4g} in epoch {best.epoch}."


class Strip(NamedTuple):
    """The verdicts on a run over its epochs.

    Attributes:
        verdicts: see `verdicts_by_epoch`.
        end: why training ended, see `how_it_ended`.
    """

    verdicts: Mapping[int, VerdictName]
    end: str = ""


def verdicts_by_epoch(
    history: Sequence[EpochRecord], verdict: VerdictName, band: AccuracyBand, *, stride: int = 1
) -> dict[int, VerdictName]:
    """Return, by epoch, the verdict on a run as if it had ended after this epoch.

    The keys are epochs, counted from 1: `stride`, 2·`stride` and so on, and the last epoch. An epoch without
    validation foreground has the verdict `incomplete`.

    Args:
        verdict: the verdict on the whole run. If it is `diverged` or `incomplete`, it is also the verdict in
            the epoch that the run did not complete.
    """
    last = len(history) + (verdict in ("diverged", "incomplete"))
    ends = (min(end, last) for end in range(stride, last + stride, stride))
    return {end: _judge_epochs(history[:end], band) if end <= len(history) else verdict for end in ends}


def _judge_epochs(history: Sequence[EpochRecord], band: AccuracyBand) -> VerdictName:
    return judge_run(history, None, band).name if history[-1].validation.foreground_rate else "incomplete"


def describe_strips(strips: Mapping[str, Strip]) -> list[str]:
    """Return a sentence for each group of runs that have the same strip; `strips` are by name of the run."""
    alike: dict[str, list[str]] = {}
    for name, strip in strips.items():
        alike.setdefault(_describe_strip(strip), []).append(name)
    return [f"{', '.join(names)}: {said}." for said, names in alike.items()]


def _describe_strip(strip: Strip) -> str:
    parts, begin = [], 1
    for verdict, epochs in groupby(strip.verdicts, strip.verdicts.__getitem__):
        *_, end = epochs
        span = f"epochs {begin} to {end}" if begin < end else f"epoch {end}"
        parts.append(f"{words(verdict)} in {span}")
        begin = end + 1
    if len(parts) > MOST_PARTS:
        parts[MOST_PARTS - 2 : -1] = [f"{len(parts) - MOST_PARTS + 1} more changes"]
    ended = [f"ended by the {strip.end}"] if strip.end else []
    return ", ".join([*parts, *ended]) or "the epochs are unknown"


def _evidence(found: Evaluation) -> str:
    if found.object_iou is None or found.object_recall is None:
        return "without objects to judge by"
    return (
        f"object IoU {found.object_iou:.3f}, object recall {found.object_recall:.3f}, "
        f"{found.classes_learned} of {found.classes_present} classes"
    )


def count_verdicts(runs: Sequence[RunSummary]) -> str:
    """Return the number of runs with each verdict, worst first, such as "88 mode collapse, 2 healthy"."""
    counts = Counter(run.verdict for run in runs)
    return ", ".join(f"{counts[name]} {words(name)}" for name in SEVERITY if counts[name])


def outliers(options: Mapping[str, OptionSummary], most: int) -> list[tuple[RunSummary, str]]:
    """Return at most `most` runs that are unlike the others of their option, each with the reason.

    For each option, these are the first run of each verdict that differs from the option's, and the runs with
    the lowest and the highest object IoU. The options take turns, so that each is represented.
    """
    turns = zip_longest(*(_outliers(option) for option in options.values()))
    return [found for found in chain(*turns) if found is not None][:most]


def _outliers(option: OptionSummary) -> list[tuple[RunSummary, str]]:
    reasons: dict[int, list[str]] = {}
    others = {run.verdict: run.seed for run in reversed(option.runs) if run.verdict != option.verdict}
    for seed in sorted(others.values()):
        reasons[seed] = [f"the option is {words(option.verdict)}"]
    iou = {run.seed: run.metrics.object_iou for run in option.runs if run.metrics}
    known = sorted((value, seed) for seed, value in iou.items() if value is not None)
    if known and known[0][0] < known[-1][0]:
        for name, (_, seed) in (("lowest", known[0]), ("highest", known[-1])):
            reasons.setdefault(seed, []).append(f"{name} object IoU of the option")
    runs = {run.seed: run for run in option.runs}
    return [(runs[seed], "; ".join(texts)) for seed, texts in reasons.items()]
