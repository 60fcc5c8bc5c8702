"""The session folder: its record, its locks, and the stored results of its runs.

`bvae.session_files` lists all files of the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import glob
import os
import secrets
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec
from filelock import BaseFileLock, Timeout

from bvae import EvidenceWarning
from bvae.config import ExperimentConfig, LossOption, RunConfig
from bvae.corpus import Corpus
from bvae.hardware import describe_hardware, find_commit, find_versions
from bvae.judging.comparison import Comparison, RunOutcomes, compare
from bvae.records import ControlledMetrics, CorpusRecord, EpochRecord, RunResult
from bvae.session_files import (
    CONFIG,
    HOLDER,
    LATEST,
    LOCK,
    MAX_MARKER,
    MAX_METRICS,
    METRICS,
    RESULT,
    SESSION,
    STOP,
    digests,
    is_session_file,
    leftovers,
)
from bvae.storage import (
    StorageError,
    atomic_write,
    differences,
    escaped,
    is_sealed,
    lock_file,
    printable,
    read_bounded,
    read_json,
    sealed,
    to_json,
    warn_of_weaker_promise,
)


class SessionHeldError(RuntimeError):
    """Another process works in a session folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extension:
    """A change of a session's settings: its time, the arguments of the command, and the changes in words."""

    when: str
    command: tuple[str, ...]
    changes: tuple[str, ...]

    def __str__(self) -> str:
        return f"Changed at {self.when}: {', '.join(self.changes)} (arguments: {shlex.join(self.command)})."


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """The content of `session.json`; `bvae.storage.sealed` describes the seal."""

    schema: Literal[3] = 3
    created: str
    command: tuple[str, ...]
    config: ExperimentConfig
    corpus: CorpusRecord
    versions: dict[str, str]
    commit: str | None
    hardware: dict[str, str | int]
    extensions: tuple[Extension, ...] = ()
    seal: str = ""


@dataclasses.dataclass(frozen=True)
class Session:
    """A session folder and its record.

    Attributes:
        path: the folder.
        record: the content of `session.json`.
        invocation: id of the invocation that works in the folder now.
    """

    path: Path
    record: SessionRecord
    invocation: str

    @classmethod
    def create(
        cls,
        run_dir: Path,
        config: ExperimentConfig,
        corpus: Corpus,
        command: tuple[str, ...],
        gpu: Mapping[str, str | int] = MappingProxyType({}),
    ) -> Session:
        """Make a session folder in `run_dir`. `gpu` is added to the hardware. Raises StorageError."""
        now = datetime.datetime.now(datetime.UTC)
        record = SessionRecord(
            created=now.isoformat(timespec="seconds"),
            command=command,
            config=config,
            corpus=CorpusRecord.of(corpus),
            versions=find_versions(),
            commit=find_commit(),
            hardware={**describe_hardware(), **gpu},
        )
        return cls.make(run_dir, record)

    @classmethod
    def make(cls, run_dir: Path, record: SessionRecord) -> Session:
        """Make a session folder in `run_dir` with this record. Raises StorageError."""
        when = datetime.datetime.fromisoformat(record.created)
        path = run_dir / f"{when:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise StorageError(
                f"session folder {path} could not be made: {error.strerror or error}"
            ) from error
        record = sealed(record)
        atomic_write(path / SESSION, to_json(record))
        return cls(path.resolve(), record, secrets.token_hex(8))

    @classmethod
    def open(cls, path: Path, invocation: str) -> Session:
        """Return the session in an existing folder.

        Raises:
            FileNotFoundError: if the folder has no `session.json`.
            ValueError: if `session.json` is damaged or does not match its seal.
        """
        if not (path / SESSION).exists():
            expected = "the folder of a session, such as runs/latest"
            raise FileNotFoundError(f"{printable(str(path))} has no {SESSION}; expected {expected}")
        record = read_json(path / SESSION, SessionRecord)
        if not is_sealed(record):
            raise ValueError(
                f"{printable(str(path / SESSION))} is not what bvae wrote: its seal does not match; "
                "restore the file, or start a new session"
            )
        shown = escaped(record)  # except configuration and command, which bvae uses again
        return cls(path, dataclasses.replace(shown, config=record.config, command=record.command), invocation)

    def run_config(self, option: LossOption, seed: int) -> RunConfig:
        """Return the configuration of a run of this session."""
        return self.record.config.run(option, seed, self.record.corpus.fingerprint)

    @property
    def runs(self) -> list[RunConfig]:
        """All runs: every option with every seed."""
        config = self.record.config
        return [self.run_config(option, seed) for option in config.options for seed in range(config.seeds)]

    def point_latest(self) -> None:
        """Make the link `latest` in the run directory point to this session. Warn if that is impossible."""
        link = self.path.parent / LATEST
        with contextlib.suppress(OSError):
            if link.readlink() == Path(self.path.name):
                return
        new = link.with_name(f".{self.path.name}.{LATEST}-{secrets.token_hex(4)}")
        try:
            new.symlink_to(self.path.name)
            new.replace(link)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            warn_of_weaker_promise(
                f"{link} could not be made a link to this session ({error.strerror or error}): "
                "name the session folder instead of 'latest'"
            )

    @property
    def stopped(self) -> bool:
        """Whether the controller of this invocation has asked its workers to end."""
        return self._stop_sign.exists()

    def stop(self) -> None:
        """Ask the workers of this invocation to end at once."""
        with contextlib.suppress(OSError):  # the workers also end when the controller ends
            self._stop_sign.touch()

    @property
    def _stop_sign(self) -> Path:
        return self.path / f"{STOP}{self.invocation}"

    def discard_if_unused(self) -> None:
        """Remove the folder if no run has begun in it, and all files in it are files of bvae."""
        entries = [*self.path.iterdir()]
        if all(map(is_session_file, entries)):
            for entry in entries:
                entry.unlink()
            self.path.rmdir()


