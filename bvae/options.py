"""Declarations of all command-line options, for pytest, for `python -m bvae` and for the documentation.

`parse_experiment` converts the values. If one is invalid, it raises an error that names the option.
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
COMPARE_EXPECTS = "--fail-on-regression has nothing to compare with; add --baseline=PATH"
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
"""Parsers by type of field. The value of a field of another type is the text itself."""
EXPECTED = {
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    Classes: "a whole number, or auto",
    KeepCheckpoints: "all, last, best, or a whole number",
}


def path_text(text: str) -> str:
    """Return a path with `~` expanded. Raises ArgumentTypeError if the path is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"'{printable(text)}' is not UTF-8; rename the file or folder"
        ) from None
    return os.path.expanduser(text)  # noqa: PTH111  # a Path would turn `./arc` into `arc`


@dataclasses.dataclass(frozen=True)
class CommandLineOption:
    """A command-line option. The configuration field of the same name, if any, gives its type and default.

    Attributes:
        name: name without leading dashes.
        metavar: placeholder of the value in help texts; empty for a switch, which takes no value.
        summary: help text.
        commands: the commands that accept the option; `pytest` stands for `pytest experiments/`.
        own_default: default as text; if empty, the default of the field applies.
        words: regular expression of the values that are not paths, if `takes_path`.
        repeated: whether to repeat the option with `--resume`, because the session does not record it.
    """

    name: str
    metavar: str
    summary: str
    _: dataclasses.KW_ONLY
    commands: tuple[str, ...] = ("pytest", "train", "shards")
    own_default: str = ""
    words: str = ""
    repeated: bool = False

    @property
    def takes_path(self) -> bool:
        """Whether the value may be a path. The option is then typed as `--name=PATH`."""
        return self.metavar in ("CORPUS", "DIR", "FILE", "PATH", "SESSION")

    @property
    def flag(self) -> str:
        """Name with leading dashes, such as `--grid-size`."""
        return f"--{self.name}"

    @property
    def key(self) -> str:
        """Name of the parsed value, such as `grid_size`."""
        return self.name.replace("-", "_")

    @property
    def field(self) -> str:
        """Name of the configuration field that the option sets; empty if there is none."""
        field = RENAMED_FIELDS.get(self.key, self.key)
        return field if field in FIELD_TYPES else ""

    @property
    def default(self) -> str:
        """Default as text; empty if there is none."""
        if self.own_default or not self.field:
            return self.own_default
        value = getattr(EXPERIMENT.training if self.field in TRAINING_TYPES else EXPERIMENT, self.field)
        return "" if value is None else str(value)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords for `add_argument` and pytest's `addoption`. A setting that is not given becomes None."""
        if not self.metavar:
            return {"action": "store_true", "help": self.summary}
        default = None if self.field else self.own_default or None
        shown = f"{self.summary}. Default: {self.default}" if self.default else self.summary
        kind = {"type": path_text} if self.takes_path else {}
        return {"metavar": self.metavar, "default": default, "help": shown, **kind}

    def read(self, text: str) -> Any:
        """Return the value of the field. Raises ConfigError."""
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
        "Grids to train on: objects[:N] (N grids of real ARC objects), arc (whole ARC-AGI-2 grids), "
        "atomic[:N] (N procedural grids), or a path, written as --corpus=PATH: a .npy or .npz file (also "
        "FILE.npz#NAME), or a folder, a zip archive or a JSON file of ARC tasks; see docs/corpora.md",
        words=r"arc|(objects|atomic)(:\d+)?",
    ),
    CommandLineOption("grid-size", "S", "Maximum grid side, 1 to 64; auto: that of the file, or 16"),
    CommandLineOption(
        "padding-value",
        "V",
        "Value of the cells outside a grid, for a corpus in a file. Loss and metrics ignore these cells. "
        "Write a negative value as --padding-value=-1",
    ),
    CommandLineOption("classes", "N", "Number of classes, 2 to 64; auto: that of the file, or 10"),
    CommandLineOption("background", "C", "Background class; auto: the most frequent class in training"),
    CommandLineOption("epochs", "N", "Epochs of each run; with --until-plateau, the maximum"),
    CommandLineOption("until-plateau", "N", "End a run after N epochs without lower validation loss; 0: off"),
    CommandLineOption("seeds", "N", "Runs of each option, seeds 0 to N-1; `train`: only with --resume"),
    CommandLineOption(
        "loss-options",
        "NAMES",
        "Names of loss options to compare, separated by commas. The default includes all options of "
        "--loss-options-file. `train`: only with --resume",
        own_default=",".join(LOSS_OPTIONS),
    ),
    CommandLineOption(
        "loss-options-file",
        "FILE",
        "TOML file of loss options, written as --loss-options-file=FILE; see docs/loss-options.md",
    ),
    CommandLineOption("beta", "BETA", "Weight of the KL divergence"),
    CommandLineOption(
        "beta-schedule",
        "SCHEDULE",
        "β over the steps: constant, linear (rises from 0 during --beta-warmup) or cyclical (rises from 0 "
        "four times); see docs/loss-options.md",
    ),
    CommandLineOption("beta-warmup", "N", "Epochs in which --beta-schedule linear raises β from 0"),
    CommandLineOption("free-bits", "NATS", "KL divergence that each latent dimension may have at no cost"),
    CommandLineOption(
        "learning-rate",
        "RATE",
        "Learning rate of Adam after the warm-up. It then falls to 0, but not with --until-plateau",
    ),
    CommandLineOption("batch-size", "N", "Grids per step"),
    CommandLineOption("latent-dim", "N", "Latent dimensions"),
    CommandLineOption(
        "checkpoint-every",
        "N",
        "Epochs between checkpoints, each with a picture. The last and the best epoch are always saved",
    ),
    CommandLineOption("checkpoint-every-steps", "K", "Steps between checkpoints inside an epoch; 0: none"),
    CommandLineOption(
        "keep-checkpoints",
        "KEEP",
        "Checkpoint files to keep: all, or a number K for the newest K of each run (last or best: "
        "the same as 1). The best is always kept too. Pictures are never removed",
    ),
    CommandLineOption("log", "LOG", "none, or tensorboard: write metrics and pictures for TensorBoard"),
    CommandLineOption(
        "model",
        "MODULE:FACTORY",
        "Function that creates the model from grid_size, latent_dim and classes; see docs/own-model.md. To "
        "resume or report a session, name all its models, separated by commas",
        commands=("pytest", "train", "shards", "report", "merge", "show"),
    ),
    CommandLineOption("device", "DEVICE", "cpu, cuda or cuda:INDEX"),
    CommandLineOption(
        "precision",
        "P",
        "Precision of matrix products: fp32, bf16, or auto (bf16 if the processor or the GPU supports it)",
    ),
    CommandLineOption(
        "accuracy-band",
        "LO:HI",
        "Pixel accuracy, from LO to HI, of a healthy option. It must also be stable and learn the objects",
        commands=("pytest", "train", "shards", "report"),
    ),
    CommandLineOption(
        "engine",
        "ENGINE",
        "Where the runs train: xdist (processes on this machine, see -n), ray:local (Ray on this machine), "
        "ray:HOST:PORT or ray:auto (a running Ray cluster); see docs/scale.md",
        own_default="xdist",
        commands=WITH_ENGINE,
        repeated=True,
    ),
    CommandLineOption(
        "gpus-per-run",
        "SHARE",
        "Share of a GPU for each run, with --engine ray and --device cuda",
        own_default="0.1",
        commands=WITH_ENGINE,
        repeated=True,
    ),
    CommandLineOption(
        "shard",
        "I/N",
        "Train only every N-th run, starting with run I, without gates; see docs/scale.md",
        commands=PYTEST,
        repeated=True,
    ),
    CommandLineOption(
        "run-dir",
        "DIR",
        "Folder in which new sessions are created. Write --run-dir=DIR",
        own_default="runs",
        commands=("pytest", "train", "shards", "merge"),
    ),
    CommandLineOption(
        "resume",
        "SESSION",
        "Finish a session: latest (in --run-dir), or --resume=DIR for its folder. It keeps its "
        "settings; more --seeds or --loss-options, or another --accuracy-band, extend it",
        commands=RESUMING,
        words="latest",
    ),
    CommandLineOption(
        "extend", "", "With --resume and --epochs N: continue the runs up to epoch N", commands=RESUMING
    ),
    CommandLineOption(
        "baseline",
        "PATH",
        "Compare with an earlier session, its comparison folder or its comparison.json, written as "
        "--baseline=PATH. Differences of means have Welch's t interval, if both sessions have two seeds or "
        "more",
        commands=PYTEST,
    ),
    CommandLineOption(
        "fail-on-regression",
        "",
        "With --baseline: fail, and not only report, if the whole interval of a difference is below 0",
        commands=PYTEST,
        repeated=True,
    ),
    CommandLineOption("option", "NAME", "Loss option to train", own_default="B", commands=TRAIN),
    CommandLineOption("seed", "N", "Seed of weights, noise and order", own_default="0", commands=TRAIN),
    CommandLineOption("html", "FILE", "HTML file; default of `report`: SESSION/report.html", commands=PAGES),
    CommandLineOption("csv", "FILE", "CSV file to write, with one row per run", commands=("compare",)),
    CommandLineOption("traversals", "", "Draw how each latent dimension changes a grid", commands=SHOW),
    CommandLineOption("samples", "N", "Draw N samples from the prior, 1 to 40", commands=SHOW),
    CommandLineOption(
        "output",
        "FILE",
        "Picture file to write. Default: reconstructions.png, traversals.png or samples.png",
        commands=SHOW,
    ),
)


