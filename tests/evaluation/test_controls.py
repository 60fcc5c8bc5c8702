"""Controls and references agree with brute force, and are reproducible."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bvae.beta_vae import class_weights
from bvae.config import OUTSIDE
from bvae.corpus import Corpus
from bvae.evaluation import measure
from bvae.evaluation.measure import references
from bvae.evaluation.metrics import derangement, extent, find_objects, sample_rows, score_with_control
from bvae.records import ControlledMetrics

pytestmark = pytest.mark.unit

Grids = NDArray[np.uint8]

seeds = st.integers(0, 2**32 - 1)


def sparse_grids(rng: np.random.Generator, count: int, side: int, *, outside: bool = False) -> Grids:
    """Return grids `[count, side, side]`, mostly background. If `outside`, half of them are smaller."""
    grids = rng.choice(10, (count, side, side), p=[0.55, *[0.05] * 9]).astype(np.uint8)
    if outside:
        for grid, (height, width) in zip(grids[::2], rng.integers(2, side + 1, (count, 2)), strict=False):
            grid[height:], grid[:, width:] = OUTSIDE, OUTSIDE
    return grids


def corpus_of(train: Grids, val: Grids) -> Corpus:
    return Corpus(
        name="made",
        spec="made",
        grid_size=train.shape[1],
        train=train,
        val=val,
        fingerprint="0",
        class_counts=tuple(int((train == label).sum()) for label in range(10)),
        background_rate=float((val[val != OUTSIDE] == 0).mean()),
        has_outside=bool((train == OUTSIDE).any() or (val == OUTSIDE).any()),
        duplicates=0,
        duplicates_sampled=False,
    )


def scored(val: Grids, predicted: Grids) -> ControlledMetrics:
    return score_with_control(find_objects(val), predicted, predicted[derangement(len(val))])


@given(st.integers(2, 200), st.integers(0, 100))
def test_the_shuffled_control_decodes_every_grid_from_another_grid(n: int, seed: int) -> None:
    other = derangement(n, seed)
    assert sorted(other) == list(range(n))
    assert (other != np.arange(n)).all()


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_sample_of_rows_is_reproducible_ascending_and_limited(count: int, at_most: int) -> None:
    rows = sample_rows(count, at_most)
    assert len(rows) == min(count, at_most)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(rows.tolist()) <= set(range(count))
    assert np.array_equal(rows, sample_rows(count, at_most))


def slow_extent(grid: Grids) -> Grids:
    """Compute `extent` cell by cell."""
    counts = Counter(grid[grid != OUTSIDE].tolist())
    main, *others = sorted(counts, key=lambda label: (-counts[label], label))
    predicted = np.full_like(grid, main)
    marked = [place for place, label in np.ndenumerate(grid) if label not in (main, OUTSIDE)]
    if marked:
        (top, left), (bottom, right) = np.min(marked, 0), np.max(marked, 0)
        predicted[top : bottom + 1, left : right + 1] = others[0]
    return predicted


@given(seeds, st.booleans(), st.integers(1, 4))
def test_extent_agrees_with_its_definition_cell_by_cell(seed: int, outside: bool, classes: int) -> None:
    rng = np.random.default_rng(seed)
    grids = rng.choice(rng.permutation(10)[:classes], (3, *rng.integers(1, 7, 2))).astype(np.uint8)
    if outside:
        holes = rng.random(grids.shape) < 0.4
        holes[:, 0, -1] = False
        grids[holes] = OUTSIDE
    found = extent(grids)
    assert found.dtype == np.uint8
    # Positions outside are compared too, because each prediction also serves as the control of another grid.
    assert found.tolist() == [slow_extent(grid).tolist() for grid in grids]


def test_extent_of_a_small_example() -> None:
    grids = np.array([[[0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 4, 0], [0, 3, 0, 0]], [[7] * 4] * 4], np.uint8)
    assert extent(grids).tolist() == [[[0, 0, 0, 0], [0, 3, 3, 0], [0, 3, 3, 0], [0, 3, 3, 0]], [[7] * 4] * 4]


NAMES = ["background only", "nearest training grid", "nearest training grid, weighted", "PCA"]


@pytest.mark.parametrize("outside", [False, True])
def test_background_only_scores_the_background_rate(outside: bool) -> None:
    rng = np.random.default_rng(0)
    train, val = (sparse_grids(rng, count, 8, outside=outside) for count in (30, 12))
    corpus = corpus_of(train, val)
    found = references(corpus, 4)
    assert list(found) == NAMES
    nothing = found["background only"]
    assert nothing == scored(val, np.zeros_like(val))
    assert nothing.pixel_accuracy == nothing.background_rate == pytest.approx(corpus.background_rate)
    assert nothing.foreground_recall == nothing.object_recall == nothing.object_iou == 0.0


def similarity(train: Grids, val: Grids, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the total weight of the cells that two grids share, `[validation grids, training grids]`."""
    return np.array(
        [[weight[mine[(mine == other) & (mine != OUTSIDE)]].sum() for other in train] for mine in val]
    )


