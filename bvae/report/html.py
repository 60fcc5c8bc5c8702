"""The report of a session as HTML: fills in `templates/*.jinja`, which escape all text."""

from __future__ import annotations

import base64
import importlib.resources
import io
import shlex
import textwrap
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from bvae import EvidenceWarning
from bvae.config import DEFAULT_CLASSES, ExperimentConfig, LossOption, weights_of_option
from bvae.judging.baseline import CAPTION, DIFFERENCE_HEADINGS, Difference, difference_rows
from bvae.judging.comparison import LISTED, Comparison, OptionSummary
from bvae.judging.explanation import (
    Diagnosis,
    count_verdicts,
    describe_end,
    describe_last_epoch,
    describe_rules_met,
    explain_why,
)
from bvae.records import RunResult
from bvae.report.tables import (
    MARKS,
    PICTURED,
    Cell,
    many_runs,
    number,
    options_table,
    rules_table,
    run_line,
    verdict_style,
)
from bvae.report.text import describe_epochs, describe_setting, explain_gate, explain_outcome
from bvae.session import Session
from bvae.session.folder import comparison_folder, shown_history
from bvae.session_files import FILMSTRIP, picture_of, pictured_checkpoints
from bvae.storage import printable, read_bounded
from bvae.verdict import MEANINGS, words

TITLE = "Which loss options let the β-VAE learn?"

MAX_PICTURES, MAX_PICTURE = 12, 64 * 2**20
"""Maximum number of checkpoint pictures per run, and maximum size of a picture in bytes."""

