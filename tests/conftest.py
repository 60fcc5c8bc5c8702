"""Fixtures for the tests that start sessions."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from lab import QUICK, MadeOnce, SessionHere, Uninterrupted, evidence, furnish, newest, run_pytest

# No deadline, because timing varies on shared machines. Failing examples are printed with code to reproduce
# them. In CI the examples are always the same, so that a failure is caused by the change and not by chance.
settings.register_profile(
    "bvae", deadline=None, max_examples=50, print_blob=True, derandomize="CI" in os.environ
)
settings.load_profile("bvae")

# Set this before the first PyTorch operator. With several threads each, workers would compete for the cores.
torch.set_num_threads(1)

# A shell ignores SIGINT in background jobs, and child processes inherit this. Tests that send SIGINT need the
# default handler.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def lab(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the experiments and a tiny corpus; removes environment variables of pytest-xdist."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    # pytester gives each test its own home folder, where matplotlib would rebuild its font cache.
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())
    return furnish(pytester.path)


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MadeOnce]:
    """Return a function that returns a folder by name. The first worker that needs a folder fills it.

    Tests of all workers read such a folder at once, so no test may change it.
    """
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        shared = shared.parent
    found: dict[Path, Path] = {}

    def find(name: str, make: Callable[[Path], None]) -> Path:
        folder, made = shared / name, shared / f"{name} is made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                folder.mkdir()
                make(furnish(folder))
                made.write_text(times(folder))
        found[folder] = made
        return folder

    yield find
    for folder, made in found.items():
        assert times(folder) == made.read_text(), "a test changed this folder, which tests share"


def times(folder: Path) -> str:
    """Return when each file and folder in a folder was changed, also by a file that is gone by now."""
    return "\n".join(f"{path} {path.lstat().st_mtime_ns}" for path in sorted([folder, *folder.rglob("*")]))


@pytest.fixture
def uninterrupted(lab: Path, made_once: MadeOnce) -> Uninterrupted:
    """Return a function that returns the evidence of an uninterrupted session, made once for all workers."""

    def find(*settings: str) -> dict[str, str]:
        def make(folder: Path) -> None:
            done = run_pytest("experiments/", *QUICK, *settings, "-n0", cwd=folder)
            assert done.returncode == 1, done.stdout + done.stderr
            (folder / "evidence.json").write_text(json.dumps(evidence(newest(folder))))

        name = f"uninterrupted {hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}"
        found: dict[str, str] = json.loads((made_once(name, make) / "evidence.json").read_text())
        return found

    return find


@pytest.fixture(scope="session")
def matplotlib_kept() -> None:
    """Import matplotlib before pytester, which unloads later imports. Importing it a second time fails."""
    import bvae.session.listeners  # noqa: F401


@pytest.fixture
def session_here(matplotlib_kept: None, lab: Path, pytester: pytest.Pytester) -> SessionHere:
    """Return a function that runs a session in this process and returns exit status and output."""
    # The inner session loads the plugin again and wants to rewrite the assertions of modules that are already
    # imported. pytest warns about this; the warning is ignored.
    settings = ("-n0", "-W", "ignore:Module already imported so cannot be rewritten; bvae")

    def start(*arguments: str, **more: Any) -> tuple[int, str]:
        done = pytester.runpytest_inprocess("experiments/", *settings, *arguments, **more)
        return int(done.ret), f"{done.stdout.str()}\n{done.stderr.str()}"

    return start
