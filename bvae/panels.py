"""Panels with two axes on a page that is measured in pixels."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection

from bvae.canvas import EDGE, GAP, SOFT_INK
from bvae.lettering import write

LEFT = 104  # pixels before a panel, for the ticks of its y axis
TICK_SIZE, TICK_LENGTH = 22, 6
LINE_LOOK: dict[str, Any] = {"color": SOFT_INK, "linewidth": 1}
GRID_LOOK: dict[str, Any] = {"color": "#DDDDDD", "linewidth": 1, "zorder": 0.5}


def add_panel(
    page: Axes, place: tuple[int, int], size: tuple[int, int], heading: str, *, heading_size: int
) -> Axes:
    """Empty axes with a heading; their ticks are drawn by `draw_ticks` once all else is.

    Args:
        place: pixels from the left and the upper edge of the page to the axes.
        size: width and height of the axes, pixels.
    """
    (left, top), (wide, high) = place, size
    width, height = page.get_xlim()[1], page.get_ylim()[0]
    axes = page.figure.add_axes(
        (left / width, 1 - (top + high) / height, wide / width, high / height), facecolor="white"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_visible(False)
    axes.spines[:].set(**LINE_LOOK, visible=True)
    axes.spines[["top", "right"]].set_visible(False)
    write(page, left, top - GAP, heading, size=heading_size, width=wide + LEFT - EDGE, va="bottom")
    return axes


def draw_ticks(page: Axes, axes: Axes, below: str, foot: int, *, grid: bool = False) -> None:
    """Draw the ticks of finished axes, their labels, and what the x axis counts, `foot` pixels below.

    An axis of matplotlib would make six artists of every tick and lay them out three times.

    Args:
        grid: whether to draw a line across at every tick of the y axis.
    """
    left, bottom, right, _ = axes.bbox.extents
    height = page.get_ylim()[0]
    ground, place_of = height - bottom, axes.transData.transform
    (x_limit, _), (y_limit, _) = axes.get_xlim(), axes.get_ylim()
    columns = [(place_of((x, y_limit))[0], label) for x, label in _ticks(axes.xaxis)]
    rows = [(height - place_of((x_limit, y))[1], label) for y, label in _ticks(axes.yaxis)]
    ends = [((x, ground), (x, ground + TICK_LENGTH)) for x, _ in columns]
    ends += [((left - TICK_LENGTH, y), (left, y)) for y, _ in rows]
    page.add_collection(LineCollection(ends, **LINE_LOOK), autolim=False)
    if grid:
        across = [((0, y), (1, y)) for y, _ in _ticks(axes.yaxis)]
        lines = LineCollection(across, transform=axes.get_yaxis_transform(), **GRID_LOOK)
        axes.add_collection(lines, autolim=False)
    look: dict[str, Any] = {"size": TICK_SIZE, "width": LEFT - 2 * TICK_LENGTH}
    for x, label in columns:
        write(page, x, ground + TICK_LENGTH + 1, label, **look, ha="center", va="top")
    for y, label in rows:
        write(page, left - 2 * TICK_LENGTH, y, label, **look, ha="right", va="center")
    look = {"size": TICK_SIZE, "width": right - left, "ha": "center", "va": "bottom"}
    write(page, (left + right) / 2, ground + foot, below, **look)


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    """Where the ticks of an axis are that lie within its limits, and their labels."""
    low, high = sorted(axis.get_view_interval())
    places = [place for place in axis.get_majorticklocs().tolist() if low <= place <= high]
    return [*zip(places, axis.get_major_formatter().format_ticks(places), strict=True)]
