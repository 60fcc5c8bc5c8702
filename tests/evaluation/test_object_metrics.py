"""Object metrics agree with a slow reference, which flood-fills one grid after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bvae.config import OUTSIDE
from bvae.corpus.built_in import Pool, generate_objects
from bvae.evaluation.metrics import (
    connected_sets,
    extent,
    find_objects,
    grid_object_iou,
    score_objects,
    score_with_control,
)

pytestmark = pytest.mark.unit

Grid = NDArray[np.uint8]
CellSet = frozenset[tuple[int, int]]


def cells_of(grid: Grid) -> dict[tuple[int, int], int]:
    """Return the class of each cell by its position."""
    return {place: int(label) for place, label in np.ndenumerate(grid) if label != OUTSIDE}


def most_frequent(labels: Iterable[int]) -> int | None:
    """Return the most frequent class, on a tie the smallest, or None if there are no cells."""
    return min(((-count, label) for label, count in Counter(labels).items()), default=(0, None))[1]


def flood(grid: Grid) -> list[tuple[int, CellSet]]:
    """Return the 8-connected sets of cells of one class, each with its class."""
    left, found = cells_of(grid), []
    while left:
        start, label = left.popitem()
        reached, waiting = {start}, [start]
        while waiting:
            row, column = waiting.pop()
            for place in [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]:
                if left.get(place) == label:
                    del left[place]
                    reached.add(place)
                    waiting.append(place)
        found.append((label, frozenset(reached)))
    return found


def objects_of(grid: Grid) -> list[tuple[int, CellSet]]:
    common = most_frequent(cells_of(grid).values())
    return [(label, cells) for label, cells in flood(grid) if len(cells) >= 2 and label != common]


def best_iou(label: int, cells: CellSet, others: list[tuple[int, CellSet]]) -> float:
    return max((len(cells & other) / len(cells | other) for of, other in others if of == label), default=0.0)


def mean(values: list[float] | list[bool]) -> float | None:
    return fmean(values) if values else None


def recall(grids: Grid, predicted: Grid, label: int) -> float | None:
    return mean([bool(right) for right in (predicted == grids)[grids == label]])


def reference(grids: Grid, predicted: Grid, shuffled: Grid) -> dict[str, object]:
    """Compute the metrics of objects and classes by their definitions."""
    recalled, minor, ious = [], [], []
    for grid, other in zip(grids, predicted, strict=True):
        objects, found = objects_of(grid), flood(np.where(grid == OUTSIDE, OUTSIDE, other))
        major = most_frequent(label for label, cells in objects for _ in cells)
        for label, cells in objects:
            recalled.append(2 * sum(other[cell] == label for cell in cells) >= len(cells))
            ious.append(best_iou(label, cells, found))
            if label != major:
                minor.append(recalled[-1])
    recalls = [recall(grids, predicted, label) for label in range(10)]
    gains = {label: (recalls[label] or 0) - (recall(grids, shuffled, label) or 0) for label in range(10)}
    present = [c for c in range(1, 10) if 1000 * (grids == c).sum() >= (grids != OUTSIDE).sum() > 0]
    present = [label for label in present if (grids == label).any()]
    return {
        "object_recall": mean(recalled),
        "minor_object_recall": mean(minor),
        "object_iou": pytest.approx(fmean(ious), rel=1e-12) if ious else None,
        "objects_recognised": mean([iou >= 0.5 for iou in ious]),
        "class_recall": tuple(recalls),
        "classes_present": len(present),
        "classes_learned": sum(gains[label] >= 0.20 for label in present),
        "flooded_rate": mean([bool(label) for label in predicted[grids == 0]]),
    }


def assert_as_the_reference(grids: Grid, predicted: Grid, shuffled: Grid) -> None:
    found = vars(score_with_control(find_objects(grids), predicted, shuffled))
    expected = reference(grids, predicted, shuffled)
    assert {name: found[name] for name in expected} == expected
    for grid, other, iou in zip(grids, predicted, grid_object_iou(grids, predicted), strict=True):
        expected = reference(grid[None], other[None], other[None])
        assert expected["object_iou"] == (None if np.isnan(iou) else iou)


def random_grids(rng: np.random.Generator, *, outside: bool) -> Grid:
    """Return a few small grids of a few classes. If `outside`, some cells of each grid may be outside."""
    shape = tuple(rng.integers(1, 7, 3))
    grids = rng.choice(rng.permutation(10)[: rng.integers(1, 5)], shape).astype(np.uint8)
    if outside:
        holes = rng.random(shape) < rng.choice([0.1, 0.6])
        holes[:, rng.integers(shape[1]), rng.integers(shape[2])] = False
        grids[holes] = OUTSIDE
    return grids


def disturbed(rng: np.random.Generator, grids: Grid) -> Grid:
    """Return imperfect reconstructions: noisy, shifted, in other colours, with any values outside."""
    predicted = np.where(grids == OUTSIDE, rng.integers(0, 10, grids.shape), grids)
    predicted = np.roll(predicted, rng.integers(-1, 2, 2), axis=(1, 2))
    if rng.random() < 0.5:
        colours = np.arange(10)
        colours[rng.integers(0, 10, 3)] = rng.integers(0, 10, 3)
        predicted = colours[predicted]
    noisy = rng.random(grids.shape) < rng.choice([0.0, 0.1, 0.5])
    return np.where(noisy, rng.choice(predicted.ravel(), grids.shape), predicted).astype(np.uint8)


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.booleans())
def test_metrics_of_random_grids_agree_with_the_reference(seed: int, outside: bool) -> None:
    rng = np.random.default_rng(seed)
    grids = random_grids(rng, outside=outside)
    assert_as_the_reference(grids, disturbed(rng, grids), disturbed(rng, grids))


def generated_grids(rng: np.random.Generator, count: int) -> Grid:
    """Return grids composed by the generator from objects of random shapes."""
    shape = np.zeros((30, 10, 10), np.bool_)
    for number, (height, width) in enumerate(rng.integers(1, 6, (30, 2))):
        shape[number, :height, : width + 1] = True
    shape[:, 1:4, 1:4] &= rng.random((30, 3, 3)) < 0.8
    return generate_objects(
        Pool(shape, rng.integers(1, 10, 30).astype(np.uint8)), count, int(rng.integers(99))
    ).grids


@settings(max_examples=5)
@given(seeds, st.booleans())
def test_metrics_of_generated_grids_agree_with_the_reference(seed: int, outside: bool) -> None:
    rng = np.random.default_rng(seed)
    grids = generated_grids(rng, 4)
    if outside:
        grids[0, 9:], grids[1, :, 5:] = OUTSIDE, OUTSIDE
    assert_as_the_reference(grids, disturbed(rng, grids), disturbed(rng, grids)[::-1])


@given(seeds)
def test_sets_are_8_connected_and_of_one_class_within_a_grid(seed: int) -> None:
    grids = random_grids(np.random.default_rng(seed), outside=True)
    sets = connected_sets(grids)
    places = [np.argwhere(sets.label == number) for number in range(1, len(sets.cells))]
    found = {frozenset(map(tuple, each.tolist())) for each in places}
    floods = [(number, cells) for number, grid in enumerate(grids) for _, cells in flood(grid)]
    expected = {frozenset((number, *cell) for cell in cells) for number, cells in floods}
    assert found == expected
    assert not sets.label[grids == OUTSIDE].any()
    assert sets.cells.tolist() == np.bincount(sets.label.ravel(), minlength=len(sets.cells)).tolist()


@given(seeds, st.booleans())
def test_exact_reconstructions_score_1_and_all_background_scores_0(seed: int, outside: bool) -> None:
    grids = random_grids(np.random.default_rng(seed), outside=outside)
    for grid in grids:  # class 0 becomes the most frequent class
        common = most_frequent(cells_of(grid).values())
        grid[:] = np.where(grid == common, 0, np.where(grid == 0, common, grid))
    exact, nothing = scores(grids, grids), scores(grids, np.zeros_like(grids))
    assert set(exact) <= {1.0, None}
    assert nothing == [None if score is None else 0.0 for score in exact]


def drawn(*rows: str) -> Grid:
    """Return a grid `[1, H, W]` from its rows; a dot is class 0, a space is outside."""
    values = {".": 0, " ": OUTSIDE}
    return np.array([[[values.get(c, ord(c) - ord("0")) for c in row] for row in rows]], np.uint8)


def scores(grids: Grid, predicted: Grid) -> list[float | None]:
    return list(score_objects(find_objects(grids), predicted))


def test_metrics_of_a_small_grid_with_two_objects() -> None:
    grid = drawn(
        "33..5",
        "33.5.",
        "....2",  # a single cell is no object
    )
    half = drawn(
        "33...",
        ".4.5.",
        "....2",
    )
    # `half` has two of four cells of the square, and one of two cells of the diagonal. A single cell
    # is no object of a grid, but in a prediction it is a set that can match an object.
    objects = find_objects(grid)
    assert len(objects.number) == 2
    assert objects.is_minor.tolist() == [False, True]
    assert scores(grid, grid) == [1.0, 1.0, 1.0, 1.0]
    assert scores(grid, half) == [1.0, 1.0, 0.5, 1.0]
    assert scores(grid, np.zeros_like(grid)) == [0.0, 0.0, 0.0, 0.0]
    assert grid_object_iou(grid, half).tolist() == [0.5]


def test_object_iou_uses_only_the_best_set_of_the_same_class() -> None:
    grid = drawn("4444......")
    parts = drawn("44.4......")
    flooded = drawn("4444444444")
    assert scores(grid, parts) == [1.0, None, 0.5, 1.0]
    assert scores(grid, flooded) == [1.0, None, 0.4, 0.0]
    assert scores(grid, drawn(".....4444.")) == [0.0, None, 0.0, 0.0]


def test_sets_do_not_extend_across_cells_outside() -> None:
    grid = drawn(
        ".66  ",
        "...  ",
        ".11 1",
    )
    predicted = drawn(
        ".6666",
        "...66",
        ".1111",
    )
    # A cell outside separates the last 1 from the other 1s, so the last 1 belongs to no object.
    assert scores(grid, predicted) == [1.0, 1.0, 1.0, 1.0]


def test_cells_of_the_most_frequent_class_are_no_object() -> None:
    grid = drawn(
        "7777",
        "7..7",
        "7777",
    )
    assert scores(grid, np.full_like(grid, 7)) == [0.0, None, 0.0, 0.0]
    assert scores(grid, np.zeros_like(grid)) == [1.0, None, pytest.approx(2 / 12), 0.0]


def test_on_a_tie_the_smallest_class_counts_as_the_most_frequent() -> None:
    halves = drawn("2211")
    assert scores(halves, drawn("1111")) == [0.0, None, 0.0, 0.0]
    assert scores(halves, drawn("2222")) == [1.0, None, 0.5, 1.0]
    # Among the objects, 5 is the major class and 8 the minor one.
    objects = drawn("88.55......")
    assert scores(objects, drawn("88.........")) == [0.5, 1.0, 0.5, 0.5]
    assert scores(objects, drawn("...55......")) == [0.5, 0.0, 0.5, 0.5]


def test_without_objects_there_is_nothing_to_score() -> None:
    grids = np.concatenate([drawn("3.5."), drawn(".. 3"), drawn("    ")])
    assert scores(grids, grids) == [None] * 4
    assert np.isnan(grid_object_iou(grids, grids)).all()


def test_half_of_the_cells_are_enough_to_recall_an_object() -> None:
    grid = drawn("99999.....")
    assert scores(grid, drawn("9.9.9....."))[0] == 1.0
    assert scores(grid, drawn("9.9......."))[0] == 0.0
    assert scores(drawn("9999......"), drawn("9.9......."))[0] == 1.0


def test_the_objects_of_a_grid_do_not_depend_on_other_grids() -> None:
    grids = generated_grids(np.random.default_rng(0), 12)
    each = [len(find_objects(grid[None]).number) for grid in grids]
    assert np.bincount(find_objects(grids).grid, minlength=12).tolist() == each


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 10))
def test_classes_that_do_not_occur_change_no_metric(seed: int, classes: int) -> None:
    grids, predicted = np.random.default_rng(seed).integers(0, classes, (2, 6, 8, 8), dtype=np.uint8)
    of_ten, of_twenty = (
        score_with_control(find_objects(grids, count), predicted, predicted[::-1]) for count in (10, 20)
    )
    assert of_twenty.class_recall == (*of_ten.class_recall, *[None] * 10)
    for name in ("pixel_accuracy", "object_iou", "object_recall", "minor_object_recall", "classes_learned"):
        assert getattr(of_twenty, name) == getattr(of_ten, name)
    np.testing.assert_array_equal(extent(grids, 20), extent(grids))
