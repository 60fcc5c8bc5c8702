"""Runs and comparisons in Python: `bvae.open_run` and `bvae.compare`."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from lab import furnish

import bvae
from bvae import notebook
from bvae.beta_vae import BetaVAE
from bvae.config import LOSS_OPTIONS, OUTSIDE, LossOption, RunConfig, TrainingConfig
from bvae.experiment import Experiment
from bvae.judging.comparison import Comparison
from bvae.models import initial_model
from bvae.notebook import BATCH, Run
from bvae.records import Progress
from bvae.storage import StorageError
from bvae.training.checkpoint import Checkpoint, save_checkpoint
from bvae.visualization import plot_reconstructions, plot_samples, plot_traversals

GRIDS = np.random.default_rng(0).integers(0, 10, (5, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two checkpoints of an untrained model."""
    run = RunConfig(
        option=LOSS_OPTIONS["B"],
        seed=3,
        corpus="corpus.npz",
        corpus_fingerprint="0",
        grid_size=8,
        padding_value=None,
        training=TrainingConfig(latent_dim=4, precision="fp32"),
    )
    weights = {f"model.{name}": t for name, t in initial_model(run).state_dict().items()}
    path = tmp_path_factory.mktemp("runs") / "B-seed3"
    (path / "checkpoints").mkdir(parents=True)
    for epoch in (1, 2):
        save_checkpoint(
            Checkpoint(weights, Progress(config=run)), path / f"checkpoints/epoch_00{epoch}.safetensors"
        )
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return bvae.open_run(folder)