def hold(path: Path) -> BaseFileLock:
    """Lock a session folder until the returned lock is released or this process ends.

    Raises:
        SessionHeldError: if another process holds the lock. The lock is released when that process ends.
    """
    holder = path / HOLDER
    try:
        lock = lock_file(path / LOCK, timeout=0)
    except Timeout:
        pid = read_marker(holder) or "unknown"
        raise SessionHeldError(
            f"session {path} is in use by process {pid}; wait for it or interrupt it, then resume"
        ) from None
    atomic_write(holder, str(os.getpid()).encode())
    # Files of earlier invocations. The process that trains a run removes those in the folder of the run.
    links = path.parent.glob(f".{glob.escape(path.name)}.{LATEST}-*")
    for left in (*leftovers(path), *leftovers(path / "comparison"), *filter(Path.is_symlink, links)):
        left.unlink(missing_ok=True)
    return lock


_RECORDS = msgspec.json.Decoder(EpochRecord)


class RunCrashError(RuntimeError):
    """A run of this invocation ended without a result: its process died, it failed, or Ray refused it."""


def read_marker(path: Path) -> str:
    """Return the text of a marker file; empty if the file cannot be read."""
    try:
        return printable(read_bounded(path, MAX_MARKER).decode())
    except (FileNotFoundError, ValueError):
        return ""


def verified_result(directory: Path, run: RunConfig) -> RunResult | None:
    """Return the result of a run; None if there is none, or if the run was extended after it.

    Raises:
        ValueError: if the result does not match its seal, the run or the files of the run; the message is one
            sentence.
    """
    try:
        result = read_json(directory / RESULT, RunResult)
    except FileNotFoundError:
        return None
    if not is_sealed(result):
        raise ValueError(f"{run.name}: {RESULT} is not what bvae wrote: its seal does not match")
    if (result.option, result.seed) != (run.option.name, run.seed):
        raise ValueError(f"{run.name}: {RESULT} is the result of {result.option}-seed{result.seed}")
    now = digests(directory, result.digests)
    if changed := sorted(name for name in now | result.digests if now.get(name) != result.digests.get(name)):
        fault = "has changed since" if changed[0] in now else "was removed after"
        raise ValueError(f"{run.name}: {changed[0]} {fault} {RESULT} was written")
    if CONFIG not in now:
        raise ValueError(f"{run.name}: {CONFIG} is missing")
    if changes := differences(run, stored := read_json(directory / CONFIG, RunConfig)):
        if run.continues(stored):
            return None
        raise ValueError(f"{run.name}: {CONFIG} belongs to another run: {changes[0]}")
    return escaped(result)


def read_result(directory: Path, run: RunConfig) -> RunResult | None:
    """Return the verified result of a run, or None. Warn about a result that cannot be verified."""
    try:
        return verified_result(directory, run)
    except ValueError as error:
        warnings.warn(f"{printable(str(error))}; the run is trained again", EvidenceWarning, stacklevel=2)
        return None


def read_history(directory: Path) -> list[EpochRecord]:
    """Return the completed epochs of a run, oldest first. Raises ValueError."""
    path = directory / METRICS
    try:
        history = _RECORDS.decode_lines(read_bounded(path, MAX_METRICS))
    except FileNotFoundError:
        return []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{printable(str(path))}: its lines are not records of epochs: {error}") from error
    if [record.epoch for record in history] != [*range(1, len(history) + 1)]:
        raise ValueError(f"{printable(str(path))}: its epochs are not numbered from 1")
    return history


def shown_history(session: Session, name: str) -> list[EpochRecord]:
    """Return the completed epochs of a run, for pictures. If they cannot be used, warn and return none."""
    try:
        history = read_history(session.path / name)
        classes = {record.validation.classes for record in history}
        if classes - {len(session.record.corpus.class_counts)}:
            raise ValueError(f"{name}: {METRICS} has another number of classes than the corpus")
    except ValueError as error:
        warnings.warn(f"{printable(str(error))}; its epochs are not shown", EvidenceWarning, stacklevel=2)
        return []
    return history


def found_outcomes(session: Session) -> RunOutcomes:
    """Return the outcomes of all runs that have a folder in the session: a result, or a reason for none."""
    outcomes: RunOutcomes = {}
    for run in session.runs:
        directory = session.path / run.name
        try:
            outcome = verified_result(directory, run) or f"{run.name} was begun and did not finish"
        except ValueError as error:
            outcome = printable(str(error))
            warnings.warn(f"{outcome}; the run counts as incomplete", EvidenceWarning, stacklevel=2)
        if directory.exists():
            outcomes.setdefault(run.option.name, {})[run.seed] = outcome
    return outcomes


def compare_outcomes(
    session: Session,
    outcomes: RunOutcomes,
    references: Mapping[str, ControlledMetrics] = MappingProxyType({}),
) -> Comparison:
    """Return the comparison of the outcomes, without writing it."""
    return compare(session.record.corpus, session.record.config, outcomes, references)


def read_comparison(session: Session) -> Comparison | None:
    """Return the comparison of a session, or None if it is not complete. Raises ValueError if damaged."""
    try:
        return read_json(comparison_folder(session) / "comparison.json", Comparison)
    except FileNotFoundError:
        return None


def comparison_folder(session: Session) -> Path:
    """Return the folder of a session's comparison."""
    return session.path / "comparison"
