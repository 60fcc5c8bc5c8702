"""Every file and marker of a session, and who writes it.

runs/<when>-<id>/                     `folder.Session.create`
  session.json                        `folder.Session.create`: what was asked, on which corpus and software
  baseline.json                       `experiment.Experiment.open_session`: what the session is compared with
  .lock .holder                       `folder.hold`: the process that works in the session
  .stop-<invocation>                  `folder.Session.stop`: asks the workers of an invocation to end
  A-seed0/                            `run.obtain_run`
    .lock                             whoever trains the run; released by the system when its process ends
    .begun                            `run.obtain_run`: the invocation that began it
    .progress                         `progress.ProgressNote`: how far it is
    config.json                       `run`: everything needed to train it again
    metrics.jsonl                     `run.MetricsLog`: one line for each epoch
    checkpoints/
      epoch_001.safetensors           `bvae.trainer.Trainer`; epoch_001_step_000200 inside an epoch
      best.safetensors                another name of the epoch's file with the lowest validation loss
      reconstructions_epoch_001.png   `CheckpointPictures`: one picture for each checkpoint file
    filmstrip.png                     `CheckpointPictures`: the same grids at every epoch's checkpoint
    result.json                       `run.train_run`; written last: its presence means complete
  comparison/                         `bvae.session.folder`
    why_A.png …  curves.png  reconstructions.png  examples.png  comparison.md
    comparison.json                   written last: its presence means complete
runs/latest                           `folder.Session.point_latest`: the newest session in which a run began
runs/.<session>.latest-*              the same, before it is renamed
**/.*.part                            `bvae.storage.atomic_write`: a file that is not yet whole
"""

from __future__ import annotations

import math
import re
from pathlib import Path

SESSION = "session.json"
LATEST = "latest"
LOCK, HOLDER = ".lock", ".holder"
STOP = ".stop-"

BEGUN = ".begun"
PROGRESS = ".progress"
CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"
CHECKPOINTS = "checkpoints"
FILMSTRIP = "filmstrip.png"

LEFTOVERS = (f"{STOP}*", "*.part", "comparison/*.part")
"""What an invocation that was killed leaves in a session folder, the folders of its runs aside."""


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first; `best`, whose name does not tell its age, comes last."""

    def age(path: Path) -> tuple[float, ...]:
        numbers = [int(number) for number in re.findall(r"\d+", path.stem)]
        return (*numbers, math.inf) if numbers else ()  # epoch_002 is newer than epoch_002_step_000123

    return sorted((directory / CHECKPOINTS).glob("*.safetensors"), key=age, reverse=True)


def picture_of(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's picture."""
    return checkpoint.with_name(f"reconstructions_{checkpoint.stem}.png")