@pytest.mark.unit
def test_a_run_is_opened_by_folder_at_its_newest_checkpoint_or_by_file(folder: Path, run: Run) -> None:
    first = folder / "checkpoints/epoch_001.safetensors"
    assert run.checkpoint == first.with_name("epoch_002.safetensors")
    assert bvae.open_run(str(first)).checkpoint == first
    assert (run.config.seed, run.model.training, run.metrics) == (3, False, [])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("..", "has no checkpoint; expected the folder of a run, such as runs/latest/B-seed0"),
        ("nothing", "nothing could not be read: No such file"),
        ("damaged.safetensors", "is not a complete checkpoint"),
    ],
)
def test_a_path_that_is_no_run_is_refused_in_one_sentence(folder: Path, name: str, complaint: str) -> None:
    (folder / "damaged.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match=complaint) as refusal:
        bvae.open_run(folder / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.unit
def test_only_a_model_that_is_named_is_imported(folder: Path) -> None:
    with pytest.raises(ValueError, match="not 'mine:make'; if you trust this name"):
        bvae.open_run(folder, model="mine:make")


@pytest.mark.unit
def test_arrays_agree_with_the_model(run: Run) -> None:
    with torch.inference_mode():
        expected = run.model(torch.from_numpy(GRIDS))
    mean, log_variance = run.encode(GRIDS)
    assert mean.dtype == log_variance.dtype == np.float32
    assert np.allclose(mean, expected.mean, atol=1e-5)
    assert np.allclose(log_variance, expected.log_variance, atol=1e-5)
    found = run.reconstruct(GRIDS.astype(np.int64))
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected.logits.argmax(1))
    assert np.array_equal(run.decode(mean), found)


@pytest.mark.unit
def test_any_number_of_grids_is_accepted(run: Run) -> None:
    many = np.resize(GRIDS, (2 * BATCH + 1, 8, 8))
    assert np.array_equal(run.reconstruct(many)[-1:], run.reconstruct(many[-1:]))
    assert run.encode(many)[0].shape == (len(many), 4)


@pytest.mark.unit
def test_cells_outside_stay_outside(run: Run) -> None:
    grids = GRIDS.copy()
    grids[1, 5:] = OUTSIDE
    assert np.array_equal(run.reconstruct(grids) == OUTSIDE, grids == OUTSIDE)


@pytest.mark.unit
def test_traversals_and_interpolations_pass_through_the_reconstructions(run: Run) -> None:
    mean, _ = run.encode(GRIDS[:1])
    found = run.reconstruct(GRIDS)
    assert np.array_equal(run.traverse(GRIDS[0], 2, [mean[0, 2], 9.0])[0], found[0])
    line = run.interpolate(GRIDS[0], GRIDS[1], 5)
    assert line.shape == (5, 8, 8)
    assert np.array_equal(line[[0, -1]], found[:2])


@pytest.mark.unit
def test_samples_depend_on_the_seed(run: Run) -> None:
    samples = run.sample(6, 1)
    assert (samples.shape, samples.dtype) == ((6, 8, 8), np.uint8)
    assert np.array_equal(samples, run.sample(6, 1))
    assert not np.array_equal(samples, run.sample(6, 2))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (
            lambda run: run.encode(GRIDS[0]),
            r"grids: shape \(8, 8\); expected \[B, 8, 8\]: write grid\[None\]",
        ),
        (lambda run: run.reconstruct(GRIDS[:, :6]), r"shape \(5, 6, 8\).* fill up a smaller one with 255"),
        (lambda run: run.reconstruct(GRIDS[:0]), r"shape \(0, 8, 8\)"),
        (lambda run: run.encode(GRIDS / 1), r"float64 values; expected whole numbers"),
        (lambda run: run.encode(GRIDS + 8), r"values \[10, 11, 12\]; expected the classes 0–9, 255 outside"),
        (lambda run: run.encode(np.full((1, 8, 8), -1)), r"values \[-1\]"),
        (lambda run: run.encode("grids.npy"), r"grids: shape \(\); expected"),
        (
            lambda run: run.traverse(GRIDS, 0),
            r"grid: shape \(5, 8, 8\); expected one grid, such as grids\[0\]",
        ),
        (lambda run: run.traverse(GRIDS[0], 4), "dimension is 4; expected a whole number from 0 to 3"),
        (lambda run: run.traverse(GRIDS[0], 0, []), r"values is \[\]; expected"),
        (
            lambda run: run.interpolate(GRIDS[0], GRIDS[1], 1),
            "steps is 1; expected a whole number of at least 2",
        ),
        (lambda run: run.sample(0), "count is 0; expected a whole number of at least 1"),
        (
            lambda run: run.decode(np.zeros((1, 3))),
            r"latents: shape \(1, 3\); expected finite numbers \[B, 4\]",
        ),
        (lambda run: run.decode(np.full((1, 4), np.nan)), "expected finite numbers"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(
    run: Run, call: Callable[[Run], Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        call(run)
    assert "\n" not in str(refusal.value)


@pytest.mark.unit
def test_each_plot_is_the_picture_of_its_function_for_the_model_and_background_of_the_run(run: Run) -> None:
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, background=3))
    found, expected = ([io.BytesIO() for _ in range(3)] for _ in range(2))
    run.plot_reconstructions(GRIDS[:2], path=found[0])
    run.plot_traversals(GRIDS[0], [1], [-1, 1], path=found[1], title="one dimension")
    run.plot_samples(3, seed=1, path=found[2])
    plot_reconstructions(run.model, GRIDS[:2], background=3, path=expected[0])
    plot_traversals(run.model, GRIDS[0], [1], [-1, 1], path=expected[1], title="one dimension")
    plot_samples(run.model, 3, latent_dim=4, background=3, seed=1, path=expected[2])
    pictures = [file.getvalue() for file in found]
    assert pictures == [file.getvalue() for file in expected]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.unit
def test_exported_weights_load_into_a_model_without_a_checkpoint(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "folders/that do not exist/model.safetensors"
    run.export(path)
    model = BetaVAE(grid_size=8, latent_dim=4)
    model.load_state_dict(safetensors.torch.load_file(path))
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(GRIDS)).logits
    assert np.array_equal(logits.argmax(1), run.reconstruct(GRIDS))
    with pytest.raises(StorageError, match=r"model\.safetensors could not be made: .*or repeat the command"):
        run.export(path / "a file is no folder.safetensors")


@pytest.mark.unit
def test_a_frame_needs_pandas_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas, which is not installed: pip install pandas, or use"):
        run.metrics_frame()
    frames: list[Any] = []
    fake = SimpleNamespace(set_index=lambda column: frames.append(column))
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: fake))
    run.metrics_frame()
    assert frames == ["epoch"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"options": "B,Z"}, "options names 'Z'; expected names among A,B,C"),
        ({"options": []}, "options names ''; expected"),
        ({"epochs": 0}, "epochs is 0; expected"),
        ({"seeds": 0}, "seeds is 0; expected"),
        ({"corpus": "nothing.npy"}, "'nothing.npy' is neither a built-in corpus"),
        ({"learning_rat": 1}, "compare has no setting 'learning_rat'; see ExperimentConfig"),
    ],
)
def test_wrong_settings_of_a_comparison_are_refused_before_any_write(
    tmp_path: Path, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        bvae.compare(run_dir=tmp_path / "runs", **settings)
    assert not [*tmp_path.iterdir()]


@pytest.mark.unit
def test_the_package_offers_only_the_names_in_its_dunder_all() -> None:
    assert (bvae.open_run, bvae.compare) == (notebook.open_run, notebook.compare)
    assert all(hasattr(bvae, name) for name in bvae.__all__)
    for name in {"train", *vars(notebook)} - {*vars(bvae), *bvae.__all__}:
        with pytest.raises(AttributeError, match=f"module 'bvae' has no attribute '{name}'"):
            getattr(bvae, name)


@pytest.mark.unit
def test_an_interrupted_comparison_leaves_no_lock_and_no_empty_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Experiment) -> None:
        torch.set_num_threads(3)
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    monkeypatch.setattr(Experiment, "compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bvae.compare("B", "atomic:60", run_dir=tmp_path / "runs")
    assert not [*(tmp_path / "runs").iterdir()]
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_comparison_in_python_is_opened_run_by_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    own = LossOption(name="D", gamma=0.0, class_weights="none", candidate=False, training={"latent_dim": 3})
    comparison = bvae.compare(
        ["B", own],
        furnish(tmp_path) / "corpus.npz",
        epochs=2,
        seeds=1,
        run_dir=tmp_path / "runs",
        batch_size=16,
    )
    assert isinstance(comparison, Comparison)
    assert [*comparison.options] == ["B", "D"]
    assert "of 2 runs done" in capsys.readouterr().err  # the number before it depends on timing
    assert torch.get_num_threads() == threads
    run = bvae.open_run(tmp_path / "runs/latest/D-seed0")
    assert run.checkpoint.name == "epoch_002.safetensors"
    assert [record["epoch"] for record in run.metrics] == [1, 2]
    assert run.config.training.latent_dim == run.model.latent_dim == 3
    assert run.metrics[-1]["object_iou"] == comparison.options["D"].object_iou.mean
    assert {"train_loss", "shuffled_object_iou", "extent_object_iou", "class_recall_9"} <= {*run.metrics[0]}
