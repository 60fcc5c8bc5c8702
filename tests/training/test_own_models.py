"""A model of a user is refused before training, or always ends with the same bits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from own_models import REFUSED, SUPPORTED, CopiesInputs, Dropout, Plain, WritesInputs
from torch import Tensor, nn

from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
from bvae.corpus import Corpus, load_corpus
from bvae.models import ModelError, check_model, load_model, reconstruct
from bvae.records import CheckpointSaved, Event
from bvae.session.listeners import CheckpointPictures
from bvae.trainer import Trainer
from bvae.training.checkpoint import CheckpointError
from bvae.training.optimization import step_seed

pytestmark = pytest.mark.unit

Bits = dict[str, bytes]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("grids") / "grids.npz"
    grids = np.random.default_rng(0).integers(0, 10, (60, 8, 8)) * (np.arange(8) < 3)
    np.savez(path, train=grids[:48], val=grids[48:])
    return load_corpus(str(path), grid_size=8)


def trainer_of(
    model: type[nn.Module], corpus: Corpus, folder: Path, *, seed: int = 0, every: int = 0
) -> Trainer:
    """Return a trainer for a run of six steps, with a checkpoint every `every` steps if `every` is not 0."""
    training = TrainingConfig(
        model=f"own_models:{model.__name__}",
        epochs=2,
        batch_size=16,
        latent_dim=3,
        precision="fp32",
        checkpoint_every_steps=every,
    )
    config = ExperimentConfig(grid_size=8, training=training)
    run = config.run(LOSS_OPTIONS["B"], seed, corpus.fingerprint)

    def draw(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            reconstruct(event.model, corpus.sample_grids())

    return Trainer(run, corpus, folder, listeners=[draw])


def bits(trainer: Trainer) -> Bits:
    """Finish a run; return its weights, buffers and validation metrics as bytes."""
    trainer.fit()
    assert trainer.progress.step == trainer.steps == 6
    found = {name: tensor.numpy().tobytes() for name, tensor in trainer.model.state_dict().items()}
    return found | {"measured": repr([record.validation for record in trainer.progress.history]).encode()}


@pytest.mark.parametrize("model", SUPPORTED, ids=lambda model: model.__name__)
def test_interruptions_other_runs_and_checkpoints_change_no_bit(
    model: type[nn.Module], corpus: Corpus, tmp_path: Path
) -> None:
    check_model(f"own_models:{model.__name__}", grid_size=8, latent_dim=3)
    grids = corpus.train[:].copy()
    trained = trainer_of(model, corpus, tmp_path)
    straight = bits(trained)

    bits(trainer_of(model, corpus, tmp_path, seed=1))  # another run in this process
    torch.rand(3), np.random.rand(3), random.random()
    assert bits(trainer_of(model, corpus, tmp_path, every=1)) == straight

    for step in (1, 3, 4):
        first = trainer_of(model, corpus, tmp_path)
        first.fit(step)
        first.write(tmp_path / "interrupted")
        resumed = trainer_of(model, corpus, tmp_path)
        resumed.restore(tmp_path / "interrupted")
        assert bits(resumed) == straight, step

    loaded, _ = load_model(tmp_path / "checkpoints/epoch_002.safetensors", f"own_models:{model.__name__}")
    assert np.array_equal(reconstruct(loaded, grids[:9]), reconstruct(trained.model, grids[:9]))
    assert np.array_equal(corpus.train[:], grids)
    with pytest.raises(CheckpointError, match=f"of the model '.*:{model.__name__}', not .* as --model"):
        load_model(tmp_path / "checkpoints/epoch_002.safetensors")


@pytest.mark.parametrize(
    ("model", "complaint"), REFUSED.items(), ids=lambda case: getattr(case, "__name__", "")
)
def test_a_model_that_could_not_be_resumed_is_refused_in_one_sentence(
    model: type[nn.Module], complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint) as caught:
        check_model(f"own_models:{model.__name__}", grid_size=8, latent_dim=3)
    assert "\n" not in str(caught.value)


def test_a_model_may_write_into_its_inputs(corpus: Corpus, tmp_path: Path) -> None:
    writing, copying = (bits(trainer_of(model, corpus, tmp_path)) for model in (WritesInputs, CopiesInputs))
    assert writing == copying


def test_pictures_need_no_forward(corpus: Corpus, tmp_path: Path) -> None:
    trainer = trainer_of(Plain, corpus, tmp_path)
    pictures = CheckpointPictures(trainer.config, corpus)
    trainer.listeners.append(pictures)
    trainer.fit()
    pictures.draw_filmstrip(tmp_path)
    assert pictures.failures == []
    assert len([*tmp_path.rglob("*.png")]) == 4  # two epochs, the best epoch, the filmstrip


def states() -> list[Tensor | str]:
    return [torch.get_rng_state(), repr(np.random.get_state()), repr(random.getstate())]


def test_training_and_evaluation_leave_global_generators_unchanged(corpus: Corpus, tmp_path: Path) -> None:
    before = states()
    check_model("own_models:DrawsWithTorch", grid_size=8, latent_dim=3)
    trainer = trainer_of(Dropout, corpus, tmp_path)
    trainer.fit()
    reconstruct(trainer.model, corpus.sample_grids())
    for state, then in zip(states(), before, strict=True):
        assert torch.equal(state, then) if isinstance(state, Tensor) else state == then


def test_each_step_of_each_run_has_its_own_random_seed() -> None:
    seeds = {step_seed(seed, step) for seed in range(10) for step in range(100)}
    assert len(seeds) == 1000
