"""Sessions whose runs end when the validation loss no longer falls."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from lab import TINY, Uninterrupted, evidence, newest, running, sabotage

from bvae.config import TrainingConfig
from bvae.session.folder import read_history
from bvae.verdict import on_plateau

pytestmark = pytest.mark.slow

LIMIT, PATIENCE = 30, 2
PLATEAU = (
    *(*TINY, "--loss-options", "A", "--learning-rate", "0.1", "--checkpoint-every", "2"),
    *("--checkpoint-every-steps", "2", "--epochs", f"{LIMIT}", "--until-plateau", f"{PATIENCE}"),
)
"""Options with a learning rate at which the loss rises after a few epochs."""


def run(lab: Path, *arguments: str, **faults: object) -> tuple[int, str]:
    sabotage(lab, **faults)
    with running(lab, *arguments, "-n0", "--html=report.html") as process:
        return process.wait(timeout=120), (lab / "output.txt").read_text()


def test_runs_end_on_a_plateau_even_if_they_are_interrupted(lab: Path, uninterrupted: Uninterrupted) -> None:
    """The second interruption is between the end of a run and its result, so no epoch may follow."""
    for name in ("A-seed0/checkpoints/epoch_002_step_000004.safetensors", "A-seed0/result.json"):
        arguments = PLATEAU if not (lab / "runs").exists() else ("--resume=latest",)
        status, said = run(lab, *arguments, kill=[name, "before"])
        assert status == -signal.SIGKILL, said
    status, said = run(lab, "--resume=latest")
    assert status == 1, said
    session = newest(lab)
    assert evidence(session) == uninterrupted(*PLATEAU)

    training = TrainingConfig(epochs=LIMIT, until_plateau=PATIENCE)
    page, listed = (lab / "report.html").read_text(), (session / "comparison/comparison.md").read_text()
    history = read_history(session / "A-seed0")
    ends = [on_plateau(history[:epoch], training) for epoch in range(1, len(history) + 1)]
    assert ends == [False] * (len(history) - 1) + [True]
    assert history[-1].learning_rate == pytest.approx(0.1 * min(1, history[-1].step / 50))
    assert (session / f"A-seed0/checkpoints/epoch_{len(history):03d}.safetensors").exists()
    assert f"ended after epoch {len(history)}, on a plateau" in page
    assert re.search(rf"A-seed0: .* {len(history)}, ended by the plateau", listed)
    assert f"or after {LIMIT} epochs in all" in said
    assert "after the last epoch of each run" in " ".join(page.split())
    assert json.loads((session / "A-seed0/config.json").read_text())["training"]["until_plateau"] == PATIENCE
