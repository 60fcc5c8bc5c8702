"""Collections of tasks and lists of grids. All formats give the same corpus; hostile files are refused."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import pickle
import random
import re
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid_files import deflated_zeros, npz_bytes, npz_claiming, two_seconds_and_few_bytes

from bvae.corpus import OUTSIDE, CorpusError, load_corpus, task_files
from bvae.storage import printable

pytestmark = pytest.mark.unit

Cells = list[list[int]]
Tasks = dict[str, dict[str, list[dict[str, Cells]]]]

few = settings(max_examples=25)


def validates(task: str) -> bool:
    return int(hashlib.sha256(task.encode()).hexdigest(), 16) % 10 == 0


IDS = [f"{number:08x}" for number in range(200)]
HELD_OUT, TRAINING = ([task for task in IDS if validates(task) == held_out] for held_out in (True, False))

sides = st.integers(1, 7)
grids = st.tuples(sides, sides, st.integers(0, 2**32)).map(lambda drawn: random_grid(*drawn))
pairs = st.fixed_dictionaries({"input": grids}, optional={"output": grids})
tasks_of = st.fixed_dictionaries({"train": st.lists(pairs, max_size=3), "test": st.lists(pairs, max_size=2)})


def random_grid(height: int, width: int, seed: int) -> Cells:
    rng = random.Random(seed)
    return [[rng.randrange(10) for _ in range(width)] for _ in range(height)]


def learnable(drawn: Tasks) -> Tasks:
    """Add a task to each split, so that both splits have grids of two classes."""
    more: Tasks = {}
    for task, first in ((HELD_OUT[0], 0), (TRAINING[0], 4)):
        more[task] = {"train": [{"input": [[first + n, 9]], "output": [[9], [first + n]]} for n in range(2)]}
        more[task]["test"] = []
    return more | drawn


collections = st.dictionaries(st.sampled_from(HELD_OUT[1:] + TRAINING[1:9]), tasks_of, max_size=8).map(
    learnable
)


def grids_of(task: dict[str, list[dict[str, Cells]]]) -> list[Cells]:
    return [grid for pair in (*task["train"], *task["test"]) for grid in pair.values()]


def as_folder(tasks: Tasks, folder: Path) -> Path:
    for number, (task, content) in enumerate(tasks.items()):
        place = folder / "data" / ("training", "evaluation")[number % 2] / f"{task}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(content))
    (folder / "LICENSE").write_text("[")
    (folder / "._hidden.json").write_bytes(b"\x00")
    (folder / "data/metadata.json").write_text("{}")
    return folder


def as_kaggle(tasks: Tasks, folder: Path) -> Path:
    path = folder / "arc-agi_training_challenges.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(tasks, indent=1).encode())
    return path


def as_kaggle_with_solutions(tasks: Tasks, folder: Path) -> Path:
    hidden = {
        task: {**content, "test": [{"input": pair["input"]} for pair in content["test"]]}
        for task, content in tasks.items()
    }
    solutions = {
        task: [pair["output"] for pair in content["test"] if "output" in pair]
        for task, content in tasks.items()
    }
    (folder / "arc-agi_training_solutions.json").write_text(json.dumps(solutions))
    return as_kaggle(hidden, folder)


def as_lists_of_pairs(tasks: Tasks, folder: Path) -> Path:
    (folder / "tasks").mkdir()
    for task, content in tasks.items():
        (folder / f"tasks/{task}.json").write_text(json.dumps([*content["train"], *content["test"]]))
    (folder / "metadata.json").write_text('{"00000001": {"runtime": 1.5}}')
    return folder


def zipped(write: Callable[[Tasks, Path], Path]) -> Callable[[Tasks, Path], Path]:
    def as_zip(tasks: Tasks, folder: Path) -> Path:
        (folder / "inside").mkdir()
        write(tasks, folder / "inside")
        with zipfile.ZipFile(folder / "tasks.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((folder / "inside").rglob("*"), reverse=True):
                archive.write(path, path.relative_to(folder))
            archive.writestr("__MACOSX/inside/._hidden.json", b"\x00")
        return folder / "tasks.zip"

    return as_zip


FORMATS = {
    "folder": as_folder,
    "Kaggle": as_kaggle,
    "Kaggle with solutions": as_kaggle_with_solutions,
    "folder of lists of pairs": as_lists_of_pairs,
    "zip of a folder": zipped(as_folder),
    "zip of Kaggle's files": zipped(as_kaggle_with_solutions),
}


def written(write: Callable[[Tasks, Path], Path], tasks: Tasks, base: Path) -> str:
    shutil.rmtree(base / "collection", ignore_errors=True)
    (base / "collection").mkdir()
    return str(write(tasks, base / "collection"))


def square(grid: Cells, size: int) -> bytes:
    cells = np.full((size, size), OUTSIDE, np.uint8)
    cells[: len(grid), : len(grid[0])] = grid
    return cells.tobytes()


def contents(split: Any) -> list[bytes]:
    return [grid.tobytes() for grid in split[:]]


@few
@given(tasks=collections)
def test_every_format_gives_the_same_grids_and_holds_out_whole_tasks(
    tmp_path_factory: pytest.TempPathFactory, tasks: Tasks
) -> None:
    base = tmp_path_factory.getbasetemp()
    size = max(max(len(grid), len(grid[0])) for task in tasks.values() for grid in grids_of(task))
    val = {square(grid, size) for task in tasks if validates(task) for grid in grids_of(tasks[task])}
    train = {square(grid, size) for task in tasks if not validates(task) for grid in grids_of(tasks[task])}
    fingerprints = set()
    for write in FORMATS.values():
        corpus = load_corpus(written(write, tasks, base))
        assert corpus.grid_size == size
        assert sorted(contents(corpus.val)) == sorted(val)
        assert sorted(contents(corpus.train)) == sorted(train - val)
        assert corpus.duplicates == len(train & val)
        fingerprints.add(corpus.fingerprint)
    assert len(fingerprints) == 1


@few
@given(tasks=collections, size=st.integers(2, 64))
def test_a_grid_size_leaves_out_the_grids_that_do_not_fit(
    tmp_path_factory: pytest.TempPathFactory, tasks: Tasks, size: int
) -> None:
    path = written(as_kaggle, tasks, tmp_path_factory.getbasetemp())
    small = {
        square(grid, size)
        for task in tasks.values()
        for grid in grids_of(task)
        if max(len(grid), len(grid[0])) <= size
    }
    corpus = load_corpus(path, size)
    assert {*contents(corpus.train), *contents(corpus.val)} == small


@pytest.mark.parametrize(
    ("padding_value", "classes"), [(-1, 16), (255, 16), (20, 16), (-1, "auto"), (2**63, 16)]
)
def test_task_files_are_read_with_a_padding_value_and_more_classes(
    tmp_path: Path, padding_value: int, classes: Any
) -> None:
    rows = [[15, n, padding_value] for n in range(10)]
    path = tmp_path / "grids.json"
    path.write_text(json.dumps([[row, row] for row in rows]))
    corpus = load_corpus(str(path), padding_value=padding_value, classes=classes)
    assert corpus.classes == 16
    found = np.concatenate([corpus.train[:], corpus.val[:]])
    assert (found[:, :2, 2] == OUTSIDE).all()
    assert sorted(found[:, 0, 1]) == list(range(10))


@few
@given(count=st.integers(5, 40), side=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_a_list_of_grids_of_one_size_gives_the_corpus_of_their_array(
    tmp_path_factory: pytest.TempPathFactory, count: int, side: int, seed: int
) -> None:
    base, array = (
        tmp_path_factory.getbasetemp(),
        np.random.default_rng(seed).integers(0, 10, (count, side, side)),
    )
    array[:, 0, 0], array[:, 0, 1] = np.arange(count) % 9, 9
    np.save(base / "listed.npy", array)
    (base / "listed.json").write_text(json.dumps(array.tolist()))
    try:
        expected = load_corpus(str(base / "listed.npy"))
    except CorpusError as error:
        with pytest.raises(CorpusError, match=re.escape(str(error).partition(": ")[2])):
            load_corpus(str(base / "listed.json"))
    else:
        assert load_corpus(str(base / "listed.json")).fingerprint == expected.fingerprint


def test_a_single_task_is_split_like_a_list_of_grids(tmp_path: Path) -> None:
    grids = [random_grid(3, 4, seed) for seed in range(40)]
    (tmp_path / "1.json").write_text(json.dumps(grids))
    examples = [{"input": a, "output": b} for a, b in zip(grids[::2], grids[1::2], strict=True)]
    (tmp_path / "2.json").write_text(json.dumps({"train": examples, "test": [], "name": {"of": ["it"]}}))
    corpus, other = (load_corpus(str(tmp_path / f"{name}.json")) for name in (1, 2))
    assert corpus.fingerprint == other.fingerprint
    assert (len(corpus.train), len(corpus.val)) == (36, 4)


@pytest.mark.parametrize("empty", ["[]", "{}", '{"train": []}', '{"x": [], "y": {"train": [], "test": []}}'])
def test_tasks_without_grids_change_no_corpus(empty: str, tmp_path: Path) -> None:
    grids = json.dumps([random_grid(3, 4, seed) for seed in range(40)])
    for folder, files in (("one", [grids]), ("more", [grids, empty])):
        (tmp_path / folder).mkdir()
        for name, content in zip("ab", files, strict=False):
            (tmp_path / folder / f"{name}.json").write_text(content)
    one, more = (load_corpus(str(tmp_path / folder)) for folder in ("one", "more"))
    assert more.fingerprint == one.fingerprint


# Refusals

SOUND = json.dumps(learnable({}))


def refusal(path: Path, **settings: Any) -> str:
    """Return the message of a refusal. It must be one short line, given in two seconds with little memory."""
    with two_seconds_and_few_bytes(64 * 2**20), pytest.raises(CorpusError) as caught:
        load_corpus(str(path), **settings)
    message = str(caught.value)
    assert message == printable(message)
    assert len(message) < 500 + len(str(path))
    assert message.startswith(f"{printable(str(path))}: ")
    return message


def with_grid(grid: str) -> str:
    return f'{{"{TRAINING[0]}": {{"train": [{{"input": [[1, 2]], "output": {grid}}}]}}}}'


NOT_JSON = [
    ("", "is not a file of grids"),
    ("{", "truncated"),
    ("[[", "truncated"),
    ("{}", "holds no grid; expected ARC tasks"),
    ("[]", "holds no grid"),
    ('{"a": 1}', "a: Expected `object | array`, got `int`; expected ARC tasks"),
    ('{"a": {"x": 1}}', "a: Object missing required field `train`"),
    ('[{"output": [[1]]}]', "missing required field `input`"),
    ('{"train": 7}', "Expected `array`, got `int` - at `$.train`"),
    ("[" * 100_000, "Expected `int`, got `array`"),
    ('{"a": ' * 1_000 + "1" + "}" * 1_000, "recursion"),
    ('{"a": ' * 100_000 + "1" + "}" * 100_000, "recursion"),
    (SOUND[:-9], "truncated"),
    (SOUND + "x", "malformed"),
    (with_grid("[]"), f"grid 1 of {TRAINING[0]}: has no cells"),
    (with_grid("[[]]"), "has no cells"),
    (with_grid("[[1, 2], [3]]"), "has rows of 1 and 2 cells; expected rows of one length"),
    (with_grid("[[1], 2]"), "Expected `array`, got `int`"),
    (with_grid('[["1"]]'), "Expected `int`, got `str`"),
    (with_grid("[[0.5]]"), "Expected `int`, got `float`"),
    (with_grid("[[null]]"), "Expected `int`, got `null`"),
    (with_grid("[[true]]"), "Expected `int`, got `bool`"),
    (with_grid("[[NaN]]"), "malformed"),
    (with_grid("[[1, 10]]"), "cell[0, 1] is 10; cells are the classes 0–9"),
    (with_grid("[[1], [-1]]"), "cell[1, 0] is -1;"),
    (with_grid("[[300]]"), "add --padding-value=300"),
    (with_grid(f"[[{2**63}, -1]]"), f"cell[0, 0] is {2**63};"),
    (with_grid(f"[[{9 * 10**4000}]]"), "cell[0, 0] is 90000"),
    (with_grid(f"[{[1] * 65}]"), "has grids of side 65; add --grid-size=64 to leave them out"),
]


@pytest.mark.parametrize(("content", "named"), NOT_JSON, ids=lambda text: text[:40] or "empty")
def test_a_file_that_is_no_collection_is_refused_with_file_and_place(
    tmp_path: Path, content: str, named: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    assert named in (said := refusal(tmp_path / "a.json"))
    assert said.count("a.json") == 1
    if content:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/b.json").write_text(content)
        (tmp_path / "a.zip").write_bytes(npz_bytes({"b.json": content.encode()}))
        for path in (tmp_path / "folder", tmp_path / "a.zip"):
            assert named in refusal(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for content in (b'{"\xff": [[[1]]]}', b"[\x00]", b"{" + bytes(1000), SOUND.encode("utf-16-le")):
        (tmp_path / "a.json").write_bytes(content)
        assert "expected ARC tasks" in refusal(tmp_path / "a.json")


def test_a_grid_that_is_all_padding_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[[[1, 7]], [[-1, -1]]]")
    assert "a.json: grid 1 of a: is all padding" in refusal(tmp_path / "a.json", padding_value=-1)


@pytest.mark.parametrize("held_out", [True, False])
def test_tasks_of_one_split_alone_are_refused(tmp_path: Path, held_out: bool) -> None:
    chosen = [task for task in IDS if validates(task) == held_out][:3]
    (tmp_path / "a.json").write_text(json.dumps({task: [[[1, 2]], [[3]]] for task in chosen}))
    message = refusal(tmp_path / "a.json")
    found = ("0 grids of training tasks and 2", "2 grids of training tasks and 0")[not held_out]
    expected = "expected at least 1 grid of training tasks and 2 grids of validation tasks"
    assert f"has {found} of validation tasks, of up to 2×2 cells; {expected}" in message
    assert "or use --grid-size=2, so that more grids fit" in refusal(tmp_path / "a.json", grid_size=1)


def test_a_folder_without_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grids.npy").touch()
    assert "holds no .json file; expected ARC tasks" in refusal(tmp_path)


@pytest.mark.parametrize("target", ["there.json", "folder", "missing", "/dev/zero", "."])
@pytest.mark.parametrize("name", ["link.json", "link"])
def test_no_symbolic_link_in_a_folder_is_followed(tmp_path: Path, target: str, name: str) -> None:
    (tmp_path / "there.json").write_text(SOUND)
    (tmp_path / "folder").mkdir()
    (tmp_path / name).symlink_to(target)
    assert f"{name} is a symbolic link; expected the file or folder itself" in refusal(tmp_path)


def test_solutions_that_are_a_symbolic_link_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a_challenges.json").write_text(SOUND)
    (tmp_path / "a_solutions.json").symlink_to("/dev/zero")
    assert "cannot be read" in refusal(tmp_path / "a_challenges.json")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    assert "a.json is not a regular file" in refusal(tmp_path)
    assert "is not a regular file" in refusal(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("limit", "value", "named"),
    [
        ("MAX_FILES", 2, "has more than 2 files and folders"),
        ("MAX_DEPTH", 1, "or 1 nested folders"),
        ("MAX_FILE_BYTES", 100, "has more than 0 MiB; split it"),
        ("MAX_BYTES", 200, "GiB of JSON; pass fewer files, or a .npy"),
        ("MAX_LISTS", 10, "has more than 10 lists; split it"),
        ("MAX_GRIDS", 7, "has more than 7 grids; pass fewer files, or a .npy"),
        ("MAX_PADDED_BYTES", 7, "more than 0 MiB at the grid size 2; use a smaller size"),
    ],
)
def test_every_limit_on_a_collection_is_enforced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, named: str
) -> None:
    as_folder(learnable({}), tmp_path)
    (tmp_path / "a.zip").write_bytes(
        npz_bytes({f"{task}.json": json.dumps(content).encode() for task, content in learnable({}).items()})
    )
    assert load_corpus(str(tmp_path)).fingerprint == load_corpus(str(tmp_path / "a.zip")).fingerprint
    monkeypatch.setattr(task_files, limit, value)
    paths = (tmp_path,) if limit in ("MAX_FILES", "MAX_DEPTH") else (tmp_path, tmp_path / "a.zip")
    for path in paths:
        assert named in refusal(path)


def claiming(**info: int) -> bytes:
    return npz_claiming(info, SOUND.encode()).replace(b"train.npy", b"task.json")


DEFLATED = {"compress_type": zipfile.ZIP_DEFLATED}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (npz_bytes({}), "holds neither arrays nor a .json file"),
        (npz_bytes({"notes.txt": b"7"}), "holds neither arrays nor a .json file"),
        (npz_bytes({".a.json": b"7", "__MACOSX/a.json": b"7"}), "holds neither arrays nor a .json file"),
        (npz_bytes({"a.json": SOUND.encode()}, zipfile.ZIP_LZMA), "a method other than deflate"),
        (npz_bytes({"a.json": SOUND.encode()})[:-30], "damaged or unsupported archive"),
        (claiming(flag_bits=1), "task.json is encrypted"),
        (claiming(CRC=7), "Bad CRC"),
        (claiming(compress_size=9), "damaged"),
        (claiming(compress_size=2**40), "more bytes packed than unpacked"),
        (claiming(file_size=2**31), "unpacks to more than 200 times its size"),
        (claiming(file_size=7), "damaged"),
        (claiming(header_offset=10), "damaged"),
        (claiming(external_attr=(stat.S_IFLNK | 0o777) << 16), "task.json is a symbolic link"),
        (claiming(extract_version=99), "zip file version"),
        (
            npz_claiming({**DEFLATED, "file_size": 10 * 2**30}, deflated_zeros(10 * 2**10)).replace(
                b"train.npy", b"task.json"
            ),
            "unpacks to more than 200 times its size",
        ),
        (
            npz_claiming({**DEFLATED, "file_size": 2**20}, deflated_zeros(300)).replace(
                b"train.npy", b"task.json"
            ),
            "damaged",
        ),
    ],
    ids=range(16),
)
def test_a_hostile_archive_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "hostile.zip").write_bytes(content)
    assert named in refusal(tmp_path / "hostile.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_members_of_one_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.json", SOUND)
        archive.writestr("a.json", SOUND)
    assert "more than one member named a.json" in refusal(tmp_path / "twice.zip")


def test_nothing_of_an_archive_is_written_to_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/a.zip").write_bytes(
        npz_bytes({"x/../../../b.json": SOUND.encode(), "/c.json": SOUND.encode()})
    )
    try:
        load_corpus(str(tmp_path / "a/a.zip"))
    finally:
        assert [path.name for path in tmp_path.rglob("*")] == ["a", "a.zip"]


# Advice on files that cannot be read


def recipe(path: Path) -> str:
    """Return the Python call at the end of a refusal, which converts the file."""
    message = refusal(path)
    found = re.search(r"(numpy\.save|pathlib\.Path)\(.*\)$", message)
    assert found, message
    return found.group()


GRIDS = np.random.default_rng(0).integers(0, 10, (30, 8, 8))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("grids.pt", lambda path: torch.save(torch.from_numpy(GRIDS), path)),
        ("grids.csv", lambda path: np.savetxt(path, GRIDS.reshape(30, -1), "%d", ",")),
        ("objects.npy", lambda path: np.save(path, np.array([*GRIDS, 0], object)[:-1], allow_pickle=True)),
    ],
)
def test_the_python_line_in_the_advice_converts_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    line = recipe(tmp_path / name).replace("ROWS, COLUMNS", "8, 8")
    monkeypatch.chdir(tmp_path)
    exec(line, {"numpy": np, "torch": torch, "json": json, "pathlib": pathlib, "FILE": name, "grids": GRIDS})
    (converted,) = {*tmp_path.iterdir()} - {tmp_path / name}
    corpus = load_corpus(str(converted))
    assert sorted(contents(corpus.train) + contents(corpus.val)) == sorted(contents(GRIDS.astype(np.uint8)))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_python_line_in_the_advice_converts_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for suffix in ("png", "gif", "bmp"):
        path = tmp_path / f"grid.{suffix}"
        PIL.Image.fromarray(GRIDS[0].astype(np.uint8)).save(path)
        exec(recipe(path), {"numpy": np, "PIL": PIL, "FILE": path})
        np.testing.assert_array_equal(np.load("grids.npy"), GRIDS[:1])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file; convert it: numpy.save('grids.npy', h5py.File(FILE)"),
        (b"\xff\xd8\xff\xe0", "is an image; convert it"),
        (pickle.dumps([1]), "a pickle, which is never loaded"),
        (b"hello", "is not a file of grids; expected ARC tasks"),
        (b"\x7fELF", "is not a file of grids"),
    ],
)
def test_other_kinds_of_files_are_recognised_by_their_first_bytes(
    tmp_path: Path, content: bytes, named: str
) -> None:
    (tmp_path / "other").write_bytes(content)
    assert named in refusal(tmp_path / "other")


ONE_HOT = np.eye(10)[GRIDS]


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize(
    "array",
    [
        *(ONE_HOT.astype(dtype) for dtype in (float, np.float32, np.uint8, bool)),
        np.moveaxis(ONE_HOT, 3, 1),
        GRIDS[:, None],
        GRIDS[..., None].astype(float),
        GRIDS.astype(float),
        (GRIDS / 9).astype(np.float32),
    ],
    ids=[
        "one-hot",
        "of float32",
        "of uint8",
        "of bool",
        "classes second",
        "channel",
        "last",
        "whole",
        "ninths",
    ],
)
def test_an_expression_in_the_advice_converts_an_array_to_classes(
    tmp_path: Path, array: np.ndarray, suffix: str
) -> None:
    path = tmp_path / f"array.{suffix}"
    np.save(path, array) if suffix == "npy" else np.savez(path, array)
    message = refusal(path)
    expressions = re.findall(r"\(9 \* grids\)[\w.()']+|grids\.[\w.()']+(?<!;)", message)
    results = [
        eval(expression.rstrip(","), {"grids": array})
        for expression in expressions
        if "squeeze" not in expression or 1 in array.shape
    ]
    assert any(np.array_equal(result, GRIDS) for result in results), message
