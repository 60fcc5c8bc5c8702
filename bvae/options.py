"""Every command-line option, declared once: for pytest, for `python -m bvae`, and for the documentation.

Values stay text until `parse_experiment` reads them, so that each mistake ends in one sentence that names the
option.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bvae.config import (
    LOSS_OPTIONS,
    AccuracyBand,
    ConfigError,
    ExperimentConfig,
    LossOption,
    TrainingConfig,
    select_options,
)
from bvae.files import printable
from bvae.option_files import OptionFileError, read_options

EXPERIMENT = ExperimentConfig()
TRAINING_FIELDS = {field.name for field in dataclasses.fields(TrainingConfig)}
EXPECTED: Mapping[Callable[[str], Any], str] = {int: "a whole number", float: "a number"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandLineOption:
    """An option of the command line.

    Attributes:
        name: without the dashes.
        help: what it does; `{default}` stands for the default.
        metavar: stands for the value in help texts; empty for a switch, which takes none.
        field: the field of `ExperimentConfig` or `TrainingConfig` that it sets, where there is one.
        parse: reads the value of the field from text. Raises ValueError.
        own_default: the default as text, unless it is that of the field.
        commands: which commands take it; `pytest` stands for `pytest experiments/`.
        takes_path: whether the value may be a path, so that it must be given as `--name=PATH`.
        words: pattern of the values of such an option that are no paths.
    """

    name: str
    help: str
    metavar: str = ""
    field: str = ""
    parse: Callable[[str], Any] = str
    own_default: str = ""
    commands: tuple[str, ...] = ("pytest", "train")
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
    def default(self) -> str:
        """The default as text, empty if there is none."""
        if self.own_default or not self.field:
            return self.own_default
        value = getattr(EXPERIMENT.training if self.field in TRAINING_FIELDS else EXPERIMENT, self.field)
        return "" if value is None else str(value)

    @property
    def explanation(self) -> str:
        """The help text with the default filled in."""
        return self.help.format(default=self.default)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `add_argument` and of pytest's `addoption`; an option of a field defaults to None."""
        if not self.metavar:
            return {"action": "store_true", "help": self.explanation}
        default = None if self.field else self.own_default or None
        return {"metavar": self.metavar, "default": default, "help": self.explanation}

    def read(self, text: str) -> Any:
        """Read the value of the field. Raises ConfigError."""
        try:
            return self.parse(text)
        except ConfigError:
            raise
        except ValueError:
            raise ConfigError(self.field, f"is {text!r}", EXPECTED[self.parse]) from None


OPTIONS = (
    CommandLineOption(
        name="corpus",
        metavar="CORPUS",
        field="corpus",
        takes_path=True,
        words=r"arc|(objects|atomic)(:\d+)?",
        help="What to train on: objects[:N] (N grids of real ARC objects), arc (whole ARC-AGI-2 grids), "
        "atomic[:N] (N procedural grids), or the path of a .npz or .npy file, given as --corpus=PATH. "
        "Default: {default}",
    ),
    CommandLineOption(
        name="grid-size",
        metavar="S",
        field="grid_size",
        parse=int,
        help="Grids have up to S×S cells; a multiple of 4. Default: {default}",
    ),
    CommandLineOption(
        name="padding-value",
        metavar="V",
        field="padding_value",
        parse=int,
        help="What marks cells outside a grid in a file, such as 10 or -1. They count for nothing: no loss, "
        "no metric. Give a negative one as --padding-value=-1",
    ),
    CommandLineOption(
        name="epochs",
        metavar="N",
        field="epochs",
        parse=int,
        help="Epochs to train each run. Default: {default}",
    ),
    CommandLineOption(
        name="seeds",
        metavar="N",
        field="seeds",
        parse=int,
        commands=("pytest",),
        help="Runs of each option, seeds 0 to N-1. Default: {default}",
    ),
    CommandLineOption(
        name="loss-options",
        metavar="NAMES",
        field="options",
        own_default=",".join(LOSS_OPTIONS),
        commands=("pytest",),
        help="Loss options to compare, by name, separated by commas. Default: {default}, and those of "
        "--loss-options-file",
    ),
    CommandLineOption(
        name="loss-options-file",
        metavar="FILE",
        takes_path=True,
        help="TOML file that adds or replaces loss options, a table each, given as --loss-options-file=FILE; "
        "see docs/loss-options.md",
    ),
    CommandLineOption(
        name="beta",
        metavar="BETA",
        field="beta",
        parse=float,
        help="Weight of the KL divergence. Default: {default}",
    ),
    CommandLineOption(
        name="learning-rate",
        metavar="RATE",
        field="learning_rate",
        parse=float,
        help="Peak learning rate of Adam: warm-up, then cosine to 0. Default: {default}",
    ),
    CommandLineOption(
        name="batch-size",
        metavar="N",
        field="batch_size",
        parse=int,
        help="Grids per step. Default: {default}",
    ),
    CommandLineOption(
        name="latent-dim",
        metavar="N",
        field="latent_dim",
        parse=int,
        help="Latent dimensions. Default: {default}",
    ),
    CommandLineOption(
        name="checkpoint-every",
        metavar="N",
        field="checkpoint_every",
        parse=int,
        help="Epochs between checkpoints, each with its picture; the last epoch and the best are always "
        "saved. Default: {default}",
    ),
    CommandLineOption(
        name="checkpoint-every-steps",
        metavar="K",
        field="checkpoint_every_steps",
        parse=int,
        help="Steps between checkpoints inside an epoch; 0 for none. Default: {default}",
    ),
    CommandLineOption(
        name="model",
        metavar="MODULE:FACTORY",
        field="model",
        commands=("pytest", "train", "report", "show"),
        help="The model: a factory of grid_size and latent_dim, see docs/own-model.md. Default: {default}",
    ),
    CommandLineOption(
        name="device",
        metavar="DEVICE",
        field="device",
        help="cpu, cuda or cuda:INDEX. Default: {default}",
    ),
    CommandLineOption(
        name="precision",
        metavar="P",
        field="precision",
        help="Of the matrix products: fp32, bf16, or auto (bf16 where the processor multiplies in it). "
        "Default: {default}",
    ),
    CommandLineOption(
        name="accuracy-band",
        metavar="LO:HI",
        field="band",
        parse=AccuracyBand.parse,
        help="Pixel accuracy in which a stable option that learned the objects is healthy. "
        "Default: {default}",
    ),
    CommandLineOption(
        name="run-dir",
        metavar="DIR",
        own_default="runs",
        takes_path=True,
        help="Folder of the sessions, given as --run-dir=DIR; each invocation makes one. Default: {default}",
    ),
    CommandLineOption(
        name="resume",
        metavar="SESSION",
        takes_path=True,
        words="latest",
        help="Finish an interrupted session: latest (in --run-dir), or its folder, given as --resume=DIR. "
        "Settings are those of the session; other ones are refused",
    ),
    CommandLineOption(
        name="baseline",
        metavar="PATH",
        takes_path=True,
        commands=("pytest",),
        help="Compare with an earlier session, its comparison folder or its comparison.json, given as "
        "--baseline=PATH: each difference in accuracy, foreground and object metrics, with Welch's t "
        "interval (unequal variances) on the means over seeds. Needs two seeds on either side to tell",
    ),
    CommandLineOption(
        name="fail-on-regression",
        commands=("pytest",),
        help="With --baseline: fail where the whole interval of a difference is below 0, and not only say so",
    ),
    CommandLineOption(
        name="option",
        metavar="NAME",
        own_default="B",
        commands=("train",),
        help="Loss option to train. Default: {default}",
    ),
    CommandLineOption(
        name="seed",
        metavar="N",
        own_default="0",
        commands=("train",),
        help="Seed of weights, noise and order. Default: {default}",
    ),
    CommandLineOption(
        name="output",
        metavar="FILE",
        own_default="reconstructions.png",
        commands=("show",),
        help="File to draw into. Default: {default}",
    ),
)


