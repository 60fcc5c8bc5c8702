"""Pictures of the latent space: traversals, samples, and object IoU against KL divergence in bits.

Every picture has a single axes, and a description in words as its text alternative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bvae.beta_vae import GridModel
from bvae.config import OUTSIDE
from bvae.judging.comparison import colour_of
from bvae.losses import kl_divergence
from bvae.models import decode, encode
from bvae.storage import brief
from bvae.visualization import canvas
from bvae.visualization.canvas import TICK_SIZE, Destination
from bvae.visualization.charts import (
    FOOT,
    HEADING,
    LARGEST,
    LEGEND_LETTERS,
    NOTHING_YET,
    OBJECT_IOU,
    WIDTH,
    Values,
)
from bvae.visualization.grid_image import draw_columns, draw_grid_image
from bvae.visualization.reconstructions import MAX_GRIDS, Classes, Grids, checked_grids, dotted

VALUES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""Default values of a traversed dimension, in standard deviations of the prior, N(0, 1)."""

PLOT_WIDTH, PLOT_HEIGHT = 1160, 640
SESSION_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
Points = Mapping[str, Sequence[tuple[float, float]]]

MAX_DIMENSIONS = 8
"""Maximum number of dimensions that are drawn by default."""

MAX_VALUES = 12


def traverse(
    model: GridModel, latent: npt.NDArray[np.floating[Any]], dimension: int, values: Sequence[float]
) -> npt.NDArray[np.uint8]:
    """Return the classes `[V, H, W]` decoded from a latent `[Z]` with each of V values in one dimension.

    Raises:
        ValueError: for a dimension that the latent does not have, or values that are empty or not finite.
    """
    if not 0 <= dimension < len(latent):
        raise ValueError(f"dimension is {dimension}; expected a whole number from 0 to {len(latent) - 1}")
    if np.ndim(values) != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values is {values}; expected a list of one or more finite numbers")
    latents = np.tile(latent, (len(values), 1))
    latents[:, dimension] = values
    return decode(model, latents)


