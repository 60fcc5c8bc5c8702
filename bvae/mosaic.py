"""A matrix of ARC grids with labels and captions, painted into one image on one axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure

from bvae.canvas import (
    EDGE,
    GAP,
    LINE_HEIGHT,
    SOFT_INK,
    TEXT_SIZE,
    Destination,
    Title,
    pixel_figure,
    save_png,
    text_width,
    title_height,
    title_lines,
    write_title,
)
from bvae.lettering import write

Symbols = npt.NDArray[np.integer[Any]]
Captions = Mapping[int, tuple[str, Sequence[str]]]

# Classes 0–9 as the ARC editor shows them (github.com/fchollet/ARC-AGI, apps/css/common.css).
ARC_COLOURS = (
    *("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00"),
    *("#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"),
)
CLASSES = len(ARC_COLOURS)
# A symbol is a class, DOTTED + a class (marked as wrong), or one of the four that follow.
DOTTED = CLASSES
RIGHT_BACKGROUND, RIGHT_OBJECT, WRONG, BLANK = range(2 * CLASSES, 2 * CLASSES + 4)
SYMBOL_COLOURS = (*ARC_COLOURS, *ARC_COLOURS, "#F2F2F2", "#C4C8CE", "#A8001C", "#FFFFFF")
# The editor's lines are #555; on cells of eight pixels they would outshine the background.
LINE, WHITE = (58, 58, 58, 255), (255, 255, 255, 255)
PALE_DOT, DARK_DOT = (165, 165, 165, 255), (40, 40, 40, 255)

# Pixels. Ten columns of 16×16 grids with the longest label of the laboratory get eight pixels a cell.
MAX_WIDTH, MIN_WIDTH = 1700, 640
MAX_COLUMNS = 10
MAX_GRID, MAX_LABEL, MIN_COLUMN = 192, 250, 104
CAPTION_GAP = 8


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where things are, in pixels: a cell's side, the columns' centres, the rows' tops, and the whole."""

    cell: int
    margin: int
    column: int
    centres: list[int]
    tops: list[int]
    width: int
    height: int
    title: Title


def draw_mosaic(
    symbols: Symbols,
    *,
    labels: Sequence[str],
    captions: Captions,
    headers: Sequence[str] = (),
    note: str = "",
    path: Destination | None = None,
    title: str | None = None,
    description: str = "",
) -> Figure:
    """Draw a matrix of grids with a label before each row and captions under some rows.

    Args:
        symbols: `[R, C, H, W]`, the classes 0–9 and the other symbols of this module.
        labels: `[R]`.
        captions: for the index of a row, the label of its captions and the captions themselves, `[C]`.
        headers: `[C]`, above the columns, or none.
        note: what stands at the foot.
        path: where the PNG goes, at most `MAX_WIDTH` pixels wide.
        title: the first line becomes a headline.
        description: the text alternative within the PNG.
    """
    layout = _lay_out(symbols.shape, labels, captions, headers, note, title)
    side = symbols.shape[2] * layout.cell
    figure, axes = pixel_figure(layout.width, layout.height)
    axes.add_artist(_Pixels(_paint(symbols, layout)))
    write_title(axes, layout.title)
    quiet: dict[str, Any] = {"size": TEXT_SIZE, "color": SOFT_INK}
    centred: dict[str, Any] = {"size": TEXT_SIZE, "width": layout.column, "ha": "center"}
    room = layout.margin - EDGE - GAP
    for centre, header in zip(layout.centres, headers, strict=bool(headers)):
        write(axes, centre, layout.tops[0] - CAPTION_GAP, header, **centred, va="bottom")
    for row, (top, label) in enumerate(zip(layout.tops, labels, strict=True)):
        write(axes, EDGE, top + side / 2, label, size=TEXT_SIZE, width=room, va="center")
        under, texts = captions.get(row, ("", ()))
        write(axes, EDGE, top + side + CAPTION_GAP, under, **quiet, width=room, va="top")
        for centre, text in zip(layout.centres, texts, strict=bool(texts)):
            write(axes, centre, top + side + CAPTION_GAP, text, **centred, va="top")
    write(axes, EDGE, layout.height - EDGE, note, **quiet, width=layout.width - 2 * EDGE, va="bottom")
    save_png(figure, path, description)
    return figure


