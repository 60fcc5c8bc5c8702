"""The parts of a session that need PyTorch or matplotlib: training, pictures, files of the comparison.

In `bvae`, only `experiment.load_engine` imports this module: in workers of pytest-xdist at the start, and in
other processes when they need it. The controller needs it to check a GPU or a model other than the built-in
one, to write the comparison if no worker has, and to train the runs (`-n0`) or submit them (Ray).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from bvae import EvidenceWarning
from bvae.beta_vae import GridModel, PosteriorMean
from bvae.config import Precision
from bvae.corpus import Corpus
from bvae.evaluation.measure import references
from bvae.evaluation.metrics import grid_object_iou, sample_rows
from bvae.judging.baseline import Baseline, compare_with
from bvae.judging.comparison import Comparison, OptionOutcomes, OptionSummary, RunOutcomes, colour_of
from bvae.judging.explanation import Diagnosis, Strip, describe_strips, how_it_ended, verdicts_by_epoch
from bvae.models import load_model, newest_model, reconstruct
from bvae.records import RunResult
from bvae.report.text import describe_beta, to_markdown
from bvae.session import Session
from bvae.session.folder import compare_outcomes, comparison_folder, shown_history
from bvae.session.run import RunScheduler
from bvae.storage import atomic_write, make_folder, printable, to_json
from bvae.visualization import plot_reconstructions, plot_samples, plot_traversals
from bvae.visualization.canvas import png_of
from bvae.visualization.charts import plot_curves
from bvae.visualization.latents import plot_rate_distortion
from bvae.visualization.reconstructions import plot_comparison, plot_examples
from bvae.visualization.why_chart import plot_verdicts, plot_why

__all__ = [
    "PosteriorMean",
    "RunScheduler",
    "describe_gpu",
    "draw_run_curves",
    "find_scheduler",
    "load_model",
    "plot_rate_distortion",
    "plot_reconstructions",
    "plot_samples",
    "plot_traversals",
    "png_of",
    "resolve_gpu_precision",
    "write_comparison",
    "write_why",
]

EXAMPLES = 500
"""Maximum number of validation grids from which the worst, the median and the best grid are chosen."""

STRIPS, CELLS = 200, 60
"""Maximum number of runs in the chart of verdicts by epoch, and of verdicts per run."""


def resolve_gpu_precision(precision: Precision, device: str) -> Precision:
    """Return the precision to use on a GPU. `auto` becomes bf16 if the GPU supports it, otherwise fp32.

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


def find_scheduler(engine: str, gpus: str, device: str, workers: int = 0) -> Callable[..., RunScheduler]:
    """Return a function that makes the scheduler of an engine from a session, its corpus and its runs.

    Args:
        engine: value of `--engine`.
        gpus: value of `--gpus-per-run`, the share of a GPU for each run.
        device: value of `--device`.
        workers: number of workers of pytest-xdist.

    Raises:
        ValueError: if the engine is unknown or not installed, or if it cannot be used with the other values.
    """
    if engine == "xdist":
        return RunScheduler
    if (found := re.fullmatch(r"ray(?::(?:local|(auto|[^:/\s]+:[0-9]{1,5})))?", engine)) is None:
        raise ValueError(f"--engine is {engine!r}; expected xdist, ray:local, ray:auto or ray:HOST:PORT")
    if importlib.util.find_spec("ray") is None:
        raise ValueError(f"--engine {engine} needs Ray, which is not installed; run pip install 'bvae[ray]'")
    if workers:
        raise ValueError(
            f"--engine {engine} trains without workers of pytest-xdist, but -n asks for {workers}; "
            "leave out -n, or write -n0"
        )
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device is {device!r}; expected cpu or cuda, as Ray chooses the GPU of each run")
    try:
        share = float(gpus)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"--gpus-per-run is {gpus!r}; expected a number above 0 and at most 1")
    scheduler = importlib.import_module("bvae.session.ray_engine").RayScheduler
    return partial(scheduler, address=found[1] or "", gpus=share if device == "cuda" else 0.0)


