"""What a model has learned, by the metrics of `bvae.metrics`, on grids it was not trained on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bvae.beta_vae import GridModel
from bvae.config import CLASSES
from bvae.corpus import Grids, LazyGrids
from bvae.losses import BetaVAELoss, focal_loss, kl_divergence
from bvae.metrics import Evaluation, ReconstructionMetrics, confusion_matrix, reconstruction_metrics

ACTIVE_KL = 0.05
"""A latent dimension is active above this KL divergence, in nats."""

WINDOW_CELLS = 2**22
"""How many cells an evaluation holds at a time, with what was painted of them."""


class _Tally:
    """A confusion matrix and a count of perfect grids, over batches."""

    def __init__(self) -> None:
        self.confusion = np.zeros((CLASSES, CLASSES), np.int64)
        self.perfect = self.grids = 0

    def add(self, target: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        self.confusion += confusion_matrix(target, predicted)
        self.perfect += int((predicted == target).reshape(len(target), -1).all(1).sum())
        self.grids += len(target)

    def metrics(self) -> ReconstructionMetrics:
        return reconstruction_metrics(self.confusion, self.perfect, self.grids)


def derangement(n: int, seed: int = 0) -> NDArray[np.int64]:
    """A random permutation of 0 … n−1 that leaves nothing in place: one cycle through all.

    Neighbouring grids of a corpus are often alike, so a shift by one would not be a control.
    """
    cycle = np.random.default_rng(seed).permutation(n)
    successor = np.empty(n, np.int64)
    successor[cycle] = np.roll(cycle, -1)
    return successor


def foreground_gradient_share(logits: Tensor, target: Tensor, loss: BetaVAELoss) -> float | None:
    """The part of Σ|∂loss/∂logits| of logits `[B, C, H, W]` that foreground cells have; None of nothing."""
    with torch.inference_mode(False), torch.enable_grad():
        logits = logits.detach().clone().requires_grad_()
        cells = focal_loss(logits, target.clone(), gamma=loss.gamma, weight=loss.weight, reduction="none")
        (gradient,) = torch.autograd.grad(cells.sum(), logits)
    size = gradient.abs().sum(1, dtype=torch.float64)
    total = size.sum().item()
    return size[target > 0].sum().item() / total if total > 0 else None


@torch.inference_mode()
def evaluate(
    model: GridModel,
    grids: Grids,
    loss: BetaVAELoss,
    *,
    batch_size: int = 256,
    precision: str = "fp32",
) -> Evaluation:
    """Measure a model on grids `[N, H, W]`, N ≥ 2, without touching its mode, weights or any randomness.

    For the control nothing is decoded again: what another grid's latent decodes to is what was painted of
    that grid, one among up to `WINDOW_CELLS` cells of neighbours. So `decode` must treat grids one by one.
    """
    device = next(model.parameters()).device
    terms, kl_of_dim = torch.zeros(3, dtype=torch.float64), torch.zeros(())
    gradient_share: float | None = None
    seen, shuffled = _Tally(), _Tally()
    was_training = model.training
    model.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for window in _windows(len(grids), WINDOW_CELLS // grids[:1].size):
            if isinstance(grids, LazyGrids):
                grids.prefetch(window)
            part = grids[window]
            # Of one piece: many small ones among the activations would keep the heap from being reused.
            painted = np.empty(part.shape, np.uint8)
            for rows in _blocks(len(part), batch_size):
                target = torch.from_numpy(part[rows]).to(device)
                mean, log_variance = model.encode(target)
                logits = model.decode(mean)
                if not seen.grids:
                    gradient_share = foreground_gradient_share(logits, target, loss)
                found = loss(logits, mean, log_variance, target)
                terms += torch.stack((found.total, found.reconstruction, found.kl)).double().sum(1).cpu()
                kl_of_dim = kl_of_dim + kl_divergence(mean, log_variance).double().sum(0).cpu()
                painted[rows] = logits.argmax(1).byte().cpu().numpy()
                seen.add(part[rows], painted[rows])
            other = derangement(len(part))
            for rows in _blocks(len(part), batch_size):
                shuffled.add(part[rows], painted[other[rows]])
    model.train(was_training)
    total, reconstruction, kl = (terms / len(grids)).tolist()
    kl_per_dim = (kl_of_dim / len(grids)).tolist()
    return Evaluation(
        **dataclasses.asdict(seen.metrics()),
        loss=total,
        reconstruction=reconstruction,
        kl=kl,
        kl_per_dim=tuple(kl_per_dim),
        active_units=sum(value > ACTIVE_KL for value in kl_per_dim),
        confusion=tuple(map(tuple, seen.confusion.tolist())),
        foreground_gradient_share=gradient_share,
        shuffled=shuffled.metrics(),
    )


def _windows(n: int, size: int) -> Iterator[slice]:
    """0 … n−1 in slices of nearly one length: at most `size`, and at least half of it where n is larger."""
    edges = np.linspace(0, n, -(-n // size) + 1).astype(int).tolist()
    return (slice(start, stop) for start, stop in itertools.pairwise(edges))


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
