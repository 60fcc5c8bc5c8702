"""A run that is interrupted and resumed leaves what it would have left uninterrupted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lab import evidence, furnish

from bvae import EvidenceWarning
from bvae.config import LOSS_OPTIONS, RunConfig
from bvae.corpus import Corpus, load_corpus
from bvae.experiment import Experiment
from bvae.models import initial_model
from bvae.options import parse_experiment
from bvae.records import CheckpointSaved
from bvae.session.run import restored_trainer
from bvae.session_files import picture_of
from bvae.trainer import Trainer
from bvae.visualization import checkpoint_pictures

pytestmark = pytest.mark.slow

SETTINGS = {"grid_size": "8", "epochs": "3", "seeds": "1", "batch_size": "16", "precision": "fp32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(str(folder / "corpus.npz"), 8)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def run(corpus: Corpus, request: pytest.FixtureRequest) -> RunConfig:
    experiment = parse_experiment(SETTINGS | {"corpus": corpus.spec, "precision": request.param})
    return experiment.run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)


@pytest.fixture(scope="module")
def whole(run: RunConfig, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained at once: nine steps."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(run, corpus, folder).fit()
    return folder


@pytest.mark.parametrize("steps", range(1, 10))
def test_a_run_goes_on_from_any_step_in_another_trainer(
    run: RunConfig, corpus: Corpus, whole: Path, tmp_path: Path, steps: int
) -> None:
    first, second = (Trainer(run, corpus, tmp_path) for _ in range(2))
    first.fit(steps)
    assert first.progress.step == steps
    first.write(tmp_path / ".state.safetensors")
    second.restore(tmp_path / ".state.safetensors")
    assert len(second.fit()) == 3
    assert evidence(tmp_path) == evidence(whole)


def interrupted(folder: Path, steps: int, **settings: str) -> tuple[Experiment, Path]:
    """Return an experiment whose run B was interrupted after a number of steps, and the folder of the run."""
    config = parse_experiment(SETTINGS | settings | {"corpus": str(folder / "corpus.npz")})
    experiment = Experiment.prepare(config, folder / "runs", [])
    experiment.open_session()
    run = next(run for run in experiment.runs if run.option.name == "B")
    directory = experiment.session.path / run.name
    directory.mkdir()
    restored_trainer(run, experiment.corpus, directory)[0].fit(steps)
    return experiment, directory


def test_a_missing_picture_that_is_drawn_after_the_interruption_is_not_called_missing(folder: Path) -> None:
    experiment, directory = interrupted(folder, 5, checkpoint_every_steps="2", checkpoint_every="3")
    picture = directory / "checkpoints/reconstructions_best.png"
    picture.unlink()
    assert experiment.obtain((LOSS_OPTIONS["B"], 0)).failed_pictures == ()
    assert picture.exists()


def test_pictures_that_failed_before_the_interruption_are_reported_with_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_pictures, "plot_reconstructions", without_ink)
    experiment, directory = interrupted(folder, 7, epochs="4")
    with pytest.warns(EvidenceWarning, match="lacks a picture"):
        experiment.obtain((LOSS_OPTIONS["B"], 0))
    failures = json.loads((directory / "result.json").read_text())["failed_pictures"]
    assert "reconstructions_epoch_001.png: was not drawn before the run was resumed" in failures
    assert {f"epoch_{epoch:03d}" for epoch in range(1, 5)} == set(
        re.findall(r"epoch_\d+", " ".join(failures))
    )


def without_ink(*_: object, **__: object) -> None:
    """Fail as a picture does that cannot be drawn."""
    raise RuntimeError("no ink")


def test_where_a_picture_fails_none_of_an_older_checkpoint_is_left_in_its_place(
    run: RunConfig, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, saved = checkpoint_pictures.CheckpointPictures(run, corpus), tmp_path / "best.safetensors"
    event = CheckpointSaved((saved,), 1, 3, initial_model(run).eval())
    pictures(event)
    assert picture_of(saved).exists()
    monkeypatch.setattr(checkpoint_pictures, "plot_reconstructions", without_ink)
    pictures(event)
    assert not picture_of(saved).exists()
    assert pictures.failures == ["reconstructions_best.png: RuntimeError: no ink"]
