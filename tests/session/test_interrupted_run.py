"""A run that is interrupted and resumed leaves the same files as an uninterrupted run."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lab import evidence, furnish
from torch import Tensor

from bvae import EvidenceWarning, storage
from bvae.config import LOSS_OPTIONS, RunConfig
from bvae.corpus import Corpus, load_corpus
from bvae.experiment import Experiment
from bvae.models import initial_model, load_model
from bvae.options import parse_experiment
from bvae.records import CheckpointSaved, Event, Progress
from bvae.session import listeners
from bvae.session import run as run_module
from bvae.session.folder import verified_result
from bvae.session.run import restored_trainer
from bvae.session_files import checkpoints, picture_of
from bvae.trainer import Trainer
from bvae.training.checkpoint import OPTIMIZER, load_checkpoint

pytestmark = pytest.mark.slow

SETTINGS = {"grid_size": "8", "epochs": "3", "seeds": "1", "batch_size": "16", "precision": "fp32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(str(folder / "corpus.npz"), 8)


SCHEDULED = {"beta_schedule": "cyclical", "free_bits": "0.05", "precision": "bf16"}
KEPT = {"checkpoint_every_steps": "2", "keep_checkpoints": "1", "precision": "fp32"}


@pytest.fixture(
    scope="module",
    params=[{"precision": "fp32"}, {"precision": "bf16"}, SCHEDULED, KEPT],
    ids=["fp32", "bf16", "scheduled", "few kept"],
)
def run(corpus: Corpus, request: pytest.FixtureRequest) -> RunConfig:
    experiment = parse_experiment(SETTINGS | {"corpus": corpus.spec} | request.param)
    return experiment.run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)


@pytest.fixture(scope="module")
def whole(run: RunConfig, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of nine steps."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(run, corpus, folder).fit()
    return folder


@pytest.mark.parametrize("steps", range(1, 10))
def test_another_trainer_continues_a_run_from_any_step(
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


def test_a_picture_drawn_after_the_interruption_is_not_reported_missing(folder: Path) -> None:
    experiment, directory = interrupted(folder, 5, checkpoint_every_steps="2", checkpoint_every="3")
    picture = directory / "checkpoints/reconstructions_best.png"
    picture.unlink()
    assert experiment.obtain((LOSS_OPTIONS["B"], 0)).failed_pictures == ()
    assert picture.exists()


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("damaged", [False, True])
def test_the_newest_and_best_checkpoints_are_kept_and_all_pictures(
    folder: Path, keep: int, damaged: bool
) -> None:
    experiment, directory = interrupted(folder, 5, checkpoint_every_steps="2", keep_checkpoints=str(keep))
    saved = ["epoch_001_step_000002", "epoch_001", "epoch_002_step_000004"]
    assert stems(directory, "*.safetensors") == {"best", *saved[-keep:]}
    if damaged:
        newest = directory / f"checkpoints/{saved[-1]}.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(EvidenceWarning, match="it is skipped") if damaged else nullcontext():
        experiment.obtain((LOSS_OPTIONS["B"], 0))
    saved += ["epoch_002", "epoch_003_step_000008", "epoch_003"]
    assert stems(directory, "*.safetensors") == {"best", *saved[-keep:]}
    assert stems(directory, "*.png") == {f"reconstructions_{name}" for name in ("best", *saved)}
    run = next(run for run in experiment.runs if run.name == directory.name)
    assert verified_result(directory, run) is not None


def stems(directory: Path, pattern: str) -> set[str]:
    """Return the names of matching files in the folder of checkpoints, without suffix."""
    return {path.stem for path in (directory / "checkpoints").glob(pattern)}


def test_pictures_that_failed_before_an_interruption_are_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "plot_reconstructions", without_ink)
    experiment, directory = interrupted(folder, 7, epochs="4")
    with pytest.warns(EvidenceWarning, match="lacks a picture"):
        experiment.obtain((LOSS_OPTIONS["B"], 0))
    failures = json.loads((directory / "result.json").read_text())["failed_pictures"]
    assert "reconstructions_epoch_001.png: has been missing since before the run was resumed" in failures
    assert {f"epoch_{epoch:03d}" for epoch in range(1, 5)} == set(
        re.findall(r"epoch_\d+", " ".join(failures))
    )


def with_optimizer(directory: Path) -> set[str]:
    """Return the names of checkpoints that hold optimizer state. All checkpoints must be readable."""
    return {
        path.stem
        for path in checkpoints(directory)
        if any(name.startswith(OPTIMIZER) for name in load_checkpoint(path, Progress).tensors)
    }


@pytest.mark.parametrize("every", ["1", "2"])
def test_only_the_newest_two_checkpoints_hold_optimizer_state(
    corpus: Corpus, tmp_path: Path, every: str
) -> None:
    given = SETTINGS | {"corpus": corpus.spec, "epochs": "5", "checkpoint_every": every}
    run = parse_experiment(given).run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)
    written: dict[Path, dict[str, Tensor]] = {}

    def note(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            written.update({path: load_checkpoint(path, Progress).tensors for path in event.paths})

    Trainer(run, corpus, tmp_path, listeners=[note]).fit()
    saved = checkpoints(tmp_path)
    newest = {path.stem for path in saved if any(path.samefile(other) for other in saved[:2])}
    assert with_optimizer(tmp_path) == newest
    for path in saved:
        model, _ = load_model(path)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, written[path][f"model.{name}"])
    sizes = sorted(path.stat().st_size for path in saved)
    assert sizes[0] < 0.4 * sizes[-1]


@pytest.fixture
def unpictured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without pictures, because drawing takes most of the time of a tiny run."""
    monkeypatch.setattr(run_module, "CheckpointPictures", lambda run, corpus: lambda event: None)


