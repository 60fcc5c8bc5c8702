"""The pictures of a run: its reconstructions at each checkpoint, and its checkpoints side by side."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bvae.beta_vae import Output
from bvae.config import RunConfig
from bvae.corpus import Corpus
from bvae.evaluation.measure import evaluating
from bvae.models import load_model, reconstruct
from bvae.records import CheckpointSaved, EpochEnded, Evaluation, Event
from bvae.session_files import FILMSTRIP, checkpoints, picture_of
from bvae.storage import atomic_write
from bvae.trainer import run_loss
from bvae.training.checkpoint import CheckpointError
from bvae.training.step import reproducible
from bvae.visualization.reconstructions import plot_filmstrip, plot_reconstructions, spread

EPOCH = re.compile(r"epoch_\d{3,}")


class CheckpointPictures:
    """Draws the same ten training grids at every checkpoint save, in a picture named after the checkpoint.

    If a picture cannot be drawn, training and checkpoints continue, and `failures` records the reason. If it
    cannot be written, StorageError is raised, because the next checkpoint could not be written either.
    """

    def __init__(self, run: RunConfig, corpus: Corpus) -> None:
        self.run, self.corpus_name = run, corpus.name
        self.grids = corpus.sample_grids()
        self.loss = run_loss(run, corpus)
        self.failures: list[str] = []
        self.predicted: dict[Path, NDArray[np.uint8]] = {}
        self.last: Evaluation | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochEnded):
            self.last = event.history[-1].validation
        if not isinstance(event, CheckpointSaved):
            return
        try:
            if epochs := [path for path in event.paths if EPOCH.fullmatch(path.stem)]:
                with evaluating(event.model):
                    self.predicted |= dict.fromkeys(epochs, reconstruct(event.model, self.grids))
            picture = io.BytesIO()
            plot_reconstructions(
                event.model,
                self.grids,
                path=picture,
                title=self._title(event),
                loss=self._loss,
                background=self.run.background,
            )
        except Exception as error:
            names = ", ".join(picture_of(path).name for path in event.paths)
            self.failures.append(f"{names}: {type(error).__name__}: {error}")
            for path in event.paths:
                picture_of(path).unlink(missing_ok=True)  # an older picture of that name
            return
        first, *others = map(picture_of, event.paths)
        atomic_write(first, picture.getvalue(), *others)

    def note_missing(self, directory: Path) -> None:
        """Record as failures the pictures that earlier parts of this run could not draw."""
        known = " ".join(self.failures)
        for path in reversed(checkpoints(directory)):
            picture = picture_of(path)
            if not picture.exists() and picture.name not in known:
                self.failures.append(f"{picture.name}: was not drawn before the run was resumed")

    def draw_filmstrip(self, directory: Path) -> None:
        """Draw the grids as the checkpoints of a run reconstruct them, one column per epoch.

        Checkpoints that were removed have a column only if this process saved them.
        """
        name = f"Option {self.run.option.name}, seed {self.run.seed}"
        try:
            known = {*checkpoints(directory), *self.predicted}
            epochs = sorted((p for p in known if EPOCH.fullmatch(p.stem)), key=_epoch)
            if not epochs:
                return
            strip = []
            for path in spread(epochs):
                if path not in self.predicted:  # saved before the run was resumed
                    model, run = load_model(path, self.run.training.model)
                    if not self.run.continues(run):
                        raise CheckpointError(f"{path.name} is of another run")
                    with reproducible(torch.device("cpu")):
                        self.predicted[path] = reconstruct(model, self.grids)
                strip.append((f"Epoch {_epoch(path)}", self.predicted[path]))
            picture = io.BytesIO()
            plot_filmstrip(self.grids, strip, path=picture, title=f"{name}: training grids epoch by epoch")
        except Exception as error:
            self.failures.append(f"{FILMSTRIP}: {type(error).__name__}: {error}")
            return
        atomic_write(directory / FILMSTRIP, picture.getvalue())

    def _loss(self, output: Output, target: Tensor) -> Tensor:
        return self.loss(*output, target).total

    def _title(self, saved: CheckpointSaved) -> str:
        option, training = self.run.option, self.run.training
        of = "of at most" if training.until_plateau else "of"
        title = (
            f"Option {option.name}, seed {self.run.seed}, epoch {saved.epoch} {of} {training.epochs} "
            f"(step {saved.step:,}) on {self.corpus_name}\n"
            f"Training grids; γ = {option.gamma:g}, class weights {option.weighting}"
        )
        if self.last is not None:
            title += (
                f"\nValidation: accuracy {self.last.pixel_accuracy:.1%} "
                f"(all background {self.last.background_rate:.1%}), "
                f"object IoU {_share(self.last.object_iou)} (shuffled "
                f"{_share(self.last.shuffled.object_iou)}), loss {self.last.loss:.3f}"
            )
        return title


def _epoch(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("epoch_"))


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"
