"""A session of a model that draws random numbers has the same weights on any number of workers."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab import RESUMABLE, TESTS, hashes, newest, run_pytest


def test_dropout_gives_the_same_bits_on_any_number_of_workers(lab: Path) -> None:
    shutil.copy(TESTS / "own_models.py", lab)
    found = []
    for workers in ("-n0", "-n2"):
        done = run_pytest("experiments/", *RESUMABLE, "--model=own_models:Dropout", workers, cwd=lab)
        assert done.returncode == 1, done.stdout + done.stderr
        found.append(hashes(newest(lab)))
    assert found[0] == found[1]
    assert len(set(found[0].values())) == 2
