"""Loss options from TOML files with one table per option.

The file is read once, when an experiment is configured. A session records the options themselves, so it can
be resumed without the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from bvae.config import (
    CLASS_WEIGHTS_EXPECTED,
    LOSS_OPTIONS,
    OPTION_NAME,
    ROLE_EXPECTED,
    ConfigError,
    LossOption,
)
from bvae.storage import printable

MAX_BYTES = 256 * 2**10
MAX_DOTS = 200
"""Dots in a line: `tomllib` takes time and memory in the square of the parts of a dotted key."""

EXPECTED = {
    "gamma": "a number",
    "class_weights": CLASS_WEIGHTS_EXPECTED,
    "beta": "a number",
    "exponent": "a number",
    "candidate": "true or false",
    "role": ROLE_EXPECTED,
}
"""The keys of a table, and the expected value of each in words; types are those of `LossOption`."""

TYPES = get_type_hints(LossOption)


class OptionFileError(ValueError):
    """An options file cannot be used. The message is one line that says where and what is wrong.

    Attributes:
        path: the file, as it was given.
        table, key: location of the mistake; empty if it concerns the whole file or table.
    """

    def __init__(self, path: str, problem: str, *, table: str = "", key: str = "") -> None:
        where = f"[{_short(table)}] {key}".strip() if table else ""
        super().__init__(printable(f"{path}: {where} {problem}" if where else f"{path}: {problem}"))
        self.path, self.table, self.key = path, table, key


def read_options(path: str) -> dict[str, LossOption]:
    """Return the options of a TOML file by name, in the order of the file. Raises OptionFileError."""
    try:
        tables = tomllib.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, OptionFileError):
            raise
        raise OptionFileError(path, f"is not TOML: {error}") from None
    if not tables:
        raise OptionFileError(
            path, "has no options; expected a table for each, such as [D], with gamma and class_weights"
        )
    known = {name.casefold(): name for name in LOSS_OPTIONS}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise OptionFileError(
                path,
                f"{_shown(name)} is not a table; expected one for each option, such as [D], with its keys",
            )
        if OPTION_NAME.fullmatch(name) and (other := known.setdefault(name.casefold(), name)) != name:
            raise OptionFileError(
                path,
                f"differs from {other} only in case; expected another name, or {other} itself to replace it",
                table=name,
            )
    return {name: _option(path, name, table) for name, table in tables.items()}


def _read_text(path: str) -> str:
    try:
        if not Path(path).is_file():  # reading a pipe would block
            raise OptionFileError(path, "is not a file; expected a TOML file, such as losses.toml")
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise OptionFileError(path, f"cannot be read ({error.strerror}); expected a file of TOML") from None
    if len(data) > MAX_BYTES:
        raise OptionFileError(path, f"is larger than {MAX_BYTES // 2**10} KiB; expected a few tables of TOML")
    if any(line.count(b".") > MAX_DOTS for line in data.splitlines()):
        raise OptionFileError(
            path, f"has more than {MAX_DOTS} dots in a line; expected short keys and numbers"
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise OptionFileError(path, "is not UTF-8; save it in this encoding") from None


def _option(path: str, name: str, table: Mapping[str, Any]) -> LossOption:
    values: dict[str, Any] = {"name": name, "candidate": True}
    for key, value in table.items():
        if key not in EXPECTED:
            problem = f"has the key {_shown(key)}; expected keys among {', '.join(EXPECTED)}"
            raise OptionFileError(path, problem, table=name)
        try:
            values[key] = msgspec.convert(value, TYPES[key])
        except msgspec.ValidationError:
            problem = f"is {_shown(value)}; expected {EXPECTED[key]}"
            raise OptionFileError(path, problem, table=name, key=key) from None
    for key in ("gamma", "class_weights"):
        if key not in values:
            raise OptionFileError(path, f"has no {key}; expected gamma and class_weights", table=name)
    try:
        return LossOption(**values)
    except ConfigError as error:
        problem = f"{error.problem}; expected {error.expected}"
        raise OptionFileError(path, problem, table=name, key=error.field) from None


def _shown(value: object) -> str:
    try:
        return _short(repr(value))
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"
