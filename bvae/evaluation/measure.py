"""Evaluation of models on validation grids, and of the references in reports."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bvae.beta_vae import GridModel, class_weights, one_hot
from bvae.config import DEFAULT_CLASSES, OUTSIDE
from bvae.corpus import Corpus, Grids, LazyGrids
from bvae.evaluation.metrics import (
    SEED,
    Tally,
    derangement,
    extent,
    find_objects,
    sample_rows,
    score_with_control,
)
from bvae.losses import BetaVAELoss, focal_loss, kl_divergence
from bvae.records import ControlledMetrics, Evaluation

ACTIVE_KL = 0.05
"""A latent dimension is active if its KL divergence is above this value, in nats."""

WINDOW_CELLS = 2**22
"""Maximum number of cells of the grids that are read into memory and predicted at a time."""

MAX_OBJECT_GRIDS = 2_000
"""Maximum number of validation grids used for object metrics and references."""

MAX_REFERENCE_CELLS = 10 * 2**23
"""Maximum number of one-hot training cells for references: 32,768 grids of 16×16 and 10 classes."""


def foreground_gradient_share(
    logits: Tensor, target: Tensor, loss: BetaVAELoss, background: int = 0
) -> float | None:
    """Return the share of Σ|∂loss/∂logits| that comes from foreground cells; None if the sum is 0.

    Args:
        logits: `[B, C, H, W]`.
        target: `[B, H, W]`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        logits = logits.detach().clone().requires_grad_()
        cells = focal_loss(logits, target.clone(), gamma=loss.gamma, weight=loss.weight, reduction="none")
        (gradient,) = torch.autograd.grad(cells.sum(), logits)
    size = gradient.abs().sum(1, dtype=torch.float64)
    total = size.sum().item()
    foreground = (target != background) & (target != OUTSIDE)
    return size[foreground].sum().item() / total if total > 0 else None


def evaluate(
    model: GridModel,
    grids: Grids,
    loss: BetaVAELoss,
    *,
    batch_size: int = 256,
    precision: str = "fp32",
    classes: int = DEFAULT_CLASSES,
    background: int = 0,
) -> Evaluation:
    """Measure a model on grids `[N, H, W]`, N ≥ 2, without changing its mode, weights or random states."""
    evaluator = Evaluator(grids, loss, precision=precision, classes=classes, background=background)
    return evaluator.measure(model, batch_size=batch_size)


