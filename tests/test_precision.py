from __future__ import annotations

from pathlib import Path

import pytest
from lab import comparison, run_pytest

pytestmark = pytest.mark.slow


def test_bf16_and_fp32_agree_on_real_grids(lab: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        done = run_pytest(
            "experiments/", "--seeds=1", f"--precision={precision}", "-n2", cwd=lab, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[precision] = comparison(lab)["options"]
    for option, wide in found["fp32"].items():
        narrow = found["bf16"][option]
        assert narrow["verdict"] == wide["verdict"]
        accuracies = [run["metrics"]["pixel_accuracy"] for run in (*wide["runs"], *narrow["runs"])]
        assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)
