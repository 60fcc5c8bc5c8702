"""Faults in the sessions that a test starts. Tests copy this file to their folder as conftest.py.

`sabotage.json` in the same folder selects the faults: {"kill": ["result.json", "half"], "slow": 0.1, …}.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from pathlib import Path

FAULTS = json.loads(Path(__file__).with_name("sabotage.json").read_text())


def die() -> None:
    """Kill controller and workers at once, as a loss of power would."""
    os.killpg(0, signal.SIGKILL)


def kill_while_writing(name: str, moment: str) -> None:
    """Die when a file whose path ends in `name` is half written, or right before or after it is renamed."""
    fsync, mkstemp, replace = os.fsync, tempfile.mkstemp, Path.replace
    unfinished: dict[int, str] = {}

    def mkstemp_noting(prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        handle, part = mkstemp(prefix=prefix, suffix=suffix, dir=dir)
        unfinished[handle] = f"{dir}/{prefix[1:-1]}"
        return handle, part

    def fsync_or_die(handle: int) -> None:
        if moment == "half" and unfinished.pop(handle, "").endswith(name):
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        fsync(handle)

    def replace_or_die(source: Path, target: Path) -> Path:
        if not str(target).endswith(name):
            return replace(source, target)
        if moment == "before":
            die()
        replaced = replace(source, target)
        if moment == "after":
            die()
        return replaced

    os.fsync, tempfile.mkstemp, Path.replace = fsync_or_die, mkstemp_noting, replace_or_die  # type: ignore[assignment]


class Deaf:
    """Deleting this object takes a second. Meanwhile Python drops all exceptions, even KeyboardInterrupt."""

    def __del__(self) -> None:
        Path("deaf").touch()
        time.sleep(1)


def disturb_steps(slow: float, deaf: list, kill: list) -> None:
    """Slow down all steps, drop exceptions in step `deaf`, die in step `kill`. A step is [run, number]."""
    from bvae.trainer import Trainer

    step = Trainer._step

    def disturbed_step(self, rows):
        now = [self.config.name, self.progress.step + 1]
        time.sleep(slow)
        if now == deaf:
            Deaf()
        if now == kill:
            die()
        return step(self, rows)

    Trainer._step = disturbed_step  # type: ignore[method-assign]


def draw_nothing(reason: str) -> None:
    """Make every picture of reconstructions fail."""
    import bvae.session.listeners

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(reason)

    bvae.session.listeners.plot_reconstructions = fail  # type: ignore[assignment]


if "kill" in FAULTS:
    kill_while_writing(*FAULTS["kill"])
if FAULTS.keys() & {"slow", "deaf", "kill_step"}:
    disturb_steps(FAULTS.get("slow", 0.0), FAULTS.get("deaf", []), FAULTS.get("kill_step", []))
if "picture" in FAULTS:
    draw_nothing(FAULTS["picture"])
