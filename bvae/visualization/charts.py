"""Curves of loss options by epoch, with controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from bvae.judging.comparison import colour_of
from bvae.storage import brief
from bvae.visualization import canvas
from bvae.visualization.canvas import INK, TICK_SIZE

Record = Mapping[str, Any]
Histories = Mapping[str, Sequence[Sequence[Record]]]
Values = npt.NDArray[np.float64]

# Line styles and markers distinguish options for readers who do not see the colours.
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v")

WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 1640, 300, 300
ROWS, COLUMNS = 2, 4
HEADING, FOOT = 44, 84  # pixels above a panel for its heading, and below for its x axis
MARKED_EPOCHS = 12
LEGEND_LINE = 60  # pixels
LEGEND_LETTERS = 24  # maximum length of a name in the legend
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
BAND_LOOK: dict[str, Any] = {"facecolor": "#E8E8E8", "edgecolor": "#A0A0A0", "linewidth": 1, "zorder": 0.4}
SHUFFLED_LOOK: dict[str, Any] = {"linewidth": 2, "linestyle": (0, (1, 1.5)), "dash_capstyle": "butt"}
EXTENT_LOOK: dict[str, Any] = {"color": "#808080", "linewidth": 2, "linestyle": (0, (6, 2, 1, 2))}
RATE_LOOK: dict[str, Any] = {"color": INK, "linewidth": 2, "linestyle": (0, (8, 4)), "dash_capstyle": "butt"}
NOTHING_YET = "No run has finished an epoch yet."


class Panel(NamedTuple):
    """A panel of the chart, which shows a number by epoch.

    Attributes:
        keys: the nested keys of the number in the record of an epoch.
        fraction: whether the number is a fraction, shown in per cent.
        controlled: whether the numbers of the `shuffled` and `extent` controls are drawn too.
    """

    heading: str
    keys: tuple[str, ...]
    fraction: bool = False
    controlled: bool = False


TRAINING_LOSS = Panel("Training loss (nats)", ("train", "loss"))
VALIDATION_LOSS = Panel("Validation loss (nats)", ("validation", "loss"))
ACCURACY = Panel("Accuracy", ("validation", "pixel_accuracy"), fraction=True)
FOREGROUND = Panel("Foreground IoU", ("validation", "foreground_iou"), fraction=True, controlled=True)
OBJECT_IOU = Panel("Object IoU", ("validation", "object_iou"), fraction=True, controlled=True)
OBJECT_RECALL = Panel("Object recall", ("validation", "object_recall"), fraction=True, controlled=True)
KL = Panel("KL per grid (nats)", ("validation", "kl"))
PANELS = (TRAINING_LOSS, VALIDATION_LOSS, ACCURACY, FOREGROUND, OBJECT_IOU, OBJECT_RECALL, KL)


class Curve(NamedTuple):
    """Epochs `[E]`, and the lowest, mean and highest value over seeds `[E]`; NaN if no seed has a value."""

    epochs: npt.NDArray[np.int64]
    lowest: Values
    mean: Values
    highest: Values


@canvas.house_style()
def plot_curves(
    histories: Histories,
    *,
    background_rate: float | None,
    band: Sequence[float],
    options: Sequence[str] | None = None,
    path: canvas.Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the numbers of each option by epoch: the mean over seeds as a line, and their range as a shade.

    A number that is missing, None or not finite in single precision leaves a gap. The axis of a loss whose
    values span more than two orders of magnitude is logarithmic.

    Args:
        histories: for each option, for each seed, the epoch records as stored in `metrics.jsonl`.
        background_rate: the accuracy of predicting background everywhere, a fraction.
        band: the lowest and the highest accuracy of a healthy option, fractions.
        options: the names of all options of the experiment; their order determines the colours. By default,
            these are the options of the histories.
        path: destination of the PNG.
        title: the first line becomes a headline.

    Raises:
        ValueError: for a background rate or a band outside 0–1.
    """
    lo, hi = band
    if not 0 <= lo <= hi <= 1 or not 0 <= (background_rate or 0) <= 1:
        given = f"band {lo}–{hi}, background rate {background_rate}"
        raise ValueError(f"{given}; expected fractions 0–1, and the lower end of the band first")
    known = _with_epochs(histories)
    order = list(options or histories)
    looks = [_look(order.index(name)) for name in known]
    height = ROWS * (HEADING + PANEL_HEIGHT + FOOT) if known else 2 * canvas.TEXT_SIZE
    figure, top = canvas.titled_figure(WIDTH, height, title)
    if known:
        *panels, beside = canvas.panel_grid(figure, (ROWS, COLUMNS), (HEADING, PANEL_HEIGHT, FOOT))
        for axes, panel in zip(panels, PANELS, strict=True):
            if panel is ACCURACY:
                axes.axhspan(lo, hi, **BAND_LOOK)
                if background_rate is not None:
                    axes.axhline(background_rate, **RATE_LOOK)
            _draw_panel(axes, panel, list(known.values()), looks)
        _draw_legend(beside, known, looks, background_rate, (lo, hi))
    else:
        canvas.write(figure, canvas.EDGE, top, NOTHING_YET, size=canvas.TEXT_SIZE, width=WIDTH)
    canvas.save_png(figure, path, describe_curves(histories))
    return figure


