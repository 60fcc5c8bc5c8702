"""Settings that are fixed before training starts: loss options, training and experiment, and their JSON.

Every dataclass is frozen and validates itself, so every instance can be trained.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

ClassWeights = Literal["none", "inverse", "sqrt_inverse", "power", "effective"]
Precision = Literal["auto", "fp32", "bf16"]
BetaSchedule = Literal["constant", "linear", "cyclical"]

Classes = int | Literal["auto"]
GridSize = int | Literal["auto"]
KeepCheckpoints = int | Literal["all"]

DEFAULT_CLASSES = 10
"""ARC's colours 0–9; class 0 is the background."""

MIN_CLASSES, MAX_CLASSES = 2, 64
"""Limits of the number of classes; pictures have that many colours."""

MAX_GRID_SIZE = 64
"""The longest side of a grid, in cells."""

OUTSIDE = 255
"""Value, in uint8 arrays, of positions outside a grid that is smaller than its array."""

OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")  # option names become folders and test ids

DEFAULT_MODEL = "bvae.beta_vae:BetaVAE"

LIMITS = {"epochs": 1_000_000, "seeds": 1_000, "batch_size": 65_536, "latent_dim": 4_096}
"""Upper limits of whole numbers, far above useful values, so that a typo cannot fill the memory."""

MAX_ROLE = 200
"""Maximum length of a loss option's role, in characters."""

CLASS_WEIGHTS_EXPECTED = (
    f"one of {', '.join(get_args(ClassWeights))}, or a positive finite number for each class"
)
ROLE_EXPECTED = f"a text of one line, at most {MAX_ROLE} characters"


class ConfigError(ValueError):
    """A setting cannot be used.

    Attributes:
        field: the name of the dataclass field that is wrong.
        problem: what is wrong with it, such as "is 0".
        expected: what was expected.
    """

    def __init__(self, field: str, problem: str, expected: str, *, shown: str = "") -> None:
        super().__init__(f"{shown or field} {problem}; expected {expected}")
        self.field, self.problem, self.expected = field, problem, expected

    def shown_as(self, name: str) -> ConfigError:
        """Return the same error with a message that names the setting as it was given, such as `--epochs`."""
        return ConfigError(self.field, self.problem, self.expected, shown=name)


def _check(ok: bool, field: str, problem: str, expected: str) -> None:
    if not ok:
        raise ConfigError(field, problem, expected)


def _check_whole(field: str, value: int, *, at_least: int) -> None:
    at_most = LIMITS.get(field, 10**9)
    expected = f"a whole number of at least {at_least} and at most {at_most}"
    _check(at_least <= value <= at_most, field, f"is {value}", expected)