TEMPLATES = Environment(
    loader=PackageLoader("bvae.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"words": words, "number": number}


class Picture(NamedTuple):
    """A picture on the page; `data` is the PNG in base64, empty if the picture was not drawn."""

    caption: str
    data: str = ""
    width: int = 0
    height: int = 0
    description: str = ""

    @classmethod
    def of(cls, png: bytes, caption: str) -> Picture:
        """Return the picture in a PNG; the text chunk `Description` becomes the text alternative."""
        with Image.open(io.BytesIO(png)) as image:  # reads only the header
            description = str(image.info.get("Description", caption))
            return cls(caption, base64.b64encode(png).decode(), *image.size, description)

    @classmethod
    def of_file(cls, path: Path, caption: str) -> Picture:
        """Return the picture in a PNG file; without data if the file is missing or damaged."""
        if (png := read_png(path)) is not None:
            return cls.of(png, caption)
        return cls(f"{caption} ({path.name} is not a valid PNG)" if path.exists() else caption)


TEMPLATES.globals["read_picture"] = Picture.of_file


def read_png(path: Path) -> bytes | None:
    """Return the content of a PNG file; None if it is missing or, with a warning, cannot be used."""
    try:
        png = read_bounded(path, MAX_PICTURE)
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.verify()  # checks the checksum of every chunk
    except FileNotFoundError:
        return None
    except Exception as error:  # Pillow raises various exceptions for damaged content
        reason = printable(f"{path} is not shown, because it cannot be read as a PNG: {error}")
        warnings.warn(reason, EvidenceWarning, stacklevel=3)
        return None
    return png


def report_head(
    session: Session,
    comparison: Comparison | None,
    own_gates: Mapping[str, bool] = MappingProxyType({}),
    *,
    gate_ran: bool = True,
    page: Path | None = None,
) -> str:
    """Return the part of the page above the table of tests, with the style and script of the page.

    Args:
        comparison: None if no run was begun.
        own_gates: by name of each gate that the project added, whether the gate passed.
        gate_ran: whether the test of the packaged gate was run.
        page: the folder of the report, to which its links are relative; by default that of the session.
    """
    context = _context(session, comparison, own_gates, gate_ran, page)
    return render("head.jinja", script=packaged_text("page.js"), runs=None, **context)


def report_page(
    session: Session,
    comparison: Comparison,
    runs: Mapping[str, str],
    differences: Sequence[Difference] = (),
    page: Path | None = None,
) -> str:
    """Return the report as a page of its own, without the table of tests; the page loads no other file.

    Args:
        runs: by heading, the HTML of each run from `show_run`. A large session does not use them.
        differences: the differences to the baseline, if there is one.
        page: the folder of the report, to which its links are relative; by default that of the session.
    """
    context = _context(session, comparison, {}, False, page)
    if comparison.is_large:
        runs = _show_options(session, comparison, page or session.path)
    shown = show_differences(differences) if differences else ""
    return render("page.jinja", title=TITLE, runs=runs, differences=shown, **context)


def show_run(session: Session, result: RunResult, curves: bytes | None) -> str:
    """Return the section of a run: verdict, filmstrip, curves, checkpoints, and when it met the rules.

    Args:
        curves: PNG of the run's curves; None if they could not be drawn.
    """
    directory = session.path / f"{result.option}-seed{result.seed}"
    pictures, remarks = _checkpoint_pictures(directory)
    history = shown_history(session, directory.name)
    training = session.record.config.training_of(result.option)
    return render(
        "run.jinja",
        name=directory.name,
        result=result,
        sentences=[describe_rules_met(history), describe_end(history, training)],
        filmstrip=Picture.of_file(directory / FILMSTRIP, "Filmstrip: the same grids by epoch"),
        pictures=[Picture.of(curves, "Curves") if curves else Picture("Curves"), *pictures],
        remarks=remarks,
    )


def show_briefly(session: Session, result: RunResult, page: Path | None, pictured: Collection[str]) -> str:
    """Return the line of a run of a large session: verdict, numbers and links.

    Args:
        page: the folder of the report, to which its links are relative; by default that of the session.
        pictured: the names of the runs with a picture.
    """
    name = f"{result.option}-seed{result.seed}"
    return render("lines.jinja", lines=[run_line(session, name, result, page or session.path, pictured)])


def _show_options(session: Session, comparison: Comparison, page: Path) -> dict[str, str]:
    """Return the lines of the runs of each option of a large session, by heading."""
    options = comparison.options
    first = {option.runs[0].path for option in [*options.values()][:PICTURED]}
    sections = {}
    for name, option in options.items():
        lines = [run_line(session, run.path, run, page, first) for run in option.runs]
        sections[f"Option {name}: {count_verdicts(option.runs)}"] = render("lines.jinja", lines=lines)
    return sections


def show_gate(comparison: Comparison) -> str:
    """Return the gate's outcome, a line with the metrics of each candidate, and the recommendation."""
    return render("gate.jinja", lines=[*explain_gate(comparison).splitlines(), comparison.recommendation])


def show_differences(differences: Sequence[Difference]) -> str:
    """Return the table of differences to the baseline."""
    head, *rows = ([*map(Cell, row)] for row in (DIFFERENCE_HEADINGS, *difference_rows(differences)))
    return render("differences.jinja", head=head, rows=rows, caption=CAPTION)


def render(template: str, **context: Any) -> str:
    """Return the text of a template of this package, with the variables in `context` escaped."""
    return TEMPLATES.get_template(template).render(context)


def packaged_text(name: str) -> str:
    """Return the text of a file in this package."""
    return (importlib.resources.files("bvae.report") / name).read_text("utf-8")


def _context(
    session: Session,
    comparison: Comparison | None,
    own_gates: Mapping[str, bool],
    gate_ran: bool,
    page: Path | None,
) -> dict[str, Any]:
    """Return the variables of `comparison.jinja`, and the style of the page."""
    common = {"style": packaged_text("page.css") + verdict_style(), "comparison": comparison}
    if comparison is None:
        return common
    passed, sentences = explain_outcome(comparison, own_gates, gate_ran=gate_ran)
    record, folder = session.record, comparison_folder(session)
    return common | {
        "passed": passed,
        "outcome": f"{MARKS[passed]} {sentences}",
        "options": options_table(comparison, [option.name for option in record.config.options]),
        "reconstructions": Picture.of_file(folder / "reconstructions.png", "Newest checkpoint, first seed"),
        "examples": Picture.of_file(folder / "examples.png", "Chosen by object IoU; first seed"),
        "verdicts": Picture.of_file(folder / "verdicts.png", "Verdict on each run by epoch"),
        "lost_accuracy": _lost_accuracy(comparison),
        "setting": describe_setting(comparison),
        "epochs": describe_epochs(comparison),
        "seeds": max(len(option.runs) for option in comparison.options.values()),
        "many": many_runs(session, comparison, page or session.path) if comparison.is_large else None,
        "rules": rules_table(comparison),
        "meanings": MEANINGS,
        "record": record,
        "folder": printable(str(session.path)),
        "command": printable(shlex.join(record.command)),
        "snippet": _recommended_code(session, comparison),
        "curves": Picture.of_file(folder / "curves.png", "Losses, accuracy, objects and KL by epoch"),
        "tradeoff": Picture.of_file(folder / "tradeoff.png", "Small: runs. Large: means over seeds"),
        "whys": [
            _why(session, name, option, pictured=place < PICTURED or not comparison.is_large)
            for place, (name, option) in enumerate(comparison.options.items())
        ],
    }


def _lost_accuracy(comparison: Comparison) -> float | None:
    """Return how far the accuracy of the recommended option is below the background rate, or None."""
    name, rate = comparison.recommended, comparison.corpus.background_rate
    accuracy = comparison.options[name].pixel_accuracy.mean if name else None
    return rate - accuracy if accuracy is not None and accuracy < rate else None


def _recommended_code(session: Session, comparison: Comparison) -> str | None:
    config, counts = session.record.config, comparison.corpus.class_counts
    found = (option for option in config.options if option.name == comparison.recommended)
    return next((code_snippet(config, option, counts) for option in found), None)


def _why(session: Session, name: str, option: OptionSummary, *, pictured: bool) -> dict[str, Any]:
    histories = {run.seed: shown_history(session, run.path) for run in option.runs}
    training = session.record.config.training_of(name)
    why = Diagnosis.of(option, [*histories.values()], session.record.corpus.background)
    path = comparison_folder(session) / f"why_{name}.png"
    return {
        "name": name,
        "option": option,
        "sentences": explain_why(why),
        "picture": Picture.of_file(path, f"Option {name}: why") if pictured else None,
        "by_seed": [
            f"Seed {seed}: {describe_rules_met(history)} {describe_last_epoch(history)} "
            f"{describe_end(history, training)}".rstrip()
            for seed, history in [*histories.items()][:LISTED]
        ],
        "others": max(0, len(histories) - LISTED),
    }


def _checkpoint_pictures(directory: Path) -> tuple[list[Picture], list[str]]:
    """Return the pictures of checkpoints, oldest first, and remarks on pictures that are not shown."""
    found = {path: read_png(picture_of(path)) for path in reversed(pictured_checkpoints(directory))}
    drawn = {path: png for path, png in found.items() if png is not None}
    best = [path for path in drawn if path.stem == "best"]
    timed = [path for path in drawn if path.stem != "best"]
    remarks = [
        f"{picture_of(path).name} is not shown: it is not a valid PNG."
        for path in found
        if path not in drawn and picture_of(path).exists()
    ]
    if best and (same := [_moment(path) for path in timed if drawn[path] == drawn[best[0]]]):
        best = []
        remarks.append(f"The checkpoint with the lowest validation loss is that of {same[-1].lower()}.")
    if len(timed) > (room := MAX_PICTURES - len(best)):
        folder = printable(str(directory / "checkpoints"))
        remarks.append(f"{room} of {len(timed)} checkpoints are shown. All pictures are in {folder}.")
        timed = [timed[round(place * (len(timed) - 1) / (room - 1))] for place in range(room)]
    return [Picture.of(drawn[path], _moment(path)) for path in [*timed, *best]], remarks


def _moment(checkpoint: Path) -> str:
    """Return the caption of a checkpoint whose file has a name such as `epoch_002_step_000123`."""
    if checkpoint.stem == "best":
        return "Lowest validation loss"
    _, epoch, *step = checkpoint.stem.split("_")
    return f"Epoch {int(epoch)}" + (f", step {int(step[1]):,}" if step else "")


def code_snippet(experiment: ExperimentConfig, option: LossOption, counts: Sequence[int]) -> str:
    """Return Python code with the reconstruction loss and the training configuration of an option.

    Args:
        counts: `[C]`, cells of each class in the training split; a comment in the code has the weights.
    """
    training = experiment.training.changed(option.training)
    settings = ", ".join(f"{name}={value!r}" for name, value in vars(training).items())
    lines = textwrap.wrap(f"{settings},", 84, break_long_words=False, break_on_hyphens=False)
    arguments = textwrap.indent("\n".join(lines), "    ")
    numbers = ", ".join(f"{weight:.4g}" for weight in weights_of_option(option, counts).tolist())
    if option.exponent is None and option.beta is None and isinstance(option.class_weights, str):
        source, weight = "class_weights", f"class_weights(counts, {option.class_weights!r})"
    else:
        source, weight = "option_weights", f"option_weights({option!r}, counts)"
    corpus = f"{experiment.corpus!r}, grid_size={experiment.grid_size}"
    if experiment.padding_value is not None:
        corpus += f", padding_value={experiment.padding_value}"
    if experiment.classes != DEFAULT_CLASSES:
        corpus += f", classes={experiment.classes}"
    return f"""\
from bvae.beta_vae import {source}
from bvae.config import {"LossOption, " if source == "option_weights" else ""}TrainingConfig
from bvae.corpus import load_corpus
from bvae.losses import focal_loss

training = TrainingConfig(
{arguments}
)
counts = load_corpus({corpus}).class_counts
weight = {weight}
# = [{numbers}]


def reconstruction_loss(logits, target):
    \"\"\"Return the loss in nats per cell of logits [B, {len(counts)}, H, W]; add training.beta · KL.\"\"\"
    return focal_loss(logits, target, gamma={option.gamma!r}, weight=weight)
"""