def describe_curves(histories: Histories) -> str:
    """Return a sentence with accuracy and object IoU after the last epoch of runs, as means over seeds."""

    def end(seeds: Sequence[Sequence[Record]], panel: Panel) -> str:
        (value,) = curve([[{**history[-1], "epoch": 0}] for history in seeds], panel.keys).mean
        return f"{value:.1%}" if math.isfinite(value) else "undefined"

    ends = [
        f"option {name} accuracy {end(seeds, ACCURACY)} and object IoU {end(seeds, OBJECT_IOU)}"
        for name, seeds in _with_epochs(histories).items()
    ]
    return f"Curves by epoch, ending at {'; '.join(ends)}." if ends else NOTHING_YET


def curve(seeds: Sequence[Sequence[Record]], keys: tuple[str, ...]) -> Curve:
    """Return the lowest, mean and highest value of a number over seeds, for each epoch that a seed has."""
    values = [{record["epoch"]: _number(record, keys) for record in history} for history in seeds]
    epochs = sorted(set().union(*values))
    table = np.array([[history.get(epoch, math.nan) for epoch in epochs] for history in values])
    known = np.isfinite(table).sum(0)
    mean = np.where(known > 0, np.nansum(table / np.maximum(known, 1), axis=0), math.nan)
    return Curve(np.array(epochs), np.fmin.reduce(table), mean, np.fmax.reduce(table))


def _number(record: Record, keys: tuple[str, ...]) -> float:
    """Return the number at nested keys of a record; NaN if it is missing, None or beyond single precision."""
    value: Any = record
    for key in keys:
        value = (value or {}).get(key)
    return value if value is not None and abs(value) <= LARGEST else math.nan


def _with_epochs(histories: Histories) -> dict[str, list[Sequence[Record]]]:
    """Return the options with completed epochs, and for each the histories of seeds with completed epochs."""
    begun = {name: [history for history in seeds if history] for name, seeds in histories.items()}
    return {name: seeds for name, seeds in begun.items() if seeds}


def _look(option: int) -> dict[str, Any]:
    """Return colour, dashes and marker of an option's line; 140 options have different combinations."""
    return {
        "color": colour_of(option),
        "linestyle": DASHES[option % len(DASHES)],
        "marker": MARKERS[option % len(MARKERS)],
        "linewidth": 3.5,
        "markersize": 13,
        "markeredgecolor": "white",
        "markeredgewidth": 1.5,
        "solid_capstyle": "round",
        "dash_capstyle": "butt",
    }


def _draw_panel(
    axes: Axes,
    panel: Panel,
    options: Sequence[Sequence[Sequence[Record]]],
    looks: Sequence[Mapping[str, Any]],
) -> None:
    """Draw the number of a panel for every option; a thin line is `shuffled`, and a grey line is `extent`."""
    canvas.name_panel(axes, panel.heading, "epoch")
    axes.yaxis.grid(visible=True)
    curves = [curve(seeds, panel.keys) for seeds in options]
    for look, drawn in zip(looks, curves, strict=True):
        _draw_curve(axes, drawn, look)
    if panel.controlled:
        split, metric = panel.keys
        for look, seeds in zip(looks, options, strict=True):
            drawn = curve(seeds, (split, "shuffled", metric))
            axes.plot(drawn.epochs, drawn.mean, color=look["color"], **SHUFFLED_LOOK)
        longest = max(options, key=lambda seeds: max(map(len, seeds)))  # the control is the same for all
        drawn = curve(longest, (split, "extent", metric))
        axes.plot(drawn.epochs, drawn.mean, **EXTENT_LOOK)
    _scale(axes, panel, curves)


