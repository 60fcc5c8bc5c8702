"""The order of the grids in an epoch; seed, learning rate and β of a step; Adam."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adam import adam

from bvae.config import BetaSchedule

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

BLOCK_CELLS, WINDOW_CELLS = 2**18, 2**28
"""Number of cells in a block of consecutive grids, and in a window of blocks, see `epoch_order`."""

BETA_CYCLES, BETA_RISE = 4, 0.5
"""Number of cycles of the schedule `cyclical`, and the fraction of a cycle in which β rises."""


def epoch_order(seed: int, epoch: int, n: int, *, cells: int = 256) -> NDArray[np.int64]:
    """Return the order in which an epoch visits n training grids with `cells` cells (bytes) each.

    The order depends only on the arguments. For at most 256 MiB of grids, all orders are equally likely.
    Larger corpora are shuffled in blocks of 256 KiB, then grid by grid in windows of at most 1024 blocks. A
    file that is larger than the page cache is thus read about once per epoch.
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
    """Return the position at which each window of `epoch_order` starts, and n."""
    windows = math.ceil(n / (WINDOW_CELLS // cells))
    size, larger = divmod(n, windows)
    return [window * size + min(window, larger) for window in range(windows + 1)]


def step_seed(seed: int, step: int) -> int:
    """Return the 32-bit seed of the global random generators in a step, from the seed of the run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def learning_rate(step: int, *, total: int | None, warmup: int, peak: float) -> float:
    """Return the learning rate of a step: a linear warm-up to `peak`, then a cosine to 0 at step `total`.

    The warm-up takes at most a quarter of `total`. If `total` is None, the rate stays at `peak`.
    """
    warmup = warmup if total is None else min(warmup, total // 4)
    if step < warmup:
        return peak * (step + 1) / warmup
    if total is None:
        return peak
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def beta_share(step: int, *, total: int, warmup: float, schedule: BetaSchedule) -> float:
    """Return the β of a step as a fraction of the full β.

    `constant` is always 1. `linear` rises from 0 to 1 over `warmup` steps and stays at 1. `cyclical` has
    `BETA_CYCLES` cycles in `total` steps: in each, it rises from 0 to 1 over the first half and stays at 1.

    Source of `linear`: Bowman et al., Generating Sentences from a Continuous Space, 2016. Source of
    `cyclical`: Fu et al., Cyclical Annealing Schedule, 2019, with M = 4 and R = 0.5 as in their experiments.
    """
    if schedule == "linear":
        return min(1.0, step / warmup)
    if schedule == "cyclical":
        return min(1.0, step * BETA_CYCLES % total / (total * BETA_RISE))
    return 1.0


class Adam:
    """Adam with clipping of the gradient's 2-norm.

    Results are bit-identical to `torch.optim.Adam(fused=True)`. This class calls the same function directly,
    because `torch.optim.Adam` imports a compiler, which takes a second in every process.

    Args:
        parameters: tensors to train, by name, on the device where they are trained.
        max_norm: gradients of a larger 2-norm are scaled down to this norm.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015; for clipping: Pascanu et al., On
    the difficulty of training recurrent neural networks, 2013.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, max_norm: float) -> None:
        self._max_norm, self._parameters = max_norm, parameters
        self._state = {
            name: {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
            for name, parameter in self._parameters.items()
        }

    def clip(self, *, wait: bool = True) -> Tensor:
        """Clip the gradient, and return its previous 2-norm. Without `wait`, no value leaves the device."""
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not wait:
            factor = self._max_norm / (norm + 1e-6)  # as in clip_grads_with_norm_
            torch._foreach_mul_(gradients, factor.where(norm > self._max_norm, 1.0))
        elif norm > self._max_norm:  # if it is not, no pass over the gradients is needed
            nn.utils.clip_grads_with_norm_(self._parameters.values(), self._max_norm, norm)
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float, skip: Tensor | None = None) -> None:
        """Update all parameters that have a gradient; change nothing if `skip`, float32 `[]`, is 1."""
        moved = {name: p for name, p in self._parameters.items() if p.grad is not None}
        adam(
            [*moved.values()],
            [parameter.grad for parameter in moved.values() if parameter.grad is not None],
            [self._state[name]["exp_avg"] for name in moved],
            [self._state[name]["exp_avg_sq"] for name in moved],
            [],
            [self._state[name]["step"] for name in moved],
            fused=True,
            found_inf=skip,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=learning_rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state, not copies, by name, such as `encoder.0.weight.exp_avg`."""
        return {f"{name}.{key}": t for name, state in self._state.items() for key, t in state.items()}
