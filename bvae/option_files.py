"""Files of loss options: TOML, a table for each option; every mistake is named with its line.

The file is read once, where an experiment is configured. A session records the options themselves, so it can
be resumed without the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from bvae.config import CLASSES, LOSS_OPTIONS, OPTION_NAME, ClassWeights, LossOption
from bvae.files import printable

MAX_BYTES = 2**20
MAX_TEXT = 200

# One alternative for each thing in which a bracket, a quote or the end of a line means something else.
TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'"
    r"|#[^\n]*"
    r"|[^\"'#\[\]{}\n]+"
    r"|.",
    re.DOTALL,
)

Key = tuple[str, ...]


class OptionFileError(ValueError):
    """A file of loss options cannot be used; one line that says where, what was given and what to write."""


class _MistakeError(Exception):
    """A mistake at a key of the file, or in the file as a whole."""

    def __init__(self, message: str, *key: str, line: int | None = None) -> None:
        super().__init__(message)
        self.key, self.line = key, line


class _UnreadableError(Exception):
    """A value that is not of its kind; says what was expected."""


def read_options(path: str) -> dict[str, LossOption]:
    """The options of a TOML file by name, in its order. Raises OptionFileError."""
    text = ""
    try:
        text = _read_text(Path(path))
        return _options(_parse(text))
    except _MistakeError as mistake:
        line = line_of(mistake.key, text) if mistake.key else mistake.line
        where = printable(path) + (f", line {line}" if line else "")
        raise OptionFileError(f"{where}: {printable(str(mistake))}") from None


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise _MistakeError("is not a file; expected one of TOML, such as losses.toml")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _MistakeError(f"cannot be read ({error.strerror}); expected a file of TOML") from None
    if len(data) > MAX_BYTES:
        raise _MistakeError(f"is larger than {MAX_BYTES // 2**20} MiB; expected a few tables of TOML")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _MistakeError("is not UTF-8; save it in this encoding", line=line) from None


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = re.fullmatch(
            r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL
        )
        if found is None:
            raise _MistakeError(f"is not TOML: {error}") from None
        reason, line, column = found.groups()
        last = text.rstrip("\n").count("\n") + 1
        raise _MistakeError(
            f"is not TOML: {reason}" + (f" (column {column})" if column else " (end of file)"),
            line=int(line or last),
        ) from None


def _options(tables: Mapping[str, Any]) -> dict[str, LossOption]:
    if not tables:
        raise _MistakeError(
            "has no options; expected a table for each, such as [D], with gamma and class_weights"
        )
    known = {name.casefold(): name for name in LOSS_OPTIONS}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise _MistakeError(
                f"{_shown(name)} is not a table; expected one for each option, such as [D], with its keys",
                name,
            )
        if not OPTION_NAME.fullmatch(name):
            raise _MistakeError(
                f"option name is {_shown(name)}; expected a letter, then letters, digits, _ or -, at most 32",
                name,
            )
        if (other := known.setdefault(name.casefold(), name)) != name:
            raise _MistakeError(
                f"option {name} differs from {other} only in case; expected another name, "
                f"or {other} itself to replace it",
                name,
            )
    return {name: _option(name, table) for name, table in tables.items()}


def _option(name: str, table: Mapping[str, Any]) -> LossOption:
    values: dict[str, Any] = {"candidate": True}
    for key, value in table.items():
        if key not in READERS:
            raise _MistakeError(
                f"[{name}] has the key {_shown(key)}; expected keys among {', '.join(READERS)}",
                name,
                key,
            )
        try:
            values[key] = READERS[key](value)
        except _UnreadableError as error:
            raise _MistakeError(f"{key} is {_shown(value)}; expected {error}", name, key) from None
    for key in ("gamma", "class_weights"):
        if key not in values:
            raise _MistakeError(f"[{name}] has no {key}; expected gamma and class_weights", name)
    try:
        return LossOption(name=name, **values)
    except ValueError as error:
        words = re.findall(r"\w+", str(error))
        raise _MistakeError(str(error), name, words[0]) from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _UnreadableError("a number")
    try:
        return float(value)
    except OverflowError:
        raise _UnreadableError("a number that a float can hold") from None


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise _UnreadableError("true or false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise _UnreadableError(f"a text of one line, at most {MAX_TEXT} characters")
    return value


def _weights(value: object) -> str | tuple[float, ...]:
    methods = get_args(ClassWeights)
    if isinstance(value, str) and value in methods:
        return value
    try:
        if isinstance(value, list):
            return tuple(map(_number, value))
    except _UnreadableError:
        pass
    raise _UnreadableError(f"one of {', '.join(methods)}, or {CLASSES} positive finite numbers")


READERS: Mapping[str, Callable[[Any], Any]] = {
    "gamma": _number,
    "class_weights": _weights,
    "beta": _number,
    "exponent": _number,
    "candidate": _truth,
    "role": _text,
}
"""The keys of a table, and how the value of each is read."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:80] + "…"


def line_of(key: Key, text: str) -> int | None:
    """The line, from 1, of valid TOML on which a key such as `("D", "gamma")` is given.

    Where it is not, as for a key that is missing, the line of the nearest table around it; else None.
    """
    lines: dict[Key, int] = {}
    header: Key = ()
    for line, statement in _statements(text):
        keys = list(_keys(tomllib.loads(statement)))
        if statement.startswith("["):
            header = keys[-1]
        else:
            keys = [header + key for key in keys]
        for given in keys:
            lines.setdefault(given, line)
    return next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), None)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each header and each assignment of valid TOML, with the line on which it begins."""
    start, first, line, depth = 0, 1, 1, 0
    for token in TOKEN.finditer(text + "\n"):
        word = token[0]
        line += word.count("\n")
        depth += (word in ("[", "{")) - (word in ("]", "}"))
        if word == "\n" and depth == 0:
            yield first, text[start : token.end()].strip()
            start, first = token.end(), line


def _keys(table: Mapping[str, Any], prefix: Key = ()) -> Iterator[Key]:
    for name, value in table.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from _keys(value, (*prefix, name))
