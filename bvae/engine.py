"""The parts of a session that need PyTorch or matplotlib: training, pictures and the written comparison.

Only `bvae.experiment.load_engine` imports this module. Processes that train call it at the start; the
controller of pytest-xdist workers calls it at the end or not at all.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from bvae import EvidenceWarning
from bvae.beta_vae import GridModel
from bvae.config import Precision, colour_of
from bvae.corpus import Corpus
from bvae.evaluation.controls import references, sample_rows
from bvae.evaluation.metrics import grid_object_iou
from bvae.judging.baseline import Baseline, compare_with
from bvae.judging.comparison import Comparison, OptionOutcomes, OptionSummary, RunOutcomes
from bvae.judging.explanation import Diagnosis
from bvae.models import load_model, newest_model, reconstruct
from bvae.records import RunResult
from bvae.report.text import describe_beta, to_markdown
from bvae.session import Session
from bvae.session.folder import compare_outcomes, comparison_folder, shown_history
from bvae.session.run import RunScheduler
from bvae.storage import atomic_write, make_folder, printable, to_json
from bvae.visualization import plot_reconstructions, plot_samples, plot_traversals
from bvae.visualization.charts import plot_curves
from bvae.visualization.reconstructions import plot_comparison, plot_examples
from bvae.visualization.why_chart import plot_why

__all__ = [
    "RunScheduler",
    "describe_gpu",
    "draw_run_curves",
    "load_model",
    "plot_reconstructions",
    "plot_samples",
    "plot_traversals",
    "resolve_gpu_precision",
    "write_comparison",
    "write_why",
]

EXAMPLES = 500
"""Number of validation grids from which the worst, the median and the best are chosen."""


def resolve_gpu_precision(precision: Precision, device: str) -> Precision:
    """Return the precision to use on a GPU; `auto` is bf16 if it is supported, else fp32.

    Raises:
        ValueError: if there is no such GPU.
    """
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device is {device!r}; expected cpu, cuda or cuda:INDEX") from None
    gpus = torch.cuda.device_count()
    if kind.type != "cuda" or (kind.index or 0) >= gpus:
        raise ValueError(
            f"--device is {device!r}; expected cpu, or one of the {gpus} CUDA devices found here"
        )
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_bf16_supported() else "fp32"


def describe_gpu(device: str) -> dict[str, str | int]:
    """Return the name of a GPU."""
    return {"gpu": torch.cuda.get_device_name(device)}


def write_why(session: Session, option: str, outcomes: OptionOutcomes) -> None:
    """Write the chart that explains an option's predictions, after its runs ended. Raises StorageError."""
    folder = comparison_folder(session)
    make_folder(folder)
    (summary,) = compare_outcomes(session, {option: outcomes}).options.values()
    write_picture(folder / f"why_{option}.png", partial(draw_why, session, option, summary))


def write_picture(path: Path, draw: Callable[[], bytes | None]) -> None:
    """Draw and write a picture. If that fails, warn, and remove an older picture of that name."""

    def write() -> bytes | None:
        if (png := draw()) is not None:
            atomic_write(path, png)
        return png

    if try_to_draw(path.name, write) is None:
        with contextlib.suppress(OSError):  # it may be impossible to remove, too
            path.unlink(missing_ok=True)  # the picture of an earlier comparison


def try_to_draw(name: str, draw: Callable[[], bytes | None]) -> bytes | None:
    """Return the PNG that `draw` returns. If it fails, warn and return None."""
    try:
        return draw()
    except Exception as error:
        reason = printable(f"{name} could not be drawn: {type(error).__name__}: {error}")
        warnings.warn(reason, EvidenceWarning, stacklevel=3)
        return None


