"""The command line of an experiment: every option with its help, and the experiment that values ask for.

Values stay text until they are read here, so that each mistake ends in one sentence that names the option.
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
    ExperimentConfig,
    LossOption,
    TrainingConfig,
    select_options,
)
from bvae.files import printable
from bvae.option_files import OptionFileError, read_options


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option of the command line; a path is given as `--name=PATH`, in one piece.

    Without a metavar it is a switch, which takes no value.
    """

    name: str
    default: str
    metavar: str
    help: str
    takes_path: bool = False
    words: str = ""
    """A pattern of the values of a path option that are no paths."""

    @property
    def key(self) -> str:
        """The option's name among parsed values."""
        return self.name.replace("-", "_")

    @property
    def is_switch(self) -> bool:
        """Whether the option takes no value."""
        return not self.metavar

    @property
    def explanation(self) -> str:
        """The help text with the default filled in."""
        return self.help.format(default=self.default)


_EXPERIMENT, _TRAINING = ExperimentConfig(), TrainingConfig()

FLAGS = (
    Flag(
        "corpus",
        _EXPERIMENT.corpus,
        "CORPUS",
        "What to train on: objects[:N] (N grids of real ARC objects), arc (whole ARC-AGI-2 grids), "
        "atomic[:N] (N procedural grids), or the path of a .npz or .npy file, given as --corpus=PATH. "
        "Default: {default}",
        takes_path=True,
        words=r"arc|(objects|atomic)(:\d+)?",
    ),
    Flag(
        "grid-size",
        str(_EXPERIMENT.grid_size),
        "S",
        "Grids have up to S×S cells; a multiple of 4. Default: {default}",
    ),
    Flag(
        "padding-value",
        "",
        "V",
        "What marks cells outside a grid in a file, such as 10 or -1. They count for nothing: no loss, no "
        "metric. Give a negative one as --padding-value=-1",
    ),
    Flag("epochs", str(_TRAINING.epochs), "N", "Epochs to train each run. Default: {default}"),
    Flag("seeds", str(_EXPERIMENT.seeds), "N", "Runs of each option, seeds 0 to N-1. Default: {default}"),
    Flag(
        "loss-options",
        ",".join(option.name for option in _EXPERIMENT.options),
        "NAMES",
        "Loss options to compare, by name, separated by commas. Default: {default}, and those of "
        "--loss-options-file",
    ),
    Flag(
        "loss-options-file",
        "",
        "FILE",
        "TOML file that adds or replaces loss options, a table each, given as --loss-options-file=FILE; see "
        "docs/loss-options.md",
        takes_path=True,
    ),
    Flag("beta", str(_TRAINING.beta), "BETA", "Weight of the KL divergence. Default: {default}"),
    Flag(
        "learning-rate",
        str(_TRAINING.learning_rate),
        "RATE",
        "Peak learning rate of Adam: warm-up, then cosine to 0. Default: {default}",
    ),
    Flag("batch-size", str(_TRAINING.batch_size), "N", "Grids a step. Default: {default}"),
    Flag("latent-dim", str(_TRAINING.latent_dim), "N", "Latent dimensions. Default: {default}"),
    Flag(
        "checkpoint-every",
        str(_TRAINING.checkpoint_every),
        "N",
        "Epochs between checkpoints, each with its picture; the last epoch and the best are always saved. "
        "Default: {default}",
    ),
    Flag(
        "checkpoint-every-steps",
        str(_TRAINING.checkpoint_every_steps),
        "K",
        "Steps between checkpoints inside an epoch; 0 for none. Default: {default}",
    ),
    Flag(
        "model",
        _TRAINING.model,
        "MODULE:FACTORY",
        "The model: a factory of grid_size and latent_dim, see docs/own-model.md. Default: {default}",
    ),
    Flag("device", _TRAINING.device, "DEVICE", "cpu, cuda or cuda:INDEX. Default: {default}"),
    Flag(
        "precision",
        _TRAINING.precision,
        "P",
        "Of the matrix products: fp32, bf16, or auto (bf16 where the processor multiplies in it). "
        "Default: {default}",
    ),
    Flag(
        "accuracy-band",
        str(_EXPERIMENT.band),
        "LO:HI",
        "Pixel accuracy in which a stable option that learned the objects is healthy. Default: {default}",
    ),
    Flag(
        "run-dir",
        "runs",
        "DIR",
        "Folder of the sessions, given as --run-dir=DIR; each invocation makes one. Default: {default}",
        takes_path=True,
    ),
    Flag(
        "resume",
        "",
        "SESSION",
        "Finish an interrupted session: latest (in --run-dir), or its folder, given as --resume=DIR. "
        "Settings are those of the session; other ones are refused",
        takes_path=True,
        words="latest",
    ),
    Flag(
        "baseline",
        "",
        "PATH",
        "Compare with an earlier session, its comparison folder or its comparison.json, given as "
        "--baseline=PATH: each difference in accuracy, foreground and object metrics, with Welch's t "
        "interval (unequal variances) on the means over seeds. Needs two seeds on either side to tell",
        takes_path=True,
    ),
    Flag(
        "fail-on-regression",
        "",
        "",
        "With --baseline: fail where the whole interval of a difference is below 0, and not only say so",
    ),
)


