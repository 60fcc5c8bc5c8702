from __future__ import annotations

from pathlib import Path

import pytest
from lab import comparison, run_pytest

from bvae.hardware import resolve_precision

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.skipif(
    resolve_precision("auto") != "bf16",
    reason="this processor has no bf16 instructions",
)
def test_bf16_and_fp32_agree_on_real_objects(lab: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        settings = (f"--precision={precision}", "--loss-options=B", "--seeds=1", "-n1")
        done = run_pytest("experiments/", *settings, cwd=lab, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        found[precision] = comparison(lab)["options"]
    for option, wide in found["fp32"].items():
        (exact,), (rounded,) = wide["runs"], found["bf16"][option]["runs"]
        assert rounded["verdict"] == exact["verdict"]
        for name in ("pixel_accuracy", "object_iou"):
            # Rounding changes a run as much as another seed. The deviation over seeds is at most 0.01.
            assert rounded["metrics"][name] == pytest.approx(exact["metrics"][name], abs=0.02), (option, name)
