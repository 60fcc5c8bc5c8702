"""Laws of corpora that are larger than memory, and that their benchmark runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvae import corpus as corpora
from bvae import trainer as trainers
from bvae.config import LOSS_OPTIONS, ExperimentConfig, Precision, TrainingConfig
from bvae.corpus import Corpus, RowSubset, load_corpus
from bvae.trainer import BLOCK_CELLS, WINDOW_CELLS, Trainer, epoch_order

# Blocks of 2 and windows of 2048 grids.
CELLS = 2**17
BLOCK, WINDOW = BLOCK_CELLS // CELLS, WINDOW_CELLS // CELLS

seeds = st.integers(0, 2**32)
epochs = st.integers(0, 1000)


@pytest.mark.unit
@given(seed=seeds, epoch=epochs, n=st.integers(1, WINDOW))
def test_a_corpus_that_fits_a_window_is_visited_in_any_order(seed: int, epoch: int, n: int) -> None:
    expected = np.random.default_rng([seed, epoch]).permutation(n)
    np.testing.assert_array_equal(epoch_order(seed, epoch, n, cells=CELLS), expected)


@pytest.mark.unit
@given(seed=seeds, epoch=epochs, n=st.integers(1, 6 * WINDOW))
def test_an_epoch_visits_every_grid_once_and_in_the_same_order_again(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n, cells=CELLS)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(epoch_order(seed, epoch, n, cells=CELLS), order)


@pytest.mark.unit
@given(seed=seeds, epoch=epochs, n=st.integers(WINDOW + 1, 6 * WINDOW))
def test_an_epoch_reads_a_large_corpus_a_window_of_whole_blocks_at_a_time(
    seed: int, epoch: int, n: int
) -> None:
    order = epoch_order(seed, epoch, n, cells=CELLS)
    readings = [len(np.unique(part // BLOCK)) for part in np.array_split(order, math.ceil(n / WINDOW))]
    assert max(readings) <= WINDOW // BLOCK + 2
    # A block is read again only where a border of two windows cuts it.
    assert sum(readings) <= math.ceil(n / BLOCK) + len(readings) - 1


@pytest.mark.unit
@given(seed=seeds, epoch=epochs)
def test_a_window_of_a_large_corpus_is_drawn_from_all_over_it(seed: int, epoch: int) -> None:
    n = 16 * WINDOW
    order = epoch_order(seed, epoch, n, cells=CELLS)
    for window in order.reshape(16, WINDOW):
        # 1024 blocks over 8 parts: 128 of each, with a standard deviation below 11.
        parts = np.unique(window // BLOCK) * 8 // (n // BLOCK)
        assert np.bincount(parts, minlength=8).min() > 64
        for batch in window.reshape(-1, 64):
            assert len(np.unique(batch // BLOCK)) > 48


def trainer_of(corpus: Corpus, folder: Path, precision: Precision = "fp32", every: int = 0) -> Trainer:
    training = TrainingConfig(epochs=2, batch_size=16, precision=precision, checkpoint_every_steps=every)
    experiment = ExperimentConfig(corpus=corpus.spec, training=training)
    return Trainer(experiment.run(LOSS_OPTIONS["B"], 0, corpus.fingerprint), corpus, folder)


def trained(corpus: Corpus, folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    folder.mkdir()
    trainer = trainer_of(corpus, folder)
    history = trainer.fit()
    state = {name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()}
    return state | {"losses": np.array([record.validation.loss for record in history], np.float32)}


def test_a_memory_map_trains_to_the_same_bits_as_the_same_grids_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grids.npy"
    np.save(path, load_corpus("atomic:100").train[:])
    in_memory = trained(load_corpus(str(path)), tmp_path / "in_memory")
    monkeypatch.setattr(corpora, "IN_MEMORY_BYTES", 0)
    corpus = load_corpus(str(path))
    assert isinstance(corpus.train, RowSubset)
    mapped = trained(corpus, tmp_path / "mapped")
    for name, values in in_memory.items():
        np.testing.assert_array_equal(mapped[name], values)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_taken_up_inside_an_epoch_that_is_shuffled_by_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(trainers, "BLOCK_CELLS", 4 * 256)
    monkeypatch.setattr(trainers, "WINDOW_CELLS", 16 * 256)
    corpus = load_corpus("atomic:100")
    whole, resumed = (trainer_of(corpus, tmp_path, precision, every=2) for _ in range(2))
    whole.fit()
    resumed.restore(tmp_path / "checkpoints/epoch_002_step_000008.safetensors")
    resumed.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc, which only Linux has")
def test_the_benchmark_of_scale_measures_four_corpora(tmp_path: Path) -> None:
    output = tmp_path / "scale.json"
    small = ("--grids", "4000", "--file-gigabytes", "0.004", "--steps", "1", "--repeats", "1")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", *small, "--output", str(output)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())["corpora"]
    assert [each["grids"] for each in found.values()] == [40, 400, 4000, 15625]
    for each in found.values():
        assert len(each["training"]) == len(each["evaluation"]) == 1
        assert 0 < each["memory"]["base"] <= each["memory"]["training_peak"] < 1000
    assert "met: private memory with 15,625 grids of a file" in done.stdout