def describe_gpu(device: str) -> dict[str, str | int]:
    """Return the name of a GPU."""
    return {"gpu": torch.cuda.get_device_name(device)}


def write_why(session: Session, option: str, outcomes: OptionOutcomes) -> None:
    """Write the chart that explains the predictions of an option. Raises StorageError."""
    folder = comparison_folder(session)
    make_folder(folder)
    (summary,) = compare_outcomes(session, {option: outcomes}).options.values()
    write_picture(folder / f"why_{option}.png", partial(draw_why, session, option, summary))


def write_picture(path: Path, draw: Callable[[], bytes | None]) -> None:
    """Draw and write a picture. If there is none, remove the older file. Warn if drawing fails."""

    def write() -> bytes | None:
        if (png := draw()) is not None:
            atomic_write(path, png)
        return png

    if try_to_draw(path.name, write) is None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # the picture of an earlier comparison


def try_to_draw(name: str, draw: Callable[[], bytes | None]) -> bytes | None:
    """Return the PNG from `draw`. If that fails, warn and return None."""
    try:
        return draw()
    except Exception as error:
        reason = printable(f"{name} could not be drawn or written: {type(error).__name__}: {error}")
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
    """Compare the runs, and write all files of the comparison except the charts of `write_why`.

    `in_haste` leaves out the references, which take seconds.

    Raises:
        StorageError: if a file cannot be written.
    """
    config = session.record.config
    settings = [config.training.changed(each.training) for each in config.options if each.name in outcomes]
    latent_dims = sorted({each.latent_dim for each in settings})
    known = {} if in_haste else references(corpus, *latent_dims)
    comparison = compare_outcomes(session, outcomes, known)
    differences = compare_with(baseline, comparison)
    folder = comparison_folder(session)
    make_folder(folder)
    write_picture(folder / "curves.png", partial(draw_curves, session, comparison))
    write_picture(folder / "tradeoff.png", partial(draw_tradeoff, session, comparison))
    write_picture(folder / "reconstructions.png", partial(draw_reconstructions, session, corpus, comparison))
    write_picture(folder / "examples.png", partial(draw_examples, session, corpus, comparison))
    strips = verdict_strips(session, comparison)
    write_picture(folder / "verdicts.png", partial(draw_verdicts, comparison, strips))
    by_epoch = describe_strips({name: strip for option in strips for name, strip in option.items()})
    atomic_write(folder / "comparison.md", to_markdown(comparison, differences, by_epoch).encode())
    atomic_write(folder / "comparison.json", to_json(comparison))
    return comparison


def draw_examples(session: Session, corpus: Corpus, comparison: Comparison) -> bytes | None:
    """Return a PNG of the worst, the median and the best of some validation grids for each option.

    Return None if no option has a checkpoint, or if no grid has an object.
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
    title = f"Validation grids of {corpus.name} by object IoU: newest checkpoint, first seed"
    shown = f"The worst, the median and the best of {len(grids)}, each beside its reconstruction"
    return png_of(plot_examples(examples, title=f"{title}\n{shown}"))


def shown_models(session: Session, comparison: Comparison) -> dict[str, GridModel]:
    """Return by option the model of the first run's newest checkpoint, if there is one."""
    found = {}
    for option in session.record.config.options:
        if option.name in comparison.options:
            run = session.run_config(option, comparison.options[option.name].runs[0].seed)
            if (model := newest_model(session.path / run.name, run)) is not None:
                found[option.name] = model
    return found


def option_names(session: Session) -> list[str]:
    """Return the names of all options of a session, in the order of their colours."""
    return [option.name for option in session.record.config.options]


def draw_run_curves(session: Session, result: RunResult) -> bytes | None:
    """Return a PNG of the curves of one run. If they cannot be drawn, warn and return None."""
    name = f"{result.option}-seed{result.seed}"
    curves = partial(_draw_curves, session, {result.option: [name]}, f"Run {name}")
    return try_to_draw(f"curves of {name}", curves)


