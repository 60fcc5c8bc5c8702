"""Results are the same whether the numbers of a step are read at once or later (deferred steps)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
from bvae.corpus import Corpus, load_corpus
from bvae.losses import BetaVAELoss
from bvae.records import Divergence, Event, Progress, Stepped
from bvae.session_files import checkpoints
from bvae.trainer import Trainer
from bvae.training import step
from bvae.training.checkpoint import Checkpoint, load_checkpoint
from bvae.training.optimization import Adam

pytestmark = pytest.mark.unit

STEPS = 6  # two epochs of three steps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("corpus") / "corpus.npz"
    grids = np.random.default_rng(0).integers(0, 10, (60, 8, 8)) * (np.arange(8) < 3)
    np.savez(path, train=grids[:48], val=grids[48:])
    return load_corpus(str(path))


def new_trainer(
    corpus: Corpus, folder: Path, *listeners: Callable[[Event], None], **training: Any
) -> Trainer:
    settings = {"epochs": 2, "batch_size": 16, "precision": "fp32", "latent_dim": 4, **training}
    experiment = ExperimentConfig(grid_size=8, training=TrainingConfig(**settings))
    run = experiment.run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)
    folder.mkdir(exist_ok=True)
    return Trainer(run, corpus, folder, listeners=listeners)


def spoil(trainer: Trainer, at: int, number: str, value: float) -> None:
    """Multiply a term of the loss, or the gradient of the logits, by a value in one step of a run."""
    with_gradient = trainer.loss.with_gradient

    def spoilt(*arguments: Any, **keywords: Any) -> Any:
        terms, gradient = with_gradient(*arguments, **keywords)
        if trainer.progress.step != at:
            return terms, gradient
        if number == "gradient":
            return terms, gradient._replace(logits=gradient.logits * value)
        return terms._replace(**{number: getattr(terms, number) * value}), gradient

    trainer.loss.with_gradient = spoilt  # type: ignore[method-assign]


def content(trainer: Trainer) -> tuple[Any, ...]:
    """Return all that a run computed: weights, optimizer state, numbers without times, and checkpoints."""
    saved = [load_checkpoint(path, Progress) for path in checkpoints(trainer.checkpoints.parent)]
    reached = Checkpoint(trainer.model.state_dict() | trainer._train_step.tensors(), trainer.progress)
    found: list[Any] = [trainer.divergence]
    for each in [reached, *saved]:
        history = [dataclasses.replace(record, seconds=0.0) for record in each.state.history]
        noise = (
            b"" if each is reached else each.state.noise_state
        )  # updated only when a checkpoint is written
        found.append({name: tensor.numpy().tobytes() for name, tensor in each.tensors.items()})
        found.append(dataclasses.replace(each.state, history=history, epoch_seconds=0.0, noise_state=noise))
    return tuple(found)


faults = st.tuples(
    st.integers(0, STEPS - 1),
    st.sampled_from(["total", "reconstruction", "kl", "gradient"]),
    st.sampled_from([math.nan, math.inf]),
)


@settings(max_examples=8)
@given(
    every=st.integers(2, 5),
    fault=st.none() | faults,
    stop=st.none() | st.integers(1, STEPS),
    save_every=st.integers(0, 3),
    max_norm=st.sampled_from([1e-7, 0.05, 1e3]),
    is_resident=st.booleans(),
)
@example(every=5, fault=(1, "kl", math.inf), stop=None, save_every=0, max_norm=1e3, is_resident=True)
@example(every=5, fault=(4, "gradient", math.nan), stop=2, save_every=1, max_norm=0.05, is_resident=False)
def test_a_deferred_run_equals_an_immediate_one(
    corpus: Corpus,
    every: int,
    fault: tuple[int, str, float] | None,
    stop: int | None,
    save_every: int,
    max_norm: float,
    is_resident: bool,
) -> None:
    """The run may be interrupted and restored, and a number may be infinite or NaN."""

    def interrupt(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == stop:
            raise KeyboardInterrupt

    training = {"checkpoint_every_steps": save_every, "max_gradient_norm": max_norm}
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        immediate = new_trainer(corpus, Path(here), **training)
        with (
            mock.patch.dict(step.READ_EVERY, cpu=every),
            mock.patch.object(step, "RESIDENT_SHARE", 1.0 if is_resident else 0.0),
        ):
            interrupted = new_trainer(corpus, Path(there), interrupt, **training)
            deferred = new_trainer(corpus, Path(there), **training)
            for trainer in (immediate, interrupted, deferred):
                if fault is not None:
                    spoil(trainer, *fault)
            if stop is not None:
                with contextlib.suppress(KeyboardInterrupt):  # the run may diverge before
                    interrupted.fit()
                for path in checkpoints(Path(there))[:1]:
                    deferred.restore(path)
            deferred.fit()
        immediate.fit()
        assert (immediate.divergence is None) == (fault is None)
        assert content(deferred) == content(immediate)


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("at", [*range(STEPS)])
def test_a_divergence_names_the_step_that_computed_the_number(
    corpus: Corpus, tmp_path: Path, every: int, at: int
) -> None:
    with mock.patch.dict(step.READ_EVERY, cpu=every):
        trainer = new_trainer(corpus, tmp_path)
        spoil(trainer, at, "total", math.nan)
        trainer.fit()
    assert trainer.divergence is not None
    assert (trainer.divergence.step, trainer.divergence.epoch) == (at + 1, 1 + at // 3)
    assert len(trainer.divergence.batch) == 16


def test_a_divergent_validation_names_the_last_step_of_its_epoch(corpus: Corpus, tmp_path: Path) -> None:
    trainer = new_trainer(corpus, tmp_path)
    with mock.patch.object(trainer._evaluator, "measure", return_value=mock.Mock(loss=math.nan)):
        trainer.fit()
    terms = {"validation_loss": "nan"}
    assert trainer.divergence == Divergence(epoch=1, step=STEPS // 2, batch=(), terms=terms)


def test_a_listener_may_write_a_checkpoint_after_any_deferred_step(corpus: Corpus, tmp_path: Path) -> None:
    def write(event: Event) -> None:
        if isinstance(event, Stepped):
            written.write(tmp_path / f"{event.step}")

    with mock.patch.dict(step.READ_EVERY, cpu=100):
        written = new_trainer(corpus, tmp_path / "run", write)
        written.fit()
    immediate = new_trainer(corpus, tmp_path / "immediate")
    for number in range(1, STEPS):
        immediate.fit(number)
        state = load_checkpoint(tmp_path / f"{number}", Progress).state
        if number % 3:  # at the end of an epoch, the listener is called before the evaluation
            assert state.epoch_sums == immediate.progress.epoch_sums
        assert state.step == number


def test_the_loss_without_waiting_is_the_same_for_any_logits() -> None:
    values = torch.tensor([0.0, 1.0, -30.0, 1e30, math.inf, -math.inf, math.nan])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = values[torch.randint(0, 4 + seed % 4, (2, 4, 3, 3), generator=generator)]
        target = torch.randint(0, 4, (2, 3, 3), generator=generator, dtype=torch.uint8)
        loss = BetaVAELoss(gamma=1.0, weight=torch.tensor([1.0, 2.0, 3.0, 4.0]), beta=0.1)
        posterior = torch.randn(2, 2, 5, generator=generator)
        found = [loss.with_gradient(logits, *posterior, target, wait=wait) for wait in (True, False)]
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [0.5, 1.0, 1.0000001, 3.0, math.inf])
def test_without_waiting_the_gradient_is_clipped_to_the_same_bits(size: float) -> None:
    clipped = []
    for wait in (True, False):
        weights = torch.zeros(2)
        weights.grad = torch.tensor([0.6, 0.8]) * size
        norm = Adam({"weights": weights}, max_norm=1.0).clip(wait=wait)
        clipped.append((norm, weights.grad))
    torch.testing.assert_close(clipped[1], clipped[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("share", [step.RESIDENT_SHARE, 0.0], ids=["resident", "pinned"])
@pytest.mark.parametrize("fault", [None, (4, "kl", math.inf)], ids=["finite", "diverging"])
def test_a_step_never_waits_for_the_gpu(
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    fault: tuple[int, str, float] | None,
) -> None:
    """The run also equals a run whose numbers are read after each step."""
    monkeypatch.setattr(step, "RESIDENT_SHARE", share)
    train_step, debug = Trainer._step, "error"

    def watched_step(trainer: Trainer, part: slice) -> bool:
        torch.cuda.set_sync_debug_mode(debug if trainer.progress.step else "default")
        try:
            return train_step(trainer, part)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", watched_step)
    found = []
    for every in (500, 1):
        monkeypatch.setitem(step.READ_EVERY, "cuda", every)
        debug = "error" if every > 1 else "default"
        trainer = new_trainer(corpus, tmp_path / str(every), device="cuda")
        if fault is not None:
            spoil(trainer, *fault)
        trainer.fit()
        weights = {name: tensor.cpu() for name, tensor in trainer.model.state_dict().items()}
        found.append((trainer.divergence, [record.train for record in trainer.progress.history], weights))
    assert found[0][:2] == found[1][:2]
    torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=0)
