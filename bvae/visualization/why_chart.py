"""Charts that explain verdicts: why an option predicts what it does, and the verdict on each run by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bvae.judging.comparison import colour_of
from bvae.judging.explanation import Diagnosis, Strip, describe_strips, describe_why, percent
from bvae.records import VerdictName
from bvae.verdict import COLOURS, SEVERITY, SIGNS, words
from bvae.visualization import canvas
from bvae.visualization.canvas import INK

WIDTH, PANEL_HEIGHT = 1640, 420
HEADING, FOOT = 80, 84  # pixels above a panel for its heading, and below for its x axis
NUMBER_SIZE = 20
REFERENCE_LOOK: dict[str, Any] = {"color": INK, "linewidth": 2, "linestyle": (0, (8, 4))}
MOST_NUMBERED = 12  # maximum number of classes whose numbers do not overlap
TOLD = 0.05
"""Shares below this value are not written into the confusion matrix."""

ROW, GAP, ENDS = 36, 12, 110
"""Pixels in the picture of verdicts: height of a run, gap between options, space right of the cells."""
NAME_LETTERS, LEGEND_COLUMNS = 24, 5


@canvas.house_style()
def plot_why(
    why: Diagnosis,
    *,
    colour: str = colour_of(0),
    path: canvas.Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the evidence on an option: thresholds by class, gradient shares by epoch, confusion of classes.

    Args:
        colour: colour of the option.
        path: destination of the PNG, which is `WIDTH` pixels wide.
        title: the first line becomes a headline.
    """
    figure, _ = canvas.titled_figure(WIDTH, HEADING + PANEL_HEIGHT + FOOT, title)
    thresholds, gradient, confusion = canvas.panel_grid(figure, (1, 3), (HEADING, PANEL_HEIGHT, FOOT))
    _draw_thresholds(thresholds, why, colour)
    _draw_gradient(gradient, why, colour)
    _draw_confusion(confusion, why)
    canvas.save_png(figure, path, describe_why(why))
    return figure


