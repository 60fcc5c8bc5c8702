"""One reproducible training step: load a batch, compute loss and gradient, update the weights."""

from __future__ import annotations

import bisect
import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
import torch.utils.deterministic
from numpy.typing import NDArray
from torch import Tensor, nn

from bvae.beta_vae import BetaVAE, GridModel, sample_posterior
from bvae.config import TrainingConfig
from bvae.corpus import Grids, LazyGrids
from bvae.losses import BetaVAELoss, LossTerms
from bvae.training.checkpoint import OPTIMIZER
from bvae.training.cpu_bf16 import HandwrittenStep, unsupported
from bvae.training.optimization import Adam, window_edges

READ_EVERY = {"cpu": 1, "cuda": 500}
"""Maximum number of steps between two reads of losses and gradient norms, by type of device.

A read waits for the GPU. If the number is above 1, steps are deferred: they read no value from the device.
From the step with a loss or norm that is not finite, the weights stay unchanged. The next read finds it.
"""

RESIDENT_SHARE = 1 / 8
"""Maximum fraction of a GPU's free memory for training grids, because several runs may share the GPU."""

_log = logging.getLogger(__name__)

deterministic: Any = torch.utils.deterministic
"""The module as `Any`, because its annotations lack `fill_uninitialized_memory`."""


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels and, on a CPU, one thread. Previous settings are restored at the end.

    Sums with another number of threads round differently. Besides, two processes with two threads each on two
    cores are ten times slower than with one thread each, because waiting threads occupy the cores. On a GPU,
    the environment variable CUBLAS_WORKSPACE_CONFIG is set if it is missing, and it remains set.
    """
    # torch.use_deterministic_algorithms would import a compiler, which takes a second.
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    fill = deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    # Deterministic mode would otherwise take time to fill each new tensor with NaN.
    deterministic.fill_uninitialized_memory = False
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = fill


def keep_freed_memory() -> None:
    """Make the C library keep freed blocks of up to 31 MiB for reuse.

    Otherwise, the system would map, zero and unmap the memory of the activations in each step. glibc keeps
    blocks up to the size of the largest block freed so far, so allocating and freeing one block is enough.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


class EpochGrids:
    """Training grids as batches on a device, in the order of an epoch.

    If all grids take at most `RESIDENT_SHARE` of a GPU's free memory, they are copied to the GPU once.
    Otherwise, each batch is copied from pinned memory, and the host does not wait for the copy.

    Args:
        grids: `[N, H, W]`.
        device: the device of the batches.
    """

    def __init__(self, grids: Grids, device: torch.device) -> None:
        self._grids, self._device, cells = grids, device, math.prod(grids.shape[1:])
        self._windows, self._resident = window_edges(len(grids), cells=cells), None
        if READ_EVERY[device.type] > 1 and len(grids) * cells <= RESIDENT_SHARE * _free_memory(device):
            self._resident = torch.empty(grids.shape, dtype=torch.uint8, device=device)
            for start in range(0, len(grids), 4096):  # so that a large file is not read at once
                self._resident[start : start + 4096] = torch.tensor(grids[start : start + 4096])

    def set_order(self, order: NDArray[np.int64]) -> None:
        """Set the order of an epoch: indices of grids, `[N]`."""
        self.order, self._prefetched = order, 0
        self._order = None if self._resident is None else torch.from_numpy(order).to(self._device)

    def __getitem__(self, part: slice) -> Tensor:
        """Return the batch `[B, H, W]` of the grids in this slice of the order."""
        if self._resident is not None and self._order is not None:
            return self._resident.index_select(0, self._order[part])
        if isinstance(self._grids, LazyGrids) and part.stop > self._prefetched:
            start = max(self._prefetched, part.start)
            self._prefetched = self._windows[bisect.bisect_left(self._windows, part.stop)]
            self._grids.prefetch(self.order[start : self._prefetched])
        batch = torch.from_numpy(self._grids[self.order[part]])
        if self._device.type == "cpu":
            return batch
        return batch.pin_memory().to(self._device, non_blocking=True)