class Evaluator:
    """Measures models on the same grids; finds the objects and the `extent` control of the grids once.

    Args:
        grids: `[N, H, W]`, N ≥ 2.
        loss: the training objective.
        precision: "bf16" runs models under autocast.
        classes: number of classes.
        background: the class that counts as the background.
    """

    def __init__(
        self,
        grids: Grids,
        loss: BetaVAELoss,
        *,
        precision: str = "fp32",
        classes: int = DEFAULT_CLASSES,
        background: int = 0,
    ) -> None:
        self._grids, self._loss, self._precision = grids, loss, precision
        self._classes, self._background = classes, background
        self._sampled = sample_rows(len(grids), MAX_OBJECT_GRIDS)
        if isinstance(grids, LazyGrids):
            grids.prefetch(self._sampled)
        self._objects = find_objects(grids[self._sampled], classes)
        filled = extent(self._objects.grids, classes)
        other = filled[derangement(len(filled))]
        self._extent = score_with_control(self._objects, filled, other, background)

    @torch.inference_mode()
    def measure(self, model: GridModel, *, batch_size: int = 256) -> Evaluation:
        """Measure a model, without changing its mode, its weights or the states of random generators.

        Grids are predicted in windows of up to `WINDOW_CELLS` cells. The shuffled control of a grid
        reuses the prediction for another grid of its window. So `decode` must treat the grids of a batch
        independently.
        """
        terms = _LossSums(self._loss, self._background)
        seen, shuffled = (Tally(self._classes, self._background) for _ in range(2))
        samples: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        with evaluating(model):
            for window in _windows(len(self._grids), WINDOW_CELLS // self._objects.grids[0].size):
                if isinstance(self._grids, LazyGrids):
                    self._grids.prefetch(window)
                part = self._grids[window]
                predicted = self._predict(model, part, terms, batch_size)
                other = derangement(len(part))
                for rows in _blocks(len(part), batch_size):
                    seen.add(part[rows], predicted[rows])
                    shuffled.add(part[rows], predicted[other[rows]])
                first, last = np.searchsorted(self._sampled, (window.start, window.stop))
                sampled = self._sampled[first:last] - window.start
                samples.append((predicted[sampled], predicted[other[sampled]]))
        of_sample, of_shuffled_sample = map(np.concatenate, zip(*samples, strict=True))
        return Evaluation(
            **vars(seen.metrics(self._objects, of_sample)),
            classes_learned=len(seen.learned(shuffled)),
            shuffled=shuffled.metrics(self._objects, of_shuffled_sample),
            extent=self._extent,
            confusion=tuple(map(tuple, seen.confusion.tolist())),
            **terms.means(),
        )

    def _predict(
        self, model: GridModel, part: NDArray[np.uint8], terms: _LossSums, batch_size: int
    ) -> NDArray[np.uint8]:
        """Return the classes `[N, H, W]` that a model predicts from the posterior mean; add up its losses."""
        device = next(model.parameters()).device
        # A single array, because many small arrays between the activations would fragment the heap.
        predicted = np.empty(part.shape, np.uint8)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            for rows in _blocks(len(part), batch_size):
                target = torch.from_numpy(part[rows]).to(device)
                # The model gets copies, because it may modify its input.
                mean, log_variance = model.encode(target.clone())
                logits = model.decode(mean.clone())
                terms.add(logits, mean, log_variance, target)
                predicted[rows] = logits.argmax(1).byte().cpu().numpy()
        return predicted


class _LossSums:
    """The loss and its terms, summed over batches."""

    def __init__(self, loss: BetaVAELoss, background: int) -> None:
        self._loss, self._background = loss, background
        self._grids = 0
        # Sums over grids: total, reconstruction, KL divergence, reconstruction × cells, cells.
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._kl_of_dim = torch.zeros((), dtype=torch.float64)
        self._gradient_share: float | None = None

    def add(self, logits: Tensor, mean: Tensor, log_variance: Tensor, target: Tensor) -> None:
        if not self._grids:
            self._gradient_share = foreground_gradient_share(logits, target, self._loss, self._background)
        self._grids += len(target)
        found = self._loss(logits, mean, log_variance, target)
        terms = torch.stack((found.total, found.reconstruction, found.kl)).double()
        cells = (target != OUTSIDE).double().mean((1, 2))  # cells inside, as a share of H·W
        self._sums += torch.stack((*terms, terms[1] * cells, cells)).sum(1).cpu()
        self._kl_of_dim = self._kl_of_dim + kl_divergence(mean, log_variance).double().sum(0).cpu()

    def means(self) -> dict[str, Any]:
        """Return the fields of `Evaluation` that describe the loss."""
        total, of_grids, kl, of_cells, cells = (self._sums / self._grids).tolist()
        kl_per_dim = tuple((self._kl_of_dim / self._grids).tolist())
        return {
            # Replaces the mean over grids of the reconstruction term by its mean over cells.
            "loss": total + (of_cells / cells - of_grids),
            "reconstruction": of_cells / cells,
            "kl": kl,
            "kl_per_dim": kl_per_dim,
            "active_units": sum(value > ACTIVE_KL for value in kl_per_dim),
            "foreground_gradient_share": self._gradient_share,
        }


def references(corpus: Corpus, *latent_dims: int) -> dict[str, ControlledMetrics]:
    """Return the metrics of the references on up to 2,000 validation grids of a corpus.

    - "background only" predicts background everywhere.
    - "nearest training grid" predicts the training grid that has the most cells in common with the
      validation grid; "nearest training grid, weighted" weights these cells by class (`sqrt_inverse`).
    - "PCA" projects one-hot cells onto principal components, and predicts the class with the largest product
      of class weight and projected value. There is a PCA for each number of components in `latent_dims`; if
      there are several, their names contain the number.
    """
    val = corpus.val[sample_rows(len(corpus.val), MAX_OBJECT_GRIDS)]
    most = MAX_REFERENCE_CELLS // (corpus.classes * corpus.grid_size**2)
    train = corpus.train[sample_rows(len(corpus.train), most)]
    weights = class_weights(corpus.class_counts, "sqrt_inverse")
    known, asked = (_one_hot_cells(grids, corpus.classes) for grids in (train, val))
    background = np.uint8(corpus.background)
    whole = np.where(train == OUTSIDE, background, train)  # a training grid predicts background outside
    predictions = {
        "background only": np.full_like(val, background),
        "nearest training grid": whole[_nearest(known, asked, torch.ones(corpus.classes))],
        "nearest training grid, weighted": whole[_nearest(known, asked, weights)],
    }
    for count in latent_dims:
        name = "PCA" if len(latent_dims) == 1 else f"PCA, {count} components"
        predictions[name] = _principal_components(known, asked, count, weights).reshape(val.shape)
    objects, other = find_objects(val, corpus.classes), derangement(len(val))
    return {
        name: score_with_control(objects, predicted, predicted[other], corpus.background)
        for name, predicted in predictions.items()
    }


def _one_hot_cells(grids: NDArray[np.uint8], classes: int) -> Tensor:
    """Return the one-hot cells `[N, H·W, C]` of grids `[N, H, W]`, zeros outside the grids."""
    return one_hot(torch.from_numpy(grids), classes).permute(0, 2, 3, 1).flatten(1, 2)


def _nearest(train: Tensor, val: Tensor, weights: Tensor) -> NDArray[np.int64]:
    """Return, for each validation grid, the index of the training grid whose equal cells weigh most."""
    nearest: NDArray[np.int64] = ((val * weights).flatten(1) @ train.flatten(1).t()).argmax(1).numpy()
    return nearest


def _principal_components(train: Tensor, val: Tensor, count: int, weights: Tensor) -> NDArray[np.uint8]:
    """Predict validation cells `[N, H·W]` by projection onto principal components of the training grids."""
    flat, mean = train.flatten(1), train.flatten(1).mean(0)
    with torch.random.fork_rng(devices=[]):  # the decomposition draws random numbers
        torch.manual_seed(SEED)
        axes = torch.pca_lowrank(flat, q=min(count, *flat.shape))[2]
    projected = (val.flatten(1) - mean) @ axes @ axes.t() + mean
    predicted: NDArray[np.uint8] = (projected.view_as(val) * weights).argmax(2).byte().numpy()
    return predicted


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Set a module to evaluation mode and seed the global generators; restore both afterwards.

    For a model that is not a module, only the generators are seeded.
    """
    module = model if isinstance(model, nn.Module) else nn.Module()
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        with seeded(0, device):
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Call `seed_generators`; restore the previous states of the generators afterwards."""
    generators = _torch_generators(device)
    states = [generator.get_state() for generator in generators]
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        seed_generators(seed, device)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of PyTorch (CPU and `device`), NumPy and Python."""
    for generator in _torch_generators(device):  # torch.manual_seed takes forty times as long
        generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _torch_generators(device: torch.device) -> list[torch.Generator]:
    if device.type != "cuda" or not torch.cuda.is_available():
        return [torch.default_generator]
    torch.cuda.init()  # type: ignore[no-untyped-call]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def _windows(n: int, size: int) -> Iterator[slice]:
    """Split range(n) into slices of nearly equal length: at most `size`, and at least size/2 if n > size."""
    edges = np.linspace(0, n, -(-n // size) + 1).astype(int).tolist()
    return (slice(start, stop) for start, stop in itertools.pairwise(edges))


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
