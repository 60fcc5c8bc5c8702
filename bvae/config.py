"""Settings that are fixed before training starts: loss options with their class weights, runs, experiments.

Every dataclass is frozen. Their values are checked when they are created.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

# `X as X` marks a name as exported: other modules import these from here.
from bvae.training_config import DEFAULT_MODEL as DEFAULT_MODEL
from bvae.training_config import LIMITS, check, check_number, check_whole
from bvae.training_config import SHARED_SETTINGS as SHARED_SETTINGS
from bvae.training_config import BetaSchedule as BetaSchedule
from bvae.training_config import ConfigError as ConfigError
from bvae.training_config import KeepCheckpoints as KeepCheckpoints
from bvae.training_config import Log as Log
from bvae.training_config import Precision as Precision
from bvae.training_config import Setting as Setting
from bvae.training_config import TrainingConfig as TrainingConfig

ClassWeights = Literal["none", "inverse", "sqrt_inverse", "power", "effective"]
WEIGHT_EXPONENTS = {"none": 0.0, "sqrt_inverse": 0.5, "inverse": 1.0}
"""Exponent e by method: the weight of class c is proportional to n_c^(−e)."""
WEIGHT_METHODS = get_args(ClassWeights)

Counts = Sequence[float] | NDArray[np.number[Any]]
"""`[C]`, number of cells of each class in the training split."""

Classes = int | Literal["auto"]
GridSize = int | Literal["auto"]
Background = int | Literal["auto"]

DEFAULT_CLASSES = 10
"""ARC's colours 0–9."""

MIN_CLASSES, MAX_CLASSES = 2, 64
"""Limits of the number of classes; pictures have `MAX_CLASSES` colours."""

MAX_GRID_SIZE = 64
"""Maximum height and width of a grid, in cells."""

OUTSIDE = 255
"""Value of positions outside a grid, if the grid is smaller than the uint8 array that holds it."""

OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")  # folders and test ids contain option names

MAX_ROLE = 200
"""Maximum length of a loss option's role, in characters."""

CLASS_WEIGHTS_EXPECTED = (
    f"one of {', '.join(get_args(ClassWeights))}, or a positive finite number for each class"
)
ROLE_EXPECTED = f"a text of one line, at most {MAX_ROLE} characters"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOption:
    """A named configuration of the reconstruction loss.

    Attributes:
        name: at most 32 characters: a letter, then letters, digits, `_` or `-`.
        gamma: focusing exponent γ ≥ 0 of the focal loss (Lin et al. 2017, eq. 4).
        class_weights: the method that computes class weights from training counts, see
            `bvae.beta_vae.class_weights`; or one weight for each class. Only the ratios of weights matter.
        candidate: whether the option can pass the gate; false for an option that is known to be bad.
        role: purpose of the option, in a few words.
        exponent: exponent of the method `power`, at least 0; None for other methods.
        beta: β of the method `effective`, in [0, 1); None for other methods. Not the β of the KL divergence.
        training: settings of this option's runs that differ from the experiment, by `TrainingConfig` field.
    """

    name: str
    gamma: float
    class_weights: ClassWeights | tuple[float, ...]
    candidate: bool
    role: str = ""
    exponent: float | None = None
    beta: float | None = None
    training: Mapping[str, Setting] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        valid_name = OPTION_NAME.fullmatch(self.name) is not None
        check(valid_name, "name", f"is {self.name!r}", "a letter, then letters, digits, _ or -, at most 32")
        check_number("gamma", self.gamma)
        if isinstance(self.class_weights, tuple):
            for label, weight in enumerate(self.class_weights):
                positive, problem = math.isfinite(weight) and weight > 0, f"has {weight} for class {label}"
                check(positive, "class_weights", problem, "a positive finite number")
        else:
            known = self.class_weights in get_args(ClassWeights)
            check(known, "class_weights", f"is {self.class_weights!r}", CLASS_WEIGHTS_EXPECTED)
        one_line = len(self.role) <= MAX_ROLE and self.role.isprintable()
        check(one_line, "role", f"is {self.role[:80]!r}", ROLE_EXPECTED)
        check_weight_parameters(self.weight_method, self.exponent, self.beta)
        if self.training:
            TrainingConfig(epochs=LIMITS["epochs"]).changed(self.training)

    @property
    def weight_method(self) -> str:
        """The method that computes the class weights; `explicit` if they are given as numbers."""
        return "explicit" if isinstance(self.class_weights, tuple) else self.class_weights

    @property
    def weighting(self) -> str:
        """The method and its parameter, such as `power 0.3` or `effective β=0.999`."""
        parameters = {"power": f" {self.exponent}", "effective": f" β={self.beta}"}
        return self.weight_method + parameters.get(self.weight_method, "")