def _draw_curve(axes: Axes, drawn: Curve, look: Mapping[str, Any]) -> None:
    """Draw the mean as a line with at most `MARKED_EPOCHS` regular markers, and the range as a shade."""
    epochs, lowest, mean, highest = drawn
    here = np.isfinite(mean)
    alone = here & ~np.append(here[1:], False) & ~np.insert(here[:-1], 0, False)
    every = -(-len(epochs) // MARKED_EPOCHS)
    marked = np.flatnonzero(here & ((np.arange(len(epochs)) % every == 0) | alone))
    axes.fill_between(epochs, lowest, highest, color=look["color"], alpha=0.18, linewidth=0)
    if alone.any():  # a shade needs two neighbouring epochs; a single epoch gets a bar
        axes.vlines(epochs[alone], lowest[alone], highest[alone], color=look["color"], linewidth=2)
    axes.plot(epochs, mean, **look, markevery=marked.tolist(), zorder=3)


def _scale(axes: Axes, panel: Panel, curves: Sequence[Curve]) -> None:
    """Set limits, ticks and tick labels that suit the numbers."""
    epochs = np.concatenate([drawn.epochs for drawn in curves])
    axes.margins(y=0.05)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    margin = np.clip(0.03 * (epochs.max() - epochs.min()), 0.25, 0.9)
    axes.set_xlim(epochs.min() - margin, epochs.max() + margin)
    values = np.concatenate([[*drawn.lowest, *drawn.highest] for drawn in curves])
    values = values[np.isfinite(values)]
    explodes = values.size and SMALLEST <= values.min() < values.max() / 100
    if explodes and panel in (TRAINING_LOSS, VALIDATION_LOSS):
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    if panel.controlled or panel is KL:
        # Slightly below 0, so that a curve at 0 is not cut in half.
        axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])
    if panel.fraction:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    else:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))


def _draw_legend(
    axes: Axes,
    known: Mapping[str, Sequence[Sequence[Record]]],
    of_options: Sequence[Mapping[str, Any]],
    rate: float | None,
    band: tuple[float, float],
) -> None:
    """Draw the legend: options, band, controls, background rate, and the meaning of line and shade."""
    axes.set_axis_off()
    named: list[tuple[str, Line2D | Patch]] = [
        (canvas.drawable(f"Option {name}"), Line2D([], [], **look))
        for name, look in zip(known, of_options, strict=True)
    ]
    named.append((f"healthy: {band[0]:.0%} to {band[1]:.0%}", Patch(**BAND_LOOK)))
    named.append(("another grid's latent", Line2D([], [], color=INK, **SHUFFLED_LOOK)))
    named.append(("extent, filled", Line2D([], [], **EXTENT_LOOK)))
    if rate is not None:
        named.append((f"all background: {rate:.1%}", Line2D([], [], **RATE_LOOK)))
    names = [brief(name, LEGEND_LETTERS) for name, _ in named]
    widest = max(canvas.text_width(name, TICK_SIZE) for name in names)
    room = PANEL_WIDTH - LEGEND_LINE - canvas.EDGE
    size = TICK_SIZE * min(1, room / widest, PANEL_HEIGHT / (1.2 * TICK_SIZE * len(names)))
    pitch = min(1.5, PANEL_HEIGHT / (size * len(names)))  # distance of lines, in font sizes
    axes.legend(
        [handle for _, handle in named],
        names,
        loc="upper left",
        borderaxespad=0,
        borderpad=0,
        labelspacing=pitch - 1,
        fontsize=size,
        handlelength=LEGEND_LINE / size,
    )
    notes = ["each option has its own loss"] * (len(known) > 1)
    several = max(map(len, known.values())) > 1
    mean = "line: mean over seeds"
    if len({len(history) for seeds in known.values() for history in seeds}) > 1:
        mean = "line: mean over the seeds\nthat reached the epoch"
    notes += [mean, "shade: lowest to highest seed"] * several
    below = 1 - (pitch * size * len(names) + canvas.EDGE / 2) / PANEL_HEIGHT
    look: dict[str, Any] = {"fontsize": TICK_SIZE - 2, "color": canvas.SOFT_INK, "va": "top"}
    axes.text(0, below, "\n".join(notes), transform=axes.transAxes, **look)
