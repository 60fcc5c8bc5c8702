"""ARC tasks and lists of grids as JSON, in a folder, a zip archive or a single file.

A JSON file contains one of these:

    a task: {"train": [{"input": …, "output": …}, …], "test": […]}, or a list of such pairs
    many tasks by id, as in Kaggle's files
    a list of grids, which may differ in size

Only regular files are read, and symbolic links in a folder are refused. Members of an archive are
decompressed in memory. All sizes are limited: a hostile file raises CorpusError and cannot fill the memory.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from bvae.config import MAX_GRID_SIZE, OUTSIDE, GridSize
from bvae.corpus.array_files import (
    ARCHIVE_ERRORS,
    BLOCK_BYTES,
    BoundedReads,
    CorpusError,
    check_member,
    check_values,
    members_by_name,
    naming,
    open_archive,
)
from bvae.corpus.splits import Source, hold_out, is_held_out, named
from bvae.storage import brief, open_at_once, printable

MAX_FILES = 100_000
"""Maximum number of files and folders in a folder."""
MAX_DEPTH = 16
"""Maximum number of nested folders."""
MAX_FILE_BYTES = 32 * 2**20
MAX_BYTES = 2 * 2**30
"""Maximum total size of the files."""
MAX_RATIO = 200
"""Maximum ratio of unpacked to packed size of an archive that unpacks to more than `MAX_FILE_BYTES`."""
MAX_LISTS = 2**21
"""Maximum number of opening brackets in a file; each may become a list of 56 bytes."""
MAX_GRIDS = 2**20
MAX_PADDED_BYTES = 2**30

IGNORED = ("metadata.json", "sample_submission.json")
"""Files of re-arc and Kaggle that contain no tasks."""
EXPECTED = (
    'expected ARC tasks, {"train": [{"input": [[0, 1], …], "output": …}, …], "test": …}, or lists of grids'
)
OTHER_FILES = {
    b"PK|\x80": ("a PyTorch file or a pickle, which is never loaded", "torch.load(FILE).numpy()"),
    b"\x89HDF": ("an HDF5 file", "h5py.File(FILE)['NAME'][:]"),
    b"\x89PNG|\xff\xd8\xff|GIF8|BM": ("an image", "numpy.stack([PIL.Image.open(FILE)])"),
    rb"[-+0-9.eE,; \t\r\n]+$": (
        "a table",
        "numpy.loadtxt(FILE, int, delimiter=',').reshape(-1, ROWS, COLUMNS)",
    ),
}
"""Other formats by their first bytes: a description, and Python code that reads the file as `[N, H, W]`."""

Cells = list[list[int]]
Files = Iterator[tuple[str, bytes]]
"""The path in the collection and the content of each JSON file."""


class Pair(msgspec.Struct):
    """An input grid and its output grid; tests may lack the output."""

    input: Cells
    output: Cells | None = None


Examples = list[Pair | Cells]


class Task(msgspec.Struct):
    """A task; other fields in the JSON are ignored."""

    train: Examples
    test: Examples = []


class Grid(NamedTuple):
    """Height, width and cells of a grid, row by row."""

    height: int
    width: int
    cells: bytes


def is_array_file(path: str) -> bool:
    """Return whether a path is for `array_files.read_grids`, which also reports missing and damaged files."""
    try:
        if not Path(path).is_file():
            return not Path(path).is_dir()
        with BoundedReads(io.FileIO(path)) as file:
            if not file.peek(8).startswith(b"PK"):
                return file.peek(8).startswith(b"\x93NUMPY")
            return any(name.endswith(".npy") for name in zipfile.ZipFile(file).namelist())
    except ARCHIVE_ERRORS:
        return True


def read_tasks(
    path: str, grid_size: GridSize, padding_value: int | None, classes: int
) -> tuple[int, list[Source]]:
    """Return the grid size S, and the sources of the grids `[N, S, S]` that fit it.

    If there are several tasks, whole tasks are held out. Tasks are sorted by id, and the grids of a task by
    size and cells. A grid occurs only once in a split. The splits thus do not depend on format and file
    system. If there is a single task or list, a seeded tenth of its grids is held out, and all grids are kept
    in their order.

    Args:
        path: path of a folder, a zip archive or a JSON file.
        grid_size: the size S; "auto" is the smallest size that fits all grids.
        padding_value: integer that marks positions outside a grid; None if there are no such positions.
        classes: number of classes.

    Raises:
        CorpusError: if the collection cannot be read or has too few grids.
    """
    with naming(path):
        tasks = _read(_files(path), padding_value, classes)
        largest = max(chain(*tasks.values()), key=_side)
        size = _side(largest) if grid_size == "auto" else grid_size
        if size > MAX_GRID_SIZE:
            raise CorpusError(f"has grids of side {size}; add --grid-size={MAX_GRID_SIZE} to leave them out")
        fitting = {task: [grid for grid in grids if _side(grid) <= size] for task, grids in tasks.items()}
        if len(tasks) == 1:
            (grids,) = fitting.values()
            _check_enough(len(grids) >= 3, f"{len(grids)} grids", "3 or more", size, largest)
            return size, hold_out(_stack(grids, size), OUTSIDE)
        splits: tuple[dict[Grid, None], dict[Grid, None]] = ({}, {})
        for task in sorted(fitting):
            splits[is_held_out(task)].update(dict.fromkeys(sorted(fitting[task])))
        found = f"{len(splits[0])} grids of training tasks and {len(splits[1])} of validation tasks"
        expected = (
            "at least 1 grid of training tasks and 2 grids of validation tasks (the hash of a task's id "
            "decides whether it is for validation); add tasks"
        )
        _check_enough(len(splits[0]) >= 1 and len(splits[1]) >= 2, found, expected, size, largest)
        return size, named(_stack(splits[0], size), _stack(splits[1], size), OUTSIDE)


def _side(grid: Grid) -> int:
    return max(grid.height, grid.width)


def _check_enough(enough: bool, found: str, expected: str, size: int, largest: Grid) -> None:
    if not enough:
        side = min(_side(largest), MAX_GRID_SIZE)
        more = f", or use --grid-size={side}, so that more grids fit" if side > size else ""
        raise CorpusError(f"has {found}, of up to {size}×{size} cells; expected {expected}{more}")


def _stack(grids: Collection[Grid], size: int) -> npt.NDArray[np.uint8]:
    """Copy grids to the top left of arrays `[N, S, S]`."""
    if len(grids) * size**2 > MAX_PADDED_BYTES:
        limit = MAX_PADDED_BYTES // 2**20
        raise CorpusError(
            f"has {len(grids)} grids, more than {limit} MiB at the grid size {size}; use a smaller size"
        )
    stacked = np.full((len(grids), size, size), OUTSIDE, np.uint8)
    for square, (height, width, cells) in zip(stacked, grids, strict=True):
        square[:height, :width] = np.frombuffer(cells, np.uint8).reshape(height, width)
    return stacked


def _files(path: str) -> Files:
    """Yield the JSON files of a collection. Kaggle's challenges come with a second file, their solutions."""
    if Path(path).is_dir():
        places = sorted(_places(path))
        if not places:
            raise CorpusError(f"holds no .json file; {EXPECTED}, or the path of a .npz or .npy file")
        for place in places:
            yield place, _content(str(Path(path, place)), place)
        return
    with BoundedReads(io.FileIO(path)) as file:
        if (start := file.read(4096)).startswith(b"PK"):
            yield from _archived(file)
            return
    if not start.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")):
        raise _other_file(start)
    name = Path(path).name
    yield name, _content(os.path.realpath(path), name)
    solutions = re.sub(r"_challenges\.json$", "_solutions.json", path)
    if solutions != path and os.path.lexists(solutions):
        yield Path(solutions).name, _content(solutions, Path(solutions).name)


