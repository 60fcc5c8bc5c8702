"""Properties of the corpus `objects`: its pools of real ARC objects, and the grids generated from them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import ROOT

from bvae.corpus import OUTSIDE, built_in, load_corpus
from bvae.corpus.built_in import ObjectGrids, Pool, TaskGrid, generate_objects, object_pools, task_grids
from bvae.evaluation.metrics import class_counts, find_objects

unit = pytest.mark.unit

Object = tuple[frozenset[tuple[int, int]], int]
"""Cells of an object, relative to the top left of its bounding box, and its colour."""

# Few examples, because every example prepares a pool of thousands of objects.
few = settings(max_examples=10)
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def tasks() -> list[TaskGrid]:
    return task_grids()


@pytest.fixture(scope="module")
def pools(tasks: list[TaskGrid]) -> tuple[Pool, Pool]:
    return object_pools(tasks)


@pytest.fixture(scope="module")
def members(pools: tuple[Pool, Pool]) -> tuple[set[Object], set[Object]]:
    train, val = map(members_of, pools)
    return train, val


@pytest.fixture(scope="module")
def many(pools: tuple[Pool, Pool]) -> ObjectGrids:
    return generate_objects(pools[0], 10_000, 0)


@pytest.fixture
def tasks_read_once(tasks: list[TaskGrid], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in, "task_grids", lambda: tasks)


def as_object(cells: list[tuple[int, int]], colour: int) -> Object:
    top, left = min(row for row, _ in cells), min(column for _, column in cells)
    return frozenset((row - top, column - left) for row, column in cells), colour


def members_of(pool: Pool) -> set[Object]:
    return {
        as_object([(int(row), int(column)) for row, column in np.argwhere(shape)], int(colour))
        for shape, colour in zip(pool.shape, pool.colour, strict=True)
    }


def connected_sets(cells: npt.NDArray[np.int64]) -> Iterator[Object]:
    """Yield the 8-connected sets of cells of one colour other than 0."""
    left = {(row, column): int(cells[row, column]) for row, column in np.argwhere(cells).tolist()}
    while left:
        first, colour = left.popitem()
        found = [first]
        for row, column in found:
            for near in [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]:
                if left.get(near) == colour:
                    del left[near]
                    found.append(near)
        yield as_object(found, colour)


def objects_of(task: TaskGrid) -> set[Object]:
    """Return the objects of a grid, or none if 0 is not its most frequent colour."""
    counts = Counter(task.cells.ravel().tolist())
    if max(counts.values()) > counts[0]:
        return set()
    return {
        (cells, colour)
        for cells, colour in connected_sets(task.cells)
        if 2 <= len(cells) <= 40 and all(max(cell) < 10 for cell in cells)
    }


def placed(made: ObjectGrids) -> list[list[Object]]:
    """Return the objects of each grid, separated by `owner`."""
    found = []
    for grid, owner in zip(made.grids, made.owner, strict=True):
        by_owner: dict[int, list[tuple[int, int]]] = {}
        for row, column in np.argwhere(owner).tolist():
            by_owner.setdefault(int(owner[row, column]), []).append((row, column))
        assert all(len({int(grid[cell]) for cell in cells}) == 1 for cells in by_owner.values())
        found.append([as_object(cells, int(grid[cells[0]])) for cells in by_owner.values()])
    return found


# Pools


@unit
def test_4622_distinct_objects_are_for_training_and_814_for_validation(
    pools: tuple[Pool, Pool], members: tuple[set[Object], set[Object]]
) -> None:
    assert [len(pool.colour) for pool in pools] == [4622, 814]
    assert [len(distinct) for distinct in members] == [4622, 814]


@unit
def test_pools_hold_the_connected_sets_of_tasks_split_by_held_out_tasks(
    tasks: list[TaskGrid], members: tuple[set[Object], set[Object]]
) -> None:
    found: tuple[set[Object], set[Object]] = (set(), set())
    for task in tasks:
        found[task.held_out].update(objects_of(task))
    assert not members[0] & found[True]
    assert members == (found[False] - found[True], found[True])


@unit
def test_a_grid_whose_most_frequent_colour_is_not_0_gives_no_objects() -> None:
    cells = np.zeros((4, 5), np.int64)
    cells[:2, 1:] = 7
    cells[3, :2] = 5
    orange, blocks = np.where(cells == 0, 7, cells), np.where(cells == 7, 7, 0)
    train, val = object_pools([TaskGrid(cells, False), TaskGrid(orange, False), TaskGrid(blocks, True)])
    assert members_of(train) == {(frozenset({(0, 0), (0, 1)}), 5)}
    assert members_of(val) == {(frozenset((row, column) for row in (0, 1) for column in range(4)), 7)}


# Grids


@unit
@few
@given(seed=seeds, validates=st.booleans())
def test_every_object_of_a_grid_comes_from_its_pool(
    pools: tuple[Pool, Pool], members: tuple[set[Object], set[Object]], seed: int, validates: bool
) -> None:
    made = generate_objects(pools[validates], 20, seed)
    np.testing.assert_array_equal(made.grids > 0, made.owner > 0)
    assert {each for grid in placed(made) for each in grid} <= members[validates]


@unit
def test_objects_do_not_touch_even_diagonally(many: ObjectGrids) -> None:
    owner = np.pad(many.owner, [(0, 0), (1, 1), (1, 1)]).astype(int)
    for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
        near = np.roll(owner, step, axis=(1, 2))
        assert not ((owner != near) & (owner > 0) & (near > 0)).any()


@unit
def test_a_grid_has_at_most_7_objects_and_one_percent_have_fewer_than_2(many: ObjectGrids) -> None:
    assert many.owner.max() == 7
    counts = sum((many.owner == number).any((1, 2)).astype(int) for number in range(1, 8))
    assert (counts.min(), counts.max()) == (1, 7)
    assert (counts < 2).mean() <= 0.01


@unit
def test_objects_are_drawn_uniformly_from_the_pool_and_placed_uniformly(pools: tuple[Pool, Pool]) -> None:
    dominoes = np.zeros((3, 10, 10), np.bool_)
    dominoes[:, 0, :2] = True
    made = generate_objects(Pool(dominoes, np.array([1, 2, 3], np.uint8)), 9000, 0)
    first = made.owner == 1
    colours = np.bincount(made.grids[first], minlength=4)[1:]
    np.testing.assert_allclose(colours / colours.mean(), 1, atol=0.1)
    corner = first & ~np.roll(first, 1, axis=2)
    places = corner.sum(0)
    assert not places[:, 15].any()
    np.testing.assert_allclose(places[:, :15] / (9000 / 240), 1, atol=0.8)


@unit
@few
@given(seed=seeds, validates=st.booleans())
def test_the_object_metrics_find_exactly_the_placed_objects(
    pools: tuple[Pool, Pool], seed: int, validates: bool
) -> None:
    grids, owner = generate_objects(pools[validates], 50, seed)
    found = find_objects(grids)
    most_frequent = class_counts(grids).argmax(1)[:, None, None]
    number = np.where(np.isin(found.sets.label, found.number) & (grids > 0), found.sets.label, 0)
    expected = np.where(grids == most_frequent, 0, owner)
    np.testing.assert_array_equal(number > 0, expected > 0)
    grid = np.broadcast_to(np.arange(len(grids))[:, None, None], grids.shape)
    triples = np.stack([grid, expected, number], axis=-1)[expected > 0]
    distinct = np.unique(triples, axis=0)
    assert len(distinct) == len(np.unique(distinct[:, :2], axis=0)) == len(np.unique(distinct[:, 2]))
    grid_of = dict(zip(found.number.tolist(), found.grid.tolist(), strict=True))
    assert all(grid_of[number] == grid for grid, _, number in distinct.tolist())


@unit
@few
@given(seed=seeds, count=st.integers(0, 60))
def test_the_same_pool_count_and_seed_give_the_same_grids(
    pools: tuple[Pool, Pool], seed: int, count: int
) -> None:
    first, second = generate_objects(pools[0], count, seed), generate_objects(pools[0], count, seed)
    assert first.grids.shape == first.owner.shape == (count, 16, 16)
    assert first.grids.dtype == np.uint8
    np.testing.assert_array_equal(first.grids, second.grids)
    np.testing.assert_array_equal(first.owner, second.owner)


@unit
def test_another_seed_gives_other_grids(pools: tuple[Pool, Pool]) -> None:
    assert (generate_objects(pools[0], 100, 0).grids != generate_objects(pools[0], 100, 1).grids).any()


# The corpus


@pytest.mark.usefixtures("tasks_read_once")
@pytest.mark.parametrize(
    ("spec", "count"),
    [
        pytest.param("objects", 20_000, marks=unit),
        pytest.param("objects:5000", 5000, marks=unit),
        ("objects:50000", 50_000),
    ],
)
def test_background_and_imbalance_do_not_depend_on_the_corpus_size(spec: str, count: int) -> None:
    corpus = load_corpus(spec)
    assert corpus.name == f"objects:{count}"
    assert (corpus.train.shape, corpus.val.shape) == ((count, 16, 16), (count // 10, 16, 16))
    assert (corpus.duplicates, corpus.duplicates_sampled, corpus.has_outside) == (0, False, False)
    assert not {grid.tobytes() for grid in corpus.train[:]} & {grid.tobytes() for grid in corpus.val[:]}
    assert 0.82 <= corpus.class_counts[0] / sum(corpus.class_counts) <= 0.88
    assert 110 <= corpus.imbalance <= 160


@unit
@pytest.mark.usefixtures("tasks_read_once")
@pytest.mark.parametrize("count", [20, 119])
def test_validation_is_a_tenth_of_training_and_a_larger_size_pads_grids(count: int) -> None:
    corpus, wide = load_corpus(f"objects:{count}"), load_corpus(f"objects:{count}", 24)
    assert (len(corpus.train), len(corpus.val)) == (count, count // 10)
    assert wide.has_outside
    for split, padded in ((corpus.train, wide.train), (corpus.val, wide.val)):
        expected = np.pad(split[:], ((0, 0), (0, 8), (0, 8)), constant_values=OUTSIDE)
        np.testing.assert_array_equal(padded[:], expected)


@unit
@pytest.mark.usefixtures("tasks_read_once")
def test_each_split_is_generated_from_its_pool(members: tuple[set[Object], set[Object]]) -> None:
    corpus = load_corpus("objects:60")
    for split, pool in zip((corpus.train[:], corpus.val[:]), members, strict=True):
        assert {each for grid in split for each in connected_sets(grid.astype(np.int64))} <= pool


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    code = "from bvae.corpus import load_corpus; print(load_corpus('objects:5000').fingerprint)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    prints = {load_corpus("objects:5000").fingerprint for _ in range(2)}
    assert prints == {done.stdout.strip()}