def options_of(command: str) -> list[CommandLineOption]:
    """Return the options that a command accepts."""
    return [option for option in OPTIONS if command in option.commands]


def options_document() -> str:
    """Return the text of docs/options.md, a Markdown table of all options."""
    rows = ["| option | default | taken by | what it does |", "| --- | --- | --- | --- |"]
    for option in OPTIONS:
        usage = option.flag + (("=" if option.takes_path else " ") + option.metavar if option.metavar else "")
        default = f"`{option.default}`" if option.default else ""
        rows.append(f"| `{usage}` | {default} | {', '.join(option.commands)} | {option.summary} |")
    table = "\n".join(rows)
    return f"""\
# Options

`pytest` stands for `pytest experiments/`, and every other command for `python -m bvae COMMAND`.
`python -m bvae options` prints this page.

{table}
"""


def parse_experiment(
    given: Mapping[str, str | None], base: ExperimentConfig = EXPERIMENT
) -> ExperimentConfig:
    """Return the experiment that the command line requests.

    Args:
        given: text of each value by `CommandLineOption.key`; None if the option was not given.
        base: settings for the options that were not given.

    Raises:
        ValueError: if a value is invalid; the message is one sentence that names the option.
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
    """Return the loss options that `--loss-options` names; without it, those of `base` and of the file."""
    default = {option.name: option for option in base.options}
    if (path := given.get("loss_options_file")) is not None:
        default |= read_options(path)
    if (names := given.get("loss_options")) is not None:
        return select_options(names, {**LOSS_OPTIONS, **default})
    return tuple(default.values())
