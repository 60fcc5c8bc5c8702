"""Files that are written whole or not at all, and text that is safe to show."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path


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


def write_whole(path: Path, data: bytes, *others: Path) -> None:
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
