"""Loss, metrics, model, pictures and report have as many classes as the corpus."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lab import SessionHere, comparison, newest
from scipy import ndimage
from torch import Tensor, nn

from bvae.beta_vae import BetaVAE, one_hot, option_weights
from bvae.config import LOSS_OPTIONS, OUTSIDE, LossOption, RunConfig, TrainingConfig
from bvae.corpus import CorpusError, load_corpus
from bvae.evaluation import measure, metrics
from bvae.evaluation.metrics import Tally, find_objects
from bvae.losses import BetaVAELoss
from bvae.models import ModelError, build_model, check_model, load_model
from bvae.options import parse_experiment
from bvae.report.html import code_snippet
from bvae.trainer import Trainer
from bvae.training.checkpoint import CheckpointError
from bvae.training.cpu_bf16 import HandwrittenStep, unsupported
from bvae.training.step import AutogradStep

unit, slow = pytest.mark.unit, pytest.mark.slow
numbers_of_classes = st.integers(2, 64)


def random_grids(classes: int, seed: int, shape: tuple[int, int, int] = (3, 8, 8)) -> np.ndarray:
    """Return grids with much background. Some cells are outside, but never a whole grid."""
    rng = np.random.default_rng(seed)
    grids = rng.integers(0, classes, shape) * (rng.random(shape) < 0.6)
    grids[rng.random(shape) < 0.1] = OUTSIDE
    grids[:, 0, 0] = 0
    return grids.astype(np.uint8)


def written(folder: Path, classes: int, *, count: int = 60, outside: int | None = None) -> str:
    """Write a file of grids in which all of these classes occur; return its path."""
    grids = random_grids(classes, 0, (count, 8, 8)).astype(np.int16)
    grids[grids == OUTSIDE] = 0 if outside is None else outside
    grids[:, 1, : min(8, classes)] = np.arange(min(8, classes))
    grids[:, 2, 2] = classes - 1
    np.savez(folder / "grids.npz", train=grids)
    return str(folder / "grids.npz")


@unit
@given(numbers_of_classes, st.integers(0, 2**32 - 1))
@example(classes=2, seed=380)  # most cells are of class 1, and class 0 is predicted outside a grid
def test_metrics_of_any_number_of_classes_agree_with_their_definitions(classes: int, seed: int) -> None:
    target = random_grids(classes, seed)
    predicted = np.where(np.random.default_rng(seed).random(target.shape) < 0.7, target, classes - 1)
    predicted = np.where(target == OUTSIDE, 0, predicted).astype(np.uint8)
    tally = Tally(classes)
    tally.add(target, predicted)
    found = tally.metrics(find_objects(target, classes), predicted)
    label, shown = target[target != OUTSIDE], predicted[target != OUTSIDE]
    recall = [(shown[label == c] == c).mean() if (label == c).any() else None for c in range(classes)]
    assert found.class_recall == pytest.approx(recall)
    assert found.pixel_accuracy == pytest.approx((label == shown).mean())
    assert found.balanced_accuracy == pytest.approx(np.mean([r for r in recall if r is not None]))
    ious, recalls = [], []
    for grid, made in zip(target, np.where(target == OUTSIDE, OUTSIDE, predicted), strict=True):
        counts = [(grid == c).sum() for c in range(classes)]
        for c in set(range(classes)) - {int(np.argmax(counts))}:
            sets, others = (ndimage.label(cells == c, np.ones((3, 3)))[0] for cells in (grid, made))
            for number in range(1, sets.max() + 1):
                cells = sets == number
                if cells.sum() > 1:
                    recalls.append((made[cells] == c).mean() >= 0.5)
                    drawn = [others == other for other in range(1, others.max() + 1)]
                    ious.append(max([(cells & d).sum() / (cells | d).sum() for d in drawn], default=0.0))
    assert found.object_recall == (pytest.approx(np.mean(recalls)) if recalls else None)
    assert found.object_iou == (pytest.approx(np.mean(ious)) if ious else None)


@unit
@settings(max_examples=10)
@given(numbers_of_classes, st.integers(0, 99))
def test_handwritten_and_autograd_steps_agree_for_any_number_of_classes(classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    target = torch.from_numpy(random_grids(classes, seed))
    models = [BetaVAE(grid_size=8, latent_dim=3, classes=classes).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    assert unsupported(models[0], target) is None
    loss = BetaVAELoss(gamma=2.0, weight=torch.linspace(0.5, 2, classes).double(), beta=0.1)
    steps = (
        HandwrittenStep(models[0], loss, max_norm=1.0, dtype=torch.float64),
        AutogradStep(models[1], loss, max_norm=1.0, bf16=False),
    )
    for step in steps:
        step.forward_backward(target, torch.Generator().manual_seed(1))
        step.step(1e-3)
        step.sync_model()
    states = [model.state_dict() for model in models]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], msg=name)


@unit
@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("classes", [2, 3, 16, 64])
def test_the_classes_of_a_file_are_detected(tmp_path: Path, classes: int, suffix: str) -> None:
    path = written(tmp_path, classes, outside=-1)
    if suffix == "npy":
        path = str(Path(path).with_suffix(".npy"))
        np.save(path, np.load(tmp_path / "grids.npz")["train"])
    corpus = load_corpus(path, 8, padding_value=-1, classes="auto")
    assert corpus.classes == classes
    assert corpus.has_outside
    stated = load_corpus(path, 8, padding_value=-1, classes=classes)
    assert vars(stated) | {"train": 0, "val": 0} == vars(corpus) | {"train": 0, "val": 0}
    wider = load_corpus(path, 8, padding_value=-1, classes=64)
    assert wider.class_counts == corpus.class_counts + (0,) * (64 - classes)
    assert wider.fingerprint == corpus.fingerprint
    if classes > 2:
        expected = rf"is {classes - 1}; cells are the classes 0–{classes - 2}, .*; if .*--classes auto$"
        with pytest.raises(CorpusError, match=expected):
            load_corpus(path, 8, padding_value=-1, classes=classes - 1)


@unit
def test_a_class_that_occurs_only_in_validation_counts_too(tmp_path: Path) -> None:
    grids = random_grids(3, 0, (30, 8, 8)) % OUTSIDE
    grids[25:, 3, 3] = 11
    np.savez(tmp_path / "grids.npz", train=grids[:25], val=grids[25:])
    counts = load_corpus(str(tmp_path / "grids.npz"), 8, classes="auto").class_counts
    assert len(counts) == 12
    assert counts[3:] == (0,) * 9


@unit
def test_a_built_in_corpus_has_ten_classes_or_more() -> None:
    assert load_corpus("atomic:40", classes="auto").classes == 10
    assert load_corpus("atomic:40", classes=12).classes == 12
    with pytest.raises(CorpusError, match="atomic:40 has 10 classes, not 9; expected --classes 10 or more"):
        load_corpus("atomic:40", classes=9)


@unit
@pytest.mark.parametrize(("classes", "value"), [("auto", 3), (16, 10), (3, 2)])
def test_a_padding_value_among_the_given_classes_is_refused(tmp_path: Path, classes: int, value: int) -> None:
    path = written(tmp_path, 16)
    last = 15 if classes in ("auto", 16) else 2
    expected = f"padding value {value} is a class; .* other than 0–{last}, such as {last + 1} or -1"
    with pytest.raises(CorpusError, match=expected):
        load_corpus(path, 8, padding_value=value, classes=classes)


@unit
def test_weights_are_given_for_each_class() -> None:
    option = LossOption(name="D", gamma=1, class_weights=(1.0, 2.0, 4.0), candidate=True)
    assert len(option_weights(option, [5, 3, 1])) == 3
    with pytest.raises(ValueError, match="option D has 3 class weights; expected 4"):
        option_weights(option, [5, 3, 1, 1])


@unit
def test_a_mistake_in_class_weights_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "losses.toml").write_text("[D]\ngamma = 1\nclass_weights = [1, 2, 3]\n")
    given_options = {"loss_options_file": str(tmp_path / "losses.toml"), "classes": "3"}
    assert parse_experiment(given_options).classes == 3
    assert parse_experiment(given_options | {"classes": "auto"}).classes == "auto"
    with pytest.raises(
        ValueError, match=r"^class_weights of option D has 3 numbers; expected 10, one for each"
    ):
        parse_experiment(given_options | {"classes": "10"})


def with_classes(grid_size: int, latent_dim: int, classes: int) -> nn.Module:
    return BetaVAE(grid_size=grid_size, latent_dim=latent_dim, classes=classes)


def with_keywords(**keywords: int) -> nn.Module:
    return BetaVAE(**keywords)


def without_classes(grid_size: int, latent_dim: int) -> nn.Module:
    return BetaVAE(grid_size=grid_size, latent_dim=latent_dim)


def ignoring_classes(grid_size: int, latent_dim: int, classes: int) -> nn.Module:
    return BetaVAE(grid_size=grid_size, latent_dim=latent_dim)


@unit
@pytest.mark.parametrize("factory", [with_classes, with_keywords])
@pytest.mark.parametrize("classes", [2, 10, 64])
def test_a_factory_gets_the_classes_that_it_takes(factory, classes: int) -> None:
    name = f"{__name__}:{factory.__name__}"
    check_model(name, grid_size=8, latent_dim=3, classes=classes, has_outside=True)
    model = build_model(name, grid_size=8, latent_dim=3, classes=classes)
    assert model.decode(torch.zeros(1, 3)).shape == (1, classes, 8, 8)


@unit
def test_a_factory_without_classes_makes_models_of_ten() -> None:
    name = f"{__name__}:without_classes"
    check_model(name, grid_size=8, latent_dim=3)
    with pytest.raises(ModelError, match="has 10 classes, not 3, because its factory does not take classes"):
        check_model(name, grid_size=8, latent_dim=3, classes=3)
    with pytest.raises(ModelError, match=r"decode returns logits \[2, 10, 8, 8\]; expected \[2, 3, 8, 8\]"):
        check_model(f"{__name__}:ignoring_classes", grid_size=8, latent_dim=3, classes=3)


def run_on(path: str, classes: int) -> Trainer:
    corpus = load_corpus(path, 8, classes=classes)
    config = RunConfig(
        option=LOSS_OPTIONS["B"],
        seed=0,
        corpus=path,
        corpus_fingerprint=corpus.fingerprint,
        grid_size=8,
        padding_value=None,
        classes=classes,
        training=TrainingConfig(latent_dim=2, batch_size=8, precision="fp32"),
    )
    return Trainer(config, corpus, Path(path).parent)


@unit
def test_a_checkpoint_is_refused_by_a_run_with_other_classes(tmp_path: Path) -> None:
    trainer, checkpoint = run_on(written(tmp_path, 3), 3), tmp_path / "of_three.safetensors"
    trainer.write(checkpoint)
    model, config = load_model(checkpoint)
    assert config == trainer.config
    assert model.decode(torch.zeros(1, 2)).shape == (1, 3, 8, 8)
    with pytest.raises(CheckpointError, match="is of another run: its configuration differs"):
        run_on(config.corpus, 4).restore(checkpoint)
    trainer.progress.config = dataclasses.replace(config, classes=4)
    trainer.write(checkpoint)
    with pytest.raises(CheckpointError, match=r"of_three.safetensors: .* \[.*3.*\]; expected .* \[.*4.*\]$"):
        load_model(checkpoint)


@unit
@pytest.mark.parametrize("classes", [2, 10, 64])
def test_memory_bounds_hold_for_any_number_of_classes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classes: int
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(metrics, "BLOCK_CELLS", 7 * classes * 64)
    label = ndimage.label
    monkeypatch.setattr(
        ndimage, "label", lambda cells, *a, **k: seen.append(cells.size) or label(cells, *a, **k)
    )
    find_objects(random_grids(classes, 0, (30, 8, 8)), classes)
    assert seen == [7 * classes * 64] * 4 + [2 * classes * 64]
    monkeypatch.setattr(measure, "MAX_REFERENCE_CELLS", 20 * classes * 64)
    encoded: list[Tensor] = []
    monkeypatch.setattr(measure, "one_hot", lambda *a: encoded.append(one_hot(*a)) or encoded[-1])
    measure.references(load_corpus(written(tmp_path, classes), 8, classes=classes), 2)
    assert encoded[0].shape == (20, classes, 8, 8)


@unit
@pytest.mark.parametrize(
    ("classes", "settings"), [("10", "grid_size=16"), ("12", "grid_size=16, classes=12")]
)
def test_the_code_of_a_report_has_the_number_of_classes(classes: str, settings: str) -> None:
    experiment = parse_experiment({"corpus": "atomic:40", "grid_size": "16", "classes": classes})
    code = code_snippet(
        experiment, LOSS_OPTIONS["B"], load_corpus("atomic:40", classes=int(classes)).class_counts
    )
    assert f"load_corpus('atomic:40', {settings})" in code
    assert f"logits [B, {classes}, H, W]" in code
    names: dict = {}
    exec(code, names)
    assert len(names["weight"]) == int(classes)


@slow
@pytest.mark.parametrize("classes", [3, 16])
def test_a_session_with_3_or_16_classes_trains_resumes_and_reports(
    session_here: SessionHere, lab: Path, classes: int
) -> None:
    written(lab, classes)
    settings = ("--corpus=grids.npz", "--grid-size", "8", "--epochs", "1", "--batch-size", "16")
    begun = ("--classes", "auto", "--seeds", "1", "--loss-options", "A,B", "-k", "A-seed0")
    status, said = session_here(*settings, *begun)
    assert status == 0, said
    session = newest(lab)
    assert json.loads((session / "session.json").read_text())["config"]["classes"] == classes
    assert not (session / "B-seed0").exists()
    status, said = session_here("--resume=runs/latest", "--classes", str(classes + 1))
    assert status == 4, said
    assert f"classes was {classes} and is {classes + 1};" in said
    status, said = session_here("--resume=runs/latest", "--classes", "auto", "--html=report.html")
    assert status == 1, said
    found = comparison(lab)
    assert len(found["corpus"]["class_counts"]) == classes
    for option in found["options"].values():
        assert len(option["painting_threshold"]) == classes - 1
        (run,) = option["runs"]
        assert np.array(run["metrics"]["confusion"]).shape == (classes, classes)
        assert (session / run["path"] / "checkpoints/reconstructions_best.png").exists()
        assert json.loads((session / run["path"] / "result.json").read_text())["failed_pictures"] == []
    names = {path.name for path in (session / "comparison").iterdir()}
    assert {"why_A.png", "why_B.png", "examples.png", "reconstructions.png"} <= names
    assert f"0 of {classes - 1}" in (lab / "report.html").read_text()
