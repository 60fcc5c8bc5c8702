from __future__ import annotations

from math import sqrt
from pathlib import Path
from statistics import mean, variance

import pytest
from lab import comparison, run_pytest

pytestmark = pytest.mark.slow


def test_bf16_and_fp32_agree_on_real_grids(lab: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        done = run_pytest("experiments/", f"--precision={precision}", "-n2", cwd=lab, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        found[precision] = comparison(lab)["options"]
    for option, wide in found["fp32"].items():
        narrow = found["bf16"][option]
        assert [run["verdict"] for run in narrow["runs"]] == [run["verdict"] for run in wide["runs"]]
        wides, narrows = (
            [run["metrics"]["pixel_accuracy"] for run in runs["runs"]] for runs in (wide, narrow)
        )
        # Two points, but where seeds of one precision are further apart than that, as those of C
        # are, no three of them could tell: there the bound is twice the standard error.
        error = sqrt((variance(wides) + variance(narrows)) / len(wides))
        assert mean(narrows) == pytest.approx(mean(wides), abs=max(0.02, 2 * error)), option
