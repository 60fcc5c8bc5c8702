"""Figures measured in pixels, their titles, and PNG bytes that do not change.

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
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bvae.lettering import write

Destination = str | Path | BinaryIO
Title = list[tuple[str, bool]]

ROWS = 64  # indexed at a time: an index takes eight bytes, and new memory more time than all else
COMPRESSION = 3  # of zlib's nine levels: half the time of its default for files 11 to 38 % larger
DPI = 72  # a point is then a pixel, and every whole number of pixels survives the way through inches
SOFT_INK = "#595959"
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
    _with_palette(np.asarray(canvas.buffer_rgba())).save(
        path, "png", pnginfo=text, compress_level=COMPRESSION
    )


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
    indices = np.empty(pixels.shape[:2], np.uint8)
    for top in range(0, len(pixels), ROWS):
        indices[top : top + ROWS] = index_of[_numbers(pixels[top : top + ROWS])]
    indexed = Image.fromarray(indices)
    indexed.putpalette(colours[:, :3].tobytes())
    return indexed


def _numbers(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Each colour of `[…, RGBA]` as a number of 24 bits."""
    return colours.view("<u4")[..., 0] & np.uint32(0xFFFFFF)


def text_width(text: str, size: float) -> int:
    """About how many pixels the longest line of ordinary text takes at `size` pixels."""
    return round(0.58 * size * max(map(len, text.splitlines()), default=0))


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
