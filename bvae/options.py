"""The command line of an experiment: every option with its help, and the experiment that values ask for.

Values stay text until they are read here, so that each mistake ends in one sentence that names the option.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import TypeVar

from bvae.config import AccuracyBand, ExperimentConfig, TrainingConfig, select_options

T = TypeVar("T", int, float)


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option of the command line; a path is given as `--name=PATH`, in one piece."""

    name: str
    default: str
    metavar: str
    help: str
    takes_path: bool = False

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


_EXPERIMENT, _TRAINING = ExperimentConfig(), TrainingConfig()

FLAGS = (
    Flag(
        "corpus",
        _EXPERIMENT.corpus,
        "CORPUS",
        "What to train on: arc (real ARC-AGI-2 grids), atomic[:N] (N procedural grids), or the path of a "
        ".npz or .npy file, given as --corpus=PATH. Default: %(default)s",
        takes_path=True,
    ),
    Flag(
        "grid-size",
        str(_EXPERIMENT.grid_size),
        "S",
        "Grids are S×S cells, smaller ones padded with background; a multiple of 4. Default: %(default)s",
    ),
    Flag("epochs", str(_TRAINING.epochs), "N", "Epochs to train each run. Default: %(default)s"),
    Flag("seeds", str(_EXPERIMENT.seeds), "N", "Runs of each option, seeds 0 to N-1. Default: %(default)s"),
    Flag(
        "loss-options",
        ",".join(option.name for option in _EXPERIMENT.options),
        "NAMES",
        "Loss options to compare, by name, separated by commas. Default: %(default)s",
    ),
    Flag("beta", str(_TRAINING.beta), "BETA", "Weight of the KL divergence. Default: %(default)s"),
    Flag(
        "learning-rate",
        str(_TRAINING.learning_rate),
        "RATE",
        "Peak learning rate of Adam: warm-up, then cosine to 0. Default: %(default)s",
    ),
    Flag("batch-size", str(_TRAINING.batch_size), "N", "Grids a step. Default: %(default)s"),
    Flag("latent-dim", str(_TRAINING.latent_dim), "N", "Latent dimensions. Default: %(default)s"),
    Flag(
        "checkpoint-every",
        str(_TRAINING.checkpoint_every),
        "N",
        "Epochs between checkpoints, each with its picture; the last epoch and the best are always saved. "
        "Default: %(default)s",
    ),
    Flag("device", _TRAINING.device, "DEVICE", "cpu, cuda or cuda:INDEX. Default: %(default)s"),
    Flag(
        "precision",
        _TRAINING.precision,
        "P",
        "Of the matrix products: fp32, bf16, or auto (bf16 where the processor multiplies in it). "
        "Default: %(default)s",
    ),
    Flag(
        "accuracy-band",
        str(_EXPERIMENT.band),
        "LO:HI",
        "Pixel accuracy in which a stable option that learned the objects is healthy. Default: %(default)s",
    ),
    Flag(
        "run-dir",
        "runs",
        "DIR",
        "Folder of the sessions, given as --run-dir=DIR; each invocation makes one. Default: %(default)s",
        takes_path=True,
    ),
)


def parse_experiment(values: Mapping[str, str]) -> ExperimentConfig:
    """The experiment that option values by key (such as `grid_size`) ask for.

    Raises:
        ValueError: one sentence that begins with the option, what was given and what was expected.
    """

    def number(key: str, read: Callable[[str], T], kind: str) -> T:
        try:
            return read(values[key])
        except ValueError:
            raise ValueError(f"{key} is {values[key]!r}; expected {kind}") from None

    def whole(key: str) -> int:
        return number(key, int, "a whole number")

    try:
        return ExperimentConfig(
            corpus=values["corpus"],
            grid_size=whole("grid_size"),
            options=select_options(values["loss_options"]),
            seeds=whole("seeds"),
            band=AccuracyBand.parse(values["accuracy_band"]),
            training=TrainingConfig(
                epochs=whole("epochs"),
                beta=number("beta", float, "a number"),
                learning_rate=number("learning_rate", float, "a number"),
                batch_size=whole("batch_size"),
                latent_dim=whole("latent_dim"),
                checkpoint_every=whole("checkpoint_every"),
                device=values["device"],
                precision=values["precision"],  # type: ignore[arg-type]  # validated by the class
            ),
        )
    except ValueError as error:
        key, _, rest = str(error).partition(" ")
        raise ValueError(f"--{key.replace('_', '-')} {rest}") from None


def separated_path(arguments: list[str]) -> str | None:
    """A complaint about the first path that stands apart from its option, as in `--corpus PATH`.

    pytest looks for its configuration before it knows our options and takes such a path for one of tests, so
    it would import a conftest.py that lies beside a corpus.
    """
    paths = {f"--{flag.name}": flag for flag in FLAGS if flag.takes_path}
    for argument, value in itertools.pairwise(arguments):
        if argument == "--":
            break
        if argument in paths:
            return f"{argument} and its value are apart; write them in one piece: {argument}={value}"
    return None