def _other_file(start: bytes) -> CorpusError:
    for pattern, (kind, recipe) in OTHER_FILES.items():
        if re.match(pattern, start):
            return CorpusError(f"is {kind}; convert it: numpy.save('grids.npy', {recipe})")
    return CorpusError(f"is not a file of grids; {EXPECTED} in JSON, or a .npz or .npy file")


def _is_json(place: str) -> bool:
    *folders, name = place.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in (*folders, name))
    return name.lower().endswith(".json") and name not in IGNORED and not hidden


def _places(root: str) -> Iterator[str]:
    """Yield the paths of the JSON files in a folder and its subfolders, relative to the folder."""
    folders, found = [("", 0)], 0
    while folders:
        folder, depth = folders.pop()
        with os.scandir(Path(root, folder)) as entries:
            for entry in entries:
                place = f"{folder}/{entry.name}".removeprefix("/")
                found += 1
                if found > MAX_FILES or depth > MAX_DEPTH:
                    limits = f"{MAX_FILES} files and folders, or {MAX_DEPTH} nested folders"
                    raise CorpusError(f"has more than {limits}; pass a folder that holds only tasks")
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    raise CorpusError(
                        f"{brief(place)} is a symbolic link; expected the file or folder itself"
                    )
                if entry.is_dir(follow_symlinks=False):
                    folders.append((place, depth + 1))
                elif _is_json(place):
                    yield place


