"""Check that two versions of bvae compute the same weights, numbers and pictures in a small session.

python -m benchmarks.same_results COMMIT

The commit is checked out into a temporary worktree. Both versions train the same runs, in bf16 and in fp32.
The check compares the tensors of every checkpoint, all numbers in `comparison.json` and `metrics.jsonl`
except times, and the coloured pixels of the checkpoint pictures. It ignores text, lines and background.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

ROOT = Path(__file__).parents[1]
SESSION = ("--corpus=objects:1500", "--epochs", "2", "--seeds", "2", "--latent-dim", "16", "-n0")
TIMES = {"seconds"}
SATURATED = 60
"""A pixel is coloured if its channels differ by more than this number."""


def run(tree: Path, folder: Path, precision: str) -> Path:
    """Train a session with the code of a tree; return the session's folder."""
    command = [sys.executable, "-m", "pytest", str(tree / "experiments"), *SESSION]
    command += [f"--precision={precision}", f"--run-dir={folder}", "-p", "no:cacheprovider", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{tree} does not train:\n{done.stdout}{done.stderr}")
    return (folder / "latest").resolve()


def differences(old: Path, new: Path) -> Iterator[str]:
    """Yield a text for each difference between two sessions."""
    for pattern, found in (("checkpoints/*.safetensors", _tensors), ("checkpoints/*.png", _colours)):
        names = [path.relative_to(old) for path in sorted(old.glob(f"*/{pattern}"))]
        if not names:
            yield f"{old} has no {pattern}"
        for name in names:
            if not (new / name).exists():
                yield f"{name} is missing"
            elif found(old / name) != found(new / name):
                yield f"{name} differs"
    files = ("comparison/comparison.json", *(f"{run.name}/metrics.jsonl" for run in old.glob("*-seed*")))
    for file in files:
        then, now = _numbers(old / file), _numbers(new / file)
        if not then:
            yield f"{file} has no numbers"
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                yield f"{file}: {key} was {then.get(key)} and is {now.get(key)}"


def _tensors(path: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in safetensors.numpy.load_file(path).items()}


def _colours(path: Path) -> bytes:
    """Return the coloured pixels of a picture, row by row."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(np.int16)
    return bytes(pixels[np.ptp(pixels, axis=1) > SATURATED].tobytes())


def _numbers(path: Path) -> dict[str, Any]:
    """Return every number in a JSON or JSON Lines file, by its path in the document."""
    text = path.read_text()
    documents = (
        [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    )
    return dict(_flat(documents, ""))


def _flat(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in TIMES:
                yield from _flat(item, f"{place}.{key}")
    elif isinstance(value, int | float):
        yield place, value


def main() -> int:
    """Compare the two versions; return 0 if nothing differs."""
    parser = argparse.ArgumentParser("python -m benchmarks.same_results", description=__doc__)
    parser.add_argument("commit", help="The commit to compare this tree with")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), commit], check=True)
        try:
            found = []
            for precision in ("bf16", "fp32"):
                old, new = (
                    run(code, Path(folder) / precision / name, precision)
                    for name, code in (("old", tree), ("new", ROOT))
                )
                found += [f"{precision}: {each}" for each in differences(old, new)]
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
    print(*found or ["same weights, numbers and pictures"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