def leads(similar: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each validation grid whether one training grid is nearest by more than rounding errors."""
    best, second = np.sort(similar, axis=1)[:, :-3:-1].T
    return best - second > 1e-3


@pytest.mark.parametrize("outside", [False, True])
def test_the_nearest_training_grid_agrees_with_brute_force(outside: bool) -> None:
    rng = np.random.default_rng(1)
    train, val = (sparse_grids(rng, count, 8, outside=outside) for count in (25, 60))
    weight = class_weights([int((train == c).sum()) for c in range(10)], "sqrt_inverse").double().numpy()
    alike, weighted = similarity(train, val, np.ones(10)), similarity(train, val, weight)
    clear = leads(alike) & leads(weighted)
    assert clear.sum() >= 15
    assert (alike.argmax(1) != weighted.argmax(1))[clear].any()
    found = references(corpus_of(train, val[clear]), 4)
    whole = np.where(train == OUTSIDE, 0, train)
    assert found[NAMES[1]] == scored(val[clear], whole[alike.argmax(1)[clear]])
    assert found[NAMES[2]] == scored(val[clear], whole[weighted.argmax(1)[clear]])


def test_a_validation_grid_in_the_training_split_is_its_own_nearest_grid() -> None:
    train = sparse_grids(np.random.default_rng(2), 20, 8)
    found = references(corpus_of(train, train[:7]), 4)
    assert found[NAMES[1]].pixel_accuracy == found[NAMES[2]].pixel_accuracy == 1.0


@pytest.mark.parametrize("outside", [False, True])
def test_as_many_components_as_dimensions_reconstruct_exactly(outside: bool) -> None:
    rng = np.random.default_rng(3)
    train, val = (sparse_grids(rng, count, 4, outside=outside) for count in (400, 10))
    exact = references(corpus_of(train, val), 160)["PCA"]
    assert exact.pixel_accuracy == exact.perfect_rate == 1.0
    few = references(corpus_of(train, val), 2)["PCA"]
    assert few.pixel_accuracy is not None
    assert few.pixel_accuracy < 1.0


def test_several_numbers_of_components_are_scored_like_each_number_alone() -> None:
    rng = np.random.default_rng(7)
    corpus = corpus_of(sparse_grids(rng, 40, 4), sparse_grids(rng, 10, 4))
    found = references(corpus, 2, 5)
    assert [*found] == [*NAMES[:-1], "PCA, 2 components", "PCA, 5 components"]
    for count in (2, 5):
        assert found[f"PCA, {count} components"] == references(corpus, count)["PCA"]


@settings(max_examples=5)
@given(seeds, st.integers(2, 6))
def test_as_many_components_as_different_grids_reconstruct_exactly(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    different = sparse_grids(rng, count, 4, outside=True)
    train = different[rng.integers(0, count, 40)]
    exact = references(corpus_of(train, train[:5]), count)["PCA"]
    assert exact.pixel_accuracy == 1.0


def one_hot_cells(grids: Grids) -> NDArray[np.float64]:
    return (grids[..., None] == np.arange(10)).astype(np.float64).reshape(len(grids), -1, 10)


def test_pca_predicts_the_class_with_the_largest_weighted_value() -> None:
    rng = np.random.default_rng(6)
    train, val = sparse_grids(rng, 6, 4), sparse_grids(rng, 40, 4)
    weight = class_weights([int((train == c).sum()) for c in range(10)], "sqrt_inverse").double().numpy()
    known, asked = (one_hot_cells(grids).reshape(len(grids), -1) for grids in (train, val))
    center = known.mean(0)
    axes = np.linalg.svd(known - center, full_matrices=False)[2][:5]  # six grids have at most five components
    values = ((asked - center) @ axes.T @ axes + center).reshape(len(val), 16, 10)
    second, best = np.sort(values * weight, axis=2)[..., -2:].transpose(2, 0, 1)
    clear = (best - second > 1e-4).all(1)
    assert clear.sum() >= 10
    predicted, unweighted = ((values * by).argmax(2).reshape(val.shape)[clear] for by in (weight, 1.0))
    assert not np.array_equal(predicted, unweighted)
    assert references(corpus_of(train, val[clear]), 5)["PCA"] == scored(
        val[clear], predicted.astype(np.uint8)
    )


def test_references_are_reproducible_and_leave_the_random_state_unchanged() -> None:
    rng = np.random.default_rng(4)
    corpus = corpus_of(sparse_grids(rng, 50, 8), sparse_grids(rng, 10, 8))
    torch.manual_seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    found = references(corpus, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]
    torch.manual_seed(2)
    assert references(corpus, 3) == found


def test_references_use_a_seeded_sample_of_many_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    train, val = sparse_grids(rng, 60, 8), sparse_grids(rng, 40, 8)
    monkeypatch.setattr(measure, "MAX_OBJECT_GRIDS", 9)
    monkeypatch.setattr(measure, "MAX_REFERENCE_CELLS", 20 * 640)
    found = references(corpus_of(train, val), 3)
    monkeypatch.undo()
    sampled, known = val[sample_rows(40, 9)], train[sample_rows(60, 20)]
    assert found[NAMES[0]] == scored(sampled, np.zeros_like(sampled))
    nearest = similarity(known, sampled, np.ones(10)).argmax(1)
    assert found[NAMES[1]] == scored(sampled, known[nearest])
