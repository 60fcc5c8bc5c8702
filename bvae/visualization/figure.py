"""Figures measured in pixels: style, fitted text, titles, and PNG files that depend on the input alone."""

from __future__ import annotations

import contextlib
import functools
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image, ImageFont
from PIL.PngImagePlugin import PngInfo

Destination = str | Path | BinaryIO
Title = list[tuple[str, bool]]

DPI = 72  # one point is one pixel
INK, SOFT_INK = "#1A1A1A", "#595959"  # shades of grey, so that a grid image keeps to 256 colours
TITLE_SIZE, TEXT_SIZE, TICK_SIZE = 30, 26, 22  # pixels; legible where a picture is shown 600 pixels wide
LINE_HEIGHT = 1.3
LETTER = 0.54  # mean width of a letter, in font sizes
RULER_SIZE = 100
TITLE_LINES = 6
GAP, EDGE = 14, 20  # pixels
LEFT = 104  # pixels before a panel, for the tick labels of its y axis
COMPRESSION = 3  # zlib level; half the time of the default level for files 11 to 38 % larger

STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "text.hinting": "none",  # a fifth of the time of text, and widths proportional to the font size
    "text.color": INK,
    "font.size": TICK_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # else matplotlib lays out all tick labels to keep the title off them
    "axes.titlepad": GAP,
    "axes.labelcolor": INK,
    "axes.labelsize": TICK_SIZE,
    "axes.edgecolor": SOFT_INK,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 1,
    **{f"{axis}tick.color": SOFT_INK for axis in "xy"},
    **{f"{axis}tick.labelcolor": INK for axis in "xy"},
    **{f"{axis}tick.major.size": 6 for axis in "xy"},
    **{f"{axis}tick.major.width": 1 for axis in "xy"},
    "legend.frameon": False,
}
"""Differences from matplotlib's defaults."""

_STYLE_LOCK = threading.RLock()


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Apply `STYLE` on matplotlib's defaults, whatever the user's settings, which come back afterwards.

    The settings are global, so one thread draws at a time.
    """
    with _STYLE_LOCK, style.context(["default", STYLE]):
        yield


def pixel_figure(width: int, height: int) -> Figure:
    """Return an empty white figure, unknown to pyplot."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def panel_grid(
    figure: Figure, rows: int, columns: int, top: int, heights: tuple[int, int, int]
) -> list[Axes]:
    """Add axes of equal size in rows and columns from `top` to the foot of a figure, row by row.

    Args:
        top: pixels above all panels.
        heights: pixels of a panel's heading, of its axes, and of its foot.
    """
    heading, high, foot = heights
    wide, whole = figure.bbox.size
    panel = (wide - EDGE) / columns - LEFT
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=LEFT / wide,
        right=1 - EDGE / wide,
        top=1 - (top + heading) / whole,
        bottom=foot / whole,
        wspace=LEFT / panel,
        hspace=(heading + foot) / high,
    )
    return list(axes.flat)


def name_panel(axes: Axes, heading: str, below: str, foot: int) -> None:
    """Set the heading of axes, and the label of their x axis `foot` pixels below them."""
    axes.set_title(heading)
    axes.set_xlabel(below, va="bottom")
    for axis in (axes.xaxis, axes.yaxis):  # else matplotlib lays out all tick labels to find the place
        axis.set_label_coords(0.5, -foot / axes.bbox.height)


