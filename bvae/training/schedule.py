"""The order of the training grids in each epoch, and the seed, learning rate and β of each step."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from bvae.config import BetaSchedule

BLOCK_CELLS, WINDOW_CELLS = 2**18, 2**28
"""Cells (one byte each) per block, which is read at once, and per window, which is shuffled at once."""

BETA_CYCLES, BETA_RISE = 4, 0.5
"""Cycles of the schedule `cyclical` in a whole run, and the share of a cycle in which β rises."""


def epoch_order(seed: int, epoch: int, n: int, *, cells: int = 256) -> NDArray[np.int64]:
    """Return the order in which an epoch visits n training grids of `cells` cells each.

    It depends only on the arguments. For up to 256 MiB of grids all orders are equally likely. Larger corpora
    are shuffled in blocks of 256 KiB first, and then grid by grid within windows of 1024 blocks, so that a
    file larger than the page cache is read about once per epoch.
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
    """Return the index in `epoch_order` at which each window starts, and n."""
    windows = math.ceil(n / (WINDOW_CELLS // cells))
    size, larger = divmod(n, windows)
    return [window * size + min(window, larger) for window in range(windows + 1)]


def step_seed(seed: int, step: int) -> int:
    """Return the seed, of 32 bits, of what the model draws from global generators in a step of a run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def learning_rate(step: int, *, total: int, warmup: int, peak: float) -> float:
    """Return the rate of a step: linear warm-up over at most a quarter of all steps, then a cosine to 0."""
    warmup = min(warmup, total // 4)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def beta_share(step: int, *, total: int, warmup: float, schedule: BetaSchedule) -> float:
    """Return the β of a step as a share of the full one.

    `linear` rises from 0 over `warmup` steps and stays at 1. `cyclical` does so in each of `BETA_CYCLES`
    cycles, over the first half of the cycle.

    Source: Bowman et al., Generating Sentences from a Continuous Space, 2016, for the warm-up; Fu et al.,
    Cyclical Annealing Schedule, 2019, with the M = 4 and R = 0.5 of their experiments.
    """
    if schedule == "linear":
        return min(1.0, step / warmup)
    if schedule == "cyclical":
        return min(1.0, step * BETA_CYCLES % total / (total * BETA_RISE))
    return 1.0