def draw_columns(symbols: Symbols, *, labels: Sequence[str], captions: Captions, **rest: Any) -> Figure:
    """Draw a mosaic of `[R, B, H, W]` with a column for each of B grids, in banks of at most `MAX_COLUMNS`.

    The other arguments are those of `draw_mosaic`.
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
    return draw_mosaic(matrix, labels=[*labels] * banks, captions=under, **rest)


def _lay_out(
    shape: tuple[int, ...],
    labels: Sequence[str],
    captions: Captions,
    headers: Sequence[str],
    note: str,
    title: str | None,
) -> _Layout:
    """Place a matrix of `shape` [R, C, H, W] with its texts, cells as large as the bounds allow."""
    rows, columns, height, width = shape
    before = [*labels, *(label for label, _ in captions.values())]
    margin = EDGE + min(MAX_LABEL, max(text_width(label, TEXT_SIZE) for label in before)) + GAP
    room = (MAX_WIDTH - margin - EDGE) // columns - GAP
    cell = max(1, min(room // width, MAX_GRID // max(height, width)))
    column = max(cell * width, min(room, MIN_COLUMN))
    whole = max(MIN_WIDTH, margin + columns * (column + GAP) - GAP + EDGE)
    lines = title_lines(title, whole - 2 * EDGE)

    def below(row: int) -> int:
        caption = len(captions[row][0].splitlines()) if row in captions else 0
        return GAP + (round(LINE_HEIGHT * TEXT_SIZE * caption) + GAP if caption else 0)

    first = title_height(lines) + (round(1.5 * TEXT_SIZE) if headers else 0)
    *tops, bottom = accumulate((height * cell + below(row) for row in range(rows)), initial=first)
    return _Layout(
        cell=cell,
        margin=margin,
        column=column,
        centres=[margin + index * (column + GAP) + column // 2 for index in range(columns)],
        tops=tops,
        width=whole,
        height=bottom - GAP + EDGE + (GAP + TEXT_SIZE if note else 0),
        title=lines,
    )


class _Pixels(Artist):
    """An image of the figure's own size, drawn as it is; imshow would resample it, in much memory."""

    def __init__(self, image: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        self.image = np.ascontiguousarray(image[::-1])  # Agg counts rows from the bottom

    def draw(self, renderer: RendererBase) -> None:
        assert self.axes is not None
        left, bottom = self.axes.bbox.min  # not 0 where a notebook crops the figure
        context = renderer.new_gc()
        renderer.draw_image(context, round(left), round(bottom), self.image)
        context.restore()


def _paint(symbols: Symbols, layout: _Layout) -> npt.NDArray[np.uint8]:
    """The image of the whole picture, `[height, width, RGBA]`, with every grid in its place."""
    rows, columns, height, width = symbols.shape
    high, wide = height * layout.cell, width * layout.cell
    cells = _sprites(layout.cell)[symbols].transpose(0, 1, 2, 4, 3, 5, 6)
    image = np.full((layout.height, layout.width, 4), 255, np.uint8)
    for top, row in zip(layout.tops, cells.reshape(rows, columns, high, wide, 4), strict=True):
        for centre, grid in zip(layout.centres, row, strict=True):
            left = centre - wide // 2
            image[top : top + high, left : left + wide] = grid
    return image


def _sprites(cell: int) -> npt.NDArray[np.uint8]:
    """A picture of every symbol, `[symbols, cell, cell, RGBA]`, with lines and marks where there is room."""
    colours = np.array([[*bytes.fromhex(colour[1:]), 255] for colour in SYMBOL_COLOURS], np.uint8)
    pictures = np.repeat(colours, cell * cell, axis=0).reshape(-1, cell, cell, 4)
    if cell >= 6:
        for edge in (pictures[:, 0], pictures[:, :, 0]):
            edge[:RIGHT_BACKGROUND] = LINE
            edge[RIGHT_BACKGROUND:] = WHITE
    # With lines at the top and left, a mark stands in the middle of what is left of the cell.
    shift = cell / 2 if cell >= 6 else (cell - 1) / 2
    x, y = np.meshgrid(np.abs(np.arange(cell) - shift), np.abs(np.arange(cell) - shift))
    reach = np.maximum(x, y)
    if cell >= 3:
        dark = colours[:CLASSES, :3] @ np.array([0.299, 0.587, 0.114]) < 110
        for symbol, picture in enumerate(pictures[DOTTED : DOTTED + CLASSES]):
            picture[reach <= max(0.5, 0.15 * cell)] = PALE_DOT if dark[symbol] else DARK_DOT
    if cell >= 5:
        pictures[WRONG][(np.abs(x - y) < max(0.5, 0.08 * cell)) & (reach < 0.36 * cell)] = WHITE
    return pictures