def _free_memory(device: torch.device) -> float:
    """Return the free memory of a GPU in bytes; infinity for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


class TrainStep(Protocol):
    """Interface of a training step.

    An implementation may have its own copy of the weights and the optimizer state. The model and `tensors`
    are then up to date only between `sync_model` and the next `forward_backward`.
    """

    def forward_backward(
        self, target: Tensor, noise: torch.Generator, beta: float | None = None
    ) -> tuple[LossTerms, Tensor]:
        """Compute the gradient of the loss of a batch, and clip it.

        Args:
            target: `[B, H, W]`, class indices.
            noise: generator for the posterior samples.
            beta: β of this step; None for the β of the loss.

        Returns: the terms of the loss, see `BetaVAELoss.with_gradient`, and the 2-norm of the gradient before
            clipping.
        """

    def step(self, learning_rate: float) -> None:
        """Update the weights with the gradient of the last `forward_backward`."""

    def sync_model(self) -> None:
        """Copy the weights to the model, and the optimizer state to `tensors`."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer state by name. Writing to a tensor changes the state."""


def training_state(model: nn.Module, step: TrainStep) -> dict[str, Tensor]:
    """Return model and optimizer state by name, for a checkpoint. Call `step.sync_model` before."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return tensors | {f"{OPTIMIZER}{name}": tensor for name, tensor in step.tensors().items()}


@torch.no_grad()
def restore_tensors(state: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the tensors of the same names in `state`, see `training_state`."""
    for name, tensor in state.items():
        tensor.copy_(saved[name])


class AutogradStep:
    """A step of any model on any device, with gradients computed by autograd.

    Args:
        model: the module to train, on the device where it is trained.
        loss: the loss to minimize.
        max_norm: gradients of a larger 2-norm are scaled down to this norm.
        bf16: whether the model runs under autocast to bfloat16.
        defer: whether steps are deferred, see `READ_EVERY`.
    """

    def __init__(
        self, model: GridModel, loss: BetaVAELoss, *, max_norm: float, bf16: bool, defer: bool = False
    ) -> None:
        self._model, self._loss, self._bf16 = model, loss, bf16
        self._parameters = dict(model.named_parameters())
        self._adam = Adam(self._parameters, max_norm=max_norm)
        # Set to 1 at the first number that is not finite; None if steps are not deferred.
        self._skip = torch.zeros((), device=next(model.parameters()).device) if defer else None

    def forward_backward(
        self, target: Tensor, noise: torch.Generator, beta: float | None = None
    ) -> tuple[LossTerms, Tensor]:
        """See `TrainStep`. Raises ValueError if no output of the model depends on a trained parameter."""
        for parameter in self._parameters.values():
            parameter.grad = None
        with torch.autocast(target.device.type, torch.bfloat16, enabled=self._bf16):
            mean, log_variance = self._model.encode(target.clone())  # a copy, because the model may modify it
            logits = self._model.decode(sample_posterior(mean, log_variance, noise))
        outputs = (logits, mean, log_variance)
        wait = self._skip is None
        terms, gradients = self._loss.with_gradient(*outputs, target, beta=beta, wait=wait)
        trained = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
        if not trained:
            raise ValueError("no output of the model depends on a parameter that requires a gradient")
        torch.autograd.backward(
            [output for output, _ in trained], [gradient.to(output.dtype) for output, gradient in trained]
        )
        norm = self._adam.clip(wait=wait)
        if self._skip is not None:
            is_finite = torch.stack((*terms, norm)).isfinite().all()
            self._skip = self._skip.maximum(1.0 - is_finite.float())
        return terms, norm

    def step(self, learning_rate: float) -> None:
        self._adam.step(learning_rate, self._skip)

    def sync_model(self) -> None:
        """Do nothing, because the parameters of the model are trained directly."""

    def tensors(self) -> dict[str, Tensor]:
        return self._adam.tensors()


def make_step(model: GridModel, loss: BetaVAELoss, training: TrainingConfig, example: Tensor) -> TrainStep:
    """Return the fastest step that supports a model.

    In bfloat16 on a CPU, this is `HandwrittenStep`. If it does not support the model, the reason is logged,
    and `AutogradStep` is returned.

    Args:
        model: the module to train, on the device where it is trained.
        loss: the loss to minimize.
        training: provides precision, device and maximum gradient norm.
        example: `[B, H, W]`, a few grids for a test of the model.
    """
    max_norm, bf16 = training.max_gradient_norm, training.precision == "bf16"
    device = torch.device(training.device)
    defer = READ_EVERY[device.type] > 1
    if bf16 and device.type == "cpu" and not defer:
        with reproducible(device):
            reason = unsupported(model, example)
        if reason is None:
            assert isinstance(model, BetaVAE)
            return HandwrittenStep(model, loss, max_norm=max_norm)
        _log.info("gradients by autograd, which is slower than the handwritten step: %s", reason)
    return AutogradStep(model, loss, max_norm=max_norm, bf16=bf16, defer=defer)