def _check_number(field: str, value: float, *, zero: bool = True) -> None:
    """Raise ConfigError unless a number is finite and above 0, or equal to 0 if `zero` is true."""
    bound = "of at least 0" if zero else "above 0"
    ok = math.isfinite(value) and (value > 0 or (zero and value == 0))
    _check(ok, field, f"is {value}", f"a finite number {bound}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOption:
    """A named configuration of the reconstruction loss.

    Attributes:
        name: letters, digits, `_` and `-`, at most 32, a letter first.
        gamma: focusing exponent γ ≥ 0 of the focal loss (Lin et al. 2017, eq. 4).
        class_weights: method that computes class weights from training counts, see
            `bvae.beta_vae.class_weights`; or the weights themselves, one per class. Only their ratios matter.
        candidate: whether the option can pass the gate; false for a known-bad baseline.
        role: purpose of the option, in a few words.
        exponent: exponent of the method `power`, at least 0; None for other methods.
        beta: β of the method `effective`, in [0, 1); None for other methods. Not the β of the KL divergence.
    """

    name: str
    gamma: float
    class_weights: ClassWeights | tuple[float, ...]
    candidate: bool
    role: str = ""
    exponent: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        valid_name = OPTION_NAME.fullmatch(self.name) is not None
        _check(valid_name, "name", f"is {self.name!r}", "a letter, then letters, digits, _ or -, at most 32")
        _check_number("gamma", self.gamma)
        if isinstance(self.class_weights, tuple):
            for label, weight in enumerate(self.class_weights):
                positive, problem = math.isfinite(weight) and weight > 0, f"has {weight} for class {label}"
                _check(positive, "class_weights", problem, "a positive finite number")
        else:
            known = self.class_weights in get_args(ClassWeights)
            _check(known, "class_weights", f"is {self.class_weights!r}", CLASS_WEIGHTS_EXPECTED)
        one_line = len(self.role) <= MAX_ROLE and self.role.isprintable()
        _check(one_line, "role", f"is {self.role[:80]!r}", ROLE_EXPECTED)
        check_weight_parameters(self.weight_method, self.exponent, self.beta)

    @property
    def weight_method(self) -> str:
        """The method that computes the class weights; `explicit` if they are given as numbers."""
        return "explicit" if isinstance(self.class_weights, tuple) else self.class_weights

    @property
    def weighting(self) -> str:
        """The method and its parameter, such as `power 0.3` or `effective β=0.999`."""
        parameters = {"power": f" {self.exponent}", "effective": f" β={self.beta}"}
        return self.weight_method + parameters.get(self.weight_method, "")


def _check_classes(classes: Classes, options: tuple[LossOption, ...]) -> None:
    """Raise ConfigError if the number of classes is out of bounds or differs from the explicit weights."""
    if classes == "auto":
        return
    expected = f"a whole number of at least {MIN_CLASSES} and at most {MAX_CLASSES}, or auto"
    _check(MIN_CLASSES <= classes <= MAX_CLASSES, "classes", f"is {classes}", expected)
    for option in options:
        if isinstance(option.class_weights, tuple):
            problem = f"of option {option.name} has {len(option.class_weights)} numbers"
            enough = len(option.class_weights) == classes
            _check(enough, "class_weights", problem, f"{classes}, one for each class")


def _number(field: str, value: Classes | GridSize) -> int:
    if value == "auto":
        raise ValueError(f"{field} is 'auto'; expected the number of the corpus, see Experiment.prepare")
    return value


def check_weight_parameters(method: str, exponent: float | None, beta: float | None) -> None:
    """Raise ConfigError unless a method of class weights has the parameter that it needs, and no other."""
    parameters = (("exponent", exponent, "power", math.inf), ("beta", beta, "effective", 1.0))
    for name, value, owner, bound in parameters:
        expected = f"{name} with 0 <= {name} < {bound:g}"
        if method != owner:
            _check(value is None, name, f"is {value}", f"none, as it belongs to class weights {owner!r}")
            continue
        _check(value is not None, name, f"is missing, but class weights {owner!r} need it", expected)
        _check(value is not None and 0 <= value < bound, name, f"is {value}", expected)  # not for NaN


LOSS_OPTIONS: Mapping[str, LossOption] = MappingProxyType(
    {
        option.name: option
        for option in (
            LossOption(name="A", gamma=2.0, class_weights="none", candidate=False, role="known-bad baseline"),
            LossOption(name="B", gamma=2.0, class_weights="sqrt_inverse", candidate=True, role="proposed"),
            LossOption(name="C", gamma=1.0, class_weights="inverse", candidate=True, role="fallback"),
        )
    }
)
"""The built-in options. Add an option in Python here; `bvae.option_files` reads options from files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained, apart from loss option, seed and corpus.

    Attributes:
        epochs: passes over the training split.
        extended_from: earlier numbers of epochs of a run that was extended, ascending, see `stages`.
        beta: full weight β of the KL divergence (Higgins et al. 2017).
        beta_schedule: β of each step, see `bvae.training.optimization.beta_share`.
        beta_warmup: epochs, also fractions, over which the schedule `linear` raises β from 0.
        free_bits: nats of KL per latent dimension that cost nothing, see `bvae.losses.BetaVAELoss`.
        learning_rate: peak of the schedule: linear warm-up, then cosine to 0.
        batch_size: grids per step; the last partial batch of an epoch is dropped.
        latent_dim: number of latent dimensions.
        warmup_steps: steps of the linear warm-up, at most a quarter of all steps.
        max_gradient_norm: the gradient's 2-norm is clipped to this.
        checkpoint_every: epochs between checkpoints.
        checkpoint_every_steps: steps between checkpoints inside an epoch; 0 for none.
        keep_checkpoints: how many of the newest checkpoint files stay, beside the best; or all.
        model: `package.module:factory` of the model, see `bvae.models`.
        device: where to train: cpu, cuda or cuda:INDEX.
        precision: precision of matrix products; the loss is always float32.
    """

    epochs: int = 5
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
    model: str = DEFAULT_MODEL
    device: str = "cpu"
    precision: Precision = "auto"
    extended_from: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "latent_dim", "checkpoint_every"):
            _check_whole(name, getattr(self, name), at_least=1)
        for name in ("warmup_steps", "checkpoint_every_steps"):
            _check_whole(name, getattr(self, name), at_least=0)
        if self.keep_checkpoints != "all":
            _check_whole("keep_checkpoints", self.keep_checkpoints, at_least=1)
        for name in ("beta", "free_bits"):
            _check_number(name, getattr(self, name))
        for name in ("beta_warmup", "learning_rate", "max_gradient_norm"):
            _check_number(name, getattr(self, name), zero=False)
        for name, kind in (("beta_schedule", BetaSchedule), ("precision", Precision)):
            value, allowed = getattr(self, name), get_args(kind)
            _check(value in allowed, name, f"is {value!r}", f"one of {', '.join(allowed)}")
        in_time = self.beta_schedule != "linear" or self.beta_warmup <= self.epochs
        _check(in_time, "beta_warmup", f"is {self.beta_warmup:g}", f"at most the epochs, {self.epochs}")
        rising = all(a < b for a, b in itertools.pairwise((0, *self.stages)))
        before = ", ".join(map(str, self.extended_from))
        _check(rising, "epochs", f"is {self.epochs}, extended from {before}", "a greater number each time")

    @property
    def stages(self) -> tuple[int, ...]:
        """Numbers of epochs at which training ended each time; each epoch has the schedules of its stage."""
        return (*self.extended_from, self.epochs)


