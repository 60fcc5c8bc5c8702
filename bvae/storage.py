"""Files that are written whole or not at all, JSON, and text that is safe to show."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

T = TypeVar("T")


def printable(text: str) -> str:
    r"""Escape what would break or restyle a line (`\n`, `\x1b`, `\u202e`, …); keep everything else."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class StorageError(OSError):
    """A file could not be written; the message, one line, names the path, the cause and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def make_folder(path: Path) -> None:
    """Make a folder in one that exists, unless it is there. Raises StorageError."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise _refused(path, "made", error) from error


def atomic_write(path: Path, data: bytes, *others: Path) -> None:
    """Write a file so that whatever happens it holds its old content or the new one, never a part.

    A temporary file beside it is flushed to the disk, renamed over it, and the rename flushed too. The
    others, of the same folder, become further names of that file, or copies where there are no hard links.

    Raises:
        StorageError: where the system refuses (disk full, read-only, deleted directory, quota).
    """
    _write(path, data)
    for other in others:
        try:
            _link(path, other)
        except OSError:
            _write(other, data)


def _link(path: Path, other: Path) -> None:
    part = other.with_name(f".{other.name}.{secrets.token_hex(4)}.part")
    part.hardlink_to(path)
    try:
        part.replace(other)
        _flush_names(other.parent)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        _flush_names(path.parent)
    except OSError as error:
        raise _refused(path, "written", error) from error


def _flush_names(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _refused(path: Path, what: str, error: OSError) -> StorageError:
    return StorageError(
        f"{path} could not be {what}: {error.strerror or error}. Files written before are whole; "
        "make room or restore access and resume the session"
    )


def to_json(value: Any) -> bytes:
    """Encode a dataclass or plain values as indented JSON; a float that is not finite becomes null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def from_json(data: bytes | str, kind: type[T]) -> T:
    """Read JSON into a `kind`. Raises ValueError that names the first field that does not fit."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if (schema := _other_schema(data, kind)) is not None:
            raise ValueError(schema) from error
        raise ValueError(f"not the JSON of a {kind.__name__}: {error}") from error


class _Versioned(msgspec.Struct):
    schema: int


def _other_schema(data: bytes | str, kind: type[Any]) -> str | None:
    """Return what is wrong with JSON that another version of bvae wrote, None for other faults."""
    expected = get_args(get_type_hints(kind).get("schema"))
    try:
        found = msgspec.json.decode(data, type=_Versioned).schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not expected or found in expected:
        return None
    return f"written by another version of bvae (schema {found}, expected {expected[0]}); run it again"


def differences(ours: Any, theirs: Any) -> list[str]:
    """Return the fields in which two dataclasses of one kind differ, each with both values."""
    ours, theirs = _flat(msgspec.to_builtins(ours)), _flat(msgspec.to_builtins(theirs))
    keys = dict.fromkeys([*theirs, *ours])
    return [
        f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for key, item in items:
        nested = isinstance(item, dict | list | tuple)
        flat |= _flat(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item}
    return flat


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file into a `kind`. Raises ValueError that names the file, or OSError."""
    try:
        return from_json(path.read_bytes(), kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
