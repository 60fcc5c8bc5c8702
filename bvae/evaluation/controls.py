"""Controls and references: predictions made without a trained model, with which a model is compared.

Controls enter the verdict; references are only shown in the report's table.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bvae.beta_vae import class_weights, one_hot
from bvae.config import DEFAULT_CLASSES, OUTSIDE
from bvae.corpus import Corpus
from bvae.corpus import Grids as CorpusGrids
from bvae.evaluation.metrics import class_counts, find_objects, score_with_control
from bvae.records import ControlledMetrics

Grids = NDArray[np.uint8]

MAX_OBJECT_GRIDS = 2_000
"""Maximum number of validation grids used for object metrics and references."""

MAX_REFERENCE_CELLS = 10 * 2**23
"""Maximum number of one-hot training cells for references: 32,768 grids of 16×16 and 10 classes."""

SEED = 0


def sample_rows(count: int, at_most: int) -> NDArray[np.int64]:
    """Return up to `at_most` seeded positions out of `count`, ascending."""
    if count <= at_most:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, at_most, replace=False))


def derangement(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Return a random permutation of range(n) without fixed points: a single cycle.

    Neighbouring grids of a corpus are often alike, so a shift by one would not be a control.
    """
    cycle = np.random.default_rng(seed).permutation(n)
    successor = np.empty(n, np.int64)
    successor[cycle] = np.roll(cycle, -1)
    return successor


def extent(grids: Grids, classes: int = DEFAULT_CLASSES) -> Grids:
    """Predict only the bounding box of the objects of grids `[N, H, W]`.

    The bounding box encloses the cells that are not of the grid's most frequent class, and is filled with
    the most frequent class among them. All other positions, even outside, get the grid's most frequent class.
    """
    counts = class_counts(grids, classes)
    main = counts.argmax(1)
    counts[np.arange(len(grids)), main] = 0
    other = np.where(counts.any(1), counts.argmax(1), main)
    is_object = (grids != main[:, None, None]) & (grids != OUTSIDE)
    rows, columns = is_object.any(2), is_object.any(1)
    inside = _between(rows)[:, :, None] & _between(columns)[:, None, :]
    filled: Grids = np.where(inside, other[:, None, None], main[:, None, None]).astype(np.uint8)
    return filled


def _between(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark everything from the first to the last mark of each row `[N, K]`."""
    after_first = np.logical_or.accumulate(marked, axis=1)
    before_last = np.logical_or.accumulate(marked[:, ::-1], axis=1)[:, ::-1]
    return after_first & before_last


def references(corpus: Corpus, latent_dim: int) -> dict[str, ControlledMetrics]:
    """Return the metrics of the references on up to 2,000 validation grids of a corpus.

    "background only" predicts class 0 everywhere. "nearest training grid" predicts the training grid with the
    most equal cells, counted equally or weighted by class (`sqrt_inverse`, as in option B).
    "PCA" keeps as many principal components of one-hot cells as the model has latents, and predicts the class
    with the largest product of weight and reconstructed value.
    """
    val = _sample(corpus.val, MAX_OBJECT_GRIDS)
    train = _sample(corpus.train, MAX_REFERENCE_CELLS // (corpus.classes * corpus.grid_size**2))
    weights = class_weights(corpus.class_counts, "sqrt_inverse")
    known, asked = (_one_hot_cells(grids, corpus.classes) for grids in (train, val))
    whole = np.where(train == OUTSIDE, np.uint8(0), train)  # outside a training grid, class 0 is predicted
    predictions = {
        "background only": np.zeros_like(val),
        "nearest training grid": whole[_nearest(known, asked, torch.ones(corpus.classes))],
        "nearest training grid, weighted": whole[_nearest(known, asked, weights)],
        "PCA": _principal_components(known, asked, latent_dim, weights).reshape(val.shape),
    }
    objects, other = find_objects(val, corpus.classes), derangement(len(val))
    return {
        name: score_with_control(objects, predicted, predicted[other])
        for name, predicted in predictions.items()
    }


def _sample(grids: CorpusGrids, at_most: int) -> Grids:
    return grids[sample_rows(len(grids), at_most)]


def _one_hot_cells(grids: Grids, classes: int) -> Tensor:
    """Return the one-hot cells `[N, H·W, C]` of grids `[N, H, W]`; zeros outside."""
    return one_hot(torch.from_numpy(grids), classes).permute(0, 2, 3, 1).flatten(1, 2)


def _nearest(train: Tensor, val: Tensor, weights: Tensor) -> NDArray[np.int64]:
    """Return, per validation grid, the index of the training grid with the largest weight of equal cells."""
    nearest: NDArray[np.int64] = ((val * weights).flatten(1) @ train.flatten(1).t()).argmax(1).numpy()
    return nearest


def _principal_components(train: Tensor, val: Tensor, count: int, weights: Tensor) -> Grids:
    """Predict validation cells `[N, H·W]` from their projection to the leading components of training."""
    flat, mean = train.flatten(1), train.flatten(1).mean(0)
    with torch.random.fork_rng(devices=[]):  # the decomposition is randomized
        torch.manual_seed(SEED)
        axes = torch.pca_lowrank(flat, q=min(count, *flat.shape))[2]
    projected = (val.flatten(1) - mean) @ axes @ axes.t() + mean
    predicted: Grids = (projected.view_as(val) * weights).argmax(2).byte().numpy()
    return predicted
