"""Runs and comparisons in Python, for notebooks: `bvae.open_run` and `bvae.compare`."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bvae.beta_vae import GridModel, PosteriorMean
from bvae.config import (
    DEFAULT_MODEL,
    LOSS_OPTIONS,
    OUTSIDE,
    ExperimentConfig,
    LossOption,
    RunConfig,
    TrainingConfig,
)
from bvae.corpus import Corpus, load_corpus
from bvae.experiment import Experiment
from bvae.judging.comparison import Comparison
from bvae.models import decode, encode, load_model, reconstruct
from bvae.option_files import select_options
from bvae.records import EpochRecord, Progress
from bvae.session_files import newest_checkpoint
from bvae.storage import atomic_write, make_folder
from bvae.training.checkpoint import load_checkpoint
from bvae.visualization import plot_reconstructions, plot_samples, plot_traversals
from bvae.visualization.latents import VALUES, sample_prior, traverse

Grids = NDArray[np.uint8]
Latents = NDArray[np.float32]

BATCH = 256
"""Number of grids per batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained run: its model, configuration and history. All arrays are NumPy arrays.

    Grids are an integer array `[B, S, S]`, where B is at least 1 and S is the grid size of the run. The
    values are classes, and `bvae.corpus.OUTSIDE` (255) outside a grid. Returned grids are uint8. The model is
    in evaluation mode, and `reconstruct` decodes the posterior mean, so no random numbers are used.

    Methods that take grids raise ValueError for an array of another shape, for values that are not integers,
    and for values that are neither a class nor 255.

    Attributes:
        checkpoint: file from which the model was read.
        model: the model, in evaluation mode, on the CPU.
        config: everything needed to train the run again.
        history: the epochs that were complete when the checkpoint was saved, oldest first.
    """

    checkpoint: Path
    model: GridModel
    config: RunConfig
    history: tuple[EpochRecord, ...]

    def corpus(self) -> Corpus:
        """Load the corpus. A relative path starts at the current folder. Raises CorpusError."""
        asked = self.config
        return load_corpus(
            asked.corpus,
            asked.grid_size,
            padding_value=asked.padding_value,
            classes=asked.classes,
            background=asked.background,
        )

    def encode(self, grids: Grids) -> tuple[Latents, Latents]:
        """Return the posterior mean and log variance of grids, each `[B, Z]`. Raises ValueError."""
        parts = [encode(self.model, part) for part in _batches(self._checked(grids))]
        mean, log_variance = (np.concatenate(each) for each in zip(*parts, strict=True))
        return mean, log_variance

    def decode(self, latents: Latents) -> Grids:
        """Return the most probable class of each cell, `[B, S, S]`, for latents `[B, Z]`.

        Raises:
            ValueError: for latents of another shape, an empty batch, or numbers that are not finite.
        """
        given, size = np.asarray(latents), self.config.training.latent_dim
        if given.ndim != 2 or not len(given) or given.shape[1] != size or not np.isfinite(given).all():
            raise ValueError(f"latents: shape {given.shape}; expected finite numbers [B, {size}]")
        return np.concatenate([decode(self.model, part) for part in _batches(given)])

    def reconstruct(self, grids: Grids) -> Grids:
        """Return the reconstructions of grids, `[B, S, S]`; 255 outside a grid is kept. Raises ValueError."""
        given = self._checked(grids)
        found = np.concatenate([reconstruct(self.model, part) for part in _batches(given)])
        return np.where(given == OUTSIDE, given, found)

    def traverse(self, grid: Grids, dimension: int, values: Sequence[float] = VALUES) -> Grids:
        """Return the decoded grids `[V, S, S]` for V values of one latent dimension.

        Args:
            grid: `[S, S]`; all other latent dimensions keep the posterior mean of this grid.
            dimension: index of the latent dimension, from 0.
            values: values of the latent dimension, in standard deviations of the prior.

        Raises:
            ValueError: for an invalid grid, dimension or values.
        """
        return traverse(self.model, self._mean(grid), dimension, values)

    def interpolate(self, first: Grids, second: Grids, steps: int = 7) -> Grids:
        """Return the decoded grids `[steps, S, S]` of the line from one posterior mean to another.

        Args:
            first: grid `[S, S]`, whose posterior mean is decoded for the first result.
            second: grid `[S, S]`, whose posterior mean is decoded for the last result.
            steps: number of results, at least 2.

        Raises:
            ValueError: for an invalid grid or number of steps.
        """
        if steps < 2:
            raise ValueError(f"steps is {steps}; expected a whole number of at least 2")
        return self.decode(np.linspace(self._mean(first), self._mean(second), steps))

    def sample(self, count: int, seed: int = 0) -> Grids:
        """Return grids `[count, S, S]` that are decoded from samples of the prior.

        Raises:
            ValueError: if `count` is below 1 or `seed` below 0.
        """
        return sample_prior(self.model, count, self.config.training.latent_dim, seed)

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        """Metrics of each epoch by name; the names of means over training batches begin with `train_`."""
        return [record.numbers() for record in self.history]

    def metrics_frame(self) -> Any:
        """Return the metrics as a `pandas.DataFrame`, one row per epoch. Raises ImportError."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError(
                "metrics_frame needs pandas, which is not installed: pip install pandas, or use `metrics`"
            ) from error
        return pandas.DataFrame(self.metrics).set_index("epoch")

    def plot_reconstructions(self, grids: Grids, **more: Any) -> Figure:
        """Return the figure of `bvae.visualization.plot_reconstructions` for this model."""
        more = {"background": self.config.background, **more}
        return plot_reconstructions(PosteriorMean(self.model), self._checked(grids), **more)

    def plot_traversals(
        self,
        grid: Grids,
        dimensions: Sequence[int] | None = None,
        values: Sequence[float] = VALUES,
        **more: Any,
    ) -> Figure:
        """Return the figure of `bvae.visualization.plot_traversals` for this model."""
        return plot_traversals(self.model, self._one(grid), dimensions, values, **more)

    def plot_samples(self, count: int, **more: Any) -> Figure:
        """Return the figure of `bvae.visualization.plot_samples` for this model."""
        more = {"background": self.config.background, **more}
        return plot_samples(self.model, count, latent_dim=self.config.training.latent_dim, **more)

    def export(self, path: str | Path) -> None:
        """Write only the weights to a safetensors file, for `load_state_dict`. Raises StorageError."""
        make_folder(Path(path).parent, parents=True)
        weights = {
            name: tensor.cpu().clone().contiguous() for name, tensor in self.model.state_dict().items()
        }
        atomic_write(Path(path), safetensors.torch.save(weights))

    def _mean(self, grid: Grids) -> Latents:
        (mean,), _ = encode(self.model, self._one(grid)[None])
        return np.asarray(mean)

    def _one(self, grid: Grids) -> Grids:
        if np.ndim(grid) != 2:
            raise ValueError(f"grid: shape {np.shape(grid)}; expected one grid, such as grids[0]")
        (checked,) = self._checked(np.asarray(grid)[None])
        return np.asarray(checked)

    def _checked(self, grids: Grids) -> Grids:
        """Return grids as uint8. Raises ValueError for invalid grids."""
        given, size, classes = np.asarray(grids), self.config.grid_size, self.config.classes
        if given.ndim != 3 or not len(given) or given.shape[1:] != (size, size):
            raise ValueError(
                f"grids: shape {given.shape}; expected [B, {size}, {size}]: write grid[None] for one grid, "
                f"and fill up a smaller one with {OUTSIDE} (bvae.corpus.OUTSIDE)"
            )
        if given.dtype.kind not in "iu":
            raise ValueError(f"grids: {given.dtype} values; expected whole numbers: grids.astype('uint8')")
        if wrong := np.unique(given[((given < 0) | (given >= classes)) & (given != OUTSIDE)])[:3].tolist():
            raise ValueError(
                f"grids: values {wrong}; expected the classes 0–{classes - 1}, {OUTSIDE} outside a grid"
            )
        return given.astype(np.uint8)


