"""From evidence to a verdict: did a run train stably, and did its model learn the objects?

Accuracy alone proves nothing: on a corpus that is 75 % background, painting only background scores 75 %.
So the band is judged last, after the loss was stable, foreground was painted, and painted by looking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from bvae.config import AccuracyBand
from bvae.metrics import Evaluation, mean_and_sd
from bvae.records import Divergence, EpochRecord

VerdictName = Literal[
    "incomplete",
    "diverged",
    "unstable",
    "mode_collapse",
    "posterior_collapse",
    "below_band",
    "above_band",
    "healthy",
]
"""Worst first. `incomplete` is what a run is called that did not finish, so that nothing can be said."""

REBOUND = 0.05
"""An epoch's training loss may exceed the best before it by this fraction."""

PAINTED = 0.25
"""Below this share of the true foreground rate a model paints background only."""

GAIN = 0.10
"""Foreground recall must lose this much when the latents are shuffled."""

SEVERITY = {name: rank for rank, name in enumerate(get_args(VerdictName))}


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
        return SEVERITY[self.name] > SEVERITY["posterior_collapse"]


def judge_run(history: Sequence[EpochRecord], divergence: Divergence | None, band: AccuracyBand) -> Verdict:
    """The verdict on one run from its epoch records; the first rule that matches wins.

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
    return (
        _instability([record.train.loss for record in history])
        or _collapse(history[-1].validation)
        or judge_accuracy(history[-1].validation.pixel_accuracy, band)
    )


def judge_accuracy(accuracy: float | None, band: AccuracyBand) -> Verdict:
    """Where the pixel accuracy of a stable model that learned the objects lies."""
    if accuracy is None:
        raise ValueError("accuracy is undefined; expected a number, since there are cells to count")
    position: VerdictName = (
        "healthy" if accuracy in band else "below_band" if accuracy < band.lo else "above_band"
    )
    where = {"healthy": "within", "below_band": "below", "above_band": "above"}[position]
    return Verdict(position, f"stable, objects learned, accuracy {accuracy:.3f} {where} the band {band}")


def judge_option(
    verdicts: Sequence[Verdict], accuracies: Sequence[float | None], band: AccuracyBand
) -> Verdict:
    """The verdict on an option over its seeds: its worst failure or, without one, the mean accuracy."""
    if not verdicts:
        return Verdict("incomplete", "no run of this option was selected")
    failures = [verdict for verdict in verdicts if not verdict.learned]
    if failures:
        worst = min(failures, key=lambda verdict: SEVERITY[verdict.name])
        count = sum(verdict.name == worst.name for verdict in failures)
        return Verdict(worst.name, f"{count} of {len(verdicts)} seeds, the first: {worst.reason}")
    mean, _ = mean_and_sd(accuracies)
    return judge_accuracy(mean, band)


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


def _collapse(last: Evaluation) -> Verdict | None:
    painted, true = last.predicted_foreground_rate, last.foreground_rate
    recall, shuffled = last.foreground_recall, last.shuffled.foreground_recall
    if painted is None or true is None or recall is None or shuffled is None:
        raise ValueError("foreground metrics are undefined; expected validation grids with foreground")
    if painted < PAINTED * true:
        return Verdict(
            "mode_collapse",
            f"paints {painted:.1%} of cells as foreground where {true:.1%} are "
            f"(less than {PAINTED:.0%} of it); accuracy {last.pixel_accuracy:.3f}, "
            f"of painting background only {last.background_rate:.3f}",
        )
    if recall - shuffled < GAIN:
        return Verdict(
            "posterior_collapse",
            f"foreground recall is {recall:.3f} and still {shuffled:.3f} from another grid's latent "
            f"(gain {recall - shuffled:.3f}, needed {GAIN:.2f}): the decoder paints without looking",
        )
    return None
