"""Sessions on systems that lack a feature. In the first test, one system call is made to fail."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import TINY, newest, run_pytest, running, wait_for

pytestmark = pytest.mark.slow

FAILING = """
import errno, os
from pathlib import Path

def fail(*arguments, **keywords):
    raise OSError({number}, os.strerror({number}))

{place} = fail
"""

OPEN_FILES_ALONE = """
import errno, os

opened = os.open

def open_files_alone(path, *arguments, **keywords):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return opened(path, *arguments, **keywords)

os.open = open_files_alone
"""

FLUSH_FILES_ALONE = """
import errno, os, stat

flush = os.fsync

def flush_files_alone(handle):
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    flush(handle)

os.fsync = flush_files_alone
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    {
        "symlink is refused": (
            FAILING.format(place="os.symlink", number=errno.EPERM),
            "name the session folder instead of 'latest'",
        ),
        "flock is unknown": (
            "import fcntl" + FAILING.format(place="fcntl.flock", number=errno.ENOSYS),
            "the file system has no locks",
        ),
        "flock is not supported": (
            "import fcntl" + FAILING.format(place="fcntl.flock", number=errno.ENOTSUP),
            "the file system has no locks",
        ),
        "fsync refuses folders": (FLUSH_FILES_ALONE, "folders cannot be flushed"),
        "open refuses folders, as on Windows": (OPEN_FILES_ALONE, "folders cannot be flushed"),
        "chmod is refused": (
            FAILING.format(place="os.chmod", number=errno.EPERM) + "Path.chmod = fail",
            "chmod is refused",
        ),
    }.values(),
    ids=[
        *("symlink is refused", "flock is unknown", "flock is not supported", "fsync refuses folders"),
        *("open refuses folders, as on Windows", "chmod is refused"),
    ],
)
def test_a_session_runs_and_says_which_guarantee_is_weaker(lab: Path, fault: str, said: str) -> None:
    (lab / "conftest.py").write_text(fault)
    done = run_pytest("experiments/", *TINY, "-n2", "--loss-options", "A,B")
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    (session,) = sessions(lab)
    assert all((session / run / "result.json").exists() for run in ("A-seed0", "B-seed0"))
    assert (session / "comparison/comparison.json").exists()


def sessions(lab: Path) -> list[Path]:
    """Return the session folders, without `latest` if it is a link."""
    return [path for path in (lab / "runs").iterdir() if not path.is_symlink()]


def test_a_session_in_a_folder_named_latest_is_resumed_and_kept(lab: Path) -> None:
    assert run_pytest("experiments/", *TINY, "-n0", "--loss-options", "A").returncode == 1
    session = newest(lab)
    (lab / "runs/latest").unlink()
    session.rename(lab / "runs/latest")
    (lab / "runs/latest/A-seed0/result.json").unlink()
    done = run_pytest("experiments/", "--resume", "latest", "-n0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (lab / "runs/latest/A-seed0/result.json").exists()
    done = run_pytest("experiments/", *TINY, "-n0", "--loss-options", "A")
    assert "name the session folder instead of 'latest'" in done.stdout + done.stderr
    assert not (lab / "runs/latest").is_symlink()
    assert len(sessions(lab)) == 2


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["options"], 0),
        (["train", "--option=γ"], 4),
        (["train", b"--corpus=\xff"], 4),
        (["train", b"--beta=\xff"], 4),
        (["train", b"\xff"], 4),
        (["report", b"\xff"], 4),
        (["show", "no.safetensors", b"--output=\xff"], 4),
    ],
    ids=str,
)
def test_text_that_a_terminal_cannot_show_causes_no_traceback(
    tmp_path: Path, arguments: list[str | bytes], status: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bvae", *arguments],
        cwd=tmp_path,
        capture_output=True,
        encoding="cp1252",
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert status == 0 or done.stderr.startswith("ERROR: ")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (b"--corpus=\xff", r"argument --corpus: '\udcff' is not UTF-8; rename the file or folder"),
        (b"--beta=\xff", r"ERROR: --beta is '\udcff'; expected a number"),
        (b"-k\xff", r"ERROR: Wrong expression passed to '-k': \udcff"),
    ],
    ids=str,
)
def test_text_that_is_not_utf_8_is_refused_in_pytest(lab: Path, argument: bytes, message: str) -> None:
    done = run_pytest("experiments/", *TINY, "-n0", argument)
    assert done.returncode == 4, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr
    assert not [*lab.glob("runs/*")]


def test_a_session_ends_normally_if_the_terminal_cannot_show_greek(lab: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = run_pytest("experiments/", *TINY, "-n0", "--loss-options", "A", env=environment, encoding="cp1252")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout
    assert "Session: " in done.stdout


def test_a_session_ends_if_its_folder_is_removed_while_workers_start(lab: Path) -> None:
    with running(lab, *TINY, "-n2") as process:
        wait_for(lambda: any(lab.glob("runs/2*/.holder")))
        (session,) = sessions(lab)
        while session.exists():  # workers add files meanwhile
            shutil.rmtree(session, ignore_errors=True)
        assert process.wait(timeout=60) == 1
    assert f"The session folder {session} was removed" in (lab / "output.txt").read_text()