@dataclasses.dataclass(frozen=True)
class AccuracyBand:
    """Closed interval of pixel accuracy, as fractions, in which a healthy option must be."""

    lo: float = 0.70
    hi: float = 0.80

    def __post_init__(self) -> None:
        ordered = 0.0 <= self.lo < self.hi <= 1.0  # false for NaN
        _check(ordered, "band", f"is {self}", "LO:HI with 0 <= LO < HI <= 1")

    def __contains__(self, accuracy: float) -> bool:
        return self.lo <= accuracy <= self.hi

    def __str__(self) -> str:
        return f"{self.lo:g}:{self.hi:g}"

    @classmethod
    def parse(cls, text: str) -> AccuracyBand:
        """Read `LO:HI`. Raises ConfigError for anything else."""
        try:
            lo, hi = map(float, text.split(":"))
        except ValueError:
            expected = "LO:HI with 0 <= LO < HI <= 1, such as 0.70:0.80"
            raise ConfigError("band", f"is {text!r}", expected) from None
        return cls(lo, hi)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything needed to train one run again: one loss option with one seed on one corpus."""

    option: LossOption
    seed: int
    corpus: str
    corpus_fingerprint: str
    grid_size: int
    padding_value: int | None
    training: TrainingConfig
    classes: int = DEFAULT_CLASSES

    def __post_init__(self) -> None:
        _check_classes(self.classes, (self.option,))

    @property
    def name(self) -> str:
        """The run's test id and folder, such as `A-seed0`."""
        return f"{self.option.name}-seed{self.seed}"

    def continues(self, other: RunConfig) -> bool:
        """Return whether `other` is this configuration, perhaps before the run was extended."""
        own, its = self.training, other.training
        same = dataclasses.replace(its, epochs=own.epochs, extended_from=own.extended_from)
        return (
            its.stages == own.stages[: len(its.stages)] and dataclasses.replace(other, training=same) == self
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A comparison of loss options: every option with every seed, on one corpus.

    Attributes:
        corpus, grid_size, padding_value, classes: see `bvae.corpus.load_corpus`.
    """

    corpus: str = "objects"
    grid_size: GridSize = 16
    padding_value: int | None = None
    classes: Classes = DEFAULT_CLASSES
    options: tuple[LossOption, ...] = tuple(LOSS_OPTIONS.values())
    seeds: int = 3
    band: AccuracyBand = AccuracyBand()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        _check_whole("seeds", self.seeds, at_least=1)
        names = [option.name for option in self.options]
        _check(bool(names), "options", "is empty", "at least one, such as A,B,C")
        distinct = len({name.casefold() for name in names}) == len(names)  # folders may ignore case
        _check(distinct, "options", f"is {','.join(names)}", "each option once")
        _check_classes(self.classes, self.options)

    @property
    def size(self) -> int:
        """The grid size as a number. Raises ValueError while it is "auto"."""
        return _number("grid_size", self.grid_size)

    def run(self, option: LossOption, seed: int, corpus_fingerprint: str) -> RunConfig:
        """The configuration of one run of this experiment. Raises ValueError while a setting is "auto"."""
        return RunConfig(
            option=option,
            seed=seed,
            corpus=self.corpus,
            corpus_fingerprint=corpus_fingerprint,
            grid_size=self.size,
            padding_value=self.padding_value,
            training=self.training,
            classes=_number("classes", self.classes),
        )
