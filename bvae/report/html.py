"""The report of a session as HTML: values → the context of `templates/*.jinja`, which escape every text."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import io
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from bvae.class_weights import weights_of_option
from bvae.config import ExperimentConfig, LossOption, colour_of
from bvae.judging.baseline import CAPTION, DIFFERENCE_HEADINGS, Difference, difference_rows
from bvae.judging.comparison import Comparison, OptionSummary
from bvae.judging.explanation import Diagnosis, describe_last_epoch, describe_rules_met, explain_why
from bvae.records import Evaluation, RunResult
from bvae.report.text import Cell, describe_setting, explain_gate, table_head, table_rows, words
from bvae.session import Session
from bvae.session.folder import read_history
from bvae.session_files import FILMSTRIP, checkpoints, picture_of
from bvae.storage import printable
from bvae.verdict import MEANINGS, RULES, Rule

MAX_PICTURES = 12
"""Pictures of checkpoints that are shown of a run, beside its filmstrip and curves."""

TEMPLATES = Environment(
    loader=PackageLoader("bvae.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["words"] = words
_SIGNS = {True: "✔", False: "✘"}


class Picture(NamedTuple):
    """A picture in the page; `data` is its PNG in base64, empty where it was not drawn."""

    caption: str
    data: str = ""
    width: int = 0
    height: int = 0
    description: str = ""

    @classmethod
    def of(cls, png: bytes, caption: str) -> Picture:
        """Embed a PNG; its text chunk `Description` becomes the text alternative."""
        with Image.open(io.BytesIO(png)) as image:  # reads the header only
            description = str(image.info.get("Description", caption))
            return cls(caption, base64.b64encode(png).decode(), *image.size, description)

    @classmethod
    def of_file(cls, path: Path, caption: str) -> Picture:
        """Embed a PNG file where there is one."""
        return cls.of(path.read_bytes(), caption) if path.exists() else cls(caption)


def report_head(session: Session, comparison: Comparison | None, *, gate_ran: bool = True) -> str:
    """Return the part above the table of tests, with style and script of the page.

    Args:
        comparison: None where no run was begun.
        gate_ran: whether the test of the gate was selected.
    """
    files = importlib.resources.files("bvae.report")
    return _render(
        "head.jinja",
        style=(files / "page.css").read_text("utf-8"),
        script=(files / "page.js").read_text("utf-8"),
        comparison=comparison,
        **(_head_context(session, comparison) if comparison is not None else {}),
        gate_ran=gate_ran,
    )


def show_run(session: Session, result: RunResult, curves: bytes) -> str:
    """Return a run: its verdict, when it met the rules, its filmstrip, curves and pictures of checkpoints.

    Args:
        curves: a PNG of the run's curves.
    """
    directory = session.path / f"{result.option}-seed{result.seed}"
    pictures, remarks = _checkpoint_pictures(directory)
    return _render(
        "run.jinja",
        name=directory.name,
        result=result,
        rules_met=describe_rules_met(read_history(directory)),
        filmstrip=Picture.of_file(directory / FILMSTRIP, "Filmstrip: the same grids, epoch by epoch"),
        pictures=[Picture.of(curves, "Curves"), *pictures],
        remarks=remarks,
    )


def show_gate(comparison: Comparison) -> str:
    """Return the gate's outcome with a line of numbers for each candidate."""
    return _render("gate.jinja", lines=[*explain_gate(comparison).splitlines(), comparison.recommendation])


def show_differences(differences: Sequence[Difference]) -> str:
    """Return the table of differences to the baseline."""
    rows = [[Cell(text) for text in row] for row in difference_rows(differences)]
    return _render(
        "differences.jinja", head=[Cell(text) for text in DIFFERENCE_HEADINGS], rows=rows, caption=CAPTION
    )


def _render(template: str, **context: Any) -> str:
    return TEMPLATES.get_template(template).render(context)


def _head_context(session: Session, comparison: Comparison) -> dict[str, Any]:
    record, folder = session.record, session.path / "comparison"
    return {
        "outcome": f"{_SIGNS[comparison.gate.passed]} {explain_gate(comparison).splitlines()[0]}",
        "options": _options_table(comparison, [option.name for option in record.config.options]),
        "reconstructions": Picture.of_file(folder / "reconstructions.png", "Newest checkpoint, first seed"),
        "examples": Picture.of_file(folder / "examples.png", "By object IoU, first seed"),
        "lost_accuracy": _lost_accuracy(comparison),
        "setting": describe_setting(comparison),
        "training": record.config.training,
        "seeds": max(len(option.runs) for option in comparison.options.values()),
        "rules": _rules_table(comparison),
        "meanings": MEANINGS,
        "record": record,
        "folder": printable(str(session.path)),
        "command": printable(shlex.join(record.command)),
        "snippet": _recommended_code(session, comparison),
        "curves": Picture.of_file(folder / "curves.png", "Losses, accuracy, foreground and KL by epoch"),
        "whys": [_why(session, name, option) for name, option in comparison.options.items()],
    }


