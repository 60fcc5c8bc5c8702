"""What a run does when: the order of its grids in each epoch and its learning rate at each step."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

BLOCK_CELLS, WINDOW_CELLS = 2**18, 2**28
"""How many cells, which are bytes of a uint8 file, an epoch of a large corpus reads and shuffles together."""


def epoch_order(seed: int, epoch: int, n: int, *, cells: int = 256) -> NDArray[np.int64]:
    """The order in which an epoch visits n training grids of so many cells, a function of these alone.

    Any order is equally likely for up to 256 MiB of grids. Of more, blocks of 256 KiB are shuffled, and
    then the grids of every 1024 blocks: a file that exceeds the page cache is then read about once an epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    windows = window_edges(n, cells=cells)
    if len(windows) == 2:
        return rng.permutation(n)
    block = BLOCK_CELLS // cells
    starts = rng.permutation(np.arange(0, n, block))
    order = np.concatenate([np.arange(start, min(start + block, n)) for start in starts])
    for start, stop in itertools.pairwise(windows):
        rng.shuffle(order[start:stop])
    return order


def window_edges(n: int, *, cells: int) -> list[int]:
    """Where in `epoch_order` grids that are shuffled together begin, and n, where the last of them end."""
    windows = math.ceil(n / (WINDOW_CELLS // cells))
    size, larger = divmod(n, windows)
    return [window * size + min(window, larger) for window in range(windows + 1)]


def learning_rate(step: int, *, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak` over at most a quarter of `total` steps, then a cosine to 0 at `total`."""
    warmup = min(warmup, total // 4)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))
