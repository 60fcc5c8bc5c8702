"""The display of progress. Processes that train write `.progress` files, and the controller reads them."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bvae.config import RunConfig
from bvae.session_files import PROGRESS, RESULT
from bvae.storage import read_json

LOOK_SECONDS, LOOKED_AT = 0.5, 200
"""Seconds between two reads of all files, for up to 200 runs; longer in proportion for more runs."""

NAMED = 4
"""Maximum number of runs in training that a line names."""

MOST_LINES = 100
"""With more runs, an output that is not a terminal gets about one line per percent of the runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """The content of `.progress`: the position of a run, and its speed over the last steps.

    Attributes:
        may_end: whether the run may end before `steps`, because of `--until-plateau`.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    images_per_second: float
    may_end: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.step <= self.steps and self.steps > 0 and self.images_per_second >= 0.0):
            raise ValueError(f"step {self.step} of {self.steps} at {self.images_per_second} images/s")


def _read(directory: Path) -> Note | None:
    try:
        return read_json(directory / PROGRESS, Note)
    except (OSError, ValueError):
        return None  # no step is done yet


def describe_progress(
    notes: Mapping[str, Note], finished: int, runs: int, share: float, elapsed: float
) -> str:
    """Return one line: the number of finished runs, the runs in training by name, and the remaining time.

    The remaining time is estimated from the share of all epochs that was trained in `elapsed` seconds. It is
    not shown if a run may end early.
    """
    training = [
        (
            f"{name} epoch {note.epoch} of at most {note.epochs}"
            if note.may_end
            else f"{name} epoch {note.epoch}/{note.epochs} ({note.step / note.steps:.0%})"
        )
        for name, note in [*notes.items()][:NAMED]
    ]
    if len(notes) > NAMED:
        training.append(f"{len(notes) - NAMED} more")
    if finished == runs:
        return f"{runs} of {runs} runs done"
    pace = sum(note.images_per_second for note in notes.values())
    known = share > 1e-6 and elapsed > 2 and not any(note.may_end for note in notes.values())
    left = f", about {_duration(elapsed * (1 - share) / share)} left" if known else ""
    rate = f", {pace:,.0f} images/s" if notes else ""
    return f"{finished} of {runs} runs done; {', '.join(training) or 'starting'}{rate}{left}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"


class ProgressDisplay(threading.Thread):
    """Shows progress while runs train: on a terminal in one line, elsewhere in a new line for each change.

    Args:
        session: the session folder.
        runs: the runs whose progress is shown.
        write: function that writes text for the user.
        live: whether `write` writes to a terminal.
    """

    def __init__(
        self, session: Path, runs: Sequence[RunConfig], write: Callable[[str], object], *, live: bool
    ) -> None:
        super().__init__(name="progress", daemon=True)
        self.session, self.runs, self.write, self.live = session, runs, write, live
        self._stop_asked = threading.Event()
        self._began = time.monotonic()
        self._finished_before = self._finished()
        self._shown: object = None

    def run(self) -> None:
        pause = LOOK_SECONDS * max(1.0, len(self.runs) / LOOKED_AT)
        while not self._stop_asked.wait(pause) and len(self._finished()) < len(self.runs):
            self.show()
        if self.live:
            self.write("\r\x1b[K")

    def stop(self) -> None:
        """End the display. On a terminal, clear the line."""
        self._stop_asked.set()
        self.join()

    def show(self) -> None:
        """Read the session folder, and write a line if the progress has changed."""
        finished = self._finished()
        notes = {
            run.name: note
            for run in self.runs
            if run.name not in finished and (note := _read(self.session / run.name))
        }
        before = self._finished_before & finished  # an invalid result may have been removed
        epochs = {run.name: run.training.epochs for run in self.runs if run.name not in before}
        done = sum(epochs[name] for name in finished - before)
        begun = sum(epochs[name] * note.step / note.steps for name, note in notes.items())
        line = describe_progress(
            notes,
            len(finished) - len(before),
            len(epochs),
            (done + begun) / max(1, sum(epochs.values())),
            time.monotonic() - self._began,
        )
        if self.live:
            self.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        elif (state := self._state(finished, notes)) != self._shown:
            self._shown = state
            self.write(f"{line}\n")

    def _state(self, finished: frozenset[str], notes: Mapping[str, Note]) -> object:
        """Return what a new line would show: finished runs and epochs, or the percentage of many runs."""
        if len(self.runs) > MOST_LINES:
            return MOST_LINES * len(finished) // len(self.runs)
        return finished, *((name, note.epoch) for name, note in notes.items())

    def _finished(self) -> frozenset[str]:
        return frozenset(run.name for run in self.runs if (self.session / run.name / RESULT).exists())
