"""Reading `.npy` and `.npz` files from untrusted sources."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bvae.config import OUTSIDE
from bvae.corpus.array_files import CorpusError, StoredGrids, read_grids, walk
from bvae.storage import printable

pytestmark = pytest.mark.unit

SMALL = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2) % 10

grid_arrays = hnp.arrays(
    st.sampled_from(["u1", "i1", "<u2", ">u2", "<i4", ">i4", "<i8", ">i8", "<u8", ">u8"]),
    st.tuples(st.integers(1, 6), st.integers(1, 16), st.integers(1, 16)),
    elements=st.integers(0, 9),
)
orders = st.sampled_from([np.ascontiguousarray, np.asfortranarray])
padding_values = st.sampled_from([10, -1, 255, 256, -(2**15), 2**15 - 1])


def npy_bytes(array: npt.NDArray[Any], version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def npy_with_header(text: str, content: bytes = b"", version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + content


def npy_of_type(descr: str) -> bytes:
    return npy_with_header(
        f"{{'descr': {descr}, 'fortran_order': False, 'shape': (4, 3, 2), }}\n", bytes(192)
    )


def npz_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npz_claiming(info: dict[str, int], content: bytes) -> bytes:
    """Return an archive of one uncompressed member, with fields of its directory entry replaced by `info`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train.npy", content)
        for field, value in info.items():
            setattr(archive.filelist[0], field, value)
    return file.getvalue()


@contextmanager
def two_seconds_and_few_bytes(limit: int = 20 * 2**20) -> Iterator[None]:
    started = time.process_time()
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < limit
    assert time.process_time() - started < 2


def read_and_walk(path: Path, padding_value: int | None = None) -> StoredGrids:
    grids = read_grids(path, 16, padding_value)
    if padding_value is not None and not isinstance(grids.train, np.memmap):
        padding_value = OUTSIDE
    blocks = [block for _, block in walk(grids.train, 1000, padding_value)]
    assert sum(map(len, blocks)) == len(grids.train)
    return grids


def refusal(path: Path, content: bytes | None = None, padding_value: int | None = None) -> str:
    """Return the message that refuses a file, without the path of the file."""
    if content is not None:
        path.write_bytes(content)
    with two_seconds_and_few_bytes(), pytest.raises(CorpusError) as caught:
        read_and_walk(path, padding_value)
    message = str(caught.value)
    assert message == printable(message)
    return message.removeprefix(f"{path}: ")


