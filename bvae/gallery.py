"""All pictures of a session: of a run at each checkpoint and as a whole, and of the comparison.

It takes a third of a second to import, as matplotlib does, and is imported only where something is drawn.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bvae.beta_vae import Output
from bvae.comparison import Comparison, OptionSummary
from bvae.config import RunConfig
from bvae.corpus import Corpus
from bvae.curves import plot_curves
from bvae.device import reproducible
from bvae.evaluation.controls import sample_rows
from bvae.evaluation.measure import evaluating
from bvae.evaluation.objects import grid_object_iou
from bvae.events import CheckpointSaved, EpochEnded, Event
from bvae.files import write_whole
from bvae.models import load_model, newest_model, reconstruct
from bvae.palette import colour_of
from bvae.records import Evaluation
from bvae.results import FILMSTRIP, RunResult, checkpoints, picture_of, read_history
from bvae.session import Session
from bvae.trainer import run_loss
from bvae.visualization import (
    MAX_CHECKPOINTS,
    plot_comparison,
    plot_examples,
    plot_filmstrip,
    plot_reconstructions,
)
from bvae.why import Why
from bvae.why_picture import plot_why

EPOCH = re.compile(r"epoch_\d{3,}")


class Gallery:
    """Draws the same ten training grids at every checkpoint save, in a picture named after the checkpoint.

    A picture that cannot be drawn costs neither training nor a checkpoint: the failure is kept, to be
    reported. One that cannot be written raises StorageError, as the next checkpoint would.
    """

    def __init__(self, run: RunConfig, corpus: Corpus) -> None:
        self.run, self.corpus_name = run, corpus.name
        self.grids = corpus.showcase()
        self.loss = run_loss(run, corpus)
        self.failures: list[str] = []
        self.painted: dict[Path, NDArray[np.uint8]] = {}
        self.last: Evaluation | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochEnded):
            self.last = event.history[-1].validation
        if not isinstance(event, CheckpointSaved):
            return
        try:
            if epochs := [path for path in event.paths if EPOCH.fullmatch(path.stem)]:
                with evaluating(event.model):
                    self.painted |= dict.fromkeys(epochs, reconstruct(event.model, self.grids))
            picture = io.BytesIO()
            plot_reconstructions(
                event.model, self.grids, path=picture, title=self._title(event), loss=self._loss
            )
        except Exception as error:
            names = ", ".join(picture_of(path).name for path in event.paths)
            self.failures.append(f"{names}: {type(error).__name__}: {error}")
            for path in event.paths:
                picture_of(path).unlink(missing_ok=True)  # of an older checkpoint of that name
            return
        first, *others = map(picture_of, event.paths)
        write_whole(first, picture.getvalue(), *others)

    def note_missing(self, directory: Path) -> None:
        """Keep as failures what earlier parts of this run could not draw."""
        known = " ".join(self.failures)
        for path in reversed(checkpoints(directory)):
            picture = picture_of(path)
            if not picture.exists() and picture.name not in known:
                self.failures.append(f"{picture.name}: was not drawn before the run was taken up again")

    def draw_filmstrip(self, directory: Path) -> None:
        """Draw the grids as the checkpoints in a run's directory reconstruct them, an epoch a column."""
        name = f"Option {self.run.option.name}, seed {self.run.seed}"
        try:
            epochs = [path for path in reversed(checkpoints(directory)) if EPOCH.fullmatch(path.stem)]
            if not epochs:
                return
            places = np.linspace(0, len(epochs) - 1, min(len(epochs), MAX_CHECKPOINTS))
            strip = []
            for path in (epochs[round(place)] for place in places):
                if path not in self.painted:  # saved before the run was taken up again
                    model, _ = load_model(path, self.run.training.model)
                    with reproducible(torch.device("cpu")):
                        self.painted[path] = reconstruct(model, self.grids)
                strip.append((f"Epoch {int(path.stem[6:])}", self.painted[path]))
            picture = io.BytesIO()
            plot_filmstrip(self.grids, strip, path=picture, title=f"{name}: training grids epoch by epoch")
        except Exception as error:
            self.failures.append(f"{FILMSTRIP}: {type(error).__name__}: {error}")
            return
        write_whole(directory / FILMSTRIP, picture.getvalue())

    def _loss(self, output: Output, target: Tensor) -> Tensor:
        return self.loss(*output, target).total

    def _title(self, saved: CheckpointSaved) -> str:
        option, training = self.run.option, self.run.training
        title = (
            f"Option {option.name}, seed {self.run.seed}, epoch {saved.epoch} of {training.epochs} "
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


EXAMPLES = 500
"""How many validation grids the worst, the median and the best are chosen from."""


def draw_examples(session: Session, corpus: Corpus, comparison: Comparison) -> bytes | None:
    """A PNG of the worst, the median and the best of some validation grids under each option.

    None where no option has a checkpoint, or no grid an object.
    """
    grids = corpus.val[sample_rows(len(corpus.val), EXAMPLES)]
    model_name, examples = session.record.config.training.model, {}
    for name, option in comparison.options.items():
        model = newest_model(session.path / option.runs[0].path, model_name)
        if model is None:
            continue
        predicted = reconstruct(model, grids)
        iou = grid_object_iou(grids, predicted)
        order = np.argsort(iou, kind="stable")[: np.isfinite(iou).sum()]  # grids without objects come last
        places = {"Worst": 0, "Median": len(order) // 2, "Best": -1}
        if len(order):
            examples[f"Option {name}"] = [
                (label, grids[order[place]], predicted[order[place]]) for label, place in places.items()
            ]
    if not examples:
        return None
    picture = io.BytesIO()
    plot_examples(
        examples,
        path=picture,
        title=f"Validation grids of {corpus.name} by object IoU: newest checkpoint, first seed\n"
        f"The worst, the median and the best of {len(grids)}, each beside its reconstruction",
    )
    return picture.getvalue()


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"


def option_names(session: Session) -> list[str]:
    """All options of a session, in the order that gives each its colour."""
    return [option.name for option in session.record.config.options]


def draw_run_curves(session: Session, result: RunResult) -> bytes:
    """A PNG of the curves of one run."""
    name = f"{result.option}-seed{result.seed}"
    picture = io.BytesIO()
    plot_curves(
        {result.option: [msgspec.to_builtins(read_history(session.path / name))]},
        background_rate=session.record.corpus.background_rate,
        band=(session.record.config.band.lo, session.record.config.band.hi),
        options=option_names(session),
        path=picture,
        title=f"Run {name}",
    )
    return picture.getvalue()


def draw_curves(session: Session, comparison: Comparison) -> bytes:
    """A PNG of the curves of every option, its seeds as a band."""
    histories = {
        name: [msgspec.to_builtins(read_history(session.path / run.path)) for run in option.runs]
        for name, option in comparison.options.items()
    }
    picture = io.BytesIO()
    plot_curves(
        histories,
        background_rate=comparison.corpus.background_rate,
        band=comparison.band,
        options=option_names(session),
        path=picture,
        title=f"Loss options on {comparison.corpus.name}",
    )
    return picture.getvalue()


def draw_why(session: Session, name: str, option: OptionSummary) -> bytes:
    """A PNG of why an option paints what it paints."""
    histories = [read_history(session.path / run.path) for run in option.runs]
    title = f"Why: option {name} (γ = {option.gamma:g}, class weights {option.class_weights})"
    picture = io.BytesIO()
    colour = colour_of(option_names(session).index(name))
    plot_why(Why.of(option, histories), colour=colour, path=picture, title=title)
    return picture.getvalue()


def draw_reconstructions(session: Session, corpus: Corpus, comparison: Comparison) -> bytes:
    """A PNG of the same grids under each option."""
    grids, model_name = corpus.showcase(), session.record.config.training.model
    painted = {
        f"Option {name}": reconstruct(model, grids)
        for name, option in comparison.options.items()
        if (model := newest_model(session.path / option.runs[0].path, model_name)) is not None
    }
    picture = io.BytesIO()
    plot_comparison(
        grids,
        painted,
        path=picture,
        title=f"The same training grids of {corpus.name} under each option: newest checkpoint, first seed",
    )
    return picture.getvalue()
