"""Atomic writes of files, JSON, and text that is safe to show."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

T = TypeVar("T")


def printable(text: str) -> str:
    r"""Return text with every character escaped that is not printable (`\n`, `\x1b`, `\u202e`, …)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class StorageError(OSError):
    """A file could not be written; the message is one line with the path, the cause and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def make_folder(path: Path) -> None:
    """Make a folder whose parent exists, unless it exists itself. Raises StorageError."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise _refused(path, "made", error) from error


def atomic_write(path: Path, data: bytes, *others: Path) -> None:
    """Write a file atomically: it holds its old content or all of the new, even after a crash.

    The data are flushed to a temporary file in the same folder, which then replaces the file; the rename is
    flushed too. The others, in the same folder, become hard links to the file, or copies where the file
    system has none.

    Raises:
        StorageError: where the system refuses (full disk, read-only or deleted folder, quota).
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
    """Return a dataclass or plain values as indented JSON; floats that are not finite become null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def from_json(data: bytes | str, kind: type[T]) -> T:
    """Return the `kind` that JSON holds. Raises ValueError that names the first invalid field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if (schema := _other_schema(data, kind)) is not None:
            raise ValueError(schema) from error
        raise ValueError(f"not the JSON of a {kind.__name__}: {error}") from error


class _Versioned(msgspec.Struct):
    schema: int


def _other_schema(data: bytes | str, kind: type[Any]) -> str | None:
    """Return the fault of JSON that another version of bvae wrote; None for other faults."""
    expected = get_args(get_type_hints(kind).get("schema"))
    try:
        found = msgspec.json.decode(data, type=_Versioned).schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not expected or found in expected:
        return None
    return f"written by another version of bvae (schema {found}, expected {expected[0]}); run it again"


def differences(ours: Any, theirs: Any) -> list[str]:
    """Return the fields in which two dataclasses or mappings differ, each with both values."""
    # Unlike msgspec's, this conversion has fields that were not in the JSON and so have their default.
    ours, theirs = (
        _flat(each if isinstance(each, dict) else dataclasses.asdict(each)) for each in (ours, theirs)
    )
    pairs = [(key, theirs.get(key), ours.get(key)) for key in theirs | ours]
    return [f"{key} was {then!r} and is {now!r}" for key, then, now in pairs if then != now]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for key, item in items:
        nested = isinstance(item, dict | list | tuple)
        flat |= _flat(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item}
    return flat


def read_json(path: Path, kind: type[T]) -> T:
    """Return the `kind` that a JSON file holds. Raises ValueError that names the file, or OSError."""
    try:
        return from_json(path.read_bytes(), kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
