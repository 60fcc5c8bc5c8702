"""Every command-line option, declared once: for pytest, for `python -m bvae`, and for the documentation.

Values remain text until `parse_experiment` reads them, so that each mistake is reported in one sentence that
names the option.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from bvae.config import (
    LOSS_OPTIONS,
    AccuracyBand,
    Classes,
    ConfigError,
    ExperimentConfig,
    KeepCheckpoints,
    LossOption,
)
from bvae.option_files import TRAINING_TYPES, OptionFileError, read_options, select_options
from bvae.storage import printable

EXPERIMENT = ExperimentConfig(grid_size="auto")
"""The settings if no option is given."""
FIELD_TYPES = get_type_hints(ExperimentConfig) | TRAINING_TYPES
EXTEND_EXPECTS = "--extend trains a session to more epochs; expected also --resume=DIR and --epochs N"
RENAMED_FIELDS = {"accuracy_band": "band", "loss_options": "options"}
PARSERS: Mapping[Any, Callable[[str], Any]] = {
    int: int,
    int | None: int,
    float: float,
    AccuracyBand: AccuracyBand.parse,
    Classes: lambda text: text if text == "auto" else int(text),
    KeepCheckpoints: lambda text: "all" if text == "all" else 1 if text in ("last", "best") else int(text),
}
"""Parsers by type of field; for other types the value is the text itself."""
EXPECTED = {
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    Classes: "a whole number, or auto",
    KeepCheckpoints: "all, last, best, or a whole number",
}


def path_text(text: str) -> str:
    """Return the text of a path with `~` expanded. Raises ArgumentTypeError if it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"'{printable(text)}' is not UTF-8; rename the file or folder"
        ) from None
    return os.path.expanduser(text)  # noqa: PTH111  # a Path would turn `./arc` into `arc`


@dataclasses.dataclass(frozen=True)
class CommandLineOption:
    """An option of the command line.

    An option named like a field of `ExperimentConfig` or `TrainingConfig` has the field's type and default.

    Attributes:
        name: the name without dashes.
        metavar: placeholder of the value in help texts; empty for a switch, which takes no value.
        summary: what the option does.
        commands: the commands that accept it; `pytest` stands for `pytest experiments/`.
        own_default: the default as text; empty for the default of the field.
        takes_path: whether the value may be a path, so that it must be given as `--name=PATH`.
        words: for such an option, the regular expression of values that are not paths.
    """

    name: str
    metavar: str
    summary: str
    _: dataclasses.KW_ONLY
    commands: tuple[str, ...] = ("pytest", "train", "shards")
    own_default: str = ""
    takes_path: bool = False
    words: str = ""

    @property
    def flag(self) -> str:
        """The option as it is typed, such as `--grid-size`."""
        return f"--{self.name}"

    @property
    def key(self) -> str:
        """The option's name among parsed values, such as `grid_size`."""
        return self.name.replace("-", "_")

    @property
    def field(self) -> str:
        """The field that the option sets, empty if there is none."""
        field = RENAMED_FIELDS.get(self.key, self.key)
        return field if field in FIELD_TYPES else ""

    @property
    def default(self) -> str:
        """The default as text, empty if there is none."""
        if self.own_default or not self.field:
            return self.own_default
        value = getattr(EXPERIMENT.training if self.field in TRAINING_TYPES else EXPERIMENT, self.field)
        return "" if value is None else str(value)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `add_argument` and of pytest's `addoption`; an option of a field defaults to None."""
        if not self.metavar:
            return {"action": "store_true", "help": self.summary}
        default = None if self.field else self.own_default or None
        shown = f"{self.summary}. Default: {self.default}" if self.default else self.summary
        kind = {"type": path_text} if self.takes_path else {}
        return {"metavar": self.metavar, "default": default, "help": shown, **kind}

    def read(self, text: str) -> Any:
        """Read the value of the field. Raises ConfigError."""
        kind = FIELD_TYPES[self.field]
        try:
            return PARSERS.get(kind, str)(text)
        except ConfigError:
            raise
        except ValueError:
            raise ConfigError(self.field, f"is {text!r}", EXPECTED[kind]) from None


PYTEST, TRAIN, SHOW, PAGES = ("pytest",), ("train",), ("show",), ("report", "compare")
RESUMING, WITH_ENGINE = ("pytest", "train"), ("pytest", "shards")

