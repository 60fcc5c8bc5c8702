"""Figures measured in pixels: style, fitted text, titles, and reproducible PNG files."""

from __future__ import annotations

import contextlib
import functools
import io
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
from matplotlib.textpath import text_to_path
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Destination = str | Path | BinaryIO

DPI = 72  # one point is one pixel
INK, SOFT_INK = "#1A1A1A", "#595959"  # grey, so that a grid image has at most 256 colours
TITLE_SIZE, TEXT_SIZE, TICK_SIZE = 30, 26, 22  # pixels; readable if a picture is shown 600 pixels wide
LINE_HEIGHT = 1.3
LETTER = 0.54  # mean width of a letter, in font sizes
TITLE_LINES = 3  # maximum number for the headline, and for the text below it
GAP, EDGE = 14, 20  # pixels
LEFT = 104  # pixels to the left of a panel, for the tick labels of its y axis
LABEL_DROP = 64  # pixels from the bottom of a panel to the bottom of its x label
COMPRESSION = 6  # zlib level: files are a fifth smaller than at level 3, and a picture takes 15 ms longer

STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "text.hinting": "none",  # draws text five times as fast, with widths proportional to the font size
    "text.color": INK,
    "font.size": TICK_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # without it, matplotlib lays out all tick labels to place the title
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
    """Draw with matplotlib's defaults as changed by `STYLE`; restore the user's settings afterwards.

    The settings are global, so only one thread draws at a time.
    """
    with _STYLE_LOCK, style.context(["default", STYLE]):
        yield


def pixel_figure(width: int, height: int) -> Figure:
    """Return an empty white figure that is not registered with pyplot."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def titled_figure(width: int, height: int, title: str | None) -> tuple[Figure, int]:
    """Return a figure with `height` pixels below its title, and the y position of the title's end, in pixels.

    The first line of the title becomes a bold headline. Long lines are wrapped. A title that is cut ends in
    "…".
    """
    given = [line for line in (title or "").splitlines() if line.strip()]
    headline, details = _wrap(given[:1], width), _wrap(given[1:], width)
    pitch, room = round(LINE_HEIGHT * TITLE_SIZE), width - 2 * EDGE
    top = EDGE + pitch * len(headline + details) + (GAP if given else 0)
    figure = pixel_figure(width, top + height)
    write(figure, EDGE, EDGE, "\n".join(headline), size=TITLE_SIZE, width=room, fontweight="bold")
    second, small = EDGE + pitch * len(headline), TITLE_SIZE - 2
    write(figure, EDGE, second, "\n".join(details), size=small, width=room, color=SOFT_INK)
    return figure, top


def _wrap(lines: list[str], width: int) -> list[str]:
    columns = int((width - 2 * EDGE) / (LETTER * TITLE_SIZE))
    wrapped = [piece for line in lines for piece in textwrap.wrap(line, columns)]
    if len(wrapped) > TITLE_LINES:
        wrapped[TITLE_LINES - 1 :] = [wrapped[TITLE_LINES - 1][: columns - 2] + " …"]
    return wrapped


def panel_grid(figure: Figure, shape: tuple[int, int], heights: tuple[int, int, int]) -> list[Axes]:
    """Add axes of equal size in rows and columns at the bottom of a figure; return them row by row.

    Args:
        heights: pixels of a panel's heading, of its axes, and of the space below.
    """
    (rows, columns), (heading, high, foot) = shape, heights
    wide, whole = figure.bbox.size
    place = {
        "left": LEFT / wide,
        "right": 1 - EDGE / wide,
        "bottom": foot / whole,
        "top": (rows * sum(heights) - heading) / whole,
        "wspace": LEFT / ((wide - EDGE) / columns - LEFT),
        "hspace": (heading + foot) / high,
    }
    return list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=place).flat)


def name_panel(axes: Axes, heading: str, below: str) -> None:
    """Set the heading of axes and the label of their x axis."""
    axes.set_title(heading)
    axes.set_xlabel(below, va="bottom")
    for axis in (axes.xaxis, axes.yaxis):  # without this, all tick labels are laid out first
        axis.set_label_coords(0.5, -LABEL_DROP / axes.bbox.height)


def write(figure: Figure, x: float, y: float, text: str, *, size: float, width: float, **look: Any) -> None:
    """Write text at a position in pixels from the top left corner.

    The font is reduced if the text would be wider than `width` pixels. `look` has other properties of
    `matplotlib.text.Text`; by default, `va` is "top".
    """
    if not text:
        return
    wide, high = figure.bbox.size
    shown = drawable(text)
    room = text_width(shown, size, look.get("fontweight", "normal"))
    look.setdefault("va", "top")
    fitted = size * min(1.0, width / max(1.0, room))
    figure.text(x / wide, 1 - y / high, shown, fontsize=fitted, linespacing=LINE_HEIGHT, **look)


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width in pixels of the longest line of a text at a font size."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    measure = text_to_path.get_text_width_height_descent
    return max((measure(line, font, ismath=False)[0] for line in text.splitlines()), default=0.0)


def drawable(text: str) -> str:
    """Replace control characters, and characters that the normal or bold font lacks, with U+FFFD."""
    known = _characters()
    spaced = ("".join(" " if letter.isspace() else letter for letter in line) for line in text.splitlines())
    return "\n".join("".join(letter if letter in known else "\ufffd" for letter in line) for line in spaced)


@functools.cache
def _characters() -> frozenset[str]:
    """Return the characters that both the normal and the bold font have."""
    faces = (FontProperties(family="DejaVu Sans", weight=weight) for weight in ("normal", "bold"))
    normal, bold = (get_font(findfont(face)).get_charmap() for face in faces)  # both come with matplotlib
    return frozenset(filter(str.isprintable, map(chr, set(normal) & set(bold))))


def save_png(figure: Figure, path: Destination | None, description: str = "") -> None:
    """Add a text alternative to a figure, and write a PNG without date and version if `path` is given.

    Args:
        description: text alternative, also written to the text chunk `Description` of the file.
    """
    figure.set_label(description)
    if path is None:
        return
    canvas: Any = figure.canvas
    canvas.draw()
    text = PngInfo()
    if description:
        text.add_text("Description", description)
    image = _with_palette(np.asarray(canvas.buffer_rgba()))
    image.save(path, "png", pnginfo=text, compress_level=COMPRESSION)


@house_style()
def png_of(figure: Figure) -> bytes:
    """Return the PNG of a figure that a function of this package drew, with its text alternative."""
    picture = io.BytesIO()
    save_png(figure, picture, str(figure.get_label()))
    return picture.getvalue()


def _with_palette(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Return opaque pixels `[H, W, RGBA]` as an image; with a palette if they have at most 256 colours.

    Grid images have at most 256 colours. A palette halves the size of their files.
    """
    image = Image.fromarray(pixels).convert("RGB")
    return image if image.getcolors(256) is None else image.quantize(256, Image.Quantize.MEDIANCUT)
