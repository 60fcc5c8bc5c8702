"""The picture of why an option paints what it paints."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from bvae.canvas import (
    EDGE,
    TEXT_SIZE,
    Destination,
    pixel_figure,
    save_png,
    title_height,
    title_lines,
    write_title,
)
from bvae.lettering import INK, write
from bvae.palette import colour_of
from bvae.panels import LEFT, add_panel, draw_ticks
from bvae.why import Why, describe_why, percent

WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 1640, 420, 420
HEADING, FOOT = 76, 74  # pixels above and below a panel, for its heading and its x axis
NUMBER_SIZE = 20
TOLD = 0.05
"""Below this share a cell of the confusion matrix carries no number."""


def plot_why(
    why: Why, *, colour: str = colour_of(0), path: Destination | None = None, title: str | None = None
) -> Figure:
    """Draw what explains an option: thresholds by class, gradient share by epoch, confusion of classes.

    Args:
        colour: of the option.
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
        draw(axes, why, colour)
        draw_ticks(page, axes, below, FOOT - 8)
    save_png(figure, path, describe_why(why))
    return figure


def _draw_thresholds(axes: Axes, why: Why, colour: str) -> None:
    """A bar for each class; one scale for every option, so that pictures can be compared."""
    classes = range(1, len(why.thresholds) + 1)
    axes.bar(classes, [share or 0.0 for share in why.thresholds], color=colour, width=0.7)
    for c, share in zip(classes, why.thresholds, strict=True):
        text = "none" if share is None else f"{100 * share:.{0 if share > 0.0995 else 1}f}"
        write(axes, c, (share or 0.0) + 0.012, text, size=NUMBER_SIZE, width=46, ha="center", va="bottom")
    axes.axhline(0.5, color=INK, linewidth=2, linestyle=(0, (8, 4)))
    look: dict[str, Any] = {"size": NUMBER_SIZE, "color": INK, "ha": "right", "va": "bottom"}
    write(axes, len(classes) + 0.6, 0.56, "dashed: 50 %, without weights", width=PANEL_WIDTH, **look)
    axes.set(xlim=(0.4, len(classes) + 0.6), ylim=(0, 0.65))
    axes.xaxis.set_major_locator(FixedLocator(classes))
    _in_percent(axes)


def _draw_gradient(axes: Axes, why: Why, colour: str) -> None:
    """A thin line for each seed, a thick one for their mean, and the rate of foreground cells."""
    epochs = max(map(len, why.gradient_shares), default=1)
    table = np.full((len(why.gradient_shares), epochs), np.nan)
    for row, shares in zip(table, why.gradient_shares, strict=True):
        row[: len(shares)] = [np.nan if share is None else share for share in shares]
    known = np.isfinite(table).sum(0)
    mean = np.where(known > 0, np.nansum(table, axis=0) / np.maximum(known, 1), np.nan)
    x = np.arange(1, epochs + 1)
    for row in table if len(table) > 1 else ():
        axes.plot(x, row, color=colour, linewidth=1.2, alpha=0.7)
    if len(table):
        mark = "o" if epochs <= 12 else ""
        axes.plot(x, mean, color=colour, linewidth=3.5, marker=mark, markersize=11, markeredgecolor="white")
    if why.foreground_rate is not None:
        axes.axhline(why.foreground_rate, color=INK, linewidth=2, linestyle=(0, (8, 4)))
    margin = max(0.25, 0.03 * epochs)
    axes.set(xlim=(1 - margin, epochs + margin), ylim=(0, 1.15))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    note = f"dashed: {percent(why.foreground_rate)} of cells are foreground" if why.foreground_rate else ""
    room = PANEL_WIDTH - 2 * EDGE
    write(axes, epochs + margin, 1.05, note, size=NUMBER_SIZE, width=room, ha="right", va="bottom")
    _in_percent(axes)


def _draw_confusion(axes: Axes, why: Why, colour: str) -> None:
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
