"""Fixtures for the tests of reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab import QUICK, TESTS, MadeOnce
from large_session import ManyRuns

OPTIONS, SEEDS = 6, 20


@pytest.fixture(scope="session")
def many_runs(made_once: MadeOnce) -> ManyRuns:
    """A session with many runs, and its reports; created once for all workers."""
    folder = made_once("many runs", make_reports)
    (session,) = (folder / "runs").glob("2*")
    pages = (session / "report.html", folder / "out/report.html")
    return ManyRuns(OPTIONS, SEEDS, session, pages, (folder / "output.txt").read_text())


def make_reports(folder: Path) -> None:
    """Make a session and its reports in a folder. Write the output of the commands to `output.txt`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    def run(*command: str | Path, expected: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout

    session = run(TESTS / "large_session.py", str(OPTIONS), str(SEEDS)).strip()
    output = run("-m", "bvae", "report", session)
    html = ("-n0", "--html=out/report.html", f"--resume={session}")
    output += run("-m", "pytest", "experiments/", *QUICK, *html, expected=1)
    assert f"{OPTIONS * SEEDS} xfailed" in output
    (folder / "output.txt").write_text(output)