@given(array=grid_arrays, order=orders, version=st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_any_integer_array_in_a_npy_file_loads_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    array: npt.NDArray[Any],
    order: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    version: tuple[int, int],
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npy"
    path.write_bytes(npy_bytes(order(array), version))
    grids = read_grids(path, 16)
    np.testing.assert_array_equal(grids.train, array)
    assert grids.val is None


@given(train=grid_arrays, val=grid_arrays, order=orders, compressed=st.booleans())
def test_any_integer_arrays_in_a_npz_file_load_unchanged_as_uint8(
    tmp_path_factory: pytest.TempPathFactory,
    train: npt.NDArray[Any],
    val: npt.NDArray[Any],
    order: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    compressed: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npz"
    (np.savez_compressed if compressed else np.savez)(path, train=order(train), val=val)
    for read, saved in zip(read_grids(path, 16), (train, val), strict=True):
        assert read is not None
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, saved)


@given(array=grid_arrays, order=orders, value=padding_values, data=st.data())
def test_padding_is_replaced_by_outside_in_npz_but_not_in_mapped_npy(
    tmp_path_factory: pytest.TempPathFactory,
    array: npt.NDArray[Any],
    order: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    value: int,
    data: st.DataObject,
) -> None:
    array = array.astype("<i2")
    is_outside = data.draw(hnp.arrays(np.bool_, array.shape))
    is_outside[:, 0, 0] = False
    array[is_outside] = value
    path = tmp_path_factory.getbasetemp() / "padded.npz"
    np.savez(path, train=order(array))
    train = read_and_walk(path, value).train
    assert train.dtype == np.uint8
    np.testing.assert_array_equal(train, np.where(is_outside, OUTSIDE, array))
    np.save(path.with_suffix(".npy"), order(array))
    np.testing.assert_array_equal(read_and_walk(path.with_suffix(".npy"), value).train, array)


@given(
    array=grid_arrays,
    value=padding_values,
    padding_value=st.none() | padding_values,
    data=st.data(),
)
def test_a_value_that_is_no_class_and_no_padding_is_named_with_its_index(
    tmp_path_factory: pytest.TempPathFactory,
    array: npt.NDArray[Any],
    value: int,
    padding_value: int | None,
    data: st.DataObject,
) -> None:
    assume(value != padding_value)
    array = array.astype("<i2")
    index = data.draw(st.tuples(*(st.integers(0, side - 1) for side in array.shape)))
    array[index] = value
    expected = f"train\\[{index[0]}, {index[1]}, {index[2]}\\] is {value}; cells are the classes 0–9"
    if padding_value is not None:
        expected += f", or {padding_value} outside a grid"
    if 10 <= value < 64:
        expected += "; if there are more classes, add --classes auto"
    if padding_value is None:
        expected += f"; if {value} marks cells outside a grid, add --padding-value={value}"
    expected += "$"
    path = tmp_path_factory.getbasetemp() / "wrong.npz"
    np.savez(path, train=array)
    with pytest.raises(CorpusError, match=expected):
        read_grids(path, 16, padding_value)
    np.save(path.with_suffix(".npy"), array)
    with pytest.raises(CorpusError, match=expected.replace("train", "array")):
        read_and_walk(path.with_suffix(".npy"), padding_value)


def test_the_first_of_several_wrong_values_is_named(tmp_path: Path) -> None:
    array = np.zeros((10_000, 16, 16), np.uint8)
    array[9_000, 2, 3] = array[9_500, 0, 0] = 10
    npy = npy_bytes(array)
    for padding_value in (None, 11):
        for path, content in ((tmp_path / "far.npy", npy), (tmp_path / "far.npz", npz_bytes({"x.npy": npy}))):
            name = "array" if content is npy else "x"
            assert f"{name}[9000, 2, 3] is 10" in refusal(path, content, padding_value)


def test_the_first_of_several_grids_that_are_all_padding_is_named(tmp_path: Path) -> None:
    array = np.zeros((10_000, 16, 16), np.uint8)
    array[[9_000, 9_500]] = 10
    npy = npy_bytes(array)
    for path, content in ((tmp_path / "far.npy", npy), (tmp_path / "far.npz", npz_bytes({"x.npy": npy}))):
        assert refusal(path, content, 10) == "grid 9000 is all padding; expected cells"


def test_a_npy_file_is_mapped_and_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (2**19, 16, 16)).flush()
    with two_seconds_and_few_bytes():
        grids = read_grids(path, 16).train
    assert isinstance(grids, np.memmap)
    assert not grids.flags.writeable


def test_other_members_of_an_archive_are_not_read(tmp_path: Path) -> None:
    members = {"train.npy": npy_bytes(SMALL), "test.npy": b"damaged", "../../val.npy": npy_bytes(SMALL)}
    (tmp_path / "grids.npz").write_bytes(npz_bytes(members))
    grids = read_grids(tmp_path / "grids.npz", 16)
    np.testing.assert_array_equal(grids.train, SMALL)
    assert grids.val is None
    assert [path.name for path in tmp_path.iterdir()] == ["grids.npz"]


def test_a_single_array_may_have_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "grids.npz", SMALL)
    np.testing.assert_array_equal(read_grids(tmp_path / "grids.npz", 16).train, SMALL)


class Trap:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    with_objects = npy_bytes(np.array([[[trap]]], object))
    for content in (with_objects, npz_bytes({"train.npy": with_objects}), pickle.dumps(trap)):
        message = refusal(tmp_path / "trap", content)
        assert "never loaded" in message or "not an array file" in message
    assert not trap.folder.exists()


