"""All files of a session, and the code that writes each. bvae removes only files with the names below.

With `--engine ray`, workers on other nodes send the files of runs, and `run.RunFolders` writes them.
`continuation.merge_shards` copies the files of runs from shards.

runs/<when>-<id>/                     `folder.Session.make`
  session.json                        `folder.Session.make`: settings, corpus, versions and hardware
  session-1.json …                    `continuation.go_on`: `session.json` before each change of settings
  baseline.json                       `experiment.Experiment.open_session`: the baseline of the session
  report.html                         `bvae report` and `bvae merge`: the report as one page
  .lock .holder                       `folder.hold`: the process that works in the session
  .stop-<invocation>                  `folder.Session.stop`: asks the workers of an invocation to end
  A-seed0/                            `run.obtain_run`
    .lock                             `run.obtain_run`: locked by a process that trains the run in this folder
    .begun                            `run.begin_run`: the invocation that began the run
    .progress                         `listeners.ProgressNote`: the current step and epoch
    .progress.new                     `listeners.ProgressNote`: the next `.progress`, before it is renamed
    config.json                       `run.restored_trainer`: everything needed to train the run again
    metrics.jsonl                     `listeners.MetricsLog`: one line for each epoch
    checkpoints/
      epoch_001.safetensors           `bvae.trainer.Trainer`: a checkpoint at the end of an epoch, or
                                      inside an epoch, such as epoch_001_step_000200.safetensors;
                                      only the newest two hold the optimizer state;
                                      `--keep-checkpoints` removes older checkpoints, but no pictures
      best.safetensors                `bvae.trainer.Trainer`: the epoch with the lowest validation loss;
                                      a hard link if the checkpoint of that epoch exists
      reconstructions_epoch_001.png   `listeners.CheckpointPictures`: one picture for each checkpoint file
    filmstrip.png                     `listeners.CheckpointPictures`: the same grids, epoch by epoch
    tensorboard/events.out.tfevents.* `listeners.TensorBoardLog`, with `--log tensorboard`
    result.json                       `run.train_run`: written last, so the run is complete if it exists;
                                      `continuation.go_on` replaces it if the accuracy band changes
  comparison/                         `engine.write_comparison`, `engine.write_why`
    why_A.png …  verdicts.png  curves.png  tradeoff.png  reconstructions.png  examples.png
    comparison.md
    comparison.json                   written last, so the comparison is complete if it exists
runs/latest                           `folder.Session.point_latest`: the session trained or merged last
runs/.<session>.latest-*              `folder.Session.point_latest`: the next `latest`, before it is renamed
**/.<name>.<random>.part              `bvae.storage.atomic_write`: a file that is not yet complete
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from bvae.storage import MAX_JSON, file_digest, printable

SESSION = "session.json"
LATEST = "latest"
LOCK, HOLDER = ".lock", ".holder"
STOP = ".stop-"

BEGUN = ".begun"
PROGRESS = ".progress"
CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"
CHECKPOINTS = "checkpoints"
REPORT = "report.html"
FILMSTRIP = "filmstrip.png"
TENSORBOARD = "tensorboard"

MAX_MARKER, MAX_METRICS, MAX_CHECKPOINT = 4096, 256 * 2**20, 4 * 2**30
"""Maximum size in bytes of a marker file, of `metrics.jsonl` and of a checkpoint, when they are read."""

_CHECKPOINT = r"(?:best|epoch_([0-9]{3,})(?:_step_([0-9]{6,}))?)"
_SESSION_FILES = r"session(?:-[0-9]+)?\.json|baseline\.json|report\.html|\.lock|\.holder|\.stop-[0-9a-f]+"
_FILES = "|".join(
    (
        _SESSION_FILES,
        r"\.begun|\.progress|config\.json|metrics\.jsonl|result\.json",
        rf"{_CHECKPOINT}\.safetensors|reconstructions_{_CHECKPOINT}\.png|filmstrip\.png",
        r"why_[A-Za-z0-9_-]+\.png|(?:verdicts|curves|tradeoff|reconstructions|examples)\.png",
        r"comparison\.(?:md|json)",
    )
)
_RUN_FILES = {
    r"\.progress": MAX_MARKER,
    r"(?:config|result)\.json|filmstrip\.png": MAX_JSON,
    r"metrics\.jsonl": MAX_METRICS,
    rf"checkpoints/reconstructions_{_CHECKPOINT}\.png": MAX_JSON,
    rf"checkpoints/{_CHECKPOINT}\.safetensors": MAX_CHECKPOINT,
    r"tensorboard/events\.out\.tfevents\.[\w.-]+": MAX_CHECKPOINT,
}
"""Maximum size in bytes of the files that training writes, by pattern of the path in the folder of a run."""
_TEMPORARY = re.compile(rf"\.(?:{_FILES})\.[a-z0-9_]{{8}}\.part|\.progress\.new|{re.escape(STOP)}[0-9a-f]+")


def earlier_record(number: int) -> str:
    """Return the name under which `session.json` is kept when it is changed for the `number`-th time."""
    return f"session-{number}.json"


def run_file_limit(name: str) -> int:
    """Return the maximum size in bytes of a file in the folder of a run; 0 for an unknown name."""
    for pattern, limit in _RUN_FILES.items():
        if re.fullmatch(pattern, name):
            return limit
    return 0


def run_files(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the files of a run by name, each with numbers that differ after the file is replaced."""
    found: dict[str, tuple[int, ...]] = {}
    for folder in (directory, directory / CHECKPOINTS, directory / TENSORBOARD):
        for path in folder.iterdir() if folder.is_dir() else ():
            name = path.relative_to(directory).as_posix()
            if run_file_limit(name) and path.is_file():
                about = path.stat()
                found[name] = about.st_ino, about.st_mtime_ns, about.st_size
    return found


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files in a folder, which an interrupted or killed process left behind."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return [path for path in entries if _TEMPORARY.fullmatch(path.name) and path.is_file()]