def options_of(command: str) -> list[CommandLineOption]:
    """Return the options that a command takes."""
    return [option for option in OPTIONS if command in option.commands]


def options_document() -> str:
    """Return docs/options.md: a Markdown table of all options."""
    rows = ["| option | default | taken by | what it does |", "| --- | --- | --- | --- |"]
    for option in OPTIONS:
        usage = option.flag + (("=" if option.takes_path else " ") + option.metavar if option.metavar else "")
        default = f"`{option.default}`" if option.default else ""
        explanation = (
            option.help.removesuffix(" Default: {default}").removesuffix(".").format(default=option.default)
        )
        rows.append(f"| `{usage}` | {default} | {', '.join(option.commands)} | {explanation} |")
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
    """Return the experiment that option values by key (such as `grid_size`) ask for.

    Args:
        given: the values as text, None for options that were not given.
        base: the settings of those that were not given.

    Raises:
        ValueError: one sentence that begins with the option, what was given and what was expected.
    """
    values: dict[str, Any] = {}
    try:
        for option in OPTIONS:
            text = given.get(option.key)
            if option.field and option.field != "options" and text is not None:
                values[option.field] = option.read(text)
        values["options"] = _asked_options(given, base)
        training = {field: values.pop(field) for field in TRAINING_FIELDS & values.keys()}
        return dataclasses.replace(base, training=dataclasses.replace(base.training, **training), **values)
    except ConfigError as error:
        flags = {option.field: option.flag for option in OPTIONS}
        raise error.shown_as(flags[error.field]) from None
    except OptionFileError as error:
        raise ValueError(f"--loss-options-file {error}") from None


def _asked_options(given: Mapping[str, str | None], base: ExperimentConfig) -> tuple[LossOption, ...]:
    """Return the loss options that are selected by name, else those of `base` and of the file."""
    default = {option.name: option for option in base.options}
    if (path := given.get("loss_options_file")) is not None:
        default |= read_options(path)
    if (names := given.get("loss_options")) is not None:
        return select_options(names, {**LOSS_OPTIONS, **default})
    return tuple(default.values())


def separated_path(arguments: Sequence[str]) -> str | None:
    """Return a complaint about the first path that stands apart from its option, as in `--corpus PATH`.

    pytest looks for its configuration before it knows our options and takes such a path for one of tests, so
    it would import a conftest.py beside a corpus. A word such as `arc` is harmless unless there is a file of
    that name.
    """
    options = {option.flag: option for option in OPTIONS if option.takes_path}
    for argument, value in itertools.pairwise(arguments):
        if argument == "--":
            break
        if (option := options.get(argument)) is None:
            continue
        if not re.fullmatch(option.words, value) or Path(value).exists():
            return (
                f"{argument} and its value are apart; write them in one piece: {argument}={printable(value)}"
            )
    return None
