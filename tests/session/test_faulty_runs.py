"""A picture that cannot be drawn affects nothing else. A loss that is not finite ends only its own run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import RESUMABLE, Uninterrupted, evidence, furnish, newest, running, sabotage

from bvae.experiment import Experiment
from bvae.losses import BetaVAELoss
from bvae.options import parse_experiment
from bvae.records import Progress
from bvae.trainer import Trainer
from bvae.training.checkpoint import OPTIMIZER, load_checkpoint
from bvae.training.optimization import epoch_order

pytestmark = pytest.mark.slow


def checkpoints(found: dict[str, str], run: str = "") -> dict[str, str]:
    return {name: bits for name, bits in found.items() if name.startswith(run) and "safetensors" in name}


def test_a_picture_that_cannot_be_drawn_is_reported_and_changes_no_weight(
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


def session_of_both(folder: Path, precision: str) -> Path:
    """Return the folder of a session with two runs of six steps."""
    given = {"grid_size": "8", "epochs": "2", "seeds": "1", "batch_size": "16", "precision": precision}
    given |= {"loss_options": "A,B", "checkpoint_every_steps": "2", "corpus": str(folder / "corpus.npz")}
    laboratory = Experiment.prepare(parse_experiment(given), folder / "runs", [])
    laboratory.open_session()
    for option in laboratory.config.options:
        laboratory.obtain((option, 0))
    return laboratory.session.path


def weights(checkpoint: Path) -> dict[str, bytes]:
    tensors = load_checkpoint(checkpoint, Progress).tensors
    return {name: t.numpy().tobytes() for name, t in tensors.items() if not name.startswith(OPTIMIZER)}


def make_nan_at(run: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all values of the loss NaN in one step."""
    train_step, loss, now = Trainer._step, BetaVAELoss.with_gradient, [("", 0)]

    def noted_step(trainer: Trainer, rows: Any) -> Any:
        now[0] = (trainer.config.name, trainer.progress.step + 1)
        try:
            return train_step(trainer, rows)
        finally:
            now[0] = ("", 0)

    def disturbed_loss(self: BetaVAELoss, *arguments: Any, **keywords: Any) -> Any:
        found = loss(self, *arguments, **keywords)
        if now[0] != (run, step):
            return found
        return tuple(type(numbers)(*(number * torch.nan for number in numbers)) for numbers in found)

    monkeypatch.setattr(Trainer, "_step", noted_step)
    monkeypatch.setattr(BetaVAELoss, "with_gradient", disturbed_loss)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_becomes_nan_ends_only_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    folder = furnish(tmp_path)
    whole = session_of_both(folder, precision)
    make_nan_at("B-seed0", 5, monkeypatch)
    session = session_of_both(folder, precision)
    result = json.loads((session / "B-seed0/result.json").read_text())
    assert result["verdict"] == "diverged"
    assert result["divergence"] == {
        "epoch": 2,
        "step": 5,
        "batch": epoch_order(0, 1, 48)[16:32].tolist(),
        "terms": {"loss": "nan", "reconstruction": "nan", "kl": "nan", "gradient_norm": "nan"},
    }
    left = {path.name for path in (session / "B-seed0/checkpoints").glob("epoch*.safetensors")}
    assert left == {
        "epoch_001_step_000002.safetensors",
        "epoch_001.safetensors",
        "epoch_002_step_000004.safetensors",
    }
    for name in left:  # later checkpoints remove the optimizer state of earlier checkpoints
        ours, theirs = (weights(path / "B-seed0/checkpoints" / name) for path in (session, whole))
        assert ours == theirs
    for path in (session / "B-seed0/checkpoints").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_checkpoint(path, Progress).tensors.values())
    others = {name: bits for name, bits in evidence(whole).items() if name.startswith("A-")}
    assert others.items() <= evidence(session).items()


@pytest.mark.parametrize(("rate", "diverges"), [("1e5", True), ("0.03", False)])
@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_only_a_loss_or_norm_that_is_not_finite_is_diverged(
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