def open_run(path: str | Path, model: str = DEFAULT_MODEL) -> Run:
    """Return a run from its folder, such as `runs/latest/B-seed0`, or from one of its checkpoints.

    Args:
        path: folder of a run, whose newest checkpoint is read, or a `.safetensors` file.
        model: `package.module:factory` of the model. No other model is imported.

    Raises:
        ValueError: if the checkpoint is missing or damaged, or belongs to another model.
    """
    place = newest_checkpoint(Path(path).expanduser())
    loaded, config = load_model(place, model)
    history = load_checkpoint(place, Progress).state.history
    return Run(checkpoint=place, model=loaded, config=config, history=tuple(history))


def compare(
    options: str | Sequence[str | LossOption] = "A,B,C",
    corpus: str | Path = "objects",
    *,
    epochs: int = TrainingConfig.epochs,
    seeds: int = ExperimentConfig.seeds,
    run_dir: str | Path = "runs",
    **settings: Any,
) -> Comparison:
    """Train every loss option with every seed in this process, and return their comparison.

    Write the same session folder as `pytest experiments/`. `bvae report` makes the HTML page of a session.

    Args:
        options: names separated by commas, or a list of names and `bvae.config.LossOption` objects.
        corpus: name or path, see `bvae.corpus.load_corpus`.
        epochs: number of epochs of each run.
        seeds: number of runs of each option.
        run_dir: folder in which the session folder is made.
        settings: other fields of `bvae.config.ExperimentConfig` and `bvae.config.TrainingConfig`.

    Raises:
        ValueError: if a setting or the corpus cannot be used.
        StorageError: if a file cannot be written.
    """
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    training = {name: settings.pop(name) for name in names if name in settings}
    if unknown := settings.keys() - {"grid_size", "padding_value", "classes", "background", "band"}:
        raise ValueError(f"compare has no setting {min(unknown)!r}; see ExperimentConfig and TrainingConfig")
    config = ExperimentConfig(
        corpus=str(corpus),
        options=_selected(options),
        seeds=seeds,
        training=TrainingConfig(epochs=epochs, **training),
        **{"grid_size": "auto", **settings},
    )
    experiment, threads = Experiment.prepare(config, Path(run_dir), ["bvae.compare"]), torch.get_num_threads()
    experiment.open_session()
    interrupted = True
    try:
        experiment.select([(option, seed) for option in config.options for seed in range(seeds)])
        runs = (run.name for run in experiment.runs)
        experiment.show_progress(runs, sys.stderr.write, live=sys.stderr.isatty())
        comparison = experiment.compare()
        interrupted = False
    finally:
        experiment.close_session(interrupted=interrupted)
        torch.set_num_threads(threads)
    return comparison


def _selected(options: str | Sequence[str | LossOption]) -> tuple[LossOption, ...]:
    """Return the loss options for names and `LossOption` objects. Raises ConfigError for an unknown name."""
    given = options.split(",") if isinstance(options, str) else options
    own = {option.name: option for option in given if isinstance(option, LossOption)}
    names = [option.name if isinstance(option, LossOption) else option for option in given]
    return select_options(",".join(names), {**LOSS_OPTIONS, **own})


def _batches(values: NDArray[Any]) -> list[NDArray[Any]]:
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
