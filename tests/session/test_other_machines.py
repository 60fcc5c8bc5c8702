"""What a session does on systems that lack something: one system call is made to fail, as the names say."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from lab import TINY, newest, run_pytest

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
            "name the folder of the session instead of 'latest'",
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
def test_a_session_runs_and_says_which_promise_is_weaker_where(lab: Path, fault: str, said: str) -> None:
    (lab / "conftest.py").write_text(fault)
    done = run_pytest("experiments/", *TINY, "-n2", "--loss-options", "A,B")
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    (session,) = sessions(lab)
    assert all((session / run / "result.json").exists() for run in ("A-seed0", "B-seed0"))
    assert (session / "comparison/comparison.json").exists()


def sessions(lab: Path) -> list[Path]:
    """The session folders, `latest` not counted if it is a link."""
    return [path for path in (lab / "runs").iterdir() if not path.is_symlink()]


def test_a_session_unpacked_as_the_folder_latest_is_resumed_and_left_alone(lab: Path) -> None:
    assert run_pytest("experiments/", *TINY, "-n0", "--loss-options", "A").returncode == 1
    session = newest(lab)
    (lab / "runs/latest").unlink()
    session.rename(lab / "runs/latest")
    (lab / "runs/latest/A-seed0/result.json").unlink()
    done = run_pytest("experiments/", "--resume", "latest", "-n0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (lab / "runs/latest/A-seed0/result.json").exists()
    done = run_pytest("experiments/", *TINY, "-n0", "--loss-options", "A")
    assert "name the folder of the session instead of 'latest'" in done.stdout + done.stderr
    assert not (lab / "runs/latest").is_symlink()
    assert len(sessions(lab)) == 2
