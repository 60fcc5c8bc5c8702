"""Functions that start sessions in child processes on a tiny corpus, and that read the files of sessions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TINY = ("--corpus=corpus.npz", "--grid-size", "8", "--epochs", "2", "--seeds", "1", "--batch-size", "16")
"""Options with which a run takes a fraction of a second."""

RESUMABLE = (*TINY, "--loss-options", "A,B", "--checkpoint-every-steps", "2")
"""Options for two runs of six steps with four checkpoints each."""

THREE_SEEDS = (*TINY, "--loss-options", "A", "--seeds", "3")
"""Options for three runs of one loss option."""

SessionHere = Callable[..., tuple[int, str]]
Uninterrupted = Callable[..., dict[str, str]]
MadeOnce = Callable[[str, Callable[[Path], None]], Path]

QUICK = ("-p", "no:hypothesispytest")
"""Leaves out the plugin of Hypothesis, which takes a second to load."""


def furnish(folder: Path) -> Path:
    """Copy the experiments into a folder, and add a tiny corpus; return the folder."""
    (folder / "experiments").mkdir()
    shutil.copy(ROOT / "experiments/test_loss_options.py", folder / "experiments")
    shutil.copy(ROOT / "pytest.ini", folder)
    grids = np.random.default_rng(0).integers(0, 10, (60, 8, 8)) * (np.arange(8) < 3)
    np.savez(folder / "corpus.npz", train=grids[:48], val=grids[48:])
    return folder


def squares() -> dict[str, np.ndarray]:
    """Return splits of grids that are quickly learned: two squares each, in four places and three colours.

    Each grid also has one more coloured cell, so that few grids are in both splits.
    """
    rng = np.random.default_rng(3)
    corners = np.array([(0, 0), (0, 5), (5, 0), (5, 5)])
    grids = np.zeros((2460, 8, 8), int)
    for grid in grids:
        for row, column in corners[rng.permutation(4)[:2]]:
            grid[row : row + 3, column : column + 3] = rng.integers(1, 4)
        grid[tuple(rng.choice(np.argwhere(grid == 0)))] = rng.integers(1, 4)
    return {"train": grids[:2400], "val": grids[2400:]}


def run_pytest(*arguments: str, timeout: float = 120, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", *QUICK, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **more)


def sabotage(lab: Path, **faults: Any) -> None:
    """Set the faults of the next sessions in a lab folder, or no faults; see `sabotage.py`."""
    shutil.copy(TESTS / "sabotage.py", lab / "conftest.py")
    (lab / "sabotage.json").write_text(json.dumps(faults))


@contextlib.contextmanager
def running(
    lab: Path, *arguments: str, output: str = "output.txt", **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a session in a separate process group, which is killed on exit."""
    command = [sys.executable, "-m", "pytest", "experiments/", *QUICK, *arguments]
    with (lab / output).open("wb") as file:
        process = subprocess.Popen(
            command, cwd=lab, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **more
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def newest(lab: Path) -> Path:
    return (lab / "runs/latest").resolve()


def comparison(lab: Path) -> dict:
    return json.loads((newest(lab) / "comparison/comparison.json").read_text())


def weights_hash(run: Path) -> str:
    tensors = load_file(run / "checkpoints/epoch_002.safetensors")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


def hashes(session: Path) -> dict[str, str]:
    return {run.name: weights_hash(run) for run in session.glob("*-seed*")}


def evidence(session: Path) -> dict[str, str]:
    """Return a hash of every file except `session*.json` and hidden files. No interruption may change it.

    The hashes leave out wall times, and the checksums, digests and seals that depend on wall times.
    """
    return {
        str(path.relative_to(session)): hashlib.sha256(_timeless(path)).hexdigest()
        for path in sorted(session.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and not path.name.startswith("session")
    }


def _timeless(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".png":
        return data
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
        header = re.sub(rb'checksum\\":\\"[0-9a-f]{64}', b"", data[8:end]).rstrip(b" ")
        return _without_seconds(header) + data[end:]
    return _without_seconds(re.sub(rb'"(digests|seal)": ("[0-9a-f]*"|\{[^}]*\})', b"", data))


def _without_seconds(text: bytes) -> bytes:
    return re.sub(rb'\\?"(epoch_)?seconds\\?": ?[0-9.e-]+', b"", text)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true after {seconds:g} s"
        time.sleep(0.02)