def _content(path: str, place: str) -> bytes:
    """Return the content of a regular file. Symbolic links are refused."""
    with open(path, "rb", opener=open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CorpusError(f"{brief(place)} is not a regular file")
        content = file.read(MAX_FILE_BYTES + 1)
    _check_size(len(content), place)
    return content


def _check_size(size: int, place: str) -> None:
    if size > MAX_FILE_BYTES:
        limit = MAX_FILE_BYTES // 2**20
        raise CorpusError(f"{brief(place)} has more than {limit} MiB; split it, or save its grids as .npy")


def _archived(file: io.BufferedReader) -> Files:
    """Yield the JSON files of an open archive, decompressed block by block."""
    with open_archive(file) as archive:
        members = {name: member for name, member in members_by_name(archive).items() if _is_json(name)}
        if not members:
            if any(name.endswith("data.pkl") for name in archive.namelist()):
                raise _other_file(b"PK")
            raise CorpusError(f"holds neither arrays nor a .json file; {EXPECTED}")
        size = sum(member.file_size for member in members.values())
        packed = sum(member.compress_size for member in members.values())
        if size > max(MAX_FILE_BYTES, MAX_RATIO * packed):
            raise CorpusError(f"unpacks to more than {MAX_RATIO} times its size; pass it as a folder")
        for name, member in sorted(members.items()):
            check_member(member, brief(name))
            _check_size(member.file_size, name)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise CorpusError(f"{brief(name)} is a symbolic link; expected the file itself")
            with archive.open(member) as stream:
                yield name, b"".join(iter(lambda: stream.read(BLOCK_BYTES), b""))


def _read(files: Files, padding_value: int | None, classes: int) -> dict[str, list[Grid]]:
    """Return the grids of each task or list that has any, by id, in the order of the files."""
    tasks: dict[str, list[Grid]] = {}
    size = count = 0
    for place, content in files:
        size += len(content)
        if size > MAX_BYTES:
            raise CorpusError(f"has more than {MAX_BYTES // 2**30} GiB of JSON; pass fewer files, or a .npy")
        for task, grids in _tasks(place, content):
            known = tasks.setdefault(task, [])
            for number, cells in enumerate(grids):
                count += 1
                if count > MAX_GRIDS:
                    raise CorpusError(f"has more than {MAX_GRIDS} grids; pass fewer files, or a .npy")
                try:
                    known.append(_grid(cells, padding_value, classes))
                except CorpusError as error:
                    raise CorpusError(f"{brief(place)}: grid {number} of {brief(task)}: {error}") from None
    if found := {task: grids for task, grids in tasks.items() if grids}:
        return found
    raise CorpusError(f"holds no grid; {EXPECTED}")


def _tasks(place: str, content: bytes) -> Iterator[tuple[str, Iterator[Cells]]]:
    """Yield id and grids of each task or list in a JSON file. The id is its key, or the file's stem."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.count(b"[") + content.count(b"{") > MAX_LISTS:
        raise CorpusError(f"{brief(place)} has more than {MAX_LISTS} lists; split it")
    stem = PurePosixPath(place).stem
    if re.match(rb"\s*\[", content):
        yield stem, _cells(_decode(content, Examples, place))
    elif (fields := _decode(content, dict[str, msgspec.Raw], place)).keys() & {"train", "test"}:
        yield stem, _cells(_decode(content, Task, place))
    else:
        for task, raw in fields.items():
            yield task, _cells(_decode(raw, Task | Examples, f"{place}: {task}"))


def _decode(content: bytes | msgspec.Raw, kind: Any, name: str) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorpusError(f"{brief(name)}: {printable(str(error))[:150]}; {EXPECTED}") from None


def _cells(found: Task | Examples) -> Iterator[Cells]:
    """Yield the grids of a task or list; each output follows its input."""
    for example in [*found.train, *found.test] if isinstance(found, Task) else found:
        if isinstance(example, Pair):
            yield from (cells for cells in (example.input, example.output) if cells is not None)
        else:
            yield example


def _grid(rows: Cells, padding_value: int | None, classes: int) -> Grid:
    """Check a grid, and return it with `OUTSIDE` instead of the padding value."""
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1 or not widths[0]:
        shown = f"rows of {widths[0]} and {widths[-1]} cells" if widths[1:] else "no cells"
        raise CorpusError(f"has {shown}; expected rows of one length")
    cells = list(chain.from_iterable(rows))
    if padding_value is not None or not 0 <= min(cells) <= max(cells) < classes:
        check_values(np.array(rows, object), "cell", (len(rows), widths[0]), "C", 0, padding_value, classes)
        cells = [OUTSIDE if cell == padding_value else cell for cell in cells]
        if min(cells) == OUTSIDE:
            raise CorpusError("is all padding; expected cells")
    return Grid(len(rows), widths[0], bytes(cells))
