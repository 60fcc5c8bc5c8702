"""Files (atomic writes, bounded reads, locks), JSON and its seals, and text that is safe to print."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import os
import secrets
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from bvae import EvidenceWarning

T = TypeVar("T")

MAX_JSON = 64 * 2**20
"""Maximum size in bytes of a JSON file that is read."""


def printable(text: str) -> str:
    r"""Return text with all non-printable characters escaped (`\n`, `\x1b`, `\u202e`, …)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def brief(text: str, most: int = 80) -> str:
    """Escape text after cutting it to `most` characters; "…" replaces the rest."""
    return printable(text if len(text) <= most else f"{text[: most - 1]}…")


def escaped(record: T) -> T:
    """Return a copy of a dataclass in which every string is printable."""

    def escape(value: Any) -> Any:
        if isinstance(value, dict):
            return {escape(key): escape(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [*map(escape, value)]
        return printable(value) if isinstance(value, str) else value

    return msgspec.convert(escape(msgspec.to_builtins(record)), type(record))


class StorageError(OSError):
    """A file could not be written. The message is one line with the path, the cause and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@functools.cache
def warn_of_weaker_promise(what: str) -> None:
    """Warn once per process about a guarantee that this system cannot give, and its consequence."""
    warnings.warn(what, EvidenceWarning, stacklevel=3)


def lock_file(path: Path, timeout: float = -1) -> BaseFileLock:
    """Acquire the lock of a file, waiting at most `timeout` seconds (-1: without limit).

    The operating system releases the lock if the process that holds it dies. If the file system has no locks,
    the existence of the file is the lock. If its creator died on this
    machine, the next process removes the file.

    Raises:
        Timeout: if another process holds the lock.
        StorageError: if the file cannot be created.
    """
    try:
        lock = (FileLock if _has_locks(path.parent) else SoftFileLock)(path, timeout)
        lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        problem = f"{path} could not be locked: {error.strerror or error}"
        raise StorageError(f"{problem}; remove it, or restore access to its folder") from error
    return lock


@functools.cache
def _has_locks(folder: Path) -> bool:
    # The name is that of a temporary file, so that a file left by a killed process is removed later.
    path = folder / f"..lock.{secrets.token_hex(4)}.part"
    trial = FileLock(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # filelock warns if it uses a SoftFileLock
            trial.acquire()
        found = not isinstance(trial, SoftFileLock)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        found = False
    finally:
        trial.release()
        path.unlink(missing_ok=True)
    if not found:
        warn_of_weaker_promise(
            "the file system has no locks (flock): if a process on another machine is killed, remove its "
            ".lock files by hand"
        )
    return found


def make_folder(path: Path, *, parents: bool = False) -> None:
    """Create a folder if it does not exist. Without `parents`, its parent must exist. Raises StorageError."""
    with _refusing(path, "made"):
        path.mkdir(parents=parents, exist_ok=True)


def atomic_write(path: Path, data: bytes, *others: Path) -> None:
    """Write a file atomically: even after a crash, it has either the old or the complete new content.

    The data are written and flushed to a temporary file in the same folder. The temporary file then replaces
    the file, and the folder is flushed. `others` are paths in the same folder: they become hard links to
    the file, or copies if the file system has no hard links.

    Raises:
        StorageError: if the file cannot be written, for example because the disk is full.
    """
    _write(path, data)
    for other in others:
        try:
            _link(path, other)
        except OSError:
            _write(other, data)


def remove(path: Path) -> None:
    """Remove a file if it exists. Raises StorageError."""
    with _refusing(path, "removed"):
        path.unlink(missing_ok=True)


def _link(path: Path, other: Path) -> None:
    part = other.with_name(f".{other.name}.{secrets.token_hex(4)}.part")
    part.hardlink_to(path)
    try:
        part.replace(other)
        _flush_names(other.parent)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with _refusing(path, "written"):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _open_to_readers(Path(name))
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        _flush_names(path.parent)


def _open_to_readers(path: Path) -> None:
    try:
        path.chmod(0o644)
    except OSError as error:
        warn_of_weaker_promise(f"chmod is refused ({error.strerror}): only the owner may read the files")


def _flush_names(folder: Path) -> None:
    """Flush the entries of a folder, or warn if the system cannot flush them, such as Windows."""
    try:
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise
        warn_of_weaker_promise(
            f"folders cannot be flushed here ({error.strerror}): a power cut may undo the last writes, and "
            "training then continues from an older checkpoint"
        )


@contextlib.contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Turn an OSError into a StorageError, saying that the path "could not be" `what`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} could not be {what}: {error.strerror or error}. Files written before are complete; "
            "make room or restore access, then resume the session or repeat the command"
        ) from error


@contextlib.contextmanager
def open_bounded(path: Path, limit: int) -> Iterator[io.BufferedReader]:
    """Open a regular file of at most `limit` bytes. Symbolic links and pipes are refused.

    Raises:
        FileNotFoundError: if nothing exists at the path.
        ValueError: if the path is not such a file or cannot be read; the message is one sentence.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{printable(str(path))} is not a file; expected one that bvae wrote")
            if found.st_size > limit:
                raise ValueError(
                    f"{printable(str(path))} has {found.st_size} bytes; expected at most {limit}"
                )
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or error
        raise ValueError(f"{printable(str(path))} could not be read: {reason}") from error


def open_at_once(path: str, flags: int) -> int:
    """Opener for `open` that refuses symbolic links and does not wait for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raises as `open_bounded` does."""
    with open_bounded(path, limit) as file:
        return file.read(limit)


def file_digest(path: Path, limit: int, expected: str = "") -> str:
    """Return the size in bytes and the SHA-256 of a regular file, as `SIZE:SHA-256`.

    If the expected digest has another size, the file is not read, and only `SIZE:` is returned.
    Raises as `open_bounded` does.
    """
    with open_bounded(path, limit) as file:
        size = f"{os.fstat(file.fileno()).st_size}:"
        if expected and not expected.startswith(size):
            return size
        return size + hashlib.file_digest(file, "sha256").hexdigest()


def refuse_foreign_entries(folder: Path) -> None:
    """Raise ValueError if a folder or a subfolder contains anything but regular files and folders.

    A symbolic link, for example, could redirect later writes and removals to other folders.
    """
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    kind = "a symbolic link" if entry.is_symlink() else "a pipe, a socket or a device"
                    raise ValueError(
                        f"{printable(entry.path)} is {kind}; expected only files and folders; remove it"
                    )


def to_json(value: Any) -> bytes:
    """Return a dataclass or plain values as indented JSON; floats that are not finite become null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def from_json(data: bytes | str, kind: type[T]) -> T:
    """Parse JSON as an instance of `kind`. Raises ValueError; the message names the first invalid field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError(f"not the JSON of a {kind.__name__}: it is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if (schema := _other_schema(data, kind)) is not None:
            raise ValueError(schema) from error
        fault = printable(str(error))[:300]
        raise ValueError(f"not the JSON of a {kind.__name__}: {fault}") from error


class _Versioned(msgspec.Struct):
    schema: int


def _other_schema(data: bytes | str, kind: type[Any]) -> str | None:
    """Return an error message if another version of bvae wrote the JSON, else None."""
    expected = get_args(get_type_hints(kind).get("schema"))
    try:
        found = msgspec.json.decode(data, type=_Versioned).schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not expected or found in expected:
        return None
    return f"written by another version of bvae (schema {found}, expected {expected[0]}); run it again"


def differences(ours: Any, theirs: Any) -> list[str]:
    """Return a sentence for each field in which two dataclasses or mappings differ, with both values."""
    pairs = by_field(theirs, ours).items()
    return [f"{key} was {then!r} and is {now!r}" for key, (then, now) in pairs if then != now]


def by_field(*records: Any) -> dict[str, tuple[Any, ...]]:
    """Return the values of each field in all records (dataclasses or mappings); None if missing."""
    # `asdict` returns all fields; `msgspec.to_builtins` would omit fields that a JSON file lacked.
    flat = [_flat(each if isinstance(each, dict) else dataclasses.asdict(each)) for each in records]
    names = dict.fromkeys(name for each in flat for name in each)
    return {name: tuple(each.get(name) for each in flat) for name in names}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for key, item in items:
        nested = isinstance(item, dict | list | tuple)
        flat |= _flat(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item}
    return flat


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file as `kind`. Raises FileNotFoundError, or ValueError with the path in its message."""
    data = read_bounded(path, MAX_JSON)
    try:
        return from_json(data, kind)
    except ValueError as error:
        raise ValueError(f"{printable(str(path))}: {error}") from error


def sealed(record: T) -> T:
    """Return a copy of a dataclass whose `seal` is the SHA-256 of its JSON with an empty seal."""
    unsealed = dataclasses.replace(record, seal="")  # type: ignore[type-var]
    as_read = msgspec.convert(msgspec.to_builtins(unsealed), type(record))  # 1 becomes 1.0 in a float field
    return dataclasses.replace(record, seal=hashlib.sha256(to_json(as_read)).hexdigest())  # type: ignore[type-var]


def is_sealed(record: Any) -> bool:
    """Return whether the seal of a dataclass matches its content. Seals detect mistakes, not forgery."""
    return bool(record.seal == sealed(record).seal)
