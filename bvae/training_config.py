"""Training settings of a run, and the error for a setting that cannot be used."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

Precision = Literal["auto", "fp32", "bf16"]
BetaSchedule = Literal["constant", "linear", "cyclical"]
KeepCheckpoints = int | Literal["all"]
Log = Literal["none", "tensorboard"]
Setting = int | float | str

DEFAULT_MODEL = "bvae.beta_vae:BetaVAE"

LIMITS = {"epochs": 1_000_000, "seeds": 1_000, "batch_size": 65_536, "latent_dim": 4_096}
"""Upper limits of settings, far above useful values. A typo can thus not fill the memory."""

SHARED_SETTINGS = (
    *("checkpoint_every", "checkpoint_every_steps", "keep_checkpoints", "device", "precision"),
    *("log", "extended_from"),
)
"""Fields of `TrainingConfig` that a loss option cannot set."""


class ConfigError(ValueError):
    """A setting cannot be used.

    Attributes:
        field: name of the dataclass field.
        problem: what is wrong with the field, such as "is 0".
        expected: description of a valid value.
    """

    def __init__(self, field: str, problem: str, expected: str, *, shown: str = "") -> None:
        super().__init__(f"{shown or field} {problem}; expected {expected}")
        self.field, self.problem, self.expected = field, problem, expected

    def shown_as(self, name: str) -> ConfigError:
        """Return the same error with another name for the setting in its message, such as `--epochs`."""
        return ConfigError(self.field, self.problem, self.expected, shown=name)


def check(ok: bool, field: str, problem: str, expected: str) -> None:
    if not ok:
        raise ConfigError(field, problem, expected)


def check_whole(field: str, value: int, *, at_least: int) -> None:
    at_most = LIMITS.get(field, 10**9)
    expected = f"a whole number of at least {at_least} and at most {at_most}"
    check(at_least <= value <= at_most, field, f"is {value}", expected)


def check_number(field: str, value: float, *, zero: bool = True) -> None:
    """Raise ConfigError unless a number is finite and above 0; `zero` also allows 0."""
    ok = math.isfinite(value) and (value > 0 or (zero and value == 0))
    check(ok, field, f"is {value}", f"a finite number {'of at least' if zero else 'above'} 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Training settings of a run, other than its loss option, seed and corpus.

    Attributes:
        epochs: passes over the training split; an upper limit if `until_plateau` is set.
        until_plateau: a run ends after this many epochs without a lower validation loss; 0 trains all epochs.
        extended_from: the values of `epochs` before each extension of the run, ascending, see `stages`.
        beta: full weight β of the KL divergence (Higgins et al. 2017).
        beta_schedule: schedule of β over the steps, see `bvae.training.optimization.beta_share`.
        beta_warmup: number of epochs, possibly a fraction, in which the schedule `linear` raises β.
        free_bits: nats of KL divergence that each latent dimension may have at no cost, see
            `bvae.losses.BetaVAELoss`.
        learning_rate: peak of the schedule, see `bvae.training.optimization.learning_rate`.
        batch_size: grids per step; the last partial batch of an epoch is dropped.
        latent_dim: number of latent dimensions.
        warmup_steps: steps of the learning rate's linear warm-up.
        max_gradient_norm: maximum 2-norm of the gradient; a larger gradient is scaled down.
        checkpoint_every: epochs between checkpoints.
        checkpoint_every_steps: steps between checkpoints inside an epoch; 0 for none.
        keep_checkpoints: number of the newest checkpoint files to keep, besides the best; or "all".
        log: "none", or "tensorboard" to also write scalars and pictures for TensorBoard.
        model: `package.module:factory` of the model, see `bvae.models`.
        device: "cpu", "cuda" or "cuda:INDEX".
        precision: precision of matrix products; the loss is float32 or wider.
    """

    epochs: int = 5
    until_plateau: int = 0
    beta: float = 0.004
    beta_schedule: BetaSchedule = "constant"
    beta_warmup: float = 1.0
    free_bits: float = 0.0
    learning_rate: float = 1e-3
    batch_size: int = 64
    latent_dim: int = 32
    warmup_steps: int = 50
    max_gradient_norm: float = 1.0
    checkpoint_every: int = 1
    checkpoint_every_steps: int = 0
    keep_checkpoints: KeepCheckpoints = "all"
    log: Log = "none"
    model: str = DEFAULT_MODEL
    device: str = "cpu"
    precision: Precision = "auto"
    extended_from: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "latent_dim", "checkpoint_every"):
            check_whole(name, getattr(self, name), at_least=1)
        for name in ("until_plateau", "warmup_steps", "checkpoint_every_steps"):
            check_whole(name, getattr(self, name), at_least=0)
        if self.keep_checkpoints != "all":
            check_whole("keep_checkpoints", self.keep_checkpoints, at_least=1)
        for name in ("beta", "free_bits"):
            check_number(name, getattr(self, name))
        for name in ("beta_warmup", "learning_rate", "max_gradient_norm"):
            check_number(name, getattr(self, name), zero=False)
        for name, kind in (("beta_schedule", BetaSchedule), ("log", Log), ("precision", Precision)):
            value, allowed = getattr(self, name), get_args(kind)
            check(value in allowed, name, f"is {value!r}", f"one of {', '.join(allowed)}")
        in_time = self.beta_schedule != "linear" or self.beta_warmup <= self.epochs
        check(
            in_time, "beta_warmup", f"is {self.beta_warmup:g}", f"at most {self.epochs}, the epochs of a run"
        )
        patience, expected = self.until_plateau, f"0, or less than {self.epochs}, the epochs of a run"
        check(patience < self.epochs, "until_plateau", f"is {patience}", expected)
        rising = all(a < b for a, b in itertools.pairwise((0, *self.stages)))
        before = ", ".join(map(str, self.extended_from))
        check(rising, "epochs", f"is {self.epochs}, extended from {before}", "a greater number each time")

    @property
    def stages(self) -> tuple[int, ...]:
        """The last epoch of each stage. Each stage has the schedules of a run that ends after that epoch."""
        return (*self.extended_from, self.epochs)

    def changed(self, changes: Mapping[str, Setting]) -> TrainingConfig:
        """Return these settings with the changes that a loss option makes. Raises ConfigError."""
        known = [name for name in vars(self) if name not in SHARED_SETTINGS]
        for name in changes:
            check(name in known, "training", f"has the key {name!r}", f"keys among {', '.join(known)}")
        # An extension of the session does not extend runs whose option sets `epochs`.
        stages = {"extended_from": ()} if "epochs" in changes else {}
        try:
            return dataclasses.replace(self, **dict[str, Any](stages | dict(changes)))
        except ConfigError as error:
            raise ConfigError(f"training.{error.field}", error.problem, error.expected) from None
