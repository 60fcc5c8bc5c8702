"""A run that one worker begins and another finishes is the run of one worker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab import evidence, furnish

from bvae import EvidenceWarning
from bvae.config import LOSS_OPTIONS, RunConfig
from bvae.corpus import Corpus, load_corpus
from bvae.laboratory import Laboratory
from bvae.options import parse_experiment
from bvae.run import HALF
from bvae.trainer import Trainer

pytestmark = pytest.mark.slow

SETTINGS = {"grid_size": "8", "epochs": "3", "seeds": "1", "batch_size": "16", "precision": "fp32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(str(folder / "corpus.npz"), 8)


@pytest.fixture(scope="module")
def run(corpus: Corpus) -> RunConfig:
    experiment = parse_experiment(SETTINGS | {"corpus": corpus.spec})
    return experiment.run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)


@pytest.fixture(scope="module")
def whole(run: RunConfig, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained at once: nine steps."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(run, corpus, folder).fit()
    return folder


@pytest.mark.parametrize("steps", range(1, 10))
def test_any_share_of_a_run_can_be_trained_and_saved_and_the_rest_later(
    run: RunConfig, corpus: Corpus, whole: Path, tmp_path: Path, steps: int
) -> None:
    first, second = (Trainer(run, corpus, tmp_path) for _ in range(2))
    first.fit((steps + 0.5) / 9)
    assert first.progress.step == steps
    first.save(tmp_path / HALF)
    second.restore(tmp_path / HALF)
    assert len(second.fit()) == 3
    assert evidence(tmp_path) == evidence(whole)


def prepared(folder: Path, **settings: str) -> Laboratory:
    """A laboratory whose session is open and whose runs are all selected."""
    experiment = parse_experiment(SETTINGS | settings | {"corpus": str(folder / "corpus.npz")})
    laboratory = Laboratory.prepare(experiment, folder / "runs", [])
    laboratory.open_session()
    laboratory.select([(run.option, run.seed) for run in laboratory.runs])
    return laboratory


def finished(laboratory: Laboratory) -> dict[str, str]:
    """What all runs leave."""
    for run in laboratory.selected:
        laboratory.obtain((run.option, run.seed))
    assert not list(laboratory.session.path.glob(f"*/{HALF}"))
    return evidence(laboratory.session.path)


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
def test_a_session_is_the_same_whether_a_run_was_begun_ahead(folder: Path, settings: dict[str, str]) -> None:
    ahead = prepared(folder, **settings)
    ahead.begin_ahead(1, 2)
    assert (ahead.session.path / "C-seed0/config.json").exists()
    assert not (ahead.session.path / "C-seed0/.begun").exists()
    assert finished(ahead) == finished(prepared(folder, **settings))


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
def test_workers_that_would_rest_in_the_last_turn_begin_a_run_each(
    folder: Path, workers: int, begun: set[str]
) -> None:
    laboratory = prepared(folder, seeds="3")
    for worker in range(workers + 2):  # two have replaced others
        laboratory.begin_ahead(worker, workers)
    assert {path.parent.name for path in laboratory.session.path.glob(f"*/{HALF}")} == begun


def test_a_damaged_half_costs_what_was_trained_since_the_last_checkpoint(folder: Path) -> None:
    laboratory = prepared(folder)
    laboratory.begin_ahead(1, 2)
    half = laboratory.session.path / "C-seed0" / HALF
    half.write_bytes(half.read_bytes()[:-1])
    with pytest.warns(EvidenceWarning, match=re.escape(HALF)):
        found = finished(laboratory)
    assert found == finished(prepared(folder))