def parse_experiment(
    given: Mapping[str, str | None], base: ExperimentConfig = _EXPERIMENT
) -> ExperimentConfig:
    """The experiment that option values by key (such as `grid_size`) ask for; `base` where none is given.

    Raises:
        ValueError: one sentence that begins with the option, what was given and what was expected.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "corpus": str,
        "grid_size": _whole,
        "padding_value": _whole,
        "seeds": _whole,
        "accuracy_band": AccuracyBand.parse,
        **dict.fromkeys(("epochs", "batch_size", "latent_dim"), _whole),
        **dict.fromkeys(("checkpoint_every", "checkpoint_every_steps"), _whole),
        **dict.fromkeys(("beta", "learning_rate"), _number),
        **dict.fromkeys(("model", "device", "precision"), str),
    }
    names = {"accuracy_band": "band"}
    of_training = {field.name for field in dataclasses.fields(TrainingConfig)}
    experiment: dict[str, Any] = {}
    training: dict[str, Any] = {}
    try:
        for key, read in readers.items():
            if (text := given.get(key)) is not None:
                try:
                    value = read(text)
                except _UnreadableError as error:
                    raise ValueError(f"{key} is {text!r}; expected {error}") from None
                (training if key in of_training else experiment)[names.get(key, key)] = value
        trained = dataclasses.replace(base.training, **training)
        options = _asked_options(given, base)
        return dataclasses.replace(base, training=trained, options=options, **experiment)
    except ValueError as error:
        key, _, rest = str(error).partition(" ")
        raise ValueError(f"--{key.replace('_', '-')} {rest}") from None


def _asked_options(given: Mapping[str, str | None], base: ExperimentConfig) -> tuple[LossOption, ...]:
    """The loss options that are selected by name, else those of `base` and of the file."""
    default = {option.name: option for option in base.options}
    if (path := given.get("loss_options_file")) is not None:
        try:
            default |= read_options(path)
        except OptionFileError as error:
            raise ValueError(f"loss_options_file {error}") from None
    if (names := given.get("loss_options")) is not None:
        return select_options(names, {**LOSS_OPTIONS, **default})
    return tuple(default.values())


class _UnreadableError(Exception):
    """A text that is no value of its kind; says what was expected."""


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _UnreadableError("a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _UnreadableError("a number") from None


def separated_path(arguments: Sequence[str]) -> str | None:
    """A complaint about the first path that stands apart from its option, as in `--corpus PATH`.

    pytest looks for its configuration before it knows our options and takes such a path for one of tests, so
    it would import a conftest.py that lies beside a corpus. A word such as `arc` is harmless as long as there
    is nothing of that name.
    """
    paths = {f"--{flag.name}": flag for flag in FLAGS if flag.takes_path}
    for argument, value in itertools.pairwise(arguments):
        if argument == "--":
            break
        if (flag := paths.get(argument)) is None:
            continue
        if not re.fullmatch(flag.words, value) or Path(value).exists():
            return (
                f"{argument} and its value are apart; write them in one piece: {argument}={printable(value)}"
            )
    return None
