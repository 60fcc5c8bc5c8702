"""The code for GPUs trains a run on a device that stands in for a GPU. `--device cuda` itself is not run."""

from __future__ import annotations

import pytest
from lab import ROOT, run_pytest


@pytest.mark.slow
def test_runs_on_a_device_that_stands_in_for_a_gpu() -> None:
    """In a child process, because PyTorch must know the device before it computes a gradient."""
    done = run_pytest("tests/training/on_pretend_gpu.py", "-n0", cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout
