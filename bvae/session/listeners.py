"""Listeners that receive the events of a trainer and write the files of the run."""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import time
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bvae import EvidenceWarning
from bvae.beta_vae import Output, PosteriorMean
from bvae.config import RunConfig, TrainingConfig
from bvae.corpus import Corpus
from bvae.evaluation.measure import evaluating
from bvae.models import load_model, reconstruct
from bvae.records import CheckpointSaved, EpochEnded, Evaluation, Event, Stepped
from bvae.session.progress import Note
from bvae.session_files import (
    FILMSTRIP,
    PROGRESS,
    TENSORBOARD,
    checkpoints,
    picture_of,
    pictured_checkpoints,
)
from bvae.storage import atomic_write, make_folder, printable, to_json
from bvae.trainer import run_loss
from bvae.training.checkpoint import CheckpointError
from bvae.training.step import reproducible
from bvae.visualization import plot_filmstrip, plot_reconstructions
from bvae.visualization.canvas import png_of
from bvae.visualization.reconstructions import spread

NOTE_SECONDS = 0.5
"""Minimum time in seconds between two writes of `.progress`."""


class MetricsLog:
    """Writes the whole `metrics.jsonl` after each epoch, so no line is incomplete, repeated or missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochEnded):
            atomic_write(self.path, msgspec.json.Encoder().encode_lines(event.history))


class ProgressNote:
    """Writes the progress of the run to `.progress`, without flushing the file to the disk."""

    def __init__(self, directory: Path, training: TrainingConfig) -> None:
        self.path, self.training = directory / PROGRESS, training
        self._since: float | None = None
        self._images = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Stepped):
            return
        now = time.monotonic()
        if self._since is None:
            self._since = now
            return
        self._images += event.grids
        if now - self._since < NOTE_SECONDS and event.step < event.steps:
            return
        note = Note(
            step=event.step,
            steps=event.steps,
            epoch=event.epoch,
            epochs=self.training.epochs,
            may_end=self.training.until_plateau > 0,
            images_per_second=self._images / max(now - self._since, 1e-9),
        )
        self._since, self._images = now, 0
        new = self.path.with_suffix(".new")
        with contextlib.suppress(OSError):  # the next checkpoint reports a full disk
            new.write_bytes(to_json(note))
            new.replace(self.path)


EPOCH = re.compile(r"epoch_\d{3,}")


class CheckpointPictures:
    """Draws a picture of the same training grids, at most ten, for each checkpoint.

    If a picture cannot be drawn, `failures` records the reason, and training continues. If a picture cannot
    be written, StorageError ends training, because the next checkpoint could not be written either.
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
            title, background = self._title(event), self.run.background
            model = PosteriorMean(event.model)
            drawn = plot_reconstructions(
                model, self.grids, title=title, loss=self._loss, background=background
            )
            picture = png_of(drawn)
        except Exception as error:
            names = ", ".join(picture_of(path).name for path in event.paths)
            self.failures.append(f"{names}: {type(error).__name__}: {error}")
            for path in event.paths:
                picture_of(path).unlink(missing_ok=True)  # an older picture of the same name
            return
        first, *others = map(picture_of, event.paths)
        atomic_write(first, picture, *others)

    def note_missing(self, directory: Path) -> None:
        """Add to `failures` each checkpoint without a picture, also if saved before the run was resumed."""
        known = " ".join(self.failures)
        for path in reversed(checkpoints(directory)):
            picture = picture_of(path)
            if not picture.exists() and picture.name not in known:
                self.failures.append(f"{picture.name}: has been missing since before the run was resumed")

    def draw_filmstrip(self, directory: Path) -> None:
        """Draw the reconstructions of the grids by the checkpoints of a run, with at most 12 columns.

        A removed checkpoint has a column only if this process saved it.
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
            picture = png_of(
                plot_filmstrip(self.grids, strip, title=f"{name}: training grids epoch by epoch")
            )
        except Exception as error:
            self.failures.append(f"{FILMSTRIP}: {type(error).__name__}: {error}")
            return
        atomic_write(directory / FILMSTRIP, picture)

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


class TensorBoardLog:
    """Writes the metrics of each epoch and the checkpoint pictures for TensorBoard, by step.

    A resumed run removes the earlier log and writes all epochs and pictures again. After the first failure,
    the log warns and writes nothing more; training continues.
    """

    def __init__(self, directory: Path, *, on: bool) -> None:
        self.directory, self.on = directory, on
        self.steps: dict[int, int] = {}  # by epoch, for the epochs that were written
        self.shown: set[float] = set()  # steps whose picture was written
        self.writer: Any = None

    def __call__(self, event: Event) -> None:
        if not self.on or not isinstance(event, EpochEnded | CheckpointSaved):
            return
        try:
            self.writer = self.writer or self._open()
            if isinstance(event, EpochEnded):
                self._write_epochs(event)
            else:
                self._write_pictures(event)
            self.writer.flush()
        except Exception as error:
            self.on = False
            reason = printable(f"{type(error).__name__}: {error}")
            where = printable(str(self.directory / TENSORBOARD))
            warnings.warn(f"{where} is incomplete: {reason}", EvidenceWarning, stacklevel=2)

    def close(self) -> None:
        """Close the file. Later events write nothing."""
        self.on = False
        if self.writer is not None:
            self.writer.close()

    def _open(self) -> Any:
        tensorboard = importlib.import_module("torch.utils.tensorboard")  # takes a second
        folder = self.directory / TENSORBOARD
        make_folder(folder)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        return tensorboard.SummaryWriter(folder, purge_step=0)  # an open TensorBoard drops the earlier data

    def _write_epochs(self, event: EpochEnded) -> None:
        for record in event.history[len(self.steps) :]:
            self.steps[record.epoch] = record.step
            for name, value in record.numbers().items():
                if value is not None:
                    self.writer.add_scalar(name, value, record.step)

    def _write_pictures(self, event: CheckpointSaved) -> None:
        found = {self._step(path): path for path in reversed(pictured_checkpoints(self.directory))}
        for step, path in {**found, event.step: event.paths[0]}.items():
            if step <= event.step and step not in self.shown and picture_of(path).exists():
                self.shown.add(step)
                with Image.open(picture_of(path)) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self.writer.add_image("reconstructions", pixels, step, dataformats="HWC")

    def _step(self, checkpoint: Path) -> float:
        """Return the step at which a checkpoint was saved; infinity if the step is unknown."""
        _, *numbers = checkpoint.stem.split("_")
        match numbers:
            case [_, "step", step]:
                return int(step)
            case [epoch]:
                return self.steps.get(int(epoch), math.inf)
        return math.inf
