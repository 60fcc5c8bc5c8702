"""Properties of the generated grids of the corpus `atomic`."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvae.corpus.built_in import KINDS, AtomicGrids, generate_atomic

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def many() -> AtomicGrids:
    return generate_atomic(50_000)


def objects(made: AtomicGrids, kind: str, grids: int) -> list[npt.NDArray[np.bool_]]:
    """Return the masks of all objects of a kind in the first grids, cropped to their bounding boxes."""
    masks = []
    for grid, slot in zip(*np.nonzero(made.kind[:grids] == KINDS.index(kind)), strict=True):
        mask = made.owner[grid] == slot + 1
        rows, columns = np.nonzero(mask)
        masks.append(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    return masks


def is_connected(mask: npt.NDArray[np.bool_]) -> bool:
    """Return whether all cells are connected by horizontal and vertical neighbours."""
    cells = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    border = [cells.pop()]
    while border:
        row, column = border.pop()
        near = cells & {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)}
        cells -= near
        border += near
    return not cells


def test_background_is_93_percent_and_the_imbalance_is_about_120_to_1(many: AtomicGrids) -> None:
    counts = np.bincount(many.grids.ravel(), minlength=10)
    assert 0.925 <= counts[0] / counts.sum() <= 0.935
    assert 110 <= counts.max() / counts.min() <= 135


def test_every_grid_has_one_to_four_objects(many: AtomicGrids) -> None:
    planned = (many.kind >= 0).sum(1)
    assert set(planned) == {1, 2, 3, 4}
    for slot in range(4):
        np.testing.assert_array_equal((many.owner == slot + 1).any((1, 2)), planned > slot)


def test_every_object_has_2_to_15_cells(many: AtomicGrids) -> None:
    sizes = np.stack([(many.owner == slot + 1).sum((1, 2)) for slot in range(4)], axis=1)
    present = sizes[many.kind >= 0]
    assert (present.min(), present.max()) == (2, 15)


def test_objects_have_one_colour_and_all_other_cells_are_background(many: AtomicGrids) -> None:
    np.testing.assert_array_equal(many.grids > 0, many.owner > 0)
    for slot in range(4):
        own = many.owner == slot + 1
        brightest = np.where(own, many.grids, 0).max((1, 2))
        darkest = np.where(own, many.grids, 9).min((1, 2))
        present = many.kind[:, slot] >= 0
        np.testing.assert_array_equal(brightest[present], darkest[present])


def test_colours_are_uniform_over_objects(many: AtomicGrids) -> None:
    colours = np.concatenate(
        [np.where(many.owner == slot + 1, many.grids, 0).max((1, 2)) for slot in range(4)]
    )
    counts = np.bincount(colours, minlength=10)[1:]
    assert len(counts) == 9
    np.testing.assert_allclose(counts / counts.mean(), 1, atol=0.05)


def test_objects_are_40_percent_blobs_and_20_percent_of_each_other_kind(many: AtomicGrids) -> None:
    shares = np.bincount(many.kind[many.kind >= 0]) / (many.kind >= 0).sum()
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.2, 0.2], atol=0.01)


# The next four tests also show that objects do not overlap: many covered objects would lose their shape.
def test_blobs_are_connected(many: AtomicGrids) -> None:
    assert all(is_connected(mask) for mask in objects(many, "blob", 1000))


def test_rectangles_are_filled(many: AtomicGrids) -> None:
    assert all(mask.all() and min(mask.shape) >= 2 for mask in objects(many, "rectangle", 1000))


def test_lines_are_straight_and_unbroken(many: AtomicGrids) -> None:
    assert all(mask.all() and min(mask.shape) == 1 for mask in objects(many, "line", 1000))


def test_patterns_repeat_with_period_two(many: AtomicGrids) -> None:
    masks = objects(many, "pattern", 1000)
    assert all((mask[2:] == mask[:-2]).all() and (mask[:, 2:] == mask[:, :-2]).all() for mask in masks)
    assert not any(is_connected(mask) for mask in masks)


@given(count=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_the_same_count_and_seed_give_the_same_grids(count: int, seed: int) -> None:
    first, second = generate_atomic(count, seed), generate_atomic(count, seed)
    assert first.grids.shape == (count, 16, 16)
    assert first.grids.dtype == np.uint8
    np.testing.assert_array_equal(first.grids, second.grids)


def test_another_seed_gives_other_grids() -> None:
    assert (generate_atomic(100, seed=0).grids != generate_atomic(100, seed=1).grids).any()


def test_one_core_generates_10000_grids_per_second() -> None:
    started = time.process_time()
    generate_atomic(5_000)
    assert time.process_time() - started < 0.5
