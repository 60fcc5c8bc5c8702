"""A picture that cannot be drawn costs nothing but itself; a number that is not finite ends its run alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lab import RESUMABLE, TINY, Uninterrupted, evidence, furnish, newest, running, sabotage

from bvae.experiment import Experiment
from bvae.options import parse_experiment
from bvae.records import Progress
from bvae.training.checkpoint import load_checkpoint
from bvae.training.schedule import epoch_order

pytestmark = pytest.mark.slow


def checkpoints(found: dict[str, str], run: str = "") -> dict[str, str]:
    return {name: bits for name, bits in found.items() if name.startswith(run) and "safetensors" in name}


def test_a_picture_that_cannot_be_drawn_is_reported_and_changes_nothing_else(
    lab: Path, uninterrupted: Uninterrupted
) -> None:
    sabotage(lab, picture="no <b>ink</b>")
    with running(lab, *RESUMABLE, "-n2", "-k", "seed", "--html=report.html") as process:
        assert process.wait(timeout=120) == pytest.ExitCode.OK
    session, said = newest(lab), (lab / "output.txt").read_text()
    assert checkpoints(evidence(session)) == checkpoints(uninterrupted(*RESUMABLE))
    assert not list(session.glob("*/checkpoints/*.png"))
    for run in ("A-seed0", "B-seed0"):
        failures = json.loads((session / run / "result.json").read_text())["failed_pictures"]
        assert len(failures) == 4
        assert all(failure.endswith("RuntimeError: no <b>ink</b>") for failure in failures)
        assert f"EvidenceWarning: {run} lacks a picture: reconstructions_epoch_002.png" in said
    report = (lab / "report.html").read_text()
    assert "no <b>ink" not in report
    assert "ink&lt;/b&gt;" in report.replace("&amp;", "&")


def test_pictures_that_could_not_be_drawn_ahead_are_reported_with_the_run(lab: Path) -> None:
    sabotage(lab, picture="no ink")
    with running(lab, *TINY, "--epochs", "4", "-n2", "-k", "seed") as process:
        assert process.wait(timeout=120) == pytest.ExitCode.OK
    failures = json.loads((newest(lab) / "C-seed0/result.json").read_text())["failed_pictures"]
    assert "reconstructions_epoch_001.png: was not drawn before the run was taken up again" in failures
    assert {f"epoch_{epoch:03d}" for epoch in range(1, 5)} == set(
        re.findall(r"epoch_\d+", " ".join(failures))
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_becomes_nan_ends_its_run_at_once_and_no_other(
    lab: Path, uninterrupted: Uninterrupted, precision: str
) -> None:
    settings = (*RESUMABLE, f"--precision={precision}")
    sabotage(lab, nan=["B-seed0", 5])
    with running(lab, *settings, "-n0", "-k", "seed") as process:
        assert process.wait(timeout=120) == pytest.ExitCode.OK
    session, whole = newest(lab), uninterrupted(*settings)
    result = json.loads((session / "B-seed0/result.json").read_text())
    assert result["verdict"] == "diverged"
    assert result["divergence"] == {
        "epoch": 2,
        "step": 5,
        "batch": epoch_order(0, 1, 48)[16:32].tolist(),
        "terms": {"loss": "nan", "reconstruction": "nan", "kl": "nan", "gradient_norm": "nan"},
    }
    left = checkpoints(evidence(session), "B-seed0/checkpoints/epoch")
    assert left == {name: whole[name] for name in left}
    assert "B-seed0/checkpoints/epoch_002_step_000004.safetensors" in left
    assert "B-seed0/checkpoints/epoch_002.safetensors" not in left
    for path in (session / "B-seed0/checkpoints").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_checkpoint(path, Progress).tensors.values())
    others = {name: bits for name, bits in whole.items() if name.startswith("A-")}
    assert others.items() <= evidence(session).items()


@pytest.mark.parametrize(("rate", "diverges"), [("1e5", True), ("0.03", False)])
@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_only_what_is_not_finite_is_called_diverged(
    tmp_path: Path, option: str, rate: str, diverges: bool
) -> None:
    corpus = furnish(tmp_path) / "corpus.npz"
    given = {"grid_size": "8", "epochs": "3", "seeds": "1", "batch_size": "16", "corpus": str(corpus)}
    experiment = parse_experiment(given | {"learning_rate": rate, "loss_options": option})
    laboratory = Experiment.prepare(experiment, tmp_path / "runs", [])
    laboratory.open_session()
    result = laboratory.obtain((experiment.options[0], 0))
    assert (result.verdict == "diverged") == diverges
    assert (result.divergence is not None) == diverges
    assert not diverges or {"inf", "-inf", "nan"} & set(result.divergence.terms.values())
