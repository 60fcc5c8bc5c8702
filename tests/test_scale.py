"""Properties of corpora that are larger than memory, and a small run of their benchmark."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lab import wait_for

from bvae.config import LOSS_OPTIONS, ExperimentConfig, Precision, TrainingConfig
from bvae.corpus import Corpus, LazyGrids, load_corpus, splits
from bvae.evaluation import evaluate, measure
from bvae.trainer import Trainer
from bvae.training import optimization
from bvae.training.optimization import BLOCK_CELLS, WINDOW_CELLS, epoch_order, window_edges

# With this many cells in a grid, a block has 2 grids and a window has 2048.
CELLS = 2**17
BLOCK, WINDOW = BLOCK_CELLS // CELLS, WINDOW_CELLS // CELLS

seeds = st.integers(0, 2**32)
epochs = st.integers(0, 1000)


@pytest.mark.unit
@given(seed=seeds, epoch=epochs, n=st.integers(1, WINDOW))
def test_a_corpus_that_fits_a_window_is_shuffled_as_a_whole(seed: int, epoch: int, n: int) -> None:
    expected = np.random.default_rng([seed, epoch]).permutation(n)
    np.testing.assert_array_equal(epoch_order(seed, epoch, n, cells=CELLS), expected)


@pytest.mark.unit
@given(seed=seeds, epoch=epochs, n=st.integers(1, 6 * WINDOW))
def test_an_epoch_visits_every_grid_once_in_a_reproducible_order(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n, cells=CELLS)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(epoch_order(seed, epoch, n, cells=CELLS), order)


@pytest.mark.unit
@given(seed=seeds, epoch=epochs, n=st.integers(WINDOW + 1, 6 * WINDOW))
def test_an_epoch_reads_a_large_corpus_in_windows_of_whole_blocks(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n, cells=CELLS)
    readings = [len(np.unique(part // BLOCK)) for part in np.array_split(order, math.ceil(n / WINDOW))]
    assert max(readings) <= WINDOW // BLOCK + 2
    # A block is read twice only if it is divided between two windows.
    assert sum(readings) <= math.ceil(n / BLOCK) + len(readings) - 1


@pytest.mark.unit
@given(seed=seeds, epoch=epochs)
def test_each_window_has_blocks_from_all_parts_of_a_large_corpus(seed: int, epoch: int) -> None:
    n = 16 * WINDOW
    order = epoch_order(seed, epoch, n, cells=CELLS)
    for window in order.reshape(16, WINDOW):
        # A window has 1024 blocks. On average 128 are from each eighth of the corpus (deviation below 11).
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


@pytest.mark.parametrize("padding_value", [None, 10])
def test_training_on_a_memory_map_gives_the_bits_of_training_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, padding_value: int | None
) -> None:
    path, grids = tmp_path / "grids.npy", load_corpus("atomic:100").train[:]
    if padding_value is not None:
        grids[::2, 12:] = padding_value
    np.save(path, grids)
    in_memory = trained(load_corpus(str(path), padding_value=padding_value), tmp_path / "in_memory")
    monkeypatch.setattr(splits, "IN_MEMORY_BYTES", 0)
    corpus = load_corpus(str(path), padding_value=padding_value)
    assert isinstance(corpus.train, LazyGrids)
    mapped = trained(corpus, tmp_path / "mapped")
    for name, values in in_memory.items():
        np.testing.assert_array_equal(mapped[name], values)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_resumes_inside_an_epoch_that_is_shuffled_by_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(optimization, "BLOCK_CELLS", 4 * 256)
    monkeypatch.setattr(optimization, "WINDOW_CELLS", 16 * 256)
    corpus = load_corpus("atomic:100")
    whole, resumed = (trainer_of(corpus, tmp_path, precision, every=2) for _ in range(2))
    whole.fit()
    resumed.restore(tmp_path / "checkpoints/epoch_002_step_000008.safetensors")
    resumed.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


def resident(mapped: np.memmap, path: Path) -> npt.NDArray[np.bool_]:
    """Ask Linux which pages of a mapped file are in memory."""
    size, libc = path.stat().st_size, ctypes.CDLL(None, use_errno=True)
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    first = ctypes.c_void_p(mapped.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE)
    assert libc.mincore(first, ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)) == 0, os.strerror(
        ctypes.get_errno()
    )
    return pages & 1 == 1


@pytest.mark.unit
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages are in memory")
def test_prefetching_reads_only_the_pages_of_the_requested_grids(tmp_path: Path) -> None:
    path, part = tmp_path / "grids.npy", splits.PREFETCH_BYTES // mmap.PAGESIZE
    np.save(path, np.zeros((2**16, 16, 16), np.uint8))
    stored = np.load(path, mmap_mode="r")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(stored, path).any():
        pytest.skip("this file system keeps files in memory")
    wanted = np.zeros(len(resident(stored, path)), np.bool_)
    # A page holds 16 grids; because of the header, the last grid of a page ends in the next page.
    wanted[2**11 : 2**11 + part] = wanted[2**12 - part :] = True
    odd = np.arange(1, 2**16, 2, np.uint32)
    LazyGrids(stored, odd, 16).prefetch(np.array([2**14, 2**15 - 1]))
    wait_for(lambda: bool(resident(stored, path)[wanted].all()))
    assert not resident(stored, path)[~wanted].any()
    assert not stored[2**14].any()
    wanted[2**10] = True
    np.testing.assert_array_equal(resident(stored, path), wanted)


@pytest.mark.parametrize("begin", [0, 3], ids=["from the start", "resumed inside a window"])
def test_a_window_is_read_before_its_first_grid_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: int
) -> None:
    monkeypatch.setattr(optimization, "BLOCK_CELLS", 4 * 256)
    monkeypatch.setattr(optimization, "WINDOW_CELLS", 40 * 256)
    monkeypatch.setattr(splits, "IN_MEMORY_BYTES", 0)
    np.save(tmp_path / "grids.npy", load_corpus("atomic:160").train[:])
    corpus = load_corpus(str(tmp_path / "grids.npy"))
    trainer = trainer_of(corpus, tmp_path)
    trainer.fit(begin)
    read, take = [np.array([], np.int64)], LazyGrids.__getitem__

    def take_what_was_read(grids: LazyGrids, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        assert np.isin(rows, np.concatenate(read)).all()
        return take(grids, rows)

    monkeypatch.setattr(LazyGrids, "prefetch", lambda _, positions: read.append(positions))
    monkeypatch.setattr(LazyGrids, "__getitem__", take_what_was_read)
    trainer.fit(7)
    assert trainer.progress.step == 7
    order, edges = (epoch_order(0, 0, len(corpus.train)), window_edges(len(corpus.train), cells=256))
    assert len(edges) == 5
    np.testing.assert_array_equal(np.concatenate(read), order[16 * begin :])


def test_an_evaluation_prefetches_the_grids_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WINDOW_CELLS", 10 * 256)
    monkeypatch.setattr(splits, "IN_MEMORY_BYTES", 0)
    np.save(tmp_path / "grids.npy", load_corpus("atomic:160").train[:])
    corpus = load_corpus(str(tmp_path / "grids.npy"))
    trainer = trainer_of(corpus, tmp_path)
    read, taken, take = [], [], LazyGrids.__getitem__

    def take_what_was_read(grids: LazyGrids, rows: slice) -> npt.NDArray[np.uint8]:
        taken.append((rows, read[-1]))
        return take(grids, rows)

    monkeypatch.setattr(LazyGrids, "prefetch", lambda _, rows: read.append(rows))
    monkeypatch.setattr(LazyGrids, "__getitem__", take_what_was_read)
    evaluate(trainer.model, corpus.val, trainer.loss)
    sample, *windows = read  # first the grids of the object metrics, then all grids
    n = len(corpus.val)
    np.testing.assert_array_equal(sample, range(n))
    assert windows == [slice(0, n // 2), slice(n // 2, n)]
    assert len(taken) == 3
    for rows, last in taken:
        np.testing.assert_array_equal(rows, last)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc, which only Linux has")
def test_the_scale_benchmark_measures_four_corpora(tmp_path: Path) -> None:
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
    *sizes, of_file = (each["grids"] for each in found.values())
    assert sizes == [40, 400, 4000 - load_corpus("atomic:4000").duplicates]
    assert 10_000 < of_file < 15_625  # fewer than were written, because duplicates are removed
    for each in found.values():
        assert len(each["training"]) == len(each["evaluation"]) == 1
        assert 0 < each["memory"]["base"] <= each["memory"]["training_peak"] < 1000
    assert f"met: private memory with {of_file:,} grids of a file" in done.stdout