def write(figure: Figure, x: float, y: float, text: str, *, size: float, width: float, **look: Any) -> None:
    """Write text at pixels from the top left corner, in a smaller font where it is wider than `width` pixels.

    `look` has the other properties of `matplotlib.text.Text`; the default of `va` is "top".
    """
    if not text:
        return
    wide, high = figure.bbox.size
    shown = printable(text)
    room = text_width(shown, size, look.get("fontweight", "normal"))
    look.setdefault("va", "top")
    fitted = size * min(1.0, width / max(1.0, room))
    figure.text(x / wide, 1 - y / high, shown, fontsize=fitted, linespacing=LINE_HEIGHT, **look)


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the pixels of the longest line at a font size."""
    return size / RULER_SIZE * max(map(_ruler(weight).getlength, text.splitlines()), default=0.0)


@functools.cache
def _ruler(weight: str) -> ImageFont.FreeTypeFont:
    """Return Pillow's view of the font: it measures a line in a tenth of the time of `get_window_extent`."""
    return ImageFont.truetype(_font_file(weight), RULER_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _font_file(weight: str) -> str:
    return findfont(FontProperties(family="DejaVu Sans", weight=weight))  # ships with matplotlib


def printable(text: str) -> str:
    """Replace control characters, and those that the font lacks, by U+FFFD."""
    known = _characters()
    return "\n".join(
        "".join(
            " " if character.isspace() else character if character in known else "\N{REPLACEMENT CHARACTER}"
            for character in line
        )
        for line in text.splitlines()
    )


@functools.cache
def _characters() -> frozenset[str]:
    """Return the characters that both faces of the default font can draw."""
    shared = set.intersection(*(set(get_font(_font_file(w)).get_charmap()) for w in ("normal", "bold")))
    return frozenset(character for character in map(chr, shared) if character.isprintable())


def title_lines(title: str | None, width: int) -> Title:
    """Wrap a title to at most `TITLE_LINES` lines of about `width` pixels; "…" ends one that was cut.

    Each line comes with whether it belongs to the headline, which is the first line given.
    """
    columns = max(8, int(width / (LETTER * TITLE_SIZE)))
    given = [line for line in (title or "").splitlines() if line.strip()]
    lines = [
        (piece, not number) for number, line in enumerate(given) for piece in textwrap.wrap(line, columns)
    ]
    if len(lines) > TITLE_LINES:
        last, bold = lines[TITLE_LINES - 1]
        lines[TITLE_LINES - 1 :] = [(last[: columns - 2] + " …", bold)]
    return lines


def title_height(lines: Title) -> int:
    """Return the pixels from the top edge of a picture to what follows its title."""
    return EDGE + round(LINE_HEIGHT * TITLE_SIZE * len(lines)) + (GAP if lines else 0)


def write_title(figure: Figure, lines: Title) -> None:
    """Write a title at the top left, its headline in bold."""
    headline, details = (
        [line for line, in_headline in lines if in_headline == bold] for bold in (True, False)
    )
    width = figure.bbox.width - 2 * EDGE
    write(figure, EDGE, EDGE, "\n".join(headline), size=TITLE_SIZE, width=width, fontweight="bold")
    top = EDGE + LINE_HEIGHT * TITLE_SIZE * len(headline)
    write(figure, EDGE, top, "\n".join(details), size=TITLE_SIZE - 2, width=width, color=SOFT_INK)


def save_png(figure: Figure, path: Destination | None, description: str = "") -> None:
    """Write a figure as a PNG without date or version; do nothing where `path` is None.

    Args:
        description: text alternative, for the text chunk `Description` of the file.
    """
    if path is None:
        return
    canvas: Any = figure.canvas
    canvas.draw()
    text = PngInfo()
    if description:
        text.add_text("Description", description)
    image = _with_palette(np.asarray(canvas.buffer_rgba()))
    image.save(path, "png", pnginfo=text, compress_level=COMPRESSION)


def _with_palette(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Return opaque pixels `[H, W, RGBA]` as an image; with a palette where they have at most 256 colours.

    A grid image has, and takes half the bytes and a third of the time that way.
    """
    image = Image.fromarray(pixels)
    counted = image.getcolors(256)
    if counted is None:
        return image.convert("RGB")
    colours = np.array([colour for _, colour in counted], np.uint8)
    index_of, indices = np.empty(2**24, np.uint8), np.empty(pixels.shape[:2], np.uint8)
    index_of[colours.view("<u4")[:, 0] & 0xFFFFFF] = np.arange(len(colours))
    for row, source in zip(indices, pixels.view("<u4")[..., 0], strict=True):  # twice as fast as all at once
        row[:] = index_of[source & 0xFFFFFF]
    indexed = Image.fromarray(indices)
    indexed.putpalette(colours[:, :3].tobytes())
    return indexed
