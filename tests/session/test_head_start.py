"""A run that one worker begins and another finishes has the same results as with one worker."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import evidence, furnish

from bvae import EvidenceWarning
from bvae.config import LOSS_OPTIONS, RunConfig
from bvae.corpus import Corpus, load_corpus
from bvae.experiment import Experiment
from bvae.hooks import in_turns
from bvae.models import initial_model
from bvae.options import parse_experiment
from bvae.records import CheckpointSaved
from bvae.session_files import HALF, picture_of
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
    """The folder of a run whose nine steps were trained without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(run, corpus, folder).fit()
    return folder


@pytest.mark.parametrize("steps", range(1, 10))
def test_a_run_can_be_trained_to_any_step_and_by_another_trainer_from_there(
    run: RunConfig, corpus: Corpus, whole: Path, tmp_path: Path, steps: int
) -> None:
    first, second = (Trainer(run, corpus, tmp_path) for _ in range(2))
    first.fit(steps)
    assert first.progress.step == steps
    first.write(tmp_path / HALF)
    second.restore(tmp_path / HALF)
    assert len(second.fit()) == 3
    assert evidence(tmp_path) == evidence(whole)


def worker(folder: Path, workers: int = 1, **settings: str) -> Experiment:
    """Return the experiment of a new session, in one of `workers` workers."""
    config = parse_experiment(SETTINGS | settings | {"corpus": str(folder / "corpus.npz")})
    controller = Experiment.prepare(config, folder / "runs", [])
    controller.open_session()
    return beside(controller, workers)


def beside(experiment: Experiment, workers: int) -> Experiment:
    """Return a worker of the same session that has not obtained a run yet."""
    joined = Experiment.join(experiment.session.path, experiment.session.invocation, workers)
    joined.select([(run.option, run.seed) for run in reversed(joined.runs)])
    return joined


def finished(experiment: Experiment) -> dict[str, str]:
    """Return the files of all runs."""
    for run in experiment.selected:
        experiment.obtain((run.option, run.seed))
    assert not list(experiment.session.path.glob(f"*/{HALF}"))
    return evidence(experiment.session.path)


def obtain(experiment: Experiment, place: int) -> None:
    run = experiment.selected[place]
    experiment.obtain((run.option, run.seed))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": "1"},
        {"checkpoint_every": "2"},
        {"checkpoint_every_steps": "2"},
        {"learning_rate": "1e5"},
    ],
    ids=str,
)
def test_a_session_is_the_same_whether_or_not_a_run_was_begun_ahead(
    folder: Path, settings: dict[str, str]
) -> None:
    second = worker(folder, 2, **settings)
    obtain(second, 1)
    assert (second.session.path / "C-seed0/config.json").exists()
    assert not (second.session.path / "C-seed0/.begun").exists()
    assert not (second.session.path / "A-seed0").exists()
    assert finished(beside(second, 2)) == finished(worker(folder, **settings))


@pytest.mark.parametrize(
    ("workers", "begun"),
    [
        (1, set()),
        (2, {"C-seed2"}),
        (3, set()),
        (4, {"C-seed2"}),
        (6, {"C-seed0", "C-seed1", "C-seed2"}),
        (7, {"C-seed1", "C-seed2"}),
        (9, set()),
        (10, set()),
    ],
)
def test_each_worker_that_would_be_idle_in_the_last_turn_begins_one_of_its_runs(
    folder: Path, workers: int, begun: set[str]
) -> None:
    session = worker(folder, workers, seeds="3", epochs="1")
    for place in range(min(workers, 9)):
        obtain(beside(session, workers), place)
    halves = {path.parent.name for path in session.session.path.glob(f"*/{HALF}")}
    assert halves == begun


def test_a_worker_begins_a_run_ahead_only_before_its_first(folder: Path) -> None:
    one = worker(folder, 2)
    obtain(one, 0)
    obtain(one, 1)
    assert not (one.session.path / "C-seed0").exists()


def test_a_damaged_half_checkpoint_loses_only_the_steps_since_the_last_checkpoint(folder: Path) -> None:
    second = worker(folder, 2)
    obtain(second, 1)
    half = second.session.path / "C-seed0" / HALF
    half.write_bytes(half.read_bytes()[:-1])
    with pytest.warns(EvidenceWarning, match=re.escape(HALF)):
        found = finished(second)
    assert found == finished(worker(folder))


def test_a_picture_drawn_in_the_second_half_is_not_reported_as_missing(folder: Path) -> None:
    second = worker(folder, 2, checkpoint_every_steps="2", checkpoint_every="3")
    obtain(second, 1)
    run = second.session.path / "C-seed0"
    (run / "checkpoints/reconstructions_best.png").unlink()
    finished(second)
    assert (run / "checkpoints/reconstructions_best.png").exists()
    assert json.loads((run / "result.json").read_text())["failed_pictures"] == []


def test_pictures_that_could_not_be_drawn_ahead_are_reported_with_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_pictures, "plot_reconstructions", without_ink)
    second = worker(folder, 2, epochs="4")
    obtain(second, 1)
    with pytest.warns(EvidenceWarning, match="lacks a picture"):
        finished(beside(second, 2))
    failures = json.loads((second.session.path / "C-seed0/result.json").read_text())["failed_pictures"]
    assert "reconstructions_epoch_001.png: was not drawn before the run was taken up again" in failures
    assert {f"epoch_{epoch:03d}" for epoch in range(1, 5)} == set(
        re.findall(r"epoch_\d+", " ".join(failures))
    )


def without_ink(*_: object, **__: object) -> None:
    """Draw nothing."""
    raise RuntimeError("no ink")


def test_a_picture_that_fails_leaves_no_picture_of_an_older_checkpoint(
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


@given(st.integers(1, 30), st.integers(1, 12))
def test_tests_are_assigned_to_workers_in_turn(tests: int, workers: int) -> None:
    class Item:
        def __init__(self, number: int) -> None:
            self.number = number

    dealt = [item.number for item in in_turns([Item(number) for number in range(tests)], workers)]  # type: ignore[misc]
    assert sorted(dealt) == [*range(tests)]
    if tests >= 2 * workers:
        firsts, seconds = dealt[: 2 * workers : 2], dealt[1 : 2 * workers : 2]
        assert [firsts, seconds] == [[*range(workers)], [*range(workers, 2 * workers)]]
        assert dealt[2 * workers :] == [*range(2 * workers, tests)]
    else:
        assert dealt == [*range(tests)]
