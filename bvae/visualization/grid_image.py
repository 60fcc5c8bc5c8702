"""An image of grids in rows and columns, with labels and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from bvae.visualization import canvas
from bvae.visualization.canvas import EDGE, GAP, LINE_HEIGHT, SOFT_INK, TEXT_SIZE, write

Symbols = npt.NDArray[np.integer[Any]]
Captions = Mapping[int, tuple[str, Sequence[str]]]

# Classes 0–9 have the colours of the ARC editor (github.com/fchollet/ARC-AGI, apps/css/common.css).
ARC_COLOURS = (
    *("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00"),
    *("#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"),
)
# Distinct colours for further classes, found by a search; some dark ones are hard to tell apart.
MORE_COLOURS = """
0000AA 000044 558866 880099 330000 AA77FF 440066 55FF99 3300FF 775577 AA6600 FF66FF CC7777 AA44AA
6600CC BBCC77 112233 EEFFAA 113300 114477 110011 FFCCFF BB33FF 55EE00 11BBCC 663366 336644 8877CC
6644FF FF88DD 66CC88 446699 AAEECC 776644 FFFF00 998844 AA6699 DD5599 7744BB 001100 661100 552299
44AAEE AA4411 BBEE66 AA4477 331188 BB9966 550044 FFAAAA 000077 220055 6666BB 2255DD
"""
CLASS_COLOURS = (*ARC_COLOURS, *(f"#{code}" for code in MORE_COLOURS.split()))
COLOURS = len(CLASS_COLOURS)
# A symbol is a class, DOTTED + a class for a wrong cell, or one of the four symbols below.
DOTTED = COLOURS
RIGHT_BACKGROUND, RIGHT_OBJECT, WRONG, BLANK = range(2 * COLOURS, 2 * COLOURS + 4)
SYMBOL_COLOURS = (*CLASS_COLOURS, *CLASS_COLOURS, "#F2F2F2", "#C4C8CE", "#A8001C", "#FFFFFF")
# Lines are darker than those of the ARC editor (#555), which are too bright between cells of eight pixels.
LINE, WHITE = (58, 58, 58, 255), (255, 255, 255, 255)
PALE_DOT, DARK_DOT = (165, 165, 165, 255), (40, 40, 40, 255)

# Pixels. With ten columns of 16×16 grids and the label "Reconstruction", a cell has eight pixels.
MAX_WIDTH, MIN_WIDTH = 1700, 640
MAX_COLUMNS = 10
MAX_GRID, MAX_LABEL, MIN_COLUMN = 192, 250, 104
CAPTION_GAP = 8


@canvas.house_style()
def draw_grid_image(
    symbols: Symbols,
    *,
    labels: Sequence[str],
    captions: Captions,
    headers: Sequence[str] = (),
    note: str = "",
    path: canvas.Destination | None = None,
    title: str | None = None,
    description: str = "",
) -> Figure:
    """Draw grids in rows and columns, with a label before each row and captions under some rows.

    Args:
        symbols: `[R, C, H, W]`, the classes 0–63 and the other symbols of this module.
        labels: `[R]`.
        captions: by index of a row, the label of the captions under the row, and the captions `[C]`.
        headers: `[C]`, above the columns; or empty.
        note: text at the bottom.
        path: destination of the PNG, which is at most `MAX_WIDTH` pixels wide.
        title: the first line becomes a headline.
        description: text alternative within the PNG.
    """
    layout = _Layout(symbols.shape, labels, captions, headers)
    figure, top = canvas.titled_figure(layout.width, layout.height + (GAP + TEXT_SIZE if note else 0), title)
    tops, side = [top + below for below in layout.tops], symbols.shape[2] * layout.cell
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=[], yticks=[])
    axes.imshow(_paint(figure, symbols, layout, tops), aspect="auto", interpolation="nearest")
    before: dict[str, Any] = {"size": TEXT_SIZE, "width": layout.margin - EDGE - GAP}
    centred: dict[str, Any] = {"size": TEXT_SIZE, "width": layout.column, "ha": "center"}
    level: dict[str, Any] = {"va": "baseline"}  # aligns the last line of the label with that of the captions
    for centre, header in zip(layout.centres, headers, strict=bool(headers)):
        write(figure, centre, tops[0] - CAPTION_GAP, header, **centred, va="bottom")
    for row, (top, label) in enumerate(zip(tops, labels, strict=True)):
        write(figure, EDGE, top + side / 2, label, **before, va="center")
        under, texts = captions.get(row, ("", ()))
        foot = top + side + round(LINE_HEIGHT * TEXT_SIZE * len(under.splitlines()))
        write(figure, EDGE, foot, under, **before, **level, color=SOFT_INK)
        for centre, text in zip(layout.centres, texts, strict=bool(texts)):
            write(figure, centre, foot, text, **centred, **level)
    quiet: dict[str, Any] = {"size": TEXT_SIZE, "width": layout.width - 2 * EDGE, "color": SOFT_INK}
    write(figure, EDGE, figure.bbox.height - EDGE, note, **quiet, va="bottom")
    canvas.save_png(figure, path, description)
    return figure


def draw_columns(symbols: Symbols, *, labels: Sequence[str], captions: Captions, **rest: Any) -> Figure:
    """Draw symbols `[R, B, H, W]`: a column for each of B grids, in blocks of at most `MAX_COLUMNS` columns.

    The other arguments are those of `draw_grid_image`.
    """
    rows, grids, height, width = symbols.shape
    banks = -(-grids // MAX_COLUMNS)
    columns = -(-grids // banks)
    missing = banks * columns - grids
    filled = np.pad(symbols, [(0, 0), (0, missing), (0, 0), (0, 0)], constant_values=BLANK)
    stacked = filled.reshape(rows, banks, columns, height, width).swapaxes(0, 1)
    under = {
        bank * rows + row: (label, [*texts, *[""] * missing][bank * columns : (bank + 1) * columns])
        for bank in range(banks)
        for row, (label, texts) in captions.items()
    }
    matrix = stacked.reshape(banks * rows, columns, height, width)
    return draw_grid_image(matrix, labels=[*labels] * banks, captions=under, **rest)


class _Layout:
    """Positions in pixels from the left edge and the end of the title; cells are as large as possible."""

    def __init__(
        self, shape: tuple[int, ...], labels: Sequence[str], captions: Captions, headers: Sequence[str]
    ) -> None:
        rows, columns, height, width = shape
        before = [*labels, *(label for label, _ in captions.values())]
        longest = max(canvas.text_width(canvas.drawable(label), TEXT_SIZE) for label in before)
        self.margin = EDGE + min(MAX_LABEL, round(longest)) + GAP
        room = (MAX_WIDTH - self.margin - EDGE) // columns - GAP
        self.cell = max(1, min(room // width, MAX_GRID // max(height, width)))
        self.column = max(self.cell * width, min(room, MIN_COLUMN))
        step = self.column + GAP
        self.centres = [self.margin + index * step + self.column // 2 for index in range(columns)]
        self.width = max(MIN_WIDTH, self.margin + columns * step - GAP + EDGE)
        lines = [len(captions[row][0].splitlines()) if row in captions else 0 for row in range(rows)]
        below = [GAP + (round(LINE_HEIGHT * TEXT_SIZE * count) + GAP if count else 0) for count in lines]
        first = round(1.5 * TEXT_SIZE) if headers else 0
        *self.tops, bottom = accumulate((height * self.cell + more for more in below), initial=first)
        self.height = bottom - GAP + EDGE


def _paint(figure: Figure, symbols: Symbols, layout: _Layout, tops: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the pixels of the figure, `[height, width, RGBA]`, with all grids and without text."""
    rows, columns, height, width = symbols.shape
    high, wide = height * layout.cell, width * layout.cell
    cells = _sprites(layout.cell)[symbols].transpose(0, 1, 2, 4, 3, 5, 6)
    image = np.full((round(figure.bbox.height), round(figure.bbox.width), 4), 255, np.uint8)
    for top, row in zip(tops, cells.reshape(rows, columns, high, wide, 4), strict=True):
        for centre, grid in zip(layout.centres, row, strict=True):
            left = centre - wide // 2
            image[top : top + high, left : left + wide] = grid
    return image