OPTIONS = (
    CommandLineOption(
        "corpus",
        "CORPUS",
        "What to train on: objects[:N] (N grids of real ARC objects), arc (whole ARC-AGI-2 grids), "
        "atomic[:N] (N procedural grids), or, given as --corpus=PATH, a .npz (also FILE.npz#NAME) or .npy "
        "file, or a folder, a zip archive or a JSON file of ARC tasks; see docs/corpora.md",
        takes_path=True,
        words=r"arc|(objects|atomic)(:\d+)?",
    ),
    CommandLineOption(
        "grid-size",
        "S",
        "Maximum height and width of a grid, 1 to 64; auto is the largest in a file, 16 for other corpora",
    ),
    CommandLineOption(
        "padding-value",
        "V",
        "Value of cells outside a grid in a file, such as 10 or -1. Loss and metrics ignore these cells. "
        "Write a negative value as --padding-value=-1",
    ),
    CommandLineOption(
        "classes",
        "N",
        "Number of classes, 2 to 64; auto is one more than the largest in a file, 10 for other corpora",
    ),
    CommandLineOption("background", "C", "Background class; auto is the most frequent class in training"),
    CommandLineOption("epochs", "N", "Epochs of each run; the maximum with --until-plateau"),
    CommandLineOption("until-plateau", "N", "End a run after N epochs without lower validation loss; 0: off"),
    CommandLineOption("seeds", "N", "Runs of each option, seeds 0 to N-1; for `train` only with --resume"),
    CommandLineOption(
        "loss-options",
        "NAMES",
        "Names of loss options to compare, separated by commas; options from --loss-options-file are "
        "added to the default; for `train` only with --resume",
        own_default=",".join(LOSS_OPTIONS),
    ),
    CommandLineOption(
        "loss-options-file",
        "FILE",
        "TOML file that adds or replaces loss options, one table per option, given as "
        "--loss-options-file=FILE; see docs/loss-options.md",
        takes_path=True,
    ),
    CommandLineOption("beta", "BETA", "Weight of the KL divergence"),
    CommandLineOption(
        "beta-schedule",
        "SCHEDULE",
        "β of each step: constant, linear (from 0 over --beta-warmup) or cyclical (four such rises); see "
        "docs/loss-options.md",
    ),
    CommandLineOption("beta-warmup", "N", "Epochs over which --beta-schedule linear raises β from 0"),
    CommandLineOption("free-bits", "NATS", "KL divergence per latent dimension (batch mean) without a cost"),
    CommandLineOption("learning-rate", "RATE", "Peak learning rate of Adam: warm-up, then cosine to 0"),
    CommandLineOption("batch-size", "N", "Grids per step"),
    CommandLineOption("latent-dim", "N", "Latent dimensions"),
    CommandLineOption(
        "checkpoint-every",
        "N",
        "Epochs between checkpoints, each with its picture; the last epoch and the best are always saved",
    ),
    CommandLineOption("checkpoint-every-steps", "K", "Steps between checkpoints inside an epoch; 0 for none"),
    CommandLineOption(
        "keep-checkpoints",
        "KEEP",
        "Checkpoint files to keep: all, or the newest K of each run; last and best both stand for 1, as the "
        "newest and the best always stay. Pictures are never removed",
    ),
    CommandLineOption("log", "LOG", "none, or tensorboard: also write scalars and pictures for TensorBoard"),
    CommandLineOption(
        "model",
        "MODULE:FACTORY",
        "Factory that creates the model from grid_size, latent_dim and classes; see docs/own-model.md. When "
        "resuming or reporting, name all models of the session, separated by commas",
        commands=("pytest", "train", "shards", "report", "merge", "show"),
    ),
    CommandLineOption("device", "DEVICE", "cpu, cuda or cuda:INDEX"),
    CommandLineOption(
        "precision",
        "P",
        "Precision of matrix products: fp32, bf16, or auto (bf16 if the processor has bf16 instructions)",
    ),
    CommandLineOption(
        "accuracy-band",
        "LO:HI",
        "Range of pixel accuracy in which a stable option that learned the objects is healthy",
        commands=("pytest", "train", "shards", "report"),
    ),
    CommandLineOption(
        "engine",
        "ENGINE",
        "What trains the runs: xdist (processes of this machine, see -n), ray:local (Ray on this machine), "
        "ray:HOST:PORT or ray:auto (a running Ray cluster); see docs/scale.md",
        own_default="xdist",
        commands=WITH_ENGINE,
    ),
    CommandLineOption(
        "gpus-per-run",
        "SHARE",
        "With --engine ray and --device cuda: the share of a GPU that each run takes",
        own_default="0.1",
        commands=WITH_ENGINE,
    ),
    CommandLineOption(
        "shard",
        "I/N",
        "Train only every N-th run, from the I-th on, without gates; see `bvae shards` and docs/scale.md",
        commands=PYTEST,
    ),
    CommandLineOption(
        "run-dir",
        "DIR",
        "Folder for sessions, given as --run-dir=DIR; each invocation creates one session",
        own_default="runs",
        commands=("pytest", "train", "shards", "merge"),
        takes_path=True,
    ),
    CommandLineOption(
        "resume",
        "SESSION",
        "Finish or extend a session: latest (in --run-dir), or its folder, given as --resume=DIR. Other "
        "settings are those of the session; more seeds or options, or another band, extend it",
        commands=RESUMING,
        takes_path=True,
        words="latest",
    ),
    CommandLineOption("extend", "", "With --resume: train on to more --epochs", commands=RESUMING),
    CommandLineOption(
        "baseline",
        "PATH",
        "Compare with an earlier session, its comparison folder or its comparison.json, given as "
        "--baseline=PATH: each difference in accuracy, foreground and object metrics, with Welch's t "
        "interval (unequal variances) on the means over seeds. Needs at least two seeds on both sides",
        commands=PYTEST,
        takes_path=True,
    ),
    CommandLineOption(
        "fail-on-regression",
        "",
        "With --baseline: fail, instead of only reporting, if the whole interval of a difference is below 0",
        commands=PYTEST,
    ),
    CommandLineOption("option", "NAME", "Loss option to train", own_default="B", commands=TRAIN),
    CommandLineOption("seed", "N", "Seed of weights, noise and order", own_default="0", commands=TRAIN),
    CommandLineOption("html", "FILE", "HTML page; default of `report`: RUN_DIR/report.html", commands=PAGES),
    CommandLineOption("csv", "FILE", "CSV file to write, with a row for each run", commands=("compare",)),
    CommandLineOption("traversals", "", "Draw what each latent dimension changes", commands=SHOW),
    CommandLineOption("samples", "N", "Draw N samples from the prior, 1 to 40", commands=SHOW),
    CommandLineOption(
        "output",
        "FILE",
        "File to write the picture to. Default: reconstructions.png, traversals.png or samples.png",
        commands=SHOW,
    ),
)