def _check_classes(classes: Classes, background: Background, options: tuple[LossOption, ...]) -> None:
    """Check the number of classes, the background, and the number of explicit weights. Raises ConfigError."""
    count = MAX_CLASSES if classes == "auto" else classes
    expected = f"a whole number of at least {MIN_CLASSES} and at most {MAX_CLASSES}, or auto"
    check(MIN_CLASSES <= count <= MAX_CLASSES, "classes", f"is {classes}", expected)
    is_class = background == "auto" or 0 <= background < count
    check(is_class, "background", f"is {background}", f"a class from 0 to {count - 1}, or auto")
    for option in options:
        if isinstance(option.class_weights, tuple):
            problem = f"of option {option.name} has {len(option.class_weights)} numbers"
            enough = classes in ("auto", len(option.class_weights))
            check(enough, "class_weights", problem, f"{classes}, one for each class")


def _number(field: str, value: Classes | GridSize | Background) -> int:
    if value == "auto":
        raise ValueError(f"{field} is 'auto'; expected a number: Experiment.prepare takes it from the corpus")
    return value


def check_weight_parameters(method: str, exponent: float | None, beta: float | None) -> None:
    """Raise ConfigError if a method lacks its parameter, or has a wrong one or that of another method."""
    parameters = (("exponent", exponent, "power", math.inf), ("beta", beta, "effective", 1.0))
    for name, value, owner, bound in parameters:
        expected = f"{name} with 0 <= {name} < {bound:g}"
        if method != owner:
            check(value is None, name, f"is {value}", f"none, as it belongs to class weights {owner!r}")
            continue
        check(value is not None, name, f"is missing, but class weights {owner!r} need it", expected)
        check(value is not None and 0 <= value < bound, name, f"is {value}", expected)  # false for NaN


_BUILT_IN = (
    LossOption(name="A", gamma=2.0, class_weights="none", candidate=False, role="known-bad baseline"),
    LossOption(name="B", gamma=2.0, class_weights="sqrt_inverse", candidate=True, role="proposed"),
    LossOption(name="C", gamma=1.0, class_weights="inverse", candidate=True, role="fallback"),
)
LOSS_OPTIONS: Mapping[str, LossOption] = MappingProxyType({option.name: option for option in _BUILT_IN})
"""The built-in options. Add an option to `_BUILT_IN`; `bvae.option_files` reads options from files."""


@np.errstate(over="ignore", divide="ignore")  # infinite weights are clipped at the end
def weights_by_method(
    counts: Counts, method: str, *, exponent: float | None = None, beta: float | None = None
) -> NDArray[np.float32]:
    """Return the class weights `[C]`, see `bvae.beta_vae.class_weights`."""
    if method not in WEIGHT_METHODS:
        raise ValueError(f"class weight method is {method!r}; expected one of {', '.join(WEIGHT_METHODS)}")
    check_weight_parameters(method, exponent, beta)
    n = _checked(counts)
    rarest = n[n > 0].min()
    if beta is not None:
        # expm1, because the subtraction 1 − βⁿ would lose digits where βⁿ is nearly 1.
        effective_number = -np.expm1(n.clip(min=rarest) * np.log(beta))
        return _scaled(1 / effective_number, n)
    power = WEIGHT_EXPONENTS.get(method, exponent)
    assert power is not None
    return _scaled((n.clip(min=rarest) / rarest) ** -power, n)


@np.errstate(over="ignore", divide="ignore")
def weights_of_option(option: LossOption, counts: Counts) -> NDArray[np.float32]:
    """Return the class weights `[C]` of a loss option, scaled to a mean of 1 over the training cells.

    Explicit weights also apply to classes that never occur.

    Raises ValueError as `weights_by_method` does, and if explicit weights are not one per class.
    """
    if isinstance(option.class_weights, tuple):
        if len(option.class_weights) != len(counts):
            raise ValueError(
                f"option {option.name} has {len(option.class_weights)} class weights; expected {len(counts)}"
            )
        return _scaled(np.array(option.class_weights), _checked(counts))
    return weights_by_method(counts, option.class_weights, exponent=option.exponent, beta=option.beta)


@np.errstate(over="ignore")
def weight_ratio(weights: NDArray[np.float32]) -> float:
    """Return the largest weight divided by the smallest, but at most the largest float32."""
    return float(min(weights.max() / weights.min(), np.finfo(np.float32).max))


