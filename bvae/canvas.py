"""Figures measured in pixels, text that cannot fail, and PNG bytes that do not change.

Only matplotlib's object interface is used. No figure is registered, no global setting is changed or decides
on the style, so one input gives one picture, on every thread and in every notebook.
"""

from __future__ import annotations

import textwrap
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

Destination = str | Path | BinaryIO
Title = list[tuple[str, bool]]

DPI = 72  # a point is then a pixel, and every whole number of pixels survives the way through inches
FONT = "DejaVu Sans"  # ships with matplotlib
INK, SOFT_INK = "#1A1A1A", "#595959"
TITLE_SIZE, TEXT_SIZE = 30, 26  # pixels: still legible where a picture is shown 600 pixels wide
LINE_HEIGHT = 1.3
TITLE_LINES = 6
GAP, EDGE = 14, 20  # pixels
# Runs of equal pixels make a picture a tenth smaller than with the strategy for filtered photographs.
COMPRESSION = {"compress_level": 6, "compress_type": zlib.Z_DEFAULT_STRATEGY}


def pixel_figure(width: int, height: int) -> tuple[Figure, Axes]:
    """A white figure and invisible axes that fill it; coordinates are pixels from the top left corner."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white", edgecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure, axes


def save_png(figure: Figure, path: Destination | None, description: str = "") -> None:
    """Write a figure as a PNG without date or version; nothing where `path` is None.

    The description, its text alternative, goes into the file's text chunk `Description`.
    """
    if path is not None:
        canvas: Any = figure.canvas
        text = {"Software": None} | ({"Description": description} if description else {})
        canvas.print_png(path, metadata=text, pil_kwargs=COMPRESSION)


def printable(text: str) -> str:
    """The text with every character that the font cannot draw, control characters included, as U+FFFD."""
    font = get_font(findfont(FontProperties(family=FONT)))

    def drawn(character: str) -> str:
        if character.isspace():
            return " "
        known = character.isprintable() and font.get_char_index(ord(character))
        return character if known else "\N{REPLACEMENT CHARACTER}"

    return "\n".join("".join(map(drawn, line)) for line in text.splitlines())


def text_width(text: str, size: float) -> int:
    """About how many pixels the longest line of ordinary text takes at `size` pixels."""
    return round(0.58 * size * max(map(len, text.splitlines()), default=0))


def write(axes: Axes, x: float, y: float, text: str, *, size: float, width: float, **style: Any) -> None:
    """Write text as it stands, no mathtext, no TeX; smaller where it would be wider than `width` pixels."""
    look: dict[str, Any] = {"color": INK, "fontfamily": FONT, "linespacing": 1.25} | style
    artist = axes.text(x, y, printable(text), fontsize=size, parse_math=False, usetex=False, **look)
    drawn = artist.get_window_extent().width
    if drawn > width:
        artist.set_fontsize(0.97 * size * width / drawn)


def title_lines(title: str | None, width: int) -> Title:
    """A title in at most `TITLE_LINES` lines of about `width` pixels; "…" ends one that was longer.

    Each line comes with whether it belongs to the headline, which is the first line given.
    """
    columns = max(8, width // text_width("n", TITLE_SIZE))
    given = [line for line in (title or "").splitlines() if line.strip()]
    lines = [
        (piece, not number) for number, line in enumerate(given) for piece in textwrap.wrap(line, columns)
    ]
    if len(lines) > TITLE_LINES:
        last, bold = lines[TITLE_LINES - 1]
        lines[TITLE_LINES - 1 :] = [(last[: columns - 2] + " …", bold)]
    return lines


def title_height(lines: Title) -> int:
    """Pixels from the top edge of a picture to what stands under its title."""
    return EDGE + round(LINE_HEIGHT * TITLE_SIZE * len(lines)) + (GAP if lines else 0)


def write_title(axes: Axes, lines: Title) -> None:
    """Write the lines of a title from the top left corner down, the headline bold and the others quieter."""
    width = axes.get_xlim()[1] - 2 * EDGE
    for number, (line, bold) in enumerate(lines):
        top = EDGE + number * LINE_HEIGHT * TITLE_SIZE
        look: dict[str, Any] = {"fontweight": "bold"} if bold else {"color": SOFT_INK}
        write(
            axes, EDGE, top, line, size=TITLE_SIZE if bold else TITLE_SIZE - 2, width=width, va="top", **look
        )