def write_comparison(
    session: Session,
    corpus: Corpus,
    outcomes: RunOutcomes,
    baseline: Baseline | None = None,
    *,
    in_haste: bool = False,
) -> Comparison:
    """Compare the runs and write the remaining files; `in_haste` leaves out references, which take seconds.

    Raises:
        StorageError: if a file cannot be written.
    """
    known = {} if in_haste else references(corpus, session.record.config.training.latent_dim)
    comparison = compare_outcomes(session, outcomes, known)
    differences = compare_with(baseline, comparison)
    folder = comparison_folder(session)
    make_folder(folder)
    write_picture(folder / "curves.png", partial(draw_curves, session, comparison))
    write_picture(folder / "reconstructions.png", partial(draw_reconstructions, session, corpus, comparison))
    write_picture(folder / "examples.png", partial(draw_examples, session, corpus, comparison))
    atomic_write(folder / "comparison.md", to_markdown(comparison, differences).encode())
    atomic_write(folder / "comparison.json", to_json(comparison))
    return comparison


def draw_examples(session: Session, corpus: Corpus, comparison: Comparison) -> bytes | None:
    """Return a PNG of the worst, the median and the best of some validation grids under each option.

    Returns None if no option has a checkpoint or no grid has an object.
    """
    grids = corpus.val[sample_rows(len(corpus.val), EXAMPLES)]
    examples = {}
    for name, model in shown_models(session, comparison).items():
        predicted = reconstruct(model, grids)
        iou = grid_object_iou(grids, predicted, corpus.classes)
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


def shown_models(session: Session, comparison: Comparison) -> dict[str, GridModel]:
    """Return the model of the newest checkpoint of each option's first seed, if there is one."""
    found = {}
    for option in session.record.config.options:
        if option.name in comparison.options:
            run = session.run_config(option, comparison.options[option.name].runs[0].seed)
            if (model := newest_model(session.path / run.name, run)) is not None:
                found[option.name] = model
    return found


def option_names(session: Session) -> list[str]:
    """Return all options of a session, in the order that determines their colours."""
    return [option.name for option in session.record.config.options]


def draw_run_curves(session: Session, result: RunResult) -> bytes | None:
    """Return a PNG of the curves of one run. If they cannot be drawn, warn and return None."""
    name = f"{result.option}-seed{result.seed}"
    curves = partial(_draw_curves, session, {result.option: [name]}, f"Run {name}")
    return try_to_draw(f"curves of {name}", curves)


def draw_curves(session: Session, comparison: Comparison) -> bytes:
    """Return a PNG of the curves of every option, with a band over its seeds."""
    folders = {name: [run.path for run in option.runs] for name, option in comparison.options.items()}
    return _draw_curves(session, folders, f"Loss options on {comparison.corpus.name}")


def _draw_curves(session: Session, folders: Mapping[str, Sequence[str]], title: str) -> bytes:
    """Return a PNG of the curves of each option's runs, given by their folder names in the session."""
    record, picture = session.record, io.BytesIO()
    plot_curves(
        {
            option: [msgspec.to_builtins(shown_history(session, name)) for name in names]
            for option, names in folders.items()
        },
        background_rate=record.corpus.background_rate,
        band=(record.config.band.lo, record.config.band.hi),
        options=option_names(session),
        path=picture,
        title="\n".join(filter(None, [title, describe_beta(record.config.training)])),
    )
    return picture.getvalue()


def draw_why(session: Session, name: str, option: OptionSummary) -> bytes:
    """Return a PNG of the chart that explains an option's predictions."""
    histories = [shown_history(session, run.path) for run in option.runs]
    title = f"Why: option {name} (γ = {option.gamma:g}, class weights {option.class_weights})"
    picture = io.BytesIO()
    colour = colour_of(option_names(session).index(name))
    plot_why(Diagnosis.of(option, histories), colour=colour, path=picture, title=title)
    return picture.getvalue()


def draw_reconstructions(session: Session, corpus: Corpus, comparison: Comparison) -> bytes:
    """Return a PNG of the same grids under each option."""
    grids = corpus.sample_grids()
    models = shown_models(session, comparison)
    predicted = {f"Option {name}": reconstruct(model, grids) for name, model in models.items()}
    picture = io.BytesIO()
    plot_comparison(
        grids,
        predicted,
        path=picture,
        title=f"The same training grids of {corpus.name} under each option: newest checkpoint, first seed",
    )
    return picture.getvalue()