def _checked(counts: Counts) -> NDArray[np.float64]:
    n = np.asarray(counts, np.float64)
    if n.ndim != 1 or not np.isfinite(n).all() or (n < 0).any() or not (n > 0).any():
        raise ValueError(
            f"class counts are {n.tolist()}; expected one finite number >= 0 for each class, at least one > 0"
        )
    return n


def _scaled(weight: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scale weights `[C]` to a mean of 1 over cells with class counts `n`; keep them positive and finite."""
    present, float32 = n > 0, np.finfo(np.float32)
    weight = weight / weight[present].max()
    mean = (n[present] / n.sum() * weight[present]).sum()
    scaled: NDArray[np.float64] = (weight / mean).clip(float32.tiny, float32.max)
    return scaled.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class AccuracyBand:
    """Interval of pixel accuracy, bounds included, in which a healthy option must be; fractions."""

    lo: float = 0.70
    hi: float = 0.80

    def __post_init__(self) -> None:
        ordered = 0.0 <= self.lo < self.hi <= 1.0  # false for NaN
        check(ordered, "band", f"is {self}", "LO:HI with 0 <= LO < HI <= 1")

    def __contains__(self, accuracy: float) -> bool:
        return self.lo <= accuracy <= self.hi

    def __str__(self) -> str:
        return f"{self.lo:g}:{self.hi:g}"

    @classmethod
    def parse(cls, text: str) -> AccuracyBand:
        """Read a text `LO:HI`. Raises ConfigError."""
        try:
            lo, hi = map(float, text.split(":"))
        except ValueError:
            raise ConfigError("band", f"is {text!r}", "LO:HI, such as 0.70:0.80") from None
        return cls(lo, hi)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run: one loss option with one seed on one corpus. They suffice to train the run again."""

    option: LossOption
    seed: int
    corpus: str
    corpus_fingerprint: str
    grid_size: int
    padding_value: int | None
    training: TrainingConfig
    classes: int = DEFAULT_CLASSES
    background: int = 0

    def __post_init__(self) -> None:
        _check_classes(self.classes, self.background, (self.option,))

    @property
    def name(self) -> str:
        """The run's test id and the name of its folder, such as `A-seed0`."""
        return f"{self.option.name}-seed{self.seed}"

    def continues(self, other: RunConfig) -> bool:
        """Return whether this configuration is `other`, or `other` extended to more epochs."""
        own, its = self.training, other.training
        same = dataclasses.replace(its, epochs=own.epochs, extended_from=own.extended_from)
        return (
            its.stages == own.stages[: len(its.stages)] and dataclasses.replace(other, training=same) == self
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Settings of an experiment: every loss option is trained with every seed, on one corpus.

    Attributes:
        corpus, grid_size, padding_value, classes, background: see `bvae.corpus.load_corpus`.
    """

    corpus: str = "objects"
    grid_size: GridSize = 16
    padding_value: int | None = None
    classes: Classes = DEFAULT_CLASSES
    background: Background = 0
    options: tuple[LossOption, ...] = tuple(LOSS_OPTIONS.values())
    seeds: int = 3
    band: AccuracyBand = AccuracyBand()
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check_whole("seeds", self.seeds, at_least=1)
        names = [option.name for option in self.options]
        check(bool(names), "options", "is empty", "at least one, such as A,B,C")
        distinct = len({name.casefold() for name in names}) == len(names)  # folders may ignore case
        check(distinct, "options", f"is {','.join(names)}", "each option once")
        _check_classes(self.classes, self.background, self.options)
        for option in self.options:
            try:
                self.training.changed(option.training)
            except ConfigError as error:
                field = f"{error.field} of option {option.name}"
                raise ConfigError(field, error.problem, error.expected) from None

    @property
    def size(self) -> int:
        """The grid size as a number. Raises ValueError if it is still "auto"."""
        return _number("grid_size", self.grid_size)

    def training_of(self, name: str) -> TrainingConfig:
        """Return the training settings of an option's runs. Raises KeyError for an unknown name."""
        return self.training.changed({option.name: option for option in self.options}[name].training)

    def run(self, option: LossOption, seed: int, corpus_fingerprint: str) -> RunConfig:
        """Return the configuration of one run. Raises ValueError if a setting is still "auto"."""
        return RunConfig(
            option=option,
            seed=seed,
            corpus=self.corpus,
            corpus_fingerprint=corpus_fingerprint,
            grid_size=self.size,
            padding_value=self.padding_value,
            training=self.training.changed(option.training),
            classes=_number("classes", self.classes),
            background=_number("background", self.background),
        )