def draw_curves(session: Session, comparison: Comparison) -> bytes:
    """Return a PNG of the curves of each option; bands show the range over seeds."""
    folders = {name: [run.path for run in option.runs] for name, option in comparison.options.items()}
    return _draw_curves(session, folders, f"Loss options on {comparison.corpus.name}")


def draw_tradeoff(session: Session, comparison: Comparison) -> bytes | None:
    """Return a PNG of the KL divergence and the object IoU of each run; None if no run has both."""
    runs = {
        name: [
            (run.metrics.kl, run.metrics.object_iou)
            for run in option.runs
            if run.metrics is not None and run.metrics.object_iou is not None
        ]
        for name, option in comparison.options.items()
    }
    if not any(runs.values()):
        return None
    title = f"KL divergence and object IoU on {comparison.corpus.name}"
    marks = "Small: runs after their last epoch. Large: the mean of an option"
    looks = {name: (place, place) for place, name in enumerate(option_names(session))}
    return png_of(plot_rate_distortion(runs, looks=looks, title=f"{title}\n{marks}"))


def _draw_curves(session: Session, folders: Mapping[str, Sequence[str]], title: str) -> bytes:
    """Return a PNG of the curves of options; `folders` has the names of the runs of each option."""
    record = session.record
    options = [option for option in record.config.options if option.name in folders]
    schedules = {describe_beta(record.config.training.changed(option.training)) for option in options}
    histories = {
        option: [msgspec.to_builtins(shown_history(session, name)) for name in names]
        for option, names in folders.items()
    }
    curves = plot_curves(
        histories,
        background_rate=record.corpus.background_rate,
        band=(record.config.band.lo, record.config.band.hi),
        options=option_names(session),
        title="\n".join(filter(None, [title, *(schedules if len(schedules) == 1 else ())])),
    )
    return png_of(curves)


def verdict_strips(session: Session, comparison: Comparison) -> list[dict[str, Strip]]:
    """Return the verdicts by epoch of the first runs of each option; for long runs, only of some epochs."""
    config = session.record.config
    most = max(1, STRIPS // len(comparison.options))
    options = {name: option.runs[:most] for name, option in comparison.options.items()}
    histories = {run.path: shown_history(session, run.path) for runs in options.values() for run in runs}
    stride = -(-max(map(len, histories.values())) // CELLS) or 1
    return [
        {
            run.path: Strip(
                verdicts_by_epoch(histories[run.path], run.verdict, config.band, stride=stride),
                how_it_ended(histories[run.path], config.training_of(name)),
            )
            for run in runs
        }
        for name, runs in options.items()
    ]


def draw_verdicts(comparison: Comparison, strips: Sequence[Mapping[str, Strip]]) -> bytes:
    """Return a PNG of the verdict on each run after each epoch."""
    runs, shown = sum(len(option.runs) for option in comparison.options.values()), sum(map(len, strips))
    title = f"Verdict by epoch on {comparison.corpus.name}\nThe verdict on each run if it had ended there"
    return png_of(plot_verdicts(strips, title=title + f"; {shown} of {runs} runs" * (shown < runs)))


def draw_why(session: Session, name: str, option: OptionSummary) -> bytes:
    """Return a PNG of the chart that explains the predictions of an option."""
    histories = [shown_history(session, run.path) for run in option.runs]
    title = f"Why: option {name} (γ = {option.gamma:g}, class weights {option.class_weights})"
    colour = colour_of(option_names(session).index(name))
    why = Diagnosis.of(option, histories, session.record.corpus.background)
    return png_of(plot_why(why, colour=colour, title=title))


def draw_reconstructions(session: Session, corpus: Corpus, comparison: Comparison) -> bytes:
    """Return a PNG of the same grids and their reconstructions by each option."""
    grids = corpus.sample_grids()
    models = shown_models(session, comparison)
    predicted = {f"Option {name}": reconstruct(model, grids) for name, model in models.items()}
    title = f"The same training grids of {corpus.name} under each option: newest checkpoint, first seed"
    return png_of(plot_comparison(grids, predicted, title=title))