def _draw_thresholds(axes: Axes, why: Diagnosis, colour: str) -> None:
    """Draw a bar for each class; the scale is the same for all options."""
    canvas.name_panel(axes, "Prediction threshold: p(class) /\n(p(class) + p(background))", "class")
    places = range(1, len(why.foreground) + 1)
    bars = axes.bar(places, [share or 0.0 for share in why.thresholds], color=colour, width=0.7)
    numbers = [
        "–" if share is None else f"{100 * share:.{0 if share > 0.0995 else 1}f}" for share in why.thresholds
    ]
    if len(numbers) <= MOST_NUMBERED:
        axes.bar_label(bars, numbers, padding=6, fontsize=NUMBER_SIZE)
    axes.axhline(0.5, **REFERENCE_LOOK)
    _note(axes, 0.56 / 0.65, "dashed: 50 %, without weights")
    axes.set(xlim=(0.4, len(places) + 0.6), ylim=(0, 0.65))
    ticked = slice(None, None, _stride(len(places)))
    axes.set_xticks(places[ticked], [str(label) for label in why.foreground[ticked]])
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_gradient(axes: Axes, why: Diagnosis, colour: str) -> None:
    """Draw a thin line for each seed, a thick line for the mean, a dashed line for the foreground rate."""
    canvas.name_panel(axes, "Share of the loss gradient that\ncomes from foreground cells", "epoch")
    epochs = max(map(len, why.gradient_shares), default=1)
    table = np.full((len(why.gradient_shares), epochs), np.nan)
    for row, shares in zip(table, why.gradient_shares, strict=True):
        row[: len(shares)] = [np.nan if share is None else share for share in shares]
    known = np.isfinite(table).sum(0)
    mean = np.where(known > 0, np.nansum(table, axis=0) / np.maximum(known, 1), np.nan)
    x = np.arange(1, epochs + 1)
    if len(table) > 1:
        axes.plot(x, table.T, color=colour, linewidth=1.2, alpha=0.7)
    if len(table):
        mark = "o" if epochs <= 12 else ""
        axes.plot(x, mean, color=colour, linewidth=3.5, marker=mark, markersize=11, markeredgecolor="white")
    if why.foreground_rate is not None:
        axes.axhline(why.foreground_rate, **REFERENCE_LOOK)
    if why.foreground_rate:
        _note(axes, 1.05 / 1.15, f"dashed: {percent(why.foreground_rate)} of cells are foreground")
    margin = max(0.25, 0.03 * epochs)
    axes.set(xlim=(1 - margin, epochs + margin), ylim=(0, 1.15), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_confusion(axes: Axes, why: Diagnosis) -> None:
    """Draw each row as shares of its sum: a larger share is darker; shares of at least `TOLD` are written."""
    heading = "True class (row), predicted class\n(column): % of the row's cells"
    canvas.name_panel(axes, heading, "predicted class")
    shares = why.confusion / np.maximum(why.confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    told = np.argwhere(shares >= TOLD) if len(shares) <= MOST_NUMBERED else ()
    for row, column in told:
        share = shares[row, column]
        look: dict[str, Any] = {"color": "white" if share > 0.5 else INK, "fontsize": NUMBER_SIZE - 2}
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center_baseline", **look)
    ticks = range(0, len(shares), _stride(len(shares)))
    axes.set(xticks=ticks, yticks=ticks)
    axes.spines[:].set_visible(True)


def _stride(classes: int) -> int:
    """Return the distance of classes with a tick, so that at most `MOST_NUMBERED` classes have one."""
    return -(-classes // MOST_NUMBERED)


def _note(axes: Axes, height: float, text: str) -> None:
    """Write text at the right edge; `height` is a fraction of the height of the axes."""
    axes.text(1, height, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=NUMBER_SIZE)


@canvas.house_style()
def plot_verdicts(
    options: Sequence[Mapping[str, Strip]],
    *,
    path: canvas.Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a row of cells for each run: the verdict by epoch as a colour, with a sign where it changes.

    Args:
        options: for each option, the strips of its runs by name of the run.
        path: destination of the PNG, which is `WIDTH` pixels wide.
        title: the first line becomes a headline.
    """
    rows = [row for option in options for row in (*option.items(), ("", None))][:-1]
    runs = {name: strip for name, strip in rows if strip}  # the other rows are gaps between options
    edges = np.cumsum([0, *(ROW if strip else GAP for _, strip in rows)])
    tops = [int(edge) for edge, (_, strip) in zip(edges, rows, strict=False) if strip]
    used = {verdict for strip in runs.values() for verdict in strip.verdicts.values()}
    legend = -(-len(used) // LEGEND_COLUMNS) * ROW + canvas.EDGE
    figure, top = canvas.titled_figure(WIDTH, legend + int(edges[-1]) + FOOT, title)
    _draw_verdict_legend(figure, top, [verdict for verdict in COLOURS if verdict in used])
    names = [canvas.drawable(_shortened(name)) for name in runs]
    left = max(canvas.text_width(name, canvas.TICK_SIZE) for name in names) + 2 * canvas.EDGE
    wide, high = figure.bbox.size
    axes = figure.add_axes((left / wide, FOOT / high, 1 - (left + ENDS) / wide, int(edges[-1]) / high))
    canvas.name_panel(axes, "", "epoch")
    for strip, edge in zip(runs.values(), tops, strict=True):
        _draw_strip(axes, strip, edge)
    axes.set(xlim=(0.5, max(1.5, axes.dataLim.x1)), ylim=(int(edges[-1]), 0))
    axes.set_yticks([edge + ROW / 2 for edge in tops], names)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    canvas.save_png(figure, path, " ".join(describe_strips(runs)))
    return figure


def _draw_strip(axes: Axes, strip: Strip, top: int) -> None:
    """Draw cells of equal width for the verdicts on a run; a sign marks each change of the verdict."""
    if not strip.verdicts:
        return
    verdicts = [*strip.verdicts.values()]
    ends = 0.5 + min(strip.verdicts) * np.arange(len(verdicts) + 1)
    colours = ListedColormap([colour for colour, _ in COLOURS.values()])
    look: dict[str, Any] = {"cmap": colours, "vmin": 0, "vmax": len(COLOURS) - 1, "edgecolors": "white"}
    axes.pcolormesh(ends, (top, top + ROW), [[SEVERITY[name] for name in verdicts]], linewidth=2, **look)
    middle = top + ROW / 2
    look = {"fontsize": NUMBER_SIZE, "va": "center_baseline"}
    for cell, verdict in enumerate(verdicts):
        if not cell or verdict != verdicts[cell - 1]:
            x, colour = (ends[cell] + ends[cell + 1]) / 2, COLOURS[verdict][1]
            axes.text(x, middle, SIGNS[verdict], ha="center", color=colour, **look)
    axes.text(ends[-1], middle, f" {strip.end}", color=canvas.SOFT_INK, **look)


def _draw_verdict_legend(figure: Figure, top: int, verdicts: Sequence[VerdictName]) -> None:
    for place, verdict in enumerate(verdicts):
        row, column = divmod(place, LEGEND_COLUMNS)
        x = canvas.EDGE + ROW / 2 + column * (WIDTH - canvas.EDGE) / LEGEND_COLUMNS
        letter, (colour, ink) = SIGNS[verdict], COLOURS[verdict]
        look: dict[str, Any] = {"size": NUMBER_SIZE, "width": WIDTH, "va": "center_baseline"}
        box = {"facecolor": colour, "edgecolor": "none", "boxstyle": "square,pad=0.25"}
        y = top + (row + 0.5) * ROW
        canvas.write(figure, x, y, letter, ha="center", color=ink, bbox=box, **look)
        canvas.write(figure, x + ROW, y, words(verdict), **look)


def _shortened(name: str) -> str:
    """Return the name of a run; in a long name, the part before the seed is cut."""
    option, _, seed = name.rpartition("-")
    return name if len(name) <= NAME_LETTERS else f"{option[: NAME_LETTERS - len(seed) - 2]}…-{seed}"
