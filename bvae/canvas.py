"""Figures measured in pixels, text that cannot fail, and PNG bytes that do not change.

Only matplotlib's object interface is used. No figure is registered, no global setting is changed or decides
on the style, so one input gives one picture, on every thread and in every notebook.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Destination = str | Path | BinaryIO
Title = list[tuple[str, bool]]

DPI = 72  # a point is then a pixel, and every whole number of pixels survives the way through inches
FONT = "DejaVu Sans"  # ships with matplotlib
INK, SOFT_INK = "#1A1A1A", "#595959"
TITLE_SIZE, TEXT_SIZE = 30, 26  # pixels: still legible where a picture is shown 600 pixels wide
LINE_HEIGHT = 1.3
TITLE_LINES = 6
GAP, EDGE = 14, 20  # pixels


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
    if path is None:
        return
    canvas: Any = figure.canvas
    canvas.draw()
    text = PngInfo()
    if description:
        text.add_text("Description", description)
    _with_palette(np.asarray(canvas.buffer_rgba())).save(path, "png", pnginfo=text)


def _with_palette(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """An image of opaque pixels `[H, W, RGBA]`; of 256 colours, and a mosaic has fewer, with a palette.

    That makes half the file in a third of the time, and every pixel keeps its colour.
    """
    image = Image.fromarray(pixels)
    counted = image.getcolors(256)
    if counted is None:
        return image.convert("RGB")
    colours = np.array([colour for _, colour in counted], np.uint8)
    index_of = np.empty(2**24, np.uint8)
    index_of[_numbers(colours)] = np.arange(len(colours))
    indexed = Image.fromarray(index_of[_numbers(pixels)])
    indexed.putpalette(colours[:, :3].tobytes())
    return indexed


def _numbers(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Each colour of `[…, RGBA]` as a number of 24 bits."""
    return colours.view("<u4")[..., 0] & np.uint32(0xFFFFFF)


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
