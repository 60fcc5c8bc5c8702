"""The pictures of a session: curves of a run, and of all options their curves, grids and explanation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from bvae.corpus import Corpus
from bvae.evaluation.controls import sample_rows
from bvae.evaluation.objects import grid_object_iou
from bvae.judging.comparison import Comparison, OptionSummary
from bvae.judging.explanation import Diagnosis
from bvae.models import newest_model, reconstruct
from bvae.palette import colour_of
from bvae.records import RunResult
from bvae.session import Session
from bvae.session.run_folder import read_history
from bvae.visualization.charts import plot_curves
from bvae.visualization.reconstructions import plot_comparison, plot_examples
from bvae.visualization.why_chart import plot_why

EXAMPLES = 500
"""How many validation grids the worst, the median and the best are chosen from."""


def draw_examples(session: Session, corpus: Corpus, comparison: Comparison) -> bytes | None:
    """Return a PNG of the worst, the median and the best of some validation grids under each option.

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


def option_names(session: Session) -> list[str]:
    """Return all options of a session, in the order that gives each its colour."""
    return [option.name for option in session.record.config.options]


def draw_run_curves(session: Session, result: RunResult) -> bytes:
    """Return a PNG of the curves of one run."""
    name = f"{result.option}-seed{result.seed}"
    return _draw_curves(session, {result.option: [name]}, f"Run {name}")


def draw_curves(session: Session, comparison: Comparison) -> bytes:
    """Return a PNG of the curves of every option, its seeds as a band."""
    folders = {name: [run.path for run in option.runs] for name, option in comparison.options.items()}
    return _draw_curves(session, folders, f"Loss options on {comparison.corpus.name}")


def _draw_curves(session: Session, folders: Mapping[str, Sequence[str]], title: str) -> bytes:
    """Return a PNG of the curves of each option's runs, given by their folders in the session's."""
    record, picture = session.record, io.BytesIO()
    plot_curves(
        {
            option: [msgspec.to_builtins(read_history(session.path / name)) for name in names]
            for option, names in folders.items()
        },
        background_rate=record.corpus.background_rate,
        band=(record.config.band.lo, record.config.band.hi),
        options=option_names(session),
        path=picture,
        title=title,
    )
    return picture.getvalue()


def draw_why(session: Session, name: str, option: OptionSummary) -> bytes:
    """Return a PNG of why an option predicts what it predicts."""
    histories = [read_history(session.path / run.path) for run in option.runs]
    title = f"Why: option {name} (γ = {option.gamma:g}, class weights {option.class_weights})"
    picture = io.BytesIO()
    colour = colour_of(option_names(session).index(name))
    plot_why(Diagnosis.of(option, histories), colour=colour, path=picture, title=title)
    return picture.getvalue()


def draw_reconstructions(session: Session, corpus: Corpus, comparison: Comparison) -> bytes:
    """Return a PNG of the same grids under each option."""
    grids, model_name = corpus.sample_grids(), session.record.config.training.model
    predicted = {
        f"Option {name}": reconstruct(model, grids)
        for name, option in comparison.options.items()
        if (model := newest_model(session.path / option.runs[0].path, model_name)) is not None
    }
    picture = io.BytesIO()
    plot_comparison(
        grids,
        predicted,
        path=picture,
        title=f"The same training grids of {corpus.name} under each option: newest checkpoint, first seed",
    )
    return picture.getvalue()