def _sprites(cell: int) -> npt.NDArray[np.uint8]:
    """Return the images of all symbols, `[symbols, cell, cell, RGBA]`; small cells have no lines or marks."""
    colours = np.array([[*bytes.fromhex(colour[1:]), 255] for colour in SYMBOL_COLOURS], np.uint8)
    pictures = np.repeat(colours, cell * cell, axis=0).reshape(-1, cell, cell, 4)
    if cell >= 6:
        for edge in (pictures[:, 0], pictures[:, :, 0]):
            edge[:RIGHT_BACKGROUND] = LINE
            edge[RIGHT_BACKGROUND:] = WHITE
    # Lines are at the top and left of a cell; a mark is in the centre of the rest.
    shift = cell / 2 if cell >= 6 else (cell - 1) / 2
    x, y = np.meshgrid(np.abs(np.arange(cell) - shift), np.abs(np.arange(cell) - shift))
    reach = np.maximum(x, y)
    if cell >= 3:
        dark = colours[:COLOURS, :3] @ np.array([0.299, 0.587, 0.114]) < 110
        for symbol, picture in enumerate(pictures[DOTTED : DOTTED + COLOURS]):
            picture[reach <= max(0.5, 0.15 * cell)] = PALE_DOT if dark[symbol] else DARK_DOT
    if cell >= 5:
        pictures[WRONG][(np.abs(x - y) < max(0.5, 0.08 * cell)) & (reach < 0.36 * cell)] = WHITE
    return pictures
