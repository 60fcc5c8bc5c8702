"""What a run leaves in its folder, for those who read it: the controller, the comparison and the report.

A-seed0/
  config.json           everything needed to train it again
  metrics.jsonl         one line an epoch
  checkpoints/          epoch_001.safetensors, and a picture beside each; `best` is another name of one
  filmstrip.png         the same grids at every epoch's checkpoint
  result.json           metrics, verdict, reasons; written last: its presence means complete
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from bvae import EvidenceWarning
from bvae.config import read_json
from bvae.files import printable
from bvae.records import Divergence, EpochRecord, Evaluation
from bvae.session import Session
from bvae.verdict import VerdictName

BEGUN, AHEAD = ".begun", ".ahead"
"""They name the invocation that began a run, in its turn and ahead of it."""
FILMSTRIP = "filmstrip.png"
_RECORDS = msgspec.json.Decoder(EpochRecord)


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
        """Verdict and metrics by name, for a test report that keeps properties (JUnit XML)."""
        metrics = msgspec.to_builtins(self.metrics) if self.metrics is not None else {}
        numbers = _numbers(metrics)
        for control in ("shuffled", "extent"):
            numbers |= _numbers(metrics.get(control, {}), f"{control}_")
        return {"verdict": self.verdict, "reason": self.reason, **numbers}


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """The metrics that are one number, None where undefined, and the recall of each class by itself."""
    single = {name: value for name, value in metrics.items() if isinstance(value, int | float | None)}
    numbers = {f"{prefix}{name}": value for name, value in single.items()}
    recalls = enumerate(metrics.get("class_recall", ()))
    return numbers | {f"{prefix}class_recall_{label}": recall for label, recall in recalls}


def is_begun(session: Session, name: str) -> bool:
    """Whether this invocation began a run in its turn; without a result and a holder it has crashed."""
    return is_marked(session.path / name / BEGUN, session)


def is_marked(mark: Path, session: Session) -> bool:
    """Whether a mark names this invocation."""
    return mark.exists() and mark.read_text() == session.invocation


def read_result(directory: Path) -> RunResult | None:
    """The result of a complete run, None of another; a damaged result counts as none, with a warning."""
    try:
        return read_json(directory / "result.json", RunResult)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{printable(str(error))}; the run is judged anew", EvidenceWarning, stacklevel=2)
        return None


def read_history(directory: Path) -> list[EpochRecord]:
    """The epochs of a run so far, oldest first; empty where none was completed."""
    path = directory / "metrics.jsonl"
    return _RECORDS.decode_lines(path.read_bytes()) if path.exists() else []


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, newest first; `best`, whose age its name does not tell, comes last."""

    def age(path: Path) -> tuple[float, ...]:
        numbers = [int(number) for number in re.findall(r"\d+", path.stem)]
        return (*numbers, math.inf) if numbers else ()  # epoch_002 is newer than epoch_002_step_000123

    return sorted((directory / "checkpoints").glob("*.safetensors"), key=age, reverse=True)


def picture_of(checkpoint: Path) -> Path:
    """Where the picture of a checkpoint lies."""
    return checkpoint.with_name(f"reconstructions_{checkpoint.stem}.png")
