"""Procedural 16×16 grids of one to four one-colour objects on an empty background."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SIZE = 16
MAX_OBJECTS = 4
MAX_CELLS = 15
KINDS = ("blob", "rectangle", "line", "pattern")
KIND_PROBABILITIES = (0.4, 0.2, 0.2, 0.2)
# Limits working memory to a few dozen MB. It affects the random numbers, so changing it changes the corpus.
BATCH = 4096

Cells = npt.NDArray[np.int64]


class AtomicGrids(NamedTuple):
    """Generated grids and how they were composed.

    `grids` are the classes 0–9 (uint8 `[N, 16, 16]`), `owner` numbers the object of a cell from 1, with 0 for
    the background (uint8 `[N, 16, 16]`), and `kind` is the index into `KINDS` of each grid's
    objects, −1 if it has fewer than four (int8 `[N, 4]`).
    """

    grids: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.uint8]
    kind: npt.NDArray[np.int8]


def generate(count: int, seed: int = 0) -> AtomicGrids:
    """Compose `count` grids; the same `count` and `seed` give the same grids.

    Each grid has 1–4 non-overlapping objects of 2–15 cells, each of one colour drawn uniformly from 1–9:
    connected blobs (40 %), filled rectangles, straight lines and repeated patterns (20 % each).
    """
    rng = np.random.default_rng(seed)
    grids = np.zeros((count, SIZE, SIZE), np.uint8)
    owner = np.zeros((count, SIZE, SIZE), np.uint8)
    kind = np.full((count, MAX_OBJECTS), -1, np.int8)
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        _compose(rng, AtomicGrids(grids[rows], owner[rows], kind[rows]))
    return AtomicGrids(grids, owner, kind)


def _compose(rng: np.random.Generator, batch: AtomicGrids) -> None:
    """Add objects to a batch of empty grids in place, one object per grid at a time."""
    count = len(batch.grids)
    objects = rng.integers(1, MAX_OBJECTS + 1, count)
    batch.kind[:] = rng.choice(len(KINDS), (count, MAX_OBJECTS), p=KIND_PROBABILITIES)
    batch.kind[np.arange(MAX_OBJECTS) >= objects[:, None]] = -1
    colour = rng.integers(1, 10, (count, MAX_OBJECTS), dtype=np.uint8)
    for slot in range(MAX_OBJECTS):
        waiting = np.flatnonzero(objects > slot)
        # A shape that overlaps an earlier one is drawn again, of the same kind. Three objects cover at most
        # 45 cells, which always leaves room for the smallest shape of each kind, so the loop ends.
        while waiting.size:
            cells = _place(rng, _draw_shapes(rng, batch.kind[waiting, slot]))
            row, column = cells[..., 0], cells[..., 1]
            fits = ~batch.owner[waiting[:, None], row, column].any(axis=1)
            drawn = waiting[fits]
            where = drawn[:, None], row[fits], column[fits]
            batch.owner[where] = slot + 1
            batch.grids[where] = colour[drawn, slot, None]
            waiting = waiting[~fits]


def _place(rng: np.random.Generator, shapes: Cells) -> Cells:
    """Move each shape `[M, 15, 2]` to a random position inside the grid."""
    low, high = shapes.min(axis=1), shapes.max(axis=1)
    corner: Cells = rng.integers(0, SIZE - (high - low))
    shift: Cells = corner - low
    return shapes + shift[:, None]


def _draw_shapes(rng: np.random.Generator, kind: npt.NDArray[np.int8]) -> Cells:
    """Draw a shape of each kind as cells (row, column) `[M, 15, 2]`; smaller shapes repeat a cell."""
    shapes = np.empty((len(kind), MAX_CELLS, 2), np.int64)
    blobs = kind == 0
    shapes[blobs] = _grow_blobs(rng, int(blobs.sum()))
    for number, table in enumerate((RECTANGLES, LINES, PATTERNS), start=1):
        chosen = kind == number
        shapes[chosen] = table[rng.integers(len(table), size=int(chosen.sum()))]
    return shapes


def _grow_blobs(rng: np.random.Generator, count: int) -> Cells:
    """Grow connected blobs of 2–15 cells: add random neighbours of random cells until the size is reached."""
    steps = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
    cells = np.zeros((count, MAX_CELLS, 2), np.int64)
    target = rng.integers(2, MAX_CELLS + 1, count)
    size = np.ones(count, np.int64)
    growing = np.arange(count)
    while growing.size:
        parent = cells[growing, rng.integers(size[growing])]
        child = parent + steps[rng.integers(len(steps), size=growing.size)]
        # Unused entries repeat the first cell, so comparing with all fifteen is comparing with the blob.
        new = ~(cells[growing] == child[:, None]).all(axis=2).any(axis=1)
        grown = growing[new]
        cells[grown, size[grown]] = child[new]
        size[grown] += 1
        growing = growing[size[growing] < target[growing]]
    return cells


def _table(masks: list[npt.NDArray[np.bool_]]) -> Cells:
    """List the cells of each mask of 2–15 cells as `[K, 15, 2]`, padded with the mask's first cell."""
    rows = []
    for mask in masks:
        cells = np.argwhere(mask)
        if 2 <= len(cells) <= MAX_CELLS:
            rows.append(np.concatenate([cells, np.repeat(cells[:1], MAX_CELLS - len(cells), axis=0)]))
    return np.stack(rows)


def _motifs(height: int, width: int) -> list[npt.NDArray[np.bool_]]:
    """A checkerboard and spaced dots, each filling a box of the given size."""
    row, column = np.indices((height, width))
    return [(row + column) % 2 == 0, (row % 2 == 0) & (column % 2 == 0)]


RECTANGLES = _table([np.ones((height, width), bool) for height in range(2, 5) for width in range(2, 5)])
LINES = _table([np.ones(sides, bool) for length in range(2, 9) for sides in ((1, length), (length, 1))])
PATTERNS = _table(
    [motif for height in range(3, 6) for width in range(3, 6) for motif in _motifs(height, width)]
)