def short_run(corpus: Corpus, folder: Path) -> tuple[RunConfig, dict[str, str]]:
    """Train a run of six steps with four checkpoints in `folder/whole`; return run and evidence."""
    given = SETTINGS | {"corpus": corpus.spec, "epochs": "2", "checkpoint_every_steps": "2"}
    run = parse_experiment(given).run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)
    (folder / "whole").mkdir()
    restored_trainer(run, corpus, folder / "whole")[0].fit()
    return run, evidence(folder / "whole")


@pytest.mark.usefixtures("unpictured")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_interrupted_at_any_write_resumes_with_identical_results(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A write saves a checkpoint, gives it a second name, or removes the optimizer state of an older file."""
    run, whole, countdown = *short_run(corpus, tmp_path), 0

    def ending(write: Callable[..., None]) -> Callable[..., None]:
        def write_or_end(path: Path, *more: object) -> None:
            nonlocal countdown
            countdown -= path.suffix == ".safetensors"
            if countdown or moment == "after":
                write(path, *more)
            if not countdown:
                raise KeyboardInterrupt

        return write_or_end

    for name in ("_write", "_link"):
        monkeypatch.setattr(storage, name, ending(getattr(storage, name)))
    for number in itertools.count(1):
        directory = tmp_path / str(number)
        directory.mkdir()
        countdown = number
        with contextlib.suppress(KeyboardInterrupt):
            restored_trainer(run, corpus, directory)[0].fit()
        if countdown > 0:
            break
        countdown = -1
        restored_trainer(run, corpus, directory)[0].fit()
        assert evidence(directory) == whole
    assert number > 6


@pytest.mark.usefixtures("unpictured")
def test_without_the_newest_two_checkpoints_a_run_starts_again_and_says_so(
    corpus: Corpus, tmp_path: Path
) -> None:
    run, whole = short_run(corpus, tmp_path)
    directory = tmp_path / "whole"
    damaged = with_optimizer(directory)
    for name in damaged:
        (directory / f"checkpoints/{name}.safetensors").write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = restored_trainer(run, corpus, directory)
    said = [str(warning.message) for warning in caught]
    assert said[-1].startswith("B-seed0 has no valid checkpoint with optimizer state")
    assert len(said) == 1 + len(damaged)
    assert trainer.progress.step == 0
    trainer.fit(4)
    with warnings.catch_warnings(action="ignore"):
        assert restored_trainer(run, corpus, directory)[0].progress.step == 4
    trainer.fit()
    assert evidence(directory) == whole


def without_ink(*_: object, **__: object) -> None:
    """Raise an error instead of drawing a picture."""
    raise RuntimeError("no ink")


def test_a_picture_that_fails_leaves_no_older_picture_in_its_place(
    run: RunConfig, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, saved = listeners.CheckpointPictures(run, corpus), tmp_path / "best.safetensors"
    event = CheckpointSaved((saved,), 1, 3, initial_model(run).eval())
    pictures(event)
    assert picture_of(saved).exists()
    monkeypatch.setattr(listeners, "plot_reconstructions", without_ink)
    pictures(event)
    assert not picture_of(saved).exists()
    assert pictures.failures == ["reconstructions_best.png: RuntimeError: no ink"]


def test_a_run_survives_if_another_process_removes_a_temporary_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for a run creates and removes a temporary file in the folder of the run."""
    found = run_module.leftovers
    monkeypatch.setattr(run_module, "leftovers", lambda path: [*found(path), path / "..lock.0123abcd.part"])
    experiment, _ = interrupted(folder, 1)
    assert experiment.obtain((LOSS_OPTIONS["B"], 0)).option == "B"
