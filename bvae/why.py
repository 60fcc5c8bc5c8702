"""Why an option paints what it paints: its thresholds, where its gradient comes from, what it confuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from bvae.canvas import (
    EDGE,
    INK,
    TEXT_SIZE,
    Destination,
    pixel_figure,
    save_png,
    title_height,
    title_lines,
    write,
    write_title,
)
from bvae.comparison import OptionSummary
from bvae.panels import LEFT, add_panel, draw_ticks
from bvae.records import EpochRecord

WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 1640, 420, 420
HEADING, FOOT = 76, 74  # pixels above and below a panel, for its heading and its x axis
NUMBER_SIZE = 20
BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito, Color Universal Design
TOLD = 0.05
"""Below this share a cell of the confusion matrix carries no number."""


@dataclasses.dataclass(frozen=True)
class Why:
    """What explains an option, over its seeds.

    Attributes:
        thresholds: `[C - 1]`, see `bvae.comparison.painting_threshold`.
        gradient_shares: for each seed by epoch, the part of the gradient that foreground cells have.
        confusion: `[C, C]` validation cells by true class (row) and painted class (column), last epoch, all
            seeds together; zero where no epoch was completed.
    """

    thresholds: tuple[float | None, ...]
    gradient_shares: tuple[tuple[float | None, ...], ...]
    confusion: npt.NDArray[np.int64]

    @classmethod
    def of(cls, option: OptionSummary, histories: Sequence[Sequence[EpochRecord]]) -> Why:
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


def explain_why(why: Why) -> tuple[str, str, str]:
    """What the three panels show, a plain sentence each."""
    return _explain_thresholds(why), _explain_gradient(why), _explain_confusion(why)


def describe_why(why: Why) -> str:
    """The same in one sentence, the text alternative of the picture."""
    return " ".join(explain_why(why)).replace(". ", "; ")


def _explain_thresholds(why: Why) -> str:
    known = {c: share for c, share in enumerate(why.thresholds, 1) if share is not None}
    if not known:
        return "No foreground class occurs in training."
    rarest, commonest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if known[commonest] - known[rarest] < 1e-6:
        return (
            f"A cell is painted only once a class is more than {_percent(known[rarest])} likely against the "
            "background, whichever the class: when in doubt, background wins."
        )
    return (
        f"A cell is painted with class {rarest}, the rarest, once that is {_percent(known[rarest])} likely "
        f"against the background, and with class {commonest}, the most frequent, from "
        f"{_percent(known[commonest])} on, where an unweighted loss asks for 50 %."
    )


def _explain_gradient(why: Why) -> str:
    if why.last_gradient_share is None or why.foreground_rate is None:
        return "Where the gradient comes from is not known, as no epoch was completed."
    ratio = why.last_gradient_share / why.foreground_rate if why.foreground_rate else 0.0
    return (
        f"Foreground cells are {_percent(why.foreground_rate)} of all and give "
        f"{_percent(why.last_gradient_share)} of the loss's gradient after the last epoch: "
        f"each counts {_times(ratio, why.last_gradient_share, why.foreground_rate)}."
    )


def _times(ratio: float, share: float, rate: float) -> str:
    if share >= 1 or rate <= 0 or rate >= 1:
        return f"{ratio:.1f} times its part"
    each = (share / rate) / ((1 - share) / (1 - rate))
    return f"as much as {each:.1f} background cells"


def _explain_confusion(why: Why) -> str:
    objects, background = why.confusion[1:].sum(), why.confusion[0].sum()
    if not objects or not background:
        return "What is taken for what is not known, as no epoch was completed."
    right, erased = np.diag(why.confusion)[1:].sum() / objects, why.confusion[1:, 0].sum() / objects
    flooded = why.confusion[0, 1:].sum() / background
    return (
        f"Of the object cells {_percent(right)} get their class, {_percent(erased)} are erased to background "
        f"and {_percent(max(0.0, 1 - right - erased))} get another class; {_percent(flooded)} of the "
        "background is painted over."
    )


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def plot_why(why: Why, *, path: Destination | None = None, title: str | None = None) -> Figure:
    """Draw what explains an option: thresholds by class, gradient share by epoch, confusion of classes.

    Args:
        path: where the PNG goes, `WIDTH` pixels wide.
        title: the first line becomes a headline.
    """
    lines = title_lines(title, WIDTH - 2 * EDGE)
    top = title_height(lines) + HEADING
    figure, page = pixel_figure(WIDTH, top + PANEL_HEIGHT + FOOT)
    write_title(page, lines)
    panels = (
        ("Likelihood against background\nat which a class is painted", _draw_thresholds, "class"),
        ("Part of the loss's gradient that\ncomes from foreground cells", _draw_gradient, "epoch"),
        ("True class (row) painted as (column),\n% of the row's cells", _draw_confusion, "painted class"),
    )
    for number, (heading, draw, below) in enumerate(panels):
        place, size = (LEFT + number * (PANEL_WIDTH + LEFT), top), (PANEL_WIDTH, PANEL_HEIGHT)
        axes = add_panel(page, place, size, heading, heading_size=TEXT_SIZE - 2)
        draw(axes, why)
        draw_ticks(page, axes, below, FOOT - 8)
    save_png(figure, path, describe_why(why))
    return figure


def _draw_thresholds(axes: Axes, why: Why) -> None:
    """A bar for each class; one scale for every option, so that pictures can be compared."""
    classes = range(1, len(why.thresholds) + 1)
    axes.bar(classes, [share or 0.0 for share in why.thresholds], color=BLUE, width=0.7)
    for c, share in zip(classes, why.thresholds, strict=True):
        text = "none" if share is None else f"{100 * share:.{0 if share > 0.0995 else 1}f}"
        write(axes, c, (share or 0.0) + 0.012, text, size=NUMBER_SIZE, width=46, ha="center", va="bottom")
    axes.axhline(0.5, color=INK, linewidth=2, linestyle=(0, (8, 4)))
    look: dict[str, Any] = {"size": NUMBER_SIZE, "color": INK, "ha": "right", "va": "bottom"}
    write(axes, len(classes) + 0.6, 0.56, "dashed: 50 %, without weights", width=PANEL_WIDTH, **look)
    axes.set(xlim=(0.4, len(classes) + 0.6), ylim=(0, 0.65))
    axes.xaxis.set_major_locator(FixedLocator(classes))
    _in_percent(axes)


def _draw_gradient(axes: Axes, why: Why) -> None:
    """A thin line for each seed, a thick one for their mean, and the rate of foreground cells."""
    epochs = max(map(len, why.gradient_shares), default=1)
    table = np.full((len(why.gradient_shares), epochs), np.nan)
    for row, shares in zip(table, why.gradient_shares, strict=True):
        row[: len(shares)] = [np.nan if share is None else share for share in shares]
    known = np.isfinite(table).sum(0)
    mean = np.where(known > 0, np.nansum(table, axis=0) / np.maximum(known, 1), np.nan)
    x = np.arange(1, epochs + 1)
    for row in table if len(table) > 1 else ():
        axes.plot(x, row, color=ORANGE, linewidth=1.2, alpha=0.7)
    if len(table):
        mark = "o" if epochs <= 12 else ""
        axes.plot(x, mean, color=ORANGE, linewidth=3.5, marker=mark, markersize=11, markeredgecolor="white")
    if why.foreground_rate is not None:
        axes.axhline(why.foreground_rate, color=INK, linewidth=2, linestyle=(0, (8, 4)))
    margin = max(0.25, 0.03 * epochs)
    axes.set(xlim=(1 - margin, epochs + margin), ylim=(0, 1.15))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    note = f"dashed: {_percent(why.foreground_rate)} of cells are foreground" if why.foreground_rate else ""
    room = PANEL_WIDTH - 2 * EDGE
    write(axes, epochs + margin, 1.05, note, size=NUMBER_SIZE, width=room, ha="right", va="bottom")
    _in_percent(axes)


def _draw_confusion(axes: Axes, why: Why) -> None:
    """Each row in shares of its sum; darker is more, and what matters carries its number."""
    sums = why.confusion.sum(1, keepdims=True)
    shares = why.confusion / np.maximum(sums, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for row, column in np.argwhere(shares >= TOLD):
        style: dict[str, Any] = {"color": "white" if shares[row, column] > 0.5 else INK, "ha": "center"}
        text = f"{100 * shares[row, column]:.0f}"
        write(axes, column, row, text, size=NUMBER_SIZE - 2, width=40, va="center_baseline", **style)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(range(len(shares))))
    axes.spines[:].set_visible(True)


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