def sample_prior(model: GridModel, count: int, latent_dim: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return the classes `[count, H, W]` decoded from samples of the prior, N(0, 1) in each dimension.

    Raises:
        ValueError: for a count below 1 or a seed below 0.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected a whole number of at least {least}")
    return decode(model, np.random.default_rng(seed).standard_normal((count, latent_dim)))


def plot_traversals(
    model: GridModel,
    grid: Grids,
    dimensions: Sequence[int] | None = None,
    values: Sequence[float] = VALUES,
    *,
    path: Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a row for each latent dimension: the grids decoded with other values in this dimension.

    The other dimensions keep the posterior mean of the grid. A dot marks a cell whose class differs from the
    reconstruction. If a row has no dots, the dimension changes nothing.

    Args:
        model: see `bvae.models`.
        grid: `[H, W]`, classes and `bvae.corpus.OUTSIDE`.
        dimensions: up to 40 indices; by default the `MAX_DIMENSIONS` dimensions with the largest KL
            divergence of the grid's posterior, largest first.
        values: up to `MAX_VALUES` values, in standard deviations of the prior.

    Raises:
        ValueError: for a grid, dimensions or values that cannot be drawn.
    """
    original = checked_grids("grid", grid[None])
    mean, log_variance = encode(model, original.astype(np.uint8))
    kl = kl_divergence(torch.from_numpy(mean), torch.from_numpy(log_variance))[0].numpy()
    chosen = [*np.argsort(-kl, kind="stable")[:MAX_DIMENSIONS].tolist()] if dimensions is None else dimensions
    for name, given, most in (("dimensions", chosen, MAX_GRIDS), ("values", values, MAX_VALUES)):
        if not 1 <= len(given) <= most:
            raise ValueError(f"{name} has {len(given)} items; expected 1 to {most}")
    base = _within(original, decode(model, mean))
    rows = {index: _within(original, traverse(model, mean[0], index, values)) for index in chosen}
    first = [*dotted(original, original), *dotted(base, base)]
    return draw_grid_image(
        np.array([[*first, *dotted(base, row)] for row in rows.values()]),
        labels=[f"Dimension {index}\nKL {kl[index]:.2f} nats" for index in rows],
        captions={},
        headers=["Original", "Reconstruction", *map(_number, values)],
        note="Columns: value of the dimension, in standard deviations of the prior. Dot: the class differs "
        "from the reconstruction.",
        path=path,
        title=title,
        description=describe_traversals(base[0], rows, values),
    )


def plot_samples(
    model: GridModel,
    count: int,
    *,
    latent_dim: int | None = None,
    seed: int = 0,
    background: int = 0,
    path: Destination | None = None,
    title: str | None = None,
) -> Figure:
    """Draw grids decoded from samples of the prior, each with its share of background cells.

    Args:
        model: see `bvae.models`.
        count: number of samples, 1 to 40.
        latent_dim: number of latent dimensions; by default the attribute `latent_dim` of the model.
        seed: seed of the samples.
        background: the background class.

    Raises:
        ValueError: for a count that cannot be drawn, or if the number of latent dimensions is unknown.
    """
    size = latent_dim if latent_dim is not None else getattr(model, "latent_dim", None)
    if size is None:
        raise ValueError(f"a {type(model).__name__} has no attribute latent_dim; pass latent_dim")
    if not 1 <= count <= MAX_GRIDS:
        raise ValueError(f"count is {count}; expected a whole number from 1 to {MAX_GRIDS}")
    samples = sample_prior(model, count, size, seed).astype(np.int64)
    return draw_columns(
        samples[None],
        labels=["Samples"],
        captions={0: ("Background", [f"{(grid == background).mean():.0%}" for grid in samples])},
        path=path,
        title=title,
        description=describe_samples(samples, background),
    )


def describe_traversals(
    reconstruction: Classes, traversals: Mapping[int, Classes], values: Sequence[float]
) -> str:
    """Return sentences on how many cells each latent dimension changes.

    Args:
        reconstruction: `[H, W]`.
        traversals: `[V, H, W]` by dimension.
        values: `[V]`.
    """
    cells = int((reconstruction != OUTSIDE).sum())
    changes = {index: (row != reconstruction).any(0).sum() for index, row in traversals.items()}
    changed = ", ".join(f"dimension {index} changes {count}" for index, count in changes.items())
    return (
        f"A grid decoded with {len(values)} values of one latent dimension at a time, from "
        f"{_number(min(values))} to {_number(max(values))}. Of {cells} cells, {changed}."
    )


def describe_samples(samples: Classes, background: int = 0) -> str:
    """Return a sentence on the background cells and classes of grids `[B, H, W]` decoded from the prior."""
    shares = (samples == background).mean((1, 2))
    classes = ", ".join(map(str, np.unique(samples)))
    return (
        f"Grids decoded from {len(samples)} samples of the prior: {shares.mean():.0%} of their cells are "
        f"background ({shares.min():.0%} to {shares.max():.0%}); their classes are {classes}."
    )


def _within(original: Classes, predicted: npt.NDArray[np.integer[Any]]) -> Classes:
    """Return predicted grids `[B, H, W]` with OUTSIDE where the original `[1, H, W]` is outside."""
    if predicted.shape[1:] != original.shape[1:]:
        raise ValueError(
            f"grid: shape {original.shape[1:]}; expected that of the decoded grids, {predicted.shape[1:]}"
        )
    return np.where(original == OUTSIDE, OUTSIDE, predicted).astype(np.int64)


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


@canvas.house_style()
def plot_rate_distortion(
    points: Points,
    *,
    looks: Mapping[str, tuple[int, int]] | None = None,
    path: canvas.Destination | None = None,
    title: str = "",
) -> Figure:
    """Draw the object IoU of runs against their KL divergence: small marks for runs, large marks for means.

    Points that are not finite in single precision are left out.

    Args:
        points: for each label, the KL per grid in nats and the object IoU of each run.
        looks: for each label, the index of its colour and that of its marker; by default, up to 84
            labels have different combinations.
        path: destination of the PNG.
        title: the first line becomes a headline.
    """
    known = _finite_points(points)
    looks = looks or {label: (place, place) for place, label in enumerate(points)}
    height = HEADING + PLOT_HEIGHT + FOOT if known else 2 * canvas.TEXT_SIZE
    figure, top = canvas.titled_figure(WIDTH, height, title)
    if known:
        wide, high = figure.bbox.size
        axes = figure.add_axes((canvas.LEFT / wide, FOOT / high, PLOT_WIDTH / wide, PLOT_HEIGHT / high))
        canvas.name_panel(axes, OBJECT_IOU.heading, "KL per grid (bits)")
        axes.grid(visible=True)
        size, marks = min(TICK_SIZE, PLOT_HEIGHT / (1.6 * len(known))), {}
        for label, values in known.items():
            colour, marker = looks[label]
            shape = SESSION_MARKERS[marker % len(SESSION_MARKERS)]
            look: dict[str, Any] = {"color": colour_of(colour), "edgecolor": "white", "marker": shape}
            name, mean = canvas.drawable(brief(label, LEGEND_LETTERS)), values.mean(0)
            axes.scatter(values[:, 0], values[:, 1], s=130, alpha=0.6, zorder=3, **look)
            marks[name] = axes.scatter(mean[0], mean[1], s=380, zorder=4, **look)
        beyond: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
        axes.margins(0.1)
        (left, right), (bottom, above) = axes.get_xlim(), axes.get_ylim()
        axes.set(xlim=(max(left, -0.04 * right), right), ylim=(max(bottom, -0.04 * above), above))
        axes.legend(marks.values(), marks, fontsize=size, **beyond)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    else:
        canvas.write(figure, canvas.EDGE, top, NOTHING_YET, size=canvas.TEXT_SIZE, width=WIDTH)
    canvas.save_png(figure, path, describe_rate_distortion(points))
    return figure


def describe_rate_distortion(points: Points) -> str:
    """Return a sentence with the mean KL divergence and the mean object IoU of each label."""
    means = {label: values.mean(0) for label, values in _finite_points(points).items()}
    ends = [f"{label} {bits:.3g} bits and {iou:.1%}" for label, (bits, iou) in means.items()]
    return f"KL per grid and object IoU, means over runs: {'; '.join(ends)}." if ends else NOTHING_YET


def _finite_points(points: Points) -> dict[str, Values]:
    """Return the points `[runs, 2]` that can be drawn, KL in bits, without labels that have no such point."""
    arrays = {label: np.array(each, dtype=float).reshape(-1, 2) for label, each in points.items()}
    kept = {label: each[(np.abs(each) <= LARGEST).all(1)] for label, each in arrays.items()}
    return {label: each / (math.log(2), 1) for label, each in kept.items() if len(each)}
