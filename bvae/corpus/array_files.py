"""Array files of grids, `.npy` and `.npz`, which are not trusted.

Nothing is unpickled, executed or unpacked to disk. The size in a header is compared with the size of the
file before memory is allocated. A `.npy` is memory-mapped. Its values are checked by `walk`, so that one
pass over the file checks, counts and fingerprints the grids. The members of a `.npz` are decompressed in
memory, at most `MAX_NPZ_BYTES` in total. Their compression ratio is not limited, because padded grids
compress almost as well as a decompression bomb.
"""

from __future__ import annotations

import ast
import contextlib
import io
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from bvae.config import DEFAULT_CLASSES, MAX_CLASSES, MAX_GRID_SIZE, OUTSIDE
from bvae.storage import brief, printable

MAX_GRIDS = 2**27
MAX_NPZ_BYTES = 256 * 2**20
BLOCK_BYTES = 2**20
# The header that numpy writes for an integer array has 128 bytes.
MAX_HEADER_BYTES = 4096

Integers = npt.NDArray[np.integer[Any]]

NPY_VERSIONS = {(1, 0): ("<H", "latin1"), (2, 0): ("<I", "latin1"), (3, 0): ("<I", "utf8")}
VALIDATION = ("val", "valid", "validation")
INTEGER_TYPE = re.compile(r"[<>=|]?[iu][1248]")
OTHER_TYPES = {
    "O": "pickled Python objects, which are never loaded",
    "b": "booleans",
    "c": "complex numbers",
    "f": "floats",
    "S": "text",
    "U": "text",
}
AS_INTEGERS = "expected integers, such as grids.astype('uint8')"
RECIPES = {
    "O": "write them as JSON: pathlib.Path('grids.json').write_text(json.dumps([g.tolist() for g in grids]))",
    "f": f"{AS_INTEGERS}, or (9 * grids).round().astype('uint8') if the values are k/9",
}
"""Advice for an array `grids` whose values are not integers, by NumPy's kind character."""

HEADER_ERRORS = (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, struct.error)
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    ValueError,
)


class CorpusError(ValueError):
    """A corpus cannot be used. The message is one line: what was given and what was expected."""


class StoredGrids(NamedTuple):
    """Arrays `[N, H, W]` of a file; `val` is None if the file has no validation array."""

    train: Integers
    val: Integers | None = None


class _Header(NamedTuple):
    dtype: np.dtype[np.integer[Any]]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    length: int


class BoundedReads(io.BufferedReader):
    """A file that refuses to read more than one block at once, which a forged archive could request."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = BLOCK_BYTES
        if size > BLOCK_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return super().read(size)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the path in front of the message of a CorpusError, and turn an OSError into a CorpusError."""
    try:
        yield
    except CorpusError as error:
        single = "" if Path(path).is_dir() else f"{brief(Path(path).name)}: "  # its message has its name
        raise CorpusError(f"{printable(os.fspath(path))}: {str(error).removeprefix(single)}") from None
    except OSError as error:
        raise CorpusError(f"{printable(os.fspath(path))}: cannot be read ({error.strerror})") from None


