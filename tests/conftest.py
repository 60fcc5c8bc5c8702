"""Laboratories for the tests that start sessions."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from lab import QUICK, SessionHere, Uninterrupted, evidence, furnish, newest, run_pytest

# Timing varies on shared machines; examples that fail are printed with the code that reproduces them. Where a
# change is judged the examples are always the same, so that its verdict is about the change.
settings.register_profile(
    "bvae", deadline=None, max_examples=50, print_blob=True, derandomize="CI" in os.environ
)
settings.load_profile("bvae")

# Before the first operator: workers with a thread for each core would spin on each other.
torch.set_num_threads(1)

# Shells start background jobs with Ctrl-C ignored, which their children inherit: these tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def lab(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the experiments beside a tiny corpus, outside any xdist session."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    # pytester gives each test a home of its own, in which matplotlib would look for fonts anew every time.
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())
    return furnish(pytester.path)


@pytest.fixture
def uninterrupted(
    lab: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Uninterrupted:
    """The evidence of a session with given settings that nothing happened to, made once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        shared = shared.parent

    def find(*settings: str) -> dict[str, str]:
        kept = shared / f"uninterrupted-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}.json"
        with FileLock(kept.with_suffix(".lock")):
            if not kept.exists():
                folder = furnish(tmp_path_factory.mktemp("uninterrupted"))
                done = run_pytest("experiments/", *QUICK, *settings, "-n0", cwd=folder)
                assert done.returncode == 1, done.stdout + done.stderr
                kept.write_text(json.dumps(evidence(newest(folder))))
        found: dict[str, str] = json.loads(kept.read_text())
        return found

    return find


@pytest.fixture(scope="session")
def matplotlib_kept() -> None:
    """Imports matplotlib before pytester, which forgets later imports; a second one fails."""
    import bvae.visualization.checkpoint_pictures  # noqa: F401


@pytest.fixture
def session_here(matplotlib_kept: None, lab: Path, pytester: pytest.Pytester) -> Iterator[SessionHere]:
    """Runs a session in this process, where faults can be patched in: its exit status and output."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    # Started as `pytest`, the session outside knows bvae by its installed metadata and the one inside by
    # those beside the sources, which ask to rewrite assertions of what has been imported by then.
    settings = ("-n0", "-W", "ignore:Module already imported so cannot be rewritten; bvae")

    def start(*arguments: str) -> tuple[int, str]:
        done = pytester.runpytest_inprocess("experiments/", *settings, *arguments)
        return int(done.ret), f"{done.stdout.str()}\n{done.stderr.str()}"

    yield start
    for number, handler in handlers.items():
        signal.signal(number, handler)