def is_session_file(path: Path) -> bool:
    """Return whether a path is a file that bvae writes directly in a session folder."""
    return re.fullmatch(_SESSION_FILES, path.name) is not None and path.is_file()


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first. `best` comes last, because its name has no epoch."""
    return _newest_first(path for path in (directory / CHECKPOINTS).glob("*.safetensors") if path.is_file())


def newest_checkpoint(path: Path) -> Path:
    """Return the newest checkpoint in the folder of a run. Return a file unchanged. Raises ValueError."""
    if not path.is_dir():
        return path
    if found := checkpoints(path):
        return found[0]
    raise ValueError(
        f"{printable(str(path))} has no checkpoint; expected the folder of a run, such as "
        "runs/latest/B-seed0, or a .safetensors file"
    )


def pictured_checkpoints(directory: Path) -> list[Path]:
    """Return the paths of the checkpoints that have a picture, newest first; a file may no longer exist."""
    pictures = (directory / CHECKPOINTS).glob("reconstructions_*.png")
    names = (path.stem.removeprefix("reconstructions_") for path in pictures)
    return _newest_first(directory / CHECKPOINTS / f"{name}.safetensors" for name in names)


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    found = {}
    for path in paths:
        if name := re.fullmatch(_CHECKPOINT, path.stem):
            numbers = [int(number) for number in name.groups() if number]
            found[path] = (*numbers, math.inf) if numbers else ()  # epoch_002 is after epoch_002_step_000123
    return sorted(found, key=found.__getitem__, reverse=True)


def digests(directory: Path, expected: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return the digests of a run's configuration, metrics and newest checkpoint, by path in its folder.

    Args:
        expected: earlier digests; a file whose size has changed is not read, see `file_digest`.

    Raises:
        ValueError: if one of the three is not a file, is too large or cannot be read.
    """
    files = {directory / CONFIG: MAX_JSON, directory / METRICS: MAX_METRICS}
    files |= dict.fromkeys(checkpoints(directory)[:1], MAX_CHECKPOINT)
    found = {}
    for path, limit in files.items():
        with contextlib.suppress(FileNotFoundError):
            name = path.relative_to(directory).as_posix()
            found[name] = file_digest(path, limit, expected.get(name, ""))
    return found


def disk_usage(session: Path) -> tuple[int, int]:
    """Return the size in bytes of all files of a session, and of its checkpoints. Hard links count once."""
    sizes: dict[bool, dict[tuple[int, int], int]] = {False: {}, True: {}}
    for path in session.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if path.is_file():
                found = path.stat()
                sizes[path.suffix == ".safetensors"][found.st_dev, found.st_ino] = found.st_size
    others, of_checkpoints = (sum(each.values()) for each in sizes.values())
    return others + of_checkpoints, of_checkpoints


def picture_of(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's picture."""
    return checkpoint.with_name(f"reconstructions_{checkpoint.stem}.png")