@contextlib.contextmanager
def open_archive(file: io.BufferedReader) -> Iterator[zipfile.ZipFile]:
    """Open an archive. Raises CorpusError if the archive is damaged, also while its members are read."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except CorpusError:
        raise
    except ARCHIVE_ERRORS as error:
        reason = brief(str(error)) or "it ends too early"
        raise CorpusError(f"is a damaged or unsupported archive ({reason})") from None


def read_grids(
    path: str | os.PathLike[str],
    grid_size: int,
    padding_value: int | None = None,
    classes: int = DEFAULT_CLASSES,
    member: str = "",
) -> StoredGrids:
    """Return the grids of a `.npy` file as a read-only memory map, or of a `.npz` file as uint8 arrays.

    The arrays are integers `[N, H, W]`, with at most `grid_size` rows and columns. A `.npz` contains `train`,
    and may contain `val`, `valid` or `validation`. A single array, or the array that `member` names, is
    returned as `train`; other members are ignored. The values of a `.npz` are checked, and the padding value
    becomes `OUTSIDE`. The values of a `.npy` are not checked here but by `walk`. Raises CorpusError.
    """
    with naming(path):
        if not Path(path).is_file():
            raise CorpusError("is not a regular file; expected a .npy or .npz file")
        with BoundedReads(io.FileIO(path)) as file:
            start = file.read(MAX_HEADER_BYTES)
            if start.startswith(npy_format.MAGIC_PREFIX) and not member:
                header = _parse_header(start, "array")
                _check_claims(header, "array", os.fstat(file.fileno()).st_size, grid_size)
                dtype, shape, order, length = header
                return StoredGrids(np.memmap(file, dtype, "r", length, shape, order))
            if start.startswith(b"PK"):
                with open_archive(file) as archive:
                    return _read_npz(archive, grid_size, padding_value, classes, member)
        if member:
            raise CorpusError(f"has no array {brief(member)}; expected a .npz file before the #")
        raise CorpusError("is not an array file; expected a file written by numpy.save or numpy.savez")


def walk(
    grids: Integers, rows: int, padding_value: int | None = None, classes: int = DEFAULT_CLASSES
) -> Iterator[tuple[slice, Integers]]:
    """Check grids `[N, H, W]` in blocks of at most `rows`, and yield the position and grids of each block.

    Raises:
        CorpusError: for a value that is neither a class nor the padding value, or a grid without cells.
    """
    for start in range(0, len(grids), rows):
        block = grids[start : start + rows]
        first = start * math.prod(grids.shape[1:])
        check_values(block, "array", grids.shape, "C", first, padding_value, classes)
        if padding_value is not None:
            is_empty = (block == padding_value).all((1, 2))
            if is_empty.any():
                position = start + int(is_empty.argmax())
                raise CorpusError(f"grid {position} is all padding; expected cells")
        yield slice(start, start + len(block)), block


def _read_npz(
    archive: zipfile.ZipFile, grid_size: int, padding_value: int | None, classes: int, asked: str
) -> StoredGrids:
    """Read the training and validation arrays of an open `.npz` file."""
    members = _choose_members(archive, asked)
    if sum(member.file_size for member in members) > MAX_NPZ_BYTES:
        limit = f"{MAX_NPZ_BYTES // 2**20} MiB"
        raise CorpusError(
            f"unpacks to more than {limit}; save it as uint8, or as .npy, which has no such limit"
        )
    return StoredGrids(*(_read_member(archive, each, grid_size, padding_value, classes) for each in members))


def members_by_name(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive by name. Raises CorpusError if two have the same name."""
    members = {member.filename: member for member in archive.infolist()}
    if len(members) < len(archive.infolist()):
        name, _ = Counter(archive.namelist()).most_common(1)[0]
        raise CorpusError(f"has more than one member named {brief(name)}")
    return members


def _choose_members(archive: zipfile.ZipFile, asked: str) -> list[zipfile.ZipInfo]:
    """Return the requested array, or `train` and its validation split, or the only array."""
    members = members_by_name(archive)
    arrays = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
    if not arrays:
        raise CorpusError("holds no arrays; expected train and optionally val")
    name = asked or ("train" if len(arrays) > 1 else arrays[0])
    if name not in arrays:
        listed = f"{len(arrays)} arrays ({brief(', '.join(arrays))})"
        raise CorpusError(f"holds {listed} but none named {brief(name)}; name one: --corpus=FILE.npz#NAME")
    val = [other for other in VALIDATION if other in arrays and name == "train" and not asked]
    if len(val) > 1:
        raise CorpusError(f"has {' and '.join(val)}; expected one validation split")
    return [members[f"{name}.npy"] for name in (name, *val)]


def check_member(member: zipfile.ZipInfo, name: str) -> None:
    """Raise CorpusError if a member of an archive is encrypted, or if its unpacking cannot be bounded."""
    if member.flag_bits & 1:
        raise CorpusError(f"{name} is encrypted; expected an archive without a password")
    # With other methods, a few bytes of input may make the decompressor allocate any amount of memory.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CorpusError(
            f"{name} is compressed by a method other than deflate; use deflate, as "
            "numpy.savez_compressed does"
        )
    # Deflate enlarges data by less than 0.1 %. Data that grow by more contain empty blocks.
    if member.compress_size > member.file_size + member.file_size // 100 + 1024:
        raise CorpusError(f"{name} takes more bytes packed than unpacked")


def _read_member(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    grid_size: int,
    padding_value: int | None,
    classes: int,
) -> npt.NDArray[np.uint8]:
    """Decompress an array block by block, and convert each block to uint8."""
    name = brief(member.filename.removesuffix(".npy"))
    check_member(member, name)
    cells = bytearray()
    with archive.open(member) as stream:
        header = _parse_header(stream.read(MAX_HEADER_BYTES), name)
        _check_claims(header, name, member.file_size, grid_size)
        stream.seek(header.length)
        while block := stream.read(BLOCK_BYTES):
            if len(block) % header.dtype.itemsize:
                break
            values = np.frombuffer(block, header.dtype)
            check_values(values, name, header.shape, header.order, len(cells), padding_value, classes)
            narrow = values.astype(np.uint8)
            if padding_value is not None:
                narrow[values == padding_value] = OUTSIDE
            cells += narrow.tobytes()
    if len(cells) != math.prod(header.shape):
        raise CorpusError(f"{name} is cut short")
    return np.frombuffer(cells, np.uint8).reshape(header.shape, order=header.order)


