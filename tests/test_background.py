"""Any class can be the background. Relabelling the classes changes only the class labels in results."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from evidence_factory import CORPUS, result
from hypothesis import assume, given
from hypothesis import strategies as st
from lab import SessionHere, comparison, hashes, newest
from PIL import Image

from bvae import __main__ as command_line
from bvae import open_run
from bvae.config import LOSS_OPTIONS, OUTSIDE, ConfigError, ExperimentConfig
from bvae.corpus import CorpusError, load_corpus
from bvae.evaluation import measure, metrics
from bvae.evaluation.measure import foreground_gradient_share
from bvae.evaluation.metrics import class_counts, find_objects, score_with_control
from bvae.judging.baseline import incomparable, read_baseline
from bvae.judging.comparison import Comparison, compare, prediction_thresholds
from bvae.judging.explanation import Diagnosis, explain_why
from bvae.losses import BetaVAELoss
from bvae.options import parse_experiment
from bvae.records import ControlledMetrics
from bvae.storage import from_json, to_json
from bvae.visualization.grid_image import RIGHT_BACKGROUND, RIGHT_OBJECT, SYMBOL_COLOURS, WRONG
from bvae.visualization.latents import describe_samples
from bvae.visualization.reconstructions import draw_reconstructions
from bvae.visualization.why_chart import plot_why

unit, slow = pytest.mark.unit, pytest.mark.slow

relabellings = st.integers(2, 12).flatmap(lambda classes: st.permutations(range(classes)))
"""The new label of each class. Class 0 is the old background, and its new label is the new background."""
seeds = st.integers(0, 2**32 - 1)
SWAPPED = (7, *range(1, 7), 0, 8, 9)
"""The new labels if classes 0 and 7 are exchanged."""


def random_grids(classes: int, seed: int, count: int = 40) -> np.ndarray:
    """Return grids of mostly class 0. Half of them have cells outside."""
    rng = np.random.default_rng(seed)
    grids = rng.integers(0, classes, (count, 6, 6)) * (rng.random((count, 6, 6)) < 0.5)
    grids[::2, :, 4:] = OUTSIDE
    return grids.astype(np.uint8)


def relabelled(grids: np.ndarray, new: Sequence[int]) -> np.ndarray:
    table = np.full(256, OUTSIDE, np.uint8)
    table[: len(new)] = new
    return table[grids]


def without_ties(grids: np.ndarray, classes: int) -> np.ndarray:
    """Return grids whose three largest class counts differ, among all cells and also among object cells.

    On a tie, the smallest label counts as the most frequent class, and relabelling would change results.
    """
    objects = find_objects(grids, classes)
    of_objects = np.where(np.isin(objects.sets.label, objects.number), grids, OUTSIDE)
    clear = np.ones(len(grids), np.bool_)
    for cells in (grids, of_objects):
        top = np.sort(class_counts(cells, classes), axis=1)[:, -3:]
        clear &= ((np.diff(top, axis=1) > 0) | (top[:, 1:] == 0)).all(1)
    return grids[clear]


def written(folder: Path, new: Sequence[int] = range(10)) -> str:
    """Write a file of grids with these labels; return its path."""
    grids = relabelled(without_ties(random_grids(10, 0, 400)[1::2], 10), new)
    np.savez(folder / "grids.npz", train=grids[:30], val=grids[30:40])
    return str(folder / "grids.npz")


def assert_same_but_for_labels(old: ControlledMetrics, new: ControlledMetrics, labels: Sequence[int]) -> None:
    for before, after in ((old, new), (old.shuffled, new.shuffled)):
        assert [after.class_recall[label] for label in labels] == list(before.class_recall)
        assert [
            getattr(after, name) for name in vars(before) if name not in ("class_recall", "shuffled")
        ] == [
            pytest.approx(value, rel=1e-12)  # a mean over classes or objects is summed in another order
            if name in ("balanced_accuracy", "object_iou")
            else value
            for name, value in vars(before).items()
            if name not in ("class_recall", "shuffled")
        ]


@unit
@given(relabellings, seeds)
def test_relabelling_changes_no_metric_and_no_control(new: Sequence[int], seed: int) -> None:
    classes, rng = len(new), np.random.default_rng(seed)
    grids = without_ties(random_grids(classes, seed), classes)
    assume(len(grids) > 1)
    noise = rng.integers(0, classes, grids.shape)
    predicted = np.where((rng.random(grids.shape) < 0.7) & (grids != OUTSIDE), grids, noise).astype(np.uint8)
    other, extent = predicted[::-1], metrics.extent(grids, classes)
    moved = relabelled(grids, new)
    assert (metrics.extent(moved, classes) == relabelled(extent, new)).all()
    objects, moved_objects = find_objects(grids, classes), find_objects(moved, classes)
    for guess, shuffled in ((predicted, other), (extent, extent[::-1]), (np.zeros_like(grids),) * 2):
        assert_same_but_for_labels(
            score_with_control(objects, guess, shuffled),
            score_with_control(moved_objects, relabelled(guess, new), relabelled(shuffled, new), new[0]),
            new,
        )


@unit
@given(relabellings, seeds)
def test_relabelling_changes_neither_thresholds_nor_the_explanation(new: Sequence[int], seed: int) -> None:
    classes, rng, old = len(new), np.random.default_rng(seed), np.argsort(new)
    counts = rng.integers(1, 9999, classes)
    logits = torch.from_numpy(3 * rng.standard_normal((2, classes, 6, 6)))
    target = random_grids(classes, seed, 2)
    target[0, 0, 0] = 0
    weight = torch.from_numpy(rng.uniform(0.1, 9, classes))
    loss, moved_loss = (BetaVAELoss(gamma=2.0, weight=w, beta=0.0) for w in (weight, weight[old]))
    share = foreground_gradient_share(logits, torch.from_numpy(target), loss)
    moved = torch.from_numpy(relabelled(target, new))
    moved_share = foreground_gradient_share(logits[:, old], moved, moved_loss, new[0])
    assert moved_share == pytest.approx(share, rel=1e-9)
    confusion = rng.integers(0, 99, (classes, classes))
    option = LOSS_OPTIONS["B"]
    thresholds = prediction_thresholds(counts.tolist(), option)
    before = Diagnosis(thresholds, ((share,),), confusion)
    moved_thresholds = prediction_thresholds(counts[old].tolist(), option, new[0])
    after = Diagnosis(moved_thresholds, ((share,),), confusion[np.ix_(old, old)], new[0])
    assert after.foreground == sorted(new[1:])
    found = dict(zip(after.foreground, moved_thresholds, strict=True))
    assert [found[label] for label in new[1:]] == pytest.approx(thresholds)
    assert explain_why(before)[1:] == explain_why(after)[1:]


@unit
@pytest.mark.parametrize("classes", [2, 10, 64])
def test_relabelling_changes_no_shade_of_the_wrong_cells(classes: int) -> None:
    new = np.random.default_rng(classes).permutation(classes).tolist()
    grids = without_ties(random_grids(classes, 0), classes)[:3]
    made = np.where(np.random.default_rng(1).random(grids.shape) < 0.7, grids, 1)
    shades = []
    for target, predicted, background in (
        (grids, made, 0),
        (relabelled(grids, new), relabelled(made, new), new[0]),
    ):
        picture = io.BytesIO()
        draw_reconstructions(target, predicted, [0.0] * len(grids), path=picture, background=background)
        with Image.open(picture) as image:
            colours = dict(map(reversed, image.convert("RGB").getcolors(2**24)))
        codes = [SYMBOL_COLOURS[symbol] for symbol in (RIGHT_BACKGROUND, RIGHT_OBJECT, WRONG)]
        shades.append([colours[tuple(bytes.fromhex(code[1:]))] for code in codes])
    assert shades[0] == shades[1]
    assert len(set(shades[0])) == 3


@unit
@given(relabellings, seeds)
def test_relabelling_changes_no_described_share_of_samples(new: Sequence[int], seed: int) -> None:
    samples = random_grids(len(new), seed)[1::2]
    sentences = describe_samples(samples), describe_samples(relabelled(samples, new), new[0])
    before, after = (sentence.partition("; their classes")[0] for sentence in sentences)
    assert before == after


@unit
def test_the_chart_of_thresholds_has_no_bar_for_the_background() -> None:
    why = Diagnosis((0.2,) * 9, ((0.5,),), np.eye(10, dtype=np.int64), background=7)
    axes = plot_why(why).axes[0]
    assert len(axes.patches) == 9
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list("012345689")


@unit
def test_the_background_of_a_file_is_given_detected_or_class_0(tmp_path: Path) -> None:
    plain = load_corpus(written(tmp_path))
    moved = written(tmp_path, SWAPPED)
    chosen, found, default = (load_corpus(moved, background=choice) for choice in (7, "auto", 0))
    assert (chosen.background, found.background, default.background) == (7, 7, 0)
    assert chosen.background_rate == found.background_rate == plain.background_rate
    assert default.background_rate < plain.background_rate
    assert chosen.fingerprint == default.fingerprint != plain.fingerprint
    assert chosen.class_counts[7] == plain.class_counts[0] == max(plain.class_counts)
    guesses = [measure.references(corpus, 2) for corpus in (plain, chosen)]
    for name in ("background only", "nearest training grid"):
        assert_same_but_for_labels(*(guess[name] for guess in guesses), SWAPPED)


@unit
def test_on_a_tie_the_smallest_class_is_the_background(tmp_path: Path) -> None:
    grids = np.random.default_rng(0).permuted(np.tile([1, 2, 5, 5, 3, 3], (40, 1)), axis=1)[:, None]
    np.savez(tmp_path / "grids.npz", train=grids, val=np.full((2, 1, 6), (1, 9, 9, 9, 9, 9)))
    assert load_corpus(str(tmp_path / "grids.npz"), background="auto").background == 3


@unit
def test_an_impossible_background_is_refused_with_the_choices(tmp_path: Path) -> None:
    grids = np.where(random_grids(4, 0)[1::2] == 0, 5, random_grids(4, 0)[1::2])
    np.savez(tmp_path / "grids.npz", train=grids[:4], val=grids[4:])
    counts = {label: f"{label}: {(grids[:4] == label).sum()}" for label in (1, 2, 3, 5)}
    for missing in (4, 7, 63, -1):
        with pytest.raises(
            CorpusError, match=rf"no training cell has the class {missing} of --background"
        ) as no:
            load_corpus(str(tmp_path / "grids.npz"), classes="auto", background=missing)
        assert f"expected auto, or a class with cells ({', '.join(counts.values())})" in str(no.value)
    assert (
        load_corpus(str(tmp_path / "grids.npz")).background_rate == 0.0
    )  # class 0, the default, may have no cells
    for given_options, expected in (
        ({"background": "10"}, "is 10; expected a class from 0 to 9, or auto"),
        ({"background": "-1"}, "is -1; expected a class from 0 to 9, or auto"),
        ({"background": "64", "classes": "auto"}, "is 64; expected a class from 0 to 63, or auto"),
        ({"background": "red"}, "is 'red'; expected a whole number, or auto"),
    ):
        with pytest.raises(ConfigError, match=f"^--background {expected}$"):
            parse_experiment(given_options)


@unit
def test_the_remark_on_a_rare_background_names_the_option() -> None:
    rare = dataclasses.replace(CORPUS, background=3).remarks()
    assert rare == [
        "Class 0 is more frequent than class 3, which counts as the background: foreground metrics and the "
        "accuracy band mean less here; --background auto makes class 0 the background."
    ]
    tied = dataclasses.replace(CORPUS, class_counts=(9, 5, 9, *[1] * 7), background=2)
    assert tied.remarks() == ["Class 2 is the background."]


@unit
@pytest.mark.parametrize("background", [-1, 10])
def test_a_recorded_background_is_checked_and_is_class_0_by_default(background: int) -> None:
    stored = to_json(compare(CORPUS, ExperimentConfig(), {"B": {0: result("B", 0)}}))
    record = json.loads(stored)
    assert record["corpus"].pop("background") == 0
    assert from_json(json.dumps(record), Comparison) == from_json(stored, Comparison)
    record["corpus"]["background"] = background
    with pytest.raises(ValueError, match=f"background is {background}; expected a class of the corpus"):
        from_json(json.dumps(record), Comparison)


@unit
def test_a_baseline_with_another_background_is_not_comparable(tmp_path: Path) -> None:
    experiment = ExperimentConfig()
    stored = compare(dataclasses.replace(CORPUS, background=1), experiment, {"B": {0: result("B", 0)}})
    (tmp_path / "comparison.json").write_bytes(to_json(stored))
    assert incomparable(read_baseline(tmp_path), experiment, CORPUS) == ["background was 1 and is 0"]


@slow
def test_a_session_uses_the_background_of_its_corpus(session_here: SessionHere, lab: Path) -> None:
    with np.load(lab / "corpus.npz") as corpus:
        grids = {name: relabelled(part, SWAPPED) for name, part in corpus.items()}
    np.savez(lab / "sevens.npz", **grids)
    settings = ("--corpus=sevens.npz", "--epochs", "2", "--seeds", "1", "--batch-size", "16")
    status, said = session_here(*settings, "--loss-options", "A,B")
    assert status == 1, said
    assert "--background auto makes class 7 the background" in said
    default, weights = comparison(lab), hashes(newest(lab))

    begun = ("--loss-options", "A,B", "--background", "auto", "-k", "A-seed0")
    status, said = session_here(*settings, *begun)
    assert status == 0, said
    session = newest(lab)
    assert json.loads((session / "session.json").read_text())["config"]["background"] == 7
    status, said = session_here("--resume=runs/latest", "--background", "3")
    assert status == 4, said
    assert "background was 7 and is 3;" in said
    status, said = session_here("--resume=runs/latest", "--background", "7", "--html=report.html")
    assert status == 1, said
    assert "Class 7 is the background." in said
    assert "Class 7 is the background." in (lab / "report.html").read_text()
    assert hashes(session) == weights  # model and loss do not depend on the background
    found = comparison(lab)
    assert found["corpus"]["background_rate"] == pytest.approx((grids["val"] == 7).mean())
    for name, option in found["options"].items():
        old, new = (each["runs"][0]["metrics"] for each in (default["options"][name], option))
        assert (new["confusion"], new["object_iou"]) == (old["confusion"], old["object_iou"])
        predicted = np.array(new["confusion"]).sum(0)
        rate = new["predicted_foreground_rate"]
        assert rate == pytest.approx(1 - predicted[7] / predicted.sum()) != old["predicted_foreground_rate"]
        stored = json.loads((session / f"{name}-seed0/result.json").read_text())
        assert stored["failed_pictures"] == []

    samples = lab / "samples.png"
    best = session / "B-seed0/checkpoints/best.safetensors"
    assert command_line.main(["show", str(best), "--samples", "3", f"--output={samples}"]) == 0
    with Image.open(samples) as image:
        assert image.info["Description"] == describe_samples(open_run(best).sample(3), 7)