def _options_table(comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """The table of options and references; `names` are all options, in the order of their colours."""
    rows = table_rows(comparison)
    for row, (name, option) in zip(rows, comparison.options.items(), strict=False):
        row[0] = Cell(name, "recommended" if name == comparison.recommended else "")
        row[1] = Cell(f"{_SIGNS[option.healthy]} {row[1].text}")
    return {
        "head": table_head(comparison),
        "rows": rows,
        "chosen": [*comparison.options].index(comparison.recommended) if comparison.recommended else None,
        "colours": [colour_of(names.index(name)) for name in comparison.options],
    }


def _rules_table(comparison: Comparison) -> dict[str, Any]:
    """What each rule of the verdict measured in every run; a sign marks a broken rule."""
    runs = [(name, run) for name, option in comparison.options.items() for run in option.runs]
    rows = [
        [
            Cell(rule.quantity, f"else {words(rule.verdict)}"),
            Cell(rule.requirement),
            *(_rule_cell(rule, run.metrics) for _, run in runs),
        ]
        for rule in RULES
    ]
    return {
        "head": [Cell("rule"), Cell("bound"), *(Cell(name, f"seed {run.seed}") for name, run in runs)],
        "rows": rows,
    }


def _rule_cell(rule: Rule, metrics: Evaluation | None) -> Cell:
    value = None if metrics is None else rule.measure(metrics)
    if metrics is None or value is None:
        return Cell("undefined")
    return Cell(f"{value:.3f}", _SIGNS[False] if rule.is_broken(metrics) else "")


def _lost_accuracy(comparison: Comparison) -> float | None:
    """By how much the recommended option is less accurate than predicting background only, if it is."""
    name, rate = comparison.recommended, comparison.corpus.background_rate
    accuracy = comparison.options[name].pixel_accuracy.mean if name else None
    return rate - accuracy if accuracy is not None and accuracy < rate else None


def _recommended_code(session: Session, comparison: Comparison) -> str | None:
    config = session.record.config
    found = [option for option in config.options if option.name == comparison.recommended]
    return code_snippet(config, found[0], comparison.corpus.class_counts) if found else None


def _why(session: Session, name: str, option: OptionSummary) -> dict[str, Any]:
    histories = {run.seed: read_history(session.path / run.path) for run in option.runs}
    return {
        "name": name,
        "option": option,
        "sentences": explain_why(Diagnosis.of(option, [*histories.values()])),
        "picture": Picture.of_file(session.path / "comparison" / f"why_{name}.png", f"Option {name}: why"),
        "by_seed": [
            f"Seed {seed}: {describe_rules_met(history)} {describe_last_epoch(history)}"
            for seed, history in histories.items()
        ],
    }


def _checkpoint_pictures(directory: Path) -> tuple[list[Picture], list[str]]:
    """The pictures of checkpoints to show, oldest first, and remarks on those left out."""
    drawn = [path for path in reversed(checkpoints(directory)) if picture_of(path).exists()]
    best = [path for path in drawn if path.stem == "best"]
    timed = [path for path in drawn if path.stem != "best"]
    remarks = []
    if best:
        png = picture_of(best[0]).read_bytes()
        if same := [path for path in timed if picture_of(path).read_bytes() == png]:
            best = []
            moment = _moment(same[-1]).lower()
            remarks.append(f"The best checkpoint, of least validation loss, is that of {moment}.")
    room = MAX_PICTURES - len(best)
    if len(timed) > room:
        folder = printable(str(directory / "checkpoints"))
        remarks.append(f"{room} of {len(timed)} checkpoints are shown; the pictures of all are in {folder}.")
        timed = [timed[round(place * (len(timed) - 1) / (room - 1))] for place in range(room)]
    return [Picture.of_file(picture_of(path), _moment(path)) for path in [*timed, *best]], remarks


def _moment(checkpoint: Path) -> str:
    """When a checkpoint was saved, from its name such as `epoch_002_step_000123`."""
    if checkpoint.stem == "best":
        return "Least validation loss"
    _, epoch, *step = checkpoint.stem.split("_")
    return f"Epoch {int(epoch)}" + (f", step {int(step[1]):,}" if step else "")


def code_snippet(experiment: ExperimentConfig, option: LossOption, counts: Sequence[int]) -> str:
    """Return code that defines the loss of an option on an experiment's corpus, and how it is trained.

    Args:
        counts: `[C]`, cells of each class in the training split; a comment shows the weights they give.
    """
    fields = dataclasses.fields(experiment.training)
    settings = ", ".join(f"{field.name}={getattr(experiment.training, field.name)!r}" for field in fields)
    lines = textwrap.wrap(f"{settings},", 84, break_long_words=False, break_on_hyphens=False)
    training = textwrap.indent("\n".join(lines), "    ")
    numbers = ", ".join(f"{weight:.4g}" for weight in weights_of_option(option, counts).tolist())
    source, weight = _weight(option)
    corpus = f"{experiment.corpus!r}, grid_size={experiment.grid_size}"
    if experiment.padding_value is not None:
        corpus += f", padding_value={experiment.padding_value}"
    return f"""\
from bvae.beta_vae import {source}
from bvae.config import {"LossOption, " if source == "option_weights" else ""}TrainingConfig
from bvae.corpus import load_corpus
from bvae.losses import focal_loss

training = TrainingConfig(
{training}
)
counts = load_corpus({corpus}).class_counts
weight = {weight}
# = [{numbers}]


def reconstruction_loss(logits, target):
    \"\"\"Nats per cell of logits [B, 10, H, W] and classes [B, H, W]; training.beta · KL is added.\"\"\"
    return focal_loss(logits, target, gamma={option.gamma!r}, weight=weight)
"""


def _weight(option: LossOption) -> tuple[str, str]:
    """The name of the function that returns an option's class weights, and the call."""
    if option.exponent is None and option.beta is None and isinstance(option.class_weights, str):
        return "class_weights", f"class_weights(counts, {option.class_weights!r})"
    return "option_weights", f"option_weights({option!r}, counts)"
