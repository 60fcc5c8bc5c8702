"""A session that is killed or interrupted and then resumed gives the results of an uninterrupted session."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from lab import (
    QUICK,
    RESUMABLE,
    THREE_SEEDS,
    Uninterrupted,
    evidence,
    newest,
    run_pytest,
    running,
    sabotage,
    wait_for,
)

pytestmark = pytest.mark.slow

Stamps = dict[str, tuple[int, int]]

SESSION_FILES = (
    *("session.json", "latest", "A-seed0/config.json", "checkpoints/epoch_001_step_000002.safetensors"),
    *("reconstructions_epoch_001_step_000002.png", "A-seed0/metrics.jsonl", "epoch_001.safetensors"),
    "A-seed0/checkpoints/best.safetensors",
)
LATER_FILES = (
    *("A-seed0/result.json", "B-seed0/.begun", "B-seed0/checkpoints/epoch_002_step_000004.safetensors"),
    *("B-seed0/result.json", "comparison/curves.png", "comparison/comparison.json"),
)


def go_on(lab: Path, settings: tuple[str, ...], *more: str, **faults: object) -> int:
    """Resume the newest session, or start the first one; return the exit status."""
    sabotage(lab, **faults)
    with running(lab, *next_arguments(lab, settings), *more) as process:
        return process.wait(timeout=120)


def next_arguments(lab: Path, settings: tuple[str, ...]) -> tuple[str, ...]:
    return ("--resume=latest",) if (lab / "runs/latest").exists() else settings


def output(lab: Path) -> str:
    return (lab / "output.txt").read_text()


def complete_runs(lab: Path) -> Stamps:
    """Return the inode and modification time of every file of every complete run."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for result in (lab / "runs").glob("latest/*/result.json")
        for path in sorted(result.parent.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def begun(lab: Path) -> set[tuple[str, str]]:
    """Return each begun run with the invocation that began it."""
    return {(path.parent.name, path.read_text()) for path in (lab / "runs").glob("latest/*/.begun")}


def left_over(lab: Path) -> list[Path]:
    """Return files that an interrupted or killed process leaves behind."""
    session = newest(lab)
    return [*session.rglob("*.part"), *session.rglob(".stop-*"), *session.parent.glob(".*.latest-*")]


@pytest.mark.parametrize("names", [SESSION_FILES, LATER_FILES], ids=["first files", "last files"])
def test_a_session_killed_during_a_write_resumes_with_identical_results(
    lab: Path, uninterrupted: Uninterrupted, names: tuple[str, ...]
) -> None:
    moments = random.Random(0)
    for name in names:
        moment = moments.choice(["half", "before", "after"] if name != "latest" else ["before", "after"])
        complete = complete_runs(lab)
        status = go_on(lab, RESUMABLE, "-n0", kill=[name, moment])
        assert status == -signal.SIGKILL, f"{name} {moment}: {output(lab)}"
        assert complete_runs(lab).items() >= complete.items()
    assert go_on(lab, RESUMABLE, "-n0") == 1, output(lab)
    assert evidence(newest(lab)) == uninterrupted(*RESUMABLE)
    assert left_over(lab) == []


def test_two_workers_killed_at_random_resume_with_identical_results(
    lab: Path, uninterrupted: Uninterrupted
) -> None:
    settings, moments = THREE_SEEDS, random.Random(1)
    for _ in range(3):
        complete, before = complete_runs(lab), begun(lab)
        sabotage(lab, slow=0.3)
        with running(lab, *next_arguments(lab, settings), "-n2") as process:
            wait_for(lambda: begun(lab) - before or process.poll() is not None)  # noqa: B023
            time.sleep(moments.uniform(0, 1.5))
            assert process.poll() is None, output(lab)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert complete_runs(lab).items() >= complete.items()
    assert go_on(lab, settings, "-n2") == 1, output(lab)
    assert evidence(newest(lab)) == uninterrupted(*settings)
    assert left_over(lab) == []


def test_a_killed_controller_leaves_neither_a_lock_nor_workers(
    lab: Path, uninterrupted: Uninterrupted
) -> None:
    sabotage(lab, slow=3.0)
    with running(lab, *RESUMABLE, "-n2") as process:
        wait_for(lambda: len(begun(lab)) == 2)
        refused = run_pytest("experiments/", *QUICK, "--resume=latest")
        assert refused.returncode == 4, refused.stdout + refused.stderr
        assert f"is in use by process {process.pid};" in one_error(refused.stderr)
        workers = children(process.pid)
        assert len(workers) >= 2
        process.kill()
        sabotage(lab)
        with running(lab, "--resume=latest", "-n2", output="resumed.txt") as resumed:
            wait_for(lambda: not any(map(is_alive, workers)), seconds=10)
            assert resumed.wait(timeout=120) == 1, (lab / "resumed.txt").read_text()
    assert evidence(newest(lab)) == uninterrupted(*RESUMABLE)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def one_error(text: str) -> str:
    """Return the only line of an error output, which must be an error message for users."""
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1, text
    assert lines[0].startswith("ERROR: "), text
    return lines[0]


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_an_interrupted_session_says_how_to_resume_and_ends_identically(
    lab: Path, uninterrupted: Uninterrupted, workers: str
) -> None:
    moments = random.Random(2)
    interrupts = [(signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)]
    if workers == "-n2":  # the signal may reach only the controller, or the workers too
        interrupts += [(signal.SIGINT, os.kill), (signal.SIGTERM, os.killpg)]
    for interrupt, send in interrupts:
        before = begun(lab)
        sabotage(lab, slow=0.3)
        with running(lab, *next_arguments(lab, RESUMABLE), workers) as process:
            wait_for(lambda: bool(begun(lab) - before))  # noqa: B023
            time.sleep(moments.uniform(0, 0.6))
            send(process.pid, interrupt)
            assert process.wait(timeout=12) == pytest.ExitCode.INTERRUPTED, output(lab)
        assert f"Resume with: pytest experiments/ --resume={newest(lab)}" in output(lab)
        for complaint in ("crashed", "node down", "Not properly terminated", "INTERNALERROR", "Traceback ("):
            assert complaint not in output(lab)
    others = {"-n0": ("-n2",), "-n2": ("-n0", "--html=other.html")}[workers]
    assert go_on(lab, RESUMABLE, *others) == 1, output(lab)
    assert evidence(newest(lab)) == uninterrupted(*RESUMABLE)
    assert left_over(lab) == []


def test_an_interruption_that_python_drops_is_raised_again(lab: Path) -> None:
    sabotage(lab, slow=0.3, deaf=["A-seed0", 2])
    with running(lab, *RESUMABLE, "-n0") as process:
        wait_for((lab / "deaf").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=12) == pytest.ExitCode.INTERRUPTED, output(lab)
    assert "Resume with: pytest experiments/ --resume=" in output(lab)


def test_two_sessions_started_at_once_are_both_complete(lab: Path, uninterrupted: Uninterrupted) -> None:
    with running(lab, *RESUMABLE, "-n0", output="1.txt") as one, running(lab, *RESUMABLE, "-n0") as two:
        assert {one.wait(timeout=120), two.wait(timeout=120)} == {1}, output(lab)
    sessions = [path for path in (lab / "runs").iterdir() if not path.is_symlink()]
    assert len(sessions) == 2
    assert newest(lab) in [path.resolve() for path in sessions]
    for session in sessions:
        assert evidence(session) == uninterrupted(*RESUMABLE)
