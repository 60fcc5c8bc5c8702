"""Load mutated .npy, .npz, JSON and zip files. Each file must give a corpus or a CorpusError.

At the first failure, the program keeps the file and exits with 1. A failure is another exception, a case that
takes more than 2 s, or a process whose memory has grown by more than 500 MB.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bvae.config import DEFAULT_CLASSES as CLASSES
from bvae.corpus import OUTSIDE, CorpusError, load_corpus
from bvae.storage import printable

MAX_SECONDS = 2.0
MAX_GROWTH = 500 * 10**6

DTYPES = (
    "|u1",
    "<i8",
    ">i4",
    "<u2",
    "|i1",
    "<f4",
    "|b1",
    "|O",
    "<m8[s/0]",
    "<U1",
    "<i3",
    "V9",
    "i1,i1",
    "x",
    "",
)
NAMES = (
    "train.npy",
    "val.npy",
    "test.npy",
    "arr_0.npy",
    "../../train.npy",
    "/train.npy",
    "a\n\x1b[31m.npy",
    "train",
)
JSON_NAMES = (
    "../../a.json",
    "/a.json",
    "a/b/../c.json",
    ".a.json",
    "__MACOSX/a.json",
    "a\n\x1b[31m.json",
    "a.npy",
)
JSON_PARTS = (
    *(
        "[",
        "]",
        "{",
        "}",
        ",",
        '"',
        "10",
        "-1",
        "255",
        "1.5",
        "1e3",
        "null",
        "true",
        "NaN",
        "[]",
        "{}",
        "9" * 30,
    ),
    *("[" * 3000, '{"a":' * 3000, '"\\ud800"', '"train":', '"input"', "\x00", "\u202e", "[[1]],", "9" * 4000),
)
METHODS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)
SIDES = (0, 1, 2, 4, 5, 8, 15, 16, 17, 30, -1, 2**31, 2**62, 2**63, 2**64, 10**300)
NUMBERS = (0, 1, 2, 8, 9, 12, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
PADDING_VALUES = (None, None, None, 10, -1, 255, 2**64)
# Each header of a zip archive begins with one of these.
SIGNATURES = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
HEADER_TEXTS = (
    "{'descr': %r, 'fortran_order': %s, 'shape': %s, }",
    "{'descr': [('a', %r)], 'fortran_order': %s, 'shape': %s}",
    "{'shape': %.0s%.0s%s}",
    "__import__('os').abort() or {'descr': %r, 'fortran_order': %s, 'shape': %s}",
    "-" * 3000 + "{'descr': %r, 'fortran_order': %s, 'shape': %s}",
    "(" * 300 + "{'descr': %r, 'fortran_order': %s, 'shape': %s}",
    "1+" * 1500 + "{'descr': %r, 'fortran_order': %s, 'shape': %s}",
    "{'descr': %r, 'fortran_order': %s, 'shape': %sL, '\\d': 0}",
)


def grids(rng: random.Random) -> np.ndarray:
    """Draw a small array of grids. Some arrays have a value other than 0–9, such as a padding value."""
    shape = [rng.randint(1, 30), rng.choice((1, 2, 4, 8, 16)), rng.choice((1, 3, 8, 16))]
    values = np.random.default_rng(rng.getrandbits(32)).integers(0, rng.choice((2, 10, 10, 10, 11)), shape)
    values[values == 10] = rng.choice((10, -1, 255))
    array = values.astype(rng.choice(("u1", "i1", "<i2", ">i4", "<i8", ">u8", "<u4")))
    return np.asfortranarray(array) if rng.random() < 0.3 else array


def npy(rng: random.Random) -> bytes:
    """Write an array as a .npy file, sometimes with a wrong header."""
    file = io.BytesIO()
    array = grids(rng)
    np.lib.format.write_array(file, array, rng.choice(((1, 0), (2, 0), (3, 0))))
    return file.getvalue() if rng.random() < 0.7 else with_header(rng, array)


def with_header(rng: random.Random, array: np.ndarray) -> bytes:
    """Write an array with a header that does not match it."""
    shape = list(array.shape)
    if rng.random() < 0.5:
        shape[rng.randrange(3)] = rng.choice(SIDES)
    if rng.random() < 0.1:
        shape = shape * rng.choice((0, 2, 100))
    descr = rng.choice(DTYPES) if rng.random() < 0.5 else array.dtype.str
    order = rng.choice(("False", "False", "True", "None", "'x'"))
    template = HEADER_TEXTS[0] if rng.random() < 0.7 else rng.choice(HEADER_TEXTS)
    text = (template % (descr, order, tuple(shape)) + "\n").encode()
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**16 - 1))
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text + array.tobytes()


def npz(rng: random.Random) -> bytes:
    """Write one to three members, usually the named arrays of a corpus."""
    file = io.BytesIO()
    usual = rng.random() < 0.7
    names = ["train.npy", "val.npy", "test.npy"][: rng.randint(1, 3)] if usual else rng.choices(NAMES, k=3)
    with zipfile.ZipFile(file, "w") as archive:
        for name in dict.fromkeys(names):
            content = rng.choice((npz, bytes_of_noise))(rng) if rng.random() < 0.02 else npy(rng)
            method = rng.choice(METHODS[:2] if rng.random() < 0.9 else METHODS)
            archive.writestr(name, content, method)
    return file.getvalue()


def tasks(rng: random.Random) -> bytes:
    """Write a task, many tasks by id, or a list of grids as JSON, and sometimes damage the text."""
    many = {f"{number:08x}": task(rng) for number in range(rng.randint(0, 20))}
    text = json.dumps(rng.choice((many, task(rng), examples(rng))), indent=rng.choice((None, 1)))
    return damaged(rng, text).encode() if rng.random() < 0.3 else text.encode()


def damaged(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text))
    return text[:place] + rng.choice(JSON_PARTS) + text[place + rng.choice((0, 1, 1, 5)) :]


def task(rng: random.Random) -> object:
    return examples(rng) if rng.random() < 0.5 else {"train": examples(rng), "test": examples(rng)}


def examples(rng: random.Random) -> list[object]:
    """Draw grids of two sizes, or pairs of such grids."""
    drawn = [
        grid.tolist() for _ in range(2) for grid in grids(rng)[:3] % (10 if rng.random() < 0.98 else 127)
    ]
    return drawn if rng.random() < 0.5 else [{"input": grid, "output": drawn[0]} for grid in drawn]


def zipped_tasks(rng: random.Random) -> bytes:
    """Write an archive of tasks as JSON. In half of the archives, one member is unusual."""
    file, odd = io.BytesIO(), rng.randrange(40)
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(20):
            member = zipfile.ZipInfo(rng.choice(JSON_NAMES) if number == odd else f"tasks/{number:08x}.json")
            member.external_attr = (rng.choice((0o644, 0o120777)) if number == odd else 0o644) << 16
            content = tasks(rng) if number == odd else json.dumps(task(rng))
            archive.writestr(member, content, rng.choice(METHODS if number == odd else METHODS[:2]))
    return file.getvalue()


def bytes_of_noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(0, 300))


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def splice(rng: random.Random, content: bytes) -> bytes:
    other = rng.choice((*KINDS, bytes_of_noise))(rng)
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def shift(rng: random.Random, content: bytes) -> bytes:
    """Remove, repeat or insert a few bytes."""
    first = place(rng, content)
    last = first + rng.randint(0, 40)
    middle = rng.choice((b"", content[first:last] * 2, rng.randbytes(rng.randint(0, 40))))
    return content[:first] + middle + content[last:]


def edit_number(rng: random.Random, content: bytes) -> bytes:
    """Overwrite a field, usually in a header, with a number that is often an invalid size."""
    width, code = rng.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
    first = place(rng, content)
    number = rng.choice(NUMBERS) % (1 << 8 * width)
    return content[:first] + struct.pack(code, number) + content[first + width :]


def place(rng: random.Random, content: bytes) -> int:
    """Draw a position, usually in a header."""
    starts = [0] if content.startswith(b"\x93") else [content.find(mark) for mark in SIGNATURES]
    start = rng.choice([start for start in starts if start >= 0] or [0])
    if rng.random() < 0.3:
        return rng.randrange(len(content))
    return min(start + rng.randrange(60), len(content) - 1)


KINDS = (npy, npz, tasks, zipped_tasks)
MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip_bits,
    truncate,
    splice,
    shift,
    edit_number,
)


def mutated_file(rng: random.Random) -> bytes:
    content = rng.choice(KINDS)(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        content = rng.choice(MUTATIONS)(rng, content) if content else content
    return content


def is_accepted(path: Path, padding_value: int | None) -> bool:
    """Return whether a file is accepted as a valid corpus. A refusal must be one printable line."""
    try:
        corpus = load_corpus(str(path), padding_value=padding_value)
    except CorpusError as error:
        message = str(error)
        if message != printable(message) or len(message) > 500:
            raise AssertionError(f"not one short line: {message!r}") from error
        return False
    for split in (corpus.train, corpus.val):
        grids = split[:]
        if grids.shape[1:] != (corpus.grid_size,) * 2 or grids.dtype != np.uint8 or not len(grids):
            raise AssertionError(f"not grids: {grids.dtype} {grids.shape}")
        is_cell = grids < CLASSES
        if not (is_cell | (grids == OUTSIDE)).all() or not is_cell.any((1, 2)).all():
            raise AssertionError(f"not classes, or a grid without cells: {np.unique(grids)}")
    train, val = ({grid.tobytes() for grid in split[:]} for split in (corpus.train, corpus.val))
    if train & val:
        raise AssertionError(f"{len(train & val)} grids are in both splits")
    return True


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_claims() -> None:
    """Make an allocation above the limit fail, even if its memory is never used."""
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + MAX_GROWTH, -1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="files to load (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default: %(default)s)")
    parser.add_argument(
        "--max-seconds", type=float, default=3600, help="stop after this time (default: %(default)s)"
    )
    arguments = parser.parse_args()
    started = reported = time.monotonic()
    base, accepted, refused, slowest = peak_bytes(), 0, 0, (0.0, -1)
    limit_claims()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder) / "grids"
        for case in range(arguments.cases):
            rng = random.Random(f"{arguments.seed}-{case}")
            content, padding_value = mutated_file(rng), rng.choice(PADDING_VALUES)
            path.write_bytes(content)
            before = time.monotonic()
            if before - started > arguments.max_seconds:
                break
            failure = ""
            try:
                good = is_accepted(path, padding_value)
            except Exception as error:
                failure, good = f"{type(error).__name__}: {error}", False
            now = time.monotonic()
            slowest = max(slowest, (now - before, case))
            accepted, refused = accepted + good, refused + (not good)
            if now - before > MAX_SECONDS or peak_bytes() - base > MAX_GROWTH:
                failure = failure or f"took {now - before:.2f} s, memory grew by {peak_bytes() - base} bytes"
            if failure:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{arguments.seed}-{case}"
                kept.write_bytes(content)
                print(
                    f"FAILED case {case}, kept as {kept}, padding value {padding_value}: {printable(failure)}"
                )
                return 1
            if now - reported > 10:
                reported = now
                print(f"{case + 1:,} cases, {now - started:.0f} s", flush=True)
    print(
        f"{accepted + refused:,} cases in {time.monotonic() - started:.0f} s: {accepted:,} accepted, "
        f"{refused:,} refused, slowest {slowest[0]:.3f} s (case {slowest[1]}), "
        f"peak memory +{(peak_bytes() - base) / 1e6:.0f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
