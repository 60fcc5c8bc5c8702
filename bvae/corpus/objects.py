"""Real ARC objects on empty 16×16 grids.

Objects keep the shape and colour that they have in an ARC grid, but are placed at random. The grids are as
imbalanced and varied as ARC's, while a model only has to learn objects and their places.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvae.corpus.arc import MAX_SIDE, TaskGrid, task_grids

SIZE = 16
MIN_OBJECTS, MAX_OBJECTS = 2, 7
MIN_CELLS, MAX_CELLS = 2, 40
MAX_OBJECT_SIDE = 10
PLACES_TRIED = 8
SEED = 0
# Limits working memory to a few dozen MB. It affects the random numbers, so changing it changes the corpus.
BATCH = 4096

EIGHT_CONNECTED = np.ones((3, 3), np.bool_)


class Pool(NamedTuple):
    """K distinct objects: `shape` bool `[K, 10, 10]`, its cells from the top left, and `colour` `[K]`."""

    shape: npt.NDArray[np.bool_]
    colour: npt.NDArray[np.uint8]


class ObjectGrids(NamedTuple):
    """Generated grids and how they were composed.

    `grids` are the classes 0–9 (uint8 `[N, 16, 16]`); `owner` numbers the object that coloured a cell from 1,
    with 0 for the background (uint8 `[N, 16, 16]`).
    """

    grids: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.uint8]


def load(count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return `count` training grids and a tenth as many of objects from held-out tasks, `[N, 16, 16]`."""
    train, val = object_pools(task_grids())
    return generate(train, count, SEED).grids, generate(val, count // 10, SEED + 1).grids


def object_pools(grids: Iterable[TaskGrid]) -> tuple[Pool, Pool]:
    """Return the objects for training and for validation; the latter are all objects of held-out tasks.

    Objects are the 8-connected sets of cells of one colour other than 0, with 2 to 40 cells and sides of at
    most 10, of those grids in which 0 is the most frequent colour.
    """
    used = [grid for grid in grids if np.bincount(grid.cells.ravel()).argmax() == 0]
    strip, held_out = _strip(used)
    labels, colours = _label(strip)
    row, column = labels.nonzero()
    label = labels[row, column] - 1
    count = len(colours)

    def extremes(position: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        low, high = np.full(count, len(strip)), np.full(count, -1)
        np.minimum.at(low, label, position)
        np.maximum.at(high, label, position)
        return low, high

    (top, bottom), (left, right) = extremes(row), extremes(column)
    cells = np.bincount(label, minlength=count)
    side = np.maximum(bottom - top, right - left) + 1
    chosen = (cells >= MIN_CELLS) & (cells <= MAX_CELLS) & (side <= MAX_OBJECT_SIDE)
    number = np.cumsum(chosen) - 1
    inside = chosen[label]
    label, row, column = label[inside], row[inside], column[inside]
    found = np.zeros((chosen.sum(), 1 + MAX_OBJECT_SIDE**2), np.uint8)
    found[:, 0] = colours[chosen]
    found[number[label], 1 + MAX_OBJECT_SIDE * (row - top[label]) + column - left[label]] = 1
    of_held_out = held_out[top[chosen]]
    packed = np.ascontiguousarray(np.packbits(found[:, 1:], axis=1))
    keys = np.concatenate([found[:, :1], packed], axis=1).view(f"V{1 + packed.shape[1]}").ravel()
    val, first_val = np.unique(keys[of_held_out], return_index=True)
    train, first_train = np.unique(keys[~of_held_out], return_index=True)
    only_train = ~np.isin(train, val)
    return _pool(found[~of_held_out][first_train[only_train]]), _pool(found[of_held_out][first_val])


def _pool(found: npt.NDArray[np.uint8]) -> Pool:
    return Pool(found[:, 1:].reshape(-1, MAX_OBJECT_SIDE, MAX_OBJECT_SIDE).astype(np.bool_), found[:, 0])


def _strip(grids: list[TaskGrid]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Stack grids vertically with an empty row after each; also return, per row, whether it is held out."""
    heights = [len(cells) + 1 for cells, _ in grids]
    strip = np.zeros((sum(heights), MAX_SIDE), np.uint8)
    top = 0
    for cells, _ in grids:
        strip[top : top + len(cells), : cells.shape[1]] = cells
        top += len(cells) + 1
    return strip, np.repeat([held_out for _, held_out in grids], heights)


def _label(strip: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Number the 8-connected sets of cells of one colour from 1 (background 0); also return their colours."""
    labels = np.zeros(strip.shape, np.int32)
    colours: list[int] = []
    for colour in range(1, int(strip.max()) + 1):
        found, count = ndimage.label(strip == colour, EIGHT_CONNECTED, output=np.int32)
        labels += np.where(found, found + len(colours), 0).astype(np.int32)
        colours += [colour] * count
    return labels, np.array(colours, np.uint8)


def generate(pool: Pool, count: int, seed: int) -> ObjectGrids:
    """Compose `count` grids of objects from a pool; the same arguments give the same grids.

    For each grid, 2 to 7 objects are drawn uniformly. Each is tried at up to 8 uniformly drawn places until
    at least one free cell separates it from all others, also diagonally; if none fits, it is left out.
    """
    rng = np.random.default_rng(seed)
    grids = np.zeros((count, SIZE, SIZE), np.uint8)
    owner = np.zeros((count, SIZE, SIZE), np.uint8)
    for start in range(0, count, BATCH):
        _compose(rng, pool, ObjectGrids(grids[start : start + BATCH], owner[start : start + BATCH]))
    return ObjectGrids(grids, owner)


def _compose(rng: np.random.Generator, pool: Pool, batch: ObjectGrids) -> None:
    """Place the objects of a batch of empty grids, one after the other.

    Rows of cells are stored as bits of an integer, so that a few shifts and comparisons check a place.
    """
    count = len(batch.grids)
    room = SIZE - np.stack([pool.shape.any(2).sum(1), pool.shape.any(1).sum(1)], axis=1) + 1
    rows = _bits(pool.shape)
    near = np.pad(rows, [(0, 0), (1, 1)])  # with its neighbours; starts 1 row up, 1 column left
    near = near | np.roll(near, 1, axis=1) | np.roll(near, -1, axis=1)
    near = near | near << 1 | near << 2
    taken = np.zeros((count, SIZE + 2 + MAX_OBJECT_SIDE), np.int64)  # with an empty frame
    objects = rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1, count)
    drawn = rng.integers(len(pool.colour), size=(count, MAX_OBJECTS))
    for number in range(MAX_OBJECTS):
        waiting = np.flatnonzero(objects > number)
        for _ in range(PLACES_TRIED):
            kind = drawn[waiting, number]
            top, left = rng.integers(room[kind]).T
            reach = top[:, None] + np.arange(MAX_OBJECT_SIDE + 2)
            free = ~(taken[waiting[:, None], reach] & near[kind] << left[:, None]).any(1)
            placed, kind, top, left = waiting[free], kind[free], top[free], left[free]
            taken[placed[:, None], reach[free][:, 1:-1]] |= rows[kind] << left[:, None] + 1
            which, row, column = pool.shape[kind].nonzero()
            cells = placed[which], top[which] + row, left[which] + column
            batch.grids[cells] = pool.colour[kind[which]]
            batch.owner[cells] = number + 1
            waiting = waiting[~free]


def _bits(shape: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return each row of cells `[…, W]` as a number whose lowest bit is the leftmost cell."""
    bits: npt.NDArray[np.int64] = (shape << np.arange(shape.shape[-1])).sum(-1)
    return bits