def _parse_header(start: bytes, name: str) -> _Header:
    """Parse the first bytes of a `.npy` stream.

    NumPy's parser passes any type name to numpy.dtype, and some names crash the process: `<m8[s/0]` divides
    by zero. This parser passes only names of integer types.
    """
    try:
        length_format, encoding = NPY_VERSIONS[npy_format.read_magic(io.BytesIO(start))]
        (text_length,) = struct.unpack_from(length_format, start, npy_format.MAGIC_LEN)
        text_start = npy_format.MAGIC_LEN + struct.calcsize(length_format)
        length = text_start + text_length
        if length > len(start):
            raise ValueError("the header is longer than the file or the limit")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fields = ast.literal_eval(start[text_start:length].decode(encoding))
        descr, fortran_order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        if not isinstance(fortran_order, bool) or not isinstance(shape, tuple):
            raise TypeError("the header's fields have other types")
        if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
            raise ValueError("the shape is not made of lengths")
    except HEADER_ERRORS:
        raise CorpusError(f"{name} has a damaged header; expected one written by numpy.save") from None
    if len(shape) == 4:
        raise CorpusError(
            f"{name} has shape {brief(str(shape))}; expected (grids, rows, columns): for one-hot cells, save "
            "grids.argmax(1) or, if classes come last, grids.argmax(3); for one channel, save grids.squeeze()"
        )
    if not isinstance(descr, str) or not INTEGER_TYPE.fullmatch(descr):
        letter = str(descr).lstrip("<>=|")[:1]
        kind = OTHER_TYPES.get(letter, f"values of type {brief(repr(descr))}")
        raise CorpusError(f"{name} holds {kind}; {RECIPES.get(letter, AS_INTEGERS)}")
    return _Header(np.dtype(descr), shape, "F" if fortran_order else "C", length)


def _check_claims(header: _Header, name: str, stored_bytes: int, grid_size: int) -> None:
    """Raise CorpusError if the shape is not valid for grids, or needs another number of bytes than stored."""
    if len(header.shape) != 3:
        raise CorpusError(f"{name} has shape {brief(str(header.shape))}; expected (grids, rows, columns)")
    count, rows, columns = header.shape
    if not count * rows * columns:
        raise CorpusError(f"{name} is empty: its shape is {header.shape}")
    side, shown = max(rows, columns), f"{rows}×{columns}"
    if side > MAX_GRID_SIZE:
        raise CorpusError(f"{name} has grids of {shown}; expected at most {MAX_GRID_SIZE} rows and columns")
    if side > grid_size:
        raise CorpusError(
            f"{name} has grids of {shown}, larger than the grid size {grid_size}; add --grid-size={side} or "
            "--grid-size=auto"
        )
    if count > MAX_GRIDS:
        raise CorpusError(f"{name} has {count} grids; expected at most {MAX_GRIDS}")
    promised, held = math.prod(header.shape) * header.dtype.itemsize, stored_bytes - header.length
    if held != promised:
        raise CorpusError(f"{name} declares {promised} bytes of grids, but the file holds {held}")


def check_values(
    values: Integers,
    name: str,
    shape: tuple[int, ...],
    order: Literal["C", "F"],
    first: int,
    padding_value: int | None,
    classes: int,
) -> None:
    """Raise CorpusError if a value is neither a class nor the padding value.

    The values are part of an array with this name, shape and order; `first` is the index of the first value
    in the flat array.
    """
    if values.max() < classes and values.min() >= 0:
        return
    wrong = (values < 0) | (values >= classes)
    if padding_value is not None:
        wrong &= values != padding_value
        if not wrong.any():
            return
    position = int(np.argmax(wrong))
    index = ", ".join(str(int(i)) for i in np.unravel_index(first + position, shape, order))
    value = values.flat[position]
    shown = brief(str(value))
    expected = f"cells are the classes 0–{classes - 1}"
    if padding_value is not None:
        expected += f", or {padding_value} outside a grid"
    if classes <= value < MAX_CLASSES:
        expected += "; if there are more classes, add --classes auto"
    if padding_value is None:
        expected += f"; if {shown} marks cells outside a grid, add --padding-value={shown}"
    raise CorpusError(f"{name}[{index}] is {shown}; {expected}")