@pytest.mark.parametrize(
    ("descr", "named"),
    [
        ("'<f8'", "floats"),
        ("'|b1'", "booleans"),
        ("'<U3'", "text"),
        ("'<c8'", "complex"),
        ("'<i3'", "'<i3'"),
        ("'<M8[s]'", "M8"),
        # For this type name, numpy.dtype ends the process with a division by zero.
        ("'<m8[s/0]'", "m8"),
        (r"'<\x6d8[s/0]'", "m8"),
        ("[('a', '<m8[s/0]')]", "m8"),
        ("('<m8[s/0]', (1,))", "m8"),
        ("[('a', 'u1')]", "'a'"),
        ("7", "type 7"),
    ],
)
def test_only_integers_are_accepted(tmp_path: Path, descr: str, named: str) -> None:
    message = refusal(tmp_path / "type.npy", npy_of_type(descr))
    assert named in message
    assert "expected integers, such as" in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "7",
        "{'descr': 'u1'}",
        "{'descr': 'u1', 'fortran_order': 0, 'shape': (4, 3, 2)}",
        "{'descr': 'u1', 'fortran_order': False, 'shape': [4, 3, 2]}",
        "{'descr': 'u1', 'fortran_order': False, 'shape': (4, 3, -2)}",
        "{'descr': 'u1', 'fortran_order': False, 'shape': (4, 3, True)}",
        "{'descr': 'u1', 'fortran_order': False, 'shape': (4, 3, 2.0)}",
        f"{{'descr': 'u1', 'fortran_order': False, 'shape': (4, 3, 0x{'f' * 3900})}}",
        "__import__('os').abort()",
        "(" * 2000,
        "-" * 4000 + "1",
        "1+" * 2000 + "1",
        "{'\\d': 1}",
        "\x00",
        "#" * 70_000,
    ],
    ids=lambda text: text[:40] or "empty",
)
def test_a_damaged_header_is_refused(tmp_path: Path, text: str) -> None:
    for version in (1, 2, 3, 9) if len(text) < 2**16 else (2, 3):
        message = refusal(tmp_path / "header.npy", npy_with_header(text, bytes(24), version))
        assert "damaged header" in message


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((), "shape ()"),
        ((24,), "shape (24,)"),
        ((4, 6), "(grids, rows, columns)"),
        ((1, 4, 3, 2), "(1, 4, 3, 2)"),
        ((1,) * 30, "shape (1, 1"),
        ((0, 3, 2), "empty"),
        ((4, 0, 2), "empty"),
        ((4, 17, 2), "17×2"),
        ((4, 3, 17), "3×17, larger than the grid size 16"),
        ((2**40, 3, 2), "at most"),
        ((2**62, 1, 1), "at most"),
        ((5, 3, 2), "declares 30 bytes of grids, but the file holds 24"),
        ((2**25, 16, 16), "declares 8589934592 bytes"),
        ((3, 3, 2), "declares 18 bytes of grids, but the file holds 24"),
    ],
)
def test_a_header_with_a_wrong_shape_or_size_is_refused(
    tmp_path: Path, shape: tuple[int, ...], named: str
) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n"
    content = npy_with_header(header, SMALL.tobytes())
    for path, claiming in (
        (tmp_path / "a.npy", content),
        (tmp_path / "a.npz", npz_bytes({"x.npy": content})),
    ):
        assert named in refusal(path, claiming)


def test_the_length_that_a_header_claims_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "long.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1))
    os.truncate(path, 2**33)
    assert "damaged header" in refusal(path)


