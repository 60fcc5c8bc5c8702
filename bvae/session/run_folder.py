"""What a run leaves in its folder, for its readers: the controller, the comparison and the report.

The files are listed in `bvae.session.files`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from bvae import EvidenceWarning
from bvae.config import read_json
from bvae.files import printable
from bvae.records import Divergence, EpochRecord, Evaluation
from bvae.session.files import BEGUN, METRICS, RESULT
from bvae.session.folder import Session
from bvae.verdict import VerdictName

_RECORDS = msgspec.json.Decoder(EpochRecord)


class RunCrashError(RuntimeError):
    """A run was begun in this invocation, and its process ended without a result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The content of `result.json`.

    Attributes:
        verdict, reason: the judgement on this run by itself.
        metrics: on the validation split after the last completed epoch; null where none was completed.
        divergence: where training stopped because a number was not finite.
        seconds: wall time of training and evaluation.
        failed_pictures: the pictures that could not be drawn, each with its reason.
    """

    schema: Literal[2] = 2
    option: str
    seed: int
    verdict: VerdictName
    reason: str
    metrics: Evaluation | None
    divergence: Divergence | None
    seconds: float
    failed_pictures: tuple[str, ...]

    def properties(self) -> dict[str, str | float | None]:
        """Return verdict and metrics by name, for test reports that keep properties (JUnit XML)."""
        metrics = msgspec.to_builtins(self.metrics) if self.metrics is not None else {}
        numbers = _numbers(metrics)
        for control in ("shuffled", "extent"):
            numbers |= _numbers(metrics.get(control, {}), f"{control}_")
        return {"verdict": self.verdict, "reason": self.reason, **numbers}


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Return the metrics that are one number (None: undefined), and the recall of each class by itself."""
    single = {name: value for name, value in metrics.items() if isinstance(value, int | float | None)}
    numbers = {f"{prefix}{name}": value for name, value in single.items()}
    recalls = enumerate(metrics.get("class_recall", ()))
    return numbers | {f"{prefix}class_recall_{label}": recall for label, recall in recalls}


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
