"""Grids that are padded and converted only when they are taken, from an array or a memory-mapped file."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import numpy.typing as npt

from bvae.config import OUTSIDE
from bvae.corpus.array_files import Integers

PREFETCH_BYTES = 2**16
"""The size of a read. Larger ones would read more neighbours of shuffled grids, which nobody asks for."""


class LazyGrids:
    """Rows of stored grids `[N, H, W]`, given as uint8 `[…, S, S]` when they are taken.

    Args:
        stored: the grids, at most S rows and columns each.
        rows: `[K]`, which of them.
        grid_size: S.
        padding_value: the stored value of cells outside a grid, None where there are none.
    """

    def __init__(
        self, stored: Integers, rows: Integers, grid_size: int, padding_value: int | None = None
    ) -> None:
        self.rows = rows
        self.shape = (len(rows), grid_size, grid_size)
        self._stored = stored
        self._padding_value = padding_value

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | slice | Integers) -> npt.NDArray[np.uint8]:
        """Take grids by position: `[S, S]` for an integer, `[K, S, S]` for a slice or K integers."""
        return pad(self._stored[self.rows[item]], self.shape[-1], self._padding_value)

    def prefetch(self, item: slice | Integers) -> None:
        """Ask the system to read grids that are about to be taken, in any order, from a memory-mapped file.

        From then on, a page of that file that is missing is read alone. Otherwise the system would read its
        surroundings too, megabytes on some, and drop them again before anything in them is needed.
        """
        stored, file = self._stored, self._stored.base
        if not (isinstance(stored, np.memmap) and isinstance(file, mmap.mmap) and stored.flags.c_contiguous):
            return
        if not hasattr(mmap, "MADV_WILLNEED"):  # on Windows
            return
        begin = stored.offset % mmap.ALLOCATIONGRANULARITY  # in the map, which begins with a page
        size = stored[:1].nbytes
        places = begin + self.rows[item].astype(np.int64) * size
        parts = np.zeros(len(file) // PREFETCH_BYTES + 1, np.bool_)
        parts[places // PREFETCH_BYTES] = parts[(places + size - 1) // PREFETCH_BYTES] = True
        with contextlib.suppress(OSError):  # it is a hint
            file.madvise(mmap.MADV_RANDOM)
            for start in (np.flatnonzero(parts) * PREFETCH_BYTES).tolist():
                file.madvise(mmap.MADV_WILLNEED, start, min(PREFETCH_BYTES, len(file) - start))


Grids = npt.NDArray[np.uint8] | LazyGrids


def pad(stored: Integers, grid_size: int, padding_value: int | None = None) -> npt.NDArray[np.uint8]:
    """Copy grids `[…, H, W]` to the top left of `[…, S, S]`; what is not a cell becomes `OUTSIDE`."""
    *leading, height, width = stored.shape
    grids = np.full((*leading, grid_size, grid_size), OUTSIDE, np.uint8)
    grids[..., :height, :width] = stored
    if padding_value is not None:
        grids[..., :height, :width][stored == padding_value] = OUTSIDE
    return grids