NPY = npy_bytes(SMALL)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not an array file"),
        (b"hello", "not an array file"),
        (b"PK", "damaged or unsupported archive"),
        (npz_bytes({}), "no arrays"),
        (npz_bytes({"notes.txt": b"7"}), "no arrays"),
        (npz_bytes({"a.npy": NPY, "b\n.npy": NPY}), r"2 arrays (a, b\n) but none named train"),
        (npz_bytes({f"{i}.npy": NPY for i in range(5000)}), "5000 arrays (0, 1, 2"),
        (npz_bytes({"train.npy": npz_bytes({"train.npy": NPY})}), "damaged header"),
        (npz_bytes({"train.npy": NPY}, zipfile.ZIP_LZMA), "a method other than deflate"),
        (npz_bytes({"train.npy": NPY}, zipfile.ZIP_BZIP2), "a method other than deflate"),
        (npz_bytes({"train.npy": NPY})[:-30], "damaged or unsupported archive"),
        (npz_claiming({"flag_bits": 1}, NPY), "encrypted"),
        (npz_claiming({"flag_bits": 0x40}, NPY), "strong encryption"),
        (npz_claiming({"CRC": 7}, NPY), "Bad CRC"),
        (npz_claiming({"compress_size": 9}, NPY), "damaged"),
        (npz_claiming({"compress_size": 2**40}, NPY), "more bytes packed than unpacked"),
        (npz_claiming({"file_size": 7}, NPY), "damaged"),
        (npz_claiming({"header_offset": 2**63}, NPY), "damaged"),
        (npz_claiming({"header_offset": 10}, NPY), "damaged"),
        (npz_claiming({"extract_version": 99}, NPY), "zip file version"),
    ],
)
def test_a_malicious_archive_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    assert named in refusal(tmp_path / "hostile.npz", content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_members_of_one_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("train.npy", NPY)
        archive.writestr("train.npy", NPY)
    assert "more than one member named train.npy" in refusal(tmp_path / "twice.npz")


def deflated_zeros(mebibytes: int) -> bytes:
    """Return zeros as a raw deflate stream, about one kilobyte per mebibyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    mebibyte = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return mebibyte * mebibytes + packer.flush(zlib.Z_FINISH)


def test_a_decompression_bomb_with_its_true_size_is_refused(tmp_path: Path) -> None:
    bomb = {"compress_type": zipfile.ZIP_DEFLATED, "file_size": 10 * 2**30}
    assert "unpacks to more than 256 MiB" in refusal(
        tmp_path / "bomb.npz", npz_claiming(bomb, deflated_zeros(10 * 2**10))
    )


def test_a_decompression_bomb_with_a_false_size_uses_no_memory(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(NPY) + packer.flush(zlib.Z_FULL_FLUSH)
    lie = {"compress_type": zipfile.ZIP_DEFLATED, "file_size": len(NPY)}
    content = npz_claiming(lie, start + deflated_zeros(100))
    assert "more bytes packed than unpacked" in refusal(tmp_path / "liar.npz", content)


def test_memory_grows_with_the_data_and_not_with_the_claimed_size(tmp_path: Path) -> None:
    claim = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**19}, 16, 16), }}\n"
    header = npy_with_header(claim)
    content = npz_claiming({"file_size": len(header) + 2**27}, header + SMALL.tobytes())
    assert "is cut short" in refusal(tmp_path / "claim.npz", content)


def test_the_directory_of_an_archive_cannot_use_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "directory.npz"
    size = 2**32 - 2
    with path.open("wb") as file:
        file.write(b"PK\x01\x02")
        file.truncate(size)
        file.seek(size)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 0, 0))
    assert "directory is too large" in refusal(path)


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing", Path("/dev/zero")):
        assert "not a regular file" in refusal(path)


def test_a_file_that_cannot_be_read_is_reported_with_the_cause(tmp_path: Path) -> None:
    assert "too long" in refusal(tmp_path / ("x" * 300))


def test_names_are_escaped_in_messages(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a\n\x1b[31m\u202eb.npy", b"")
    assert r"/a\n\x1b[31m\u202eb.npy: is not an array file" in message


@given(text=st.text(st.characters(exclude_categories=())))
def test_escaped_text_is_one_line_and_escaping_it_again_changes_nothing(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert shown == text or not text.isprintable()