def options_of(command: str) -> list[CommandLineOption]:
    """Return the options that a command accepts."""
    return [option for option in OPTIONS if command in option.commands]


def options_document() -> str:
    """Return docs/options.md: a Markdown table of all options."""
    rows = ["| option | default | taken by | what it does |", "| --- | --- | --- | --- |"]
    for option in OPTIONS:
        usage = option.flag + (("=" if option.takes_path else " ") + option.metavar if option.metavar else "")
        default = f"`{option.default}`" if option.default else ""
        rows.append(f"| `{usage}` | {default} | {', '.join(option.commands)} | {option.summary} |")
    table = "\n".join(rows)
    return f"""\
# Options

`pytest` stands for `pytest experiments/`, the other commands for `python -m bvae COMMAND`. This page is
printed by `python -m bvae options`.

{table}
"""


def parse_experiment(
    given: Mapping[str, str | None], base: ExperimentConfig = EXPERIMENT
) -> ExperimentConfig:
    """Return the experiment for option values by key, such as `grid_size`.

    Args:
        given: the values as text, None for options that were not given.
        base: the settings for options that were not given.

    Raises:
        ValueError: with one sentence that names the option, what was given and what was expected.
    """
    values: dict[str, Any] = {}
    try:
        for option in OPTIONS:
            text = given.get(option.key)
            if option.field and option.field != "options" and text is not None:
                values[option.field] = option.read(text)
        values["options"] = _asked_options(given, base)
        training = {field: values.pop(field) for field in TRAINING_TYPES.keys() & values.keys()}
        return dataclasses.replace(base, training=dataclasses.replace(base.training, **training), **values)
    except ConfigError as error:
        flags = {option.field: option.flag for option in OPTIONS}
        raise error.shown_as(flags.get(error.field, error.field)) from None
    except OptionFileError as error:
        raise ValueError(f"--loss-options-file {error}") from None


def _asked_options(given: Mapping[str, str | None], base: ExperimentConfig) -> tuple[LossOption, ...]:
    """Return the loss options selected by name; without names, those of `base` and of the file."""
    default = {option.name: option for option in base.options}
    if (path := given.get("loss_options_file")) is not None:
        default |= read_options(path)
    if (names := given.get("loss_options")) is not None:
        return select_options(names, {**LOSS_OPTIONS, **default})
    return tuple(default.values())
