"""What a run leaves in its folder, for its readers: the controller, the comparison and the report.

The files are listed in `bvae.session_files`.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import msgspec

from bvae import EvidenceWarning
from bvae.records import EpochRecord, RunResult
from bvae.session.folder import Session
from bvae.session_files import BEGUN, METRICS, RESULT
from bvae.storage import printable, read_json

_RECORDS = msgspec.json.Decoder(EpochRecord)


class RunCrashError(RuntimeError):
    """A run was begun in this invocation, and its process ended without a result."""


def is_begun(session: Session, name: str) -> bool:
    """Return whether this invocation began a run; without a result and a lock holder it has crashed."""
    return is_marked(session.path / name / BEGUN, session)


def is_marked(mark: Path, session: Session) -> bool:
    """Return whether a marker file names this invocation."""
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
