"""`--log tensorboard`: the event files of a run, read back with the package tensorboard."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from lab import furnish

from bvae import EvidenceWarning
from bvae.config import LOSS_OPTIONS, ConfigError, RunConfig, TrainingConfig
from bvae.corpus import Corpus, load_corpus
from bvae.experiment import Experiment, SetupError
from bvae.options import parse_experiment
from bvae.session.folder import read_history
from bvae.session.run import train_run

SETTINGS = {
    **{"grid_size": "8", "epochs": "2", "seeds": "1", "batch_size": "16", "precision": "fp32"},
    **{"checkpoint_every_steps": "2", "log": "tensorboard"},
}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return load_corpus(str(furnish(tmp_path) / "corpus.npz"), 8)


def run_of(corpus: Corpus, **settings: str) -> RunConfig:
    config = parse_experiment(SETTINGS | settings | {"corpus": corpus.spec})
    return config.run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)


def train(corpus: Corpus, directory: Path, **settings: str) -> None:
    run, band = run_of(corpus, **settings), parse_experiment({}).band
    directory.mkdir(exist_ok=True)
    train_run(run, corpus, directory, band)


def read(directory: Path) -> Any:
    """Return all events of a run, including events that TensorBoard would replace."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = accumulator.EventAccumulator(
            str(directory / "tensorboard"), {"images": 0, "scalars": 0}, purge_orphaned_data=False
        )
        return events.Reload()


@pytest.mark.slow
def test_a_run_that_is_resumed_shows_each_epoch_and_picture_once(corpus: Corpus, tmp_path: Path) -> None:
    directory = tmp_path / "B-seed0"
    train(corpus, directory)
    for _ in range(2):
        events, history = read(directory), read_history(directory)
        assert [record.step for record in history] == [3, 6]
        assert {*events.Tags()["scalars"]} == {
            name for record in history for name, value in record.numbers().items() if value is not None
        }
        for name in events.Tags()["scalars"]:
            found = {event.step: event.value for event in events.Scalars(name)}
            known = {record.step: record.numbers()[name] for record in history}
            assert found == pytest.approx({step: value for step, value in known.items() if value is not None})
            assert len(found) == len(events.Scalars(name))
        pictures = events.Images("reconstructions")
        assert [event.step for event in pictures] == [2, 3, 4, 6]
        assert all(event.encoded_image_string.startswith(b"\x89PNG") for event in pictures)
        (directory / "result.json").unlink()
        for name in ("epoch_002", "best"):  # training resumes inside the last epoch
            (directory / f"checkpoints/{name}.safetensors").write_bytes(b"")
        with pytest.warns(EvidenceWarning, match="it is skipped"):
            train(corpus, directory)


@pytest.mark.slow
def test_a_log_that_fails_gives_one_warning_and_the_run_goes_on(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(EvidenceWarning, match="B-seed0/tensorboard is incomplete: ModuleNotFound") as caught:
        train(corpus, tmp_path / "B-seed0")
    assert len(caught) == 1
    assert (tmp_path / "B-seed0/result.json").exists()


@pytest.mark.unit
def test_a_missing_package_is_reported_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"needs the package tensorboard, .*: pip install tensorboard$"):
        Experiment.prepare(parse_experiment({"log": "tensorboard"}), tmp_path, [])


@pytest.mark.unit
def test_another_log_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^log is 'wandb'; expected one of none, tensorboard"):
        TrainingConfig(log="wandb")  # type: ignore[arg-type]
