"""Loss options by name, TOML files of loss options, and the models that loss options train.

A file is read once, when an experiment is configured. The session records the loss options, so it is resumed
without the file.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from bvae.config import (
    CLASS_WEIGHTS_EXPECTED,
    DEFAULT_MODEL,
    LOSS_OPTIONS,
    OPTION_NAME,
    ROLE_EXPECTED,
    ConfigError,
    ExperimentConfig,
    LossOption,
    TrainingConfig,
)
from bvae.storage import brief, printable

MAX_BYTES = 256 * 2**10
MAX_DOTS = 200
"""Maximum number of dots in a line. `tomllib` takes quadratic time for a key with many dots."""

EXPECTED = {
    "gamma": "a number",
    "class_weights": CLASS_WEIGHTS_EXPECTED,
    "beta": "a number",
    "exponent": "a number",
    "candidate": "true or false",
    "role": ROLE_EXPECTED,
    "base": "the name of a built-in option or of an earlier table",
    "training": "a table of training settings, such as [NAME.training] with latent_dim = 8",
}
"""Keys of a table, each with its expected value in words."""

TYPES = get_type_hints(LossOption) | {"base": str, "training": dict[str, Any]}
TRAINING_TYPES = get_type_hints(TrainingConfig)
WORDS = {int: "a whole number", float: "a number", str: "a text", Any: "a setting"}


class OptionFileError(ValueError):
    """An options file cannot be used. The message is one line with the place and the problem.

    Attributes:
        path: the file as the user typed it, with `~` expanded.
        table: the table with the mistake; empty if the mistake concerns the whole file.
        key: the key with the mistake; empty if the mistake concerns the whole table or file.
    """

    def __init__(self, path: str, problem: str, *, table: str = "", key: str = "") -> None:
        where = f"[{brief(table)}] {key}".strip() if table else ""
        super().__init__(printable(f"{path}: {where} {problem}" if where else f"{path}: {problem}"))
        self.path, self.table, self.key = path, table, key


def read_options(path: str) -> dict[str, LossOption]:
    """Return the options of a TOML file by name, in the order of the file. Raises OptionFileError."""
    text = _read_text(path)
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionFileError(path, f"is not TOML: {error}") from None
    if not tables:
        raise OptionFileError(
            path, "has no options; expected one table per option, such as [D], with gamma and class_weights"
        )
    known = {name.casefold(): name for name in LOSS_OPTIONS}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise OptionFileError(
                path,
                f"{_shown(name)} is not a table; expected one table per option, such as [D], with its keys",
            )
        if OPTION_NAME.fullmatch(name) and (other := known.setdefault(name.casefold(), name)) != name:
            raise OptionFileError(
                path,
                f"differs from {other} only in letter case; expected another name, or a built-in name",
                table=name,
            )
    options: dict[str, LossOption] = {}
    for name, table in tables.items():
        options[name] = _option(path, name, table, {**LOSS_OPTIONS, **options})
    return options


def select_options(names: str, known: Mapping[str, LossOption] = LOSS_OPTIONS) -> tuple[LossOption, ...]:
    """Return the options of a comma-separated list of names. Raises ConfigError for an unknown name."""
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise ConfigError("options", f"names {name!r}", f"names among {','.join(known)}")
    return tuple(known[name] for name in chosen)


def own_models(experiment: ExperimentConfig) -> list[str]:
    """Return the models that an experiment trains, without the built-in model."""
    models = {experiment.training.changed(option.training).model for option in experiment.options}
    return sorted(models - {DEFAULT_MODEL})


def allow_models(recorded: ExperimentConfig, given: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the values of the command-line options with which a recorded experiment is resumed.

    `--model` must name all its models, separated by commas. Otherwise the session folder of another person
    could decide which code is imported.

    Raises:
        ValueError: if `--model` leaves out a model of the experiment.
    """
    models, named = own_models(recorded), set((given.get("model") or DEFAULT_MODEL).split(","))
    if unnamed := [model for model in models if model not in named]:
        again = f"add --model {','.join(models)} to import it"
        raise ValueError(f"the session trains the model {' and '.join(map(repr, unnamed))}; {again}")
    return {**given, "model": None} if named <= {*models, DEFAULT_MODEL} else dict(given)


def _read_text(path: str) -> str:
    try:
        if not Path(path).is_file():  # reading a pipe would block
            raise OptionFileError(path, "is not a file; expected a TOML file, such as losses.toml")
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise OptionFileError(path, f"cannot be read ({error.strerror}); expected a TOML file") from None
    if len(data) > MAX_BYTES:
        raise OptionFileError(path, f"is larger than {MAX_BYTES // 2**10} KiB; expected a smaller TOML file")
    if any(line.count(b".") > MAX_DOTS for line in data.splitlines()):
        raise OptionFileError(
            path, f"has more than {MAX_DOTS} dots in a line; expected short keys and numbers"
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise OptionFileError(path, "is not UTF-8; save the file as UTF-8") from None


def _option(path: str, name: str, table: Mapping[str, Any], known: Mapping[str, LossOption]) -> LossOption:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in EXPECTED:
            problem = f"has the key {_shown(key)}; expected keys among {', '.join(EXPECTED)}"
            raise OptionFileError(path, problem, table=name)
        try:
            values[key] = msgspec.convert(value, TYPES[key])
        except msgspec.ValidationError:
            problem = f"is {_shown(value)}; expected {EXPECTED[key]}"
            raise OptionFileError(path, problem, table=name, key=key) from None
    _check_types(path, name, values.get("training", {}))
    base = values.pop("base", None)
    if base is not None and base not in known:
        problem = f"is {_shown(base)}; expected {EXPECTED['base']}, one of {', '.join(known)}"
        raise OptionFileError(path, problem, table=name, key="base")
    for key in ("gamma", "class_weights"):
        if base is None and key not in values:
            problem = f"has no {key}; expected gamma and class_weights, or base"
            raise OptionFileError(path, problem, table=name)
    try:
        if base is None:
            return LossOption(**{"name": name, "candidate": True, **values})
        if "class_weights" in values:  # own class weights do not inherit exponent and beta
            values = {"exponent": None, "beta": None} | values
        values["training"] = {**known[base].training, **values.get("training", {})}
        return dataclasses.replace(known[base], name=name, **values)
    except ConfigError as error:
        problem = f"{error.problem}; expected {error.expected}"
        raise OptionFileError(path, problem, table=name, key=error.field) from None


def _check_types(path: str, name: str, training: Mapping[str, Any]) -> None:
    """Raise OptionFileError for a training setting with a value of the wrong type."""
    for key, value in training.items():
        kind = TRAINING_TYPES.get(key, Any)
        try:
            msgspec.convert(value, kind)
            str(value)  # raises ValueError for an integer of thousands of digits
        except (msgspec.ValidationError, ValueError):
            expected = WORDS.get(kind) or f"one of {', '.join(get_args(kind))}"
            problem = f"is {_shown(value)}; expected {expected}"
            raise OptionFileError(path, problem, table=name, key=f"training.{brief(key)}") from None


def _shown(value: object) -> str:
    try:
        return brief(repr(value))
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
