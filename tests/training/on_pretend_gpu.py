"""Tests on a device that stands in for a GPU. `test_pretend_gpu.py` runs them in a process of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pretend_gpu
import pytest
import safetensors.torch
import torch
from pretend_gpu import DEVICE

from bvae.config import LOSS_OPTIONS, ExperimentConfig, Precision, RunConfig, TrainingConfig
from bvae.corpus import Corpus, load_corpus
from bvae.records import Progress, RunResult
from bvae.session.run import train_run
from bvae.trainer import Trainer
from bvae.training import step
from bvae.training.checkpoint import load_checkpoint

BEST = "checkpoints/best.safetensors"
RESIDENT = pytest.mark.parametrize("share", [1.0, 0.0], ids=["resident", "pinned"])


class AnyGenerator(torch.Generator):
    """A generator of the CPU for every device, so that all devices get the same random numbers."""

    def __new__(cls, device: Any = None) -> AnyGenerator:
        return super().__new__(cls)


@pytest.fixture(autouse=True)
def what_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the device what it lacks for a run, and defer steps on it and on the CPU."""
    save = safetensors.torch.save

    def save_copies(tensors: dict[str, torch.Tensor], **given: Any) -> bytes:
        """Copy tensors to the CPU and save them. safetensors does so for a GPU, not for an unknown device."""
        return save({name: tensor.cpu() for name, tensor in tensors.items()}, **given)

    monkeypatch.setattr(safetensors.torch, "save", save_copies)
    monkeypatch.setattr(torch, "Generator", AnyGenerator)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pretend_gpu.pin_memory)
    monkeypatch.setattr(step, "_free_memory", lambda device: 1e9)
    for device in (DEVICE, "cpu"):
        monkeypatch.setitem(step.READ_EVERY, device, 100)
    pretend_gpu.waits.clear()


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "corpus.npz"
    grids = np.random.default_rng(0).integers(0, 10, (60, 8, 8)) * (np.arange(8) < 3)
    np.savez(path, train=grids[:48], val=grids[48:])
    return load_corpus(str(path))


def config_of(corpus: Corpus, device: str, **more: Any) -> RunConfig:
    """Return a run of two epochs of three steps, which also saves checkpoints after steps 2 and 4."""
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16, "latent_dim": 4, "checkpoint_every_steps": 2}
    settings |= {"precision": "fp32", "max_gradient_norm": 0.1, "device": device, **more}
    training = TrainingConfig(**settings)
    return ExperimentConfig(grid_size=8, training=training).run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)


def numbers(result: RunResult) -> dict[str, float]:
    assert result.metrics is not None
    return {name: value for name, value in vars(result.metrics).items() if isinstance(value, float)}


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("bf16", 1e-2)])
@RESIDENT
def test_a_run_with_its_pictures_is_that_of_the_cpu(
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    precision: Precision,
    error: float,
) -> None:
    monkeypatch.setattr(step, "RESIDENT_SHARE", share)
    found, files = [], []
    for device in ("cpu", DEVICE):
        folder = tmp_path / device
        folder.mkdir()
        config = config_of(corpus, device, precision=precision)
        found.append(train_run(config, corpus, folder, ExperimentConfig().band))
        files.append({str(path.relative_to(folder)) for path in folder.rglob("*")})
    assert found[1].failed_pictures == ()
    assert files[1] == files[0]
    assert found[1].verdict == found[0].verdict
    assert numbers(found[1]) == pytest.approx(numbers(found[0]), rel=error)
    cpu, gpu = (load_checkpoint(tmp_path / each / BEST, Progress).tensors for each in ("cpu", DEVICE))
    torch.testing.assert_close(dict(gpu), dict(cpu), rtol=0, atol=error)


@RESIDENT
@pytest.mark.parametrize("every", [1, 100])
def test_the_steps_of_an_epoch_wait_for_the_device_only_to_read_numbers(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, every: int
) -> None:
    monkeypatch.setattr(step, "RESIDENT_SHARE", share)
    monkeypatch.setitem(step.READ_EVERY, DEVICE, every)
    train_step, train_epoch, waited = Trainer._step, Trainer._train_epoch, []

    def watched_step(trainer: Trainer, part: slice) -> bool:
        if not part.start:
            pretend_gpu.waits.clear()
        return train_step(trainer, part)

    def watched_epoch(trainer: Trainer, last: int) -> None:
        train_epoch(trainer, last)
        waited.append([*pretend_gpu.waits])

    monkeypatch.setattr(Trainer, "_step", watched_step)
    monkeypatch.setattr(Trainer, "_train_epoch", watched_epoch)
    Trainer(config_of(corpus, DEVICE, checkpoint_every_steps=0), corpus, tmp_path).fit()
    assert [each != [] for each in waited] == [every == 1] * 2, waited


def test_an_interrupted_run_ends_with_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    config, ended = config_of(corpus, DEVICE), []
    for stop in (None, 5):
        (folder := tmp_path / str(stop)).mkdir()
        trainer = Trainer(config, corpus, folder)
        trainer.fit(stop)
        if stop is not None:
            trainer = Trainer(config, corpus, folder)
            trainer.restore(folder / "checkpoints/epoch_002_step_000004.safetensors")
            trainer.fit()
        state = load_checkpoint(folder / "checkpoints/epoch_002.safetensors", Progress)
        history = [dataclasses.replace(record, seconds=0.0) for record in state.state.history]
        ended.append((history, {name: each.numpy().tobytes() for name, each in state.tensors.items()}))
    assert ended[1] == ended[0]


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    values = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        values + torch.ones(3)
    with pytest.raises((RuntimeError, TypeError)):
        values.numpy()
    assert pretend_gpu.waits == []
    assert (values.sum().item(), (values > 0).nonzero().shape) == (3.0, (3, 1))
    assert values.to("cpu").tolist() == [1.0, 1.0, 1.0]
    assert pretend_gpu.waits == ["aten::_local_scalar_dense", "aten::nonzero", "aten::_to_copy"]
