"""What a model has learned, measured on grids it was not trained on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bvae.beta_vae import GridModel
from bvae.config import CLASSES
from bvae.corpus import Grids
from bvae.losses import BetaVAELoss, focal_loss, kl_divergence

ACTIVE_KL = 0.05
"""A latent dimension is active above this KL divergence, in nats."""

WINDOW_CELLS = 2**22
"""How many cells an evaluation holds at a time, with what was painted of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionMetrics:
    """How reconstructed grids compare with the originals; fractions, null where nothing was there to count.

    Attributes:
        pixel_accuracy: cells with the right class.
        background_rate: background cells, which is the accuracy of painting everything background.
        foreground_rate, predicted_foreground_rate: cells that are, and that were painted, non-background.
        foreground_iou: intersection over union of the painted and the true foreground masks.
        foreground_recall: non-background cells with exactly the right class.
        balanced_accuracy: mean over the classes that occur of the share of their cells that is right.
        perfect_rate: grids with no wrong cell.
    """

    pixel_accuracy: float | None
    background_rate: float | None
    foreground_rate: float | None
    predicted_foreground_rate: float | None
    foreground_iou: float | None
    foreground_recall: float | None
    balanced_accuracy: float | None
    perfect_rate: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(ReconstructionMetrics):
    """The metrics of a model on the validation split, decoded from the posterior mean.

    Attributes:
        loss, reconstruction, kl: the training objective and its terms, nats.
        kl_per_dim: KL divergence of each latent dimension, nats, averaged over grids.
        active_units: dimensions whose KL exceeds 0.05 nats.
        confusion: `[C, C]` cells by true class (row) and predicted class (column).
        foreground_gradient_share: the part of Σ|∂loss/∂logits| that comes from foreground cells, on the
            first grids of the split: what the loss tells the model to care about.
        shuffled: the same metrics when each grid is decoded from another grid's latent. What survives the
            shuffle the decoder knew without looking.
    """

    loss: float
    reconstruction: float
    kl: float
    kl_per_dim: tuple[float, ...]
    active_units: int
    confusion: tuple[tuple[int, ...], ...]
    foreground_gradient_share: float | None
    shuffled: ReconstructionMetrics


def confusion_matrix(target: NDArray[np.integer], predicted: NDArray[np.integer]) -> NDArray[np.int64]:
    """Counts `[C, C]` of cells by true class (row) and predicted class (column)."""
    index = target.astype(np.int64).ravel() * CLASSES + predicted.astype(np.int64).ravel()
    return np.bincount(index, minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)


def reconstruction_metrics(confusion: NDArray[np.int64], perfect: int, grids: int) -> ReconstructionMetrics:
    """Metrics from a confusion matrix `[C, C]` (rows true), the number of perfect grids and of all grids."""
    cells, true = int(confusion.sum()), confusion.sum(1)
    right = np.diag(confusion)
    either = cells - int(confusion[0, 0])
    present = true > 0
    return ReconstructionMetrics(
        pixel_accuracy=_ratio(right.sum(), cells),
        background_rate=_ratio(true[0], cells),
        foreground_rate=_ratio(true[1:].sum(), cells),
        predicted_foreground_rate=_ratio(confusion[:, 1:].sum(), cells),
        foreground_iou=_ratio(confusion[1:, 1:].sum(), either),
        foreground_recall=_ratio(right[1:].sum(), true[1:].sum()),
        balanced_accuracy=float((right[present] / true[present]).mean()) if present.any() else None,
        perfect_rate=_ratio(perfect, grids),
    )


def _ratio(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None


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


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation over seeds; None where undefined (a value is, or one seed)."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None
