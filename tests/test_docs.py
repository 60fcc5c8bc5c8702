"""The experiments, commands and snippets of the documentation work, with a tiny corpus and one epoch."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lab import ROOT, SessionHere

pytestmark = pytest.mark.slow

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALLEST_RUN = ("--corpus=atomic:60", "--epochs", "1", "--batch-size", "16", "--run-dir=runs")
SMALLEST = (*SMALLEST_RUN, "--seeds", "1")
"""Arguments that replace documented values, because they are given last."""


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the fenced code blocks of a language in all documents, with the names of the documents."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(path.name, block) for path in DOCUMENTS for block in fence.findall(path.read_text())]


def lines(language: str, start: str) -> list[str]:
    """Return the distinct lines that begin with `start` in the blocks of a language, without comments."""
    found = [line for _, block in blocks(language) for line in block.splitlines()]
    return list(dict.fromkeys(line.partition("  #")[0].strip() for line in found if line.startswith(start)))


@pytest.fixture
def trained(lab: Path, session_here: SessionHere) -> Path:
    """A folder after a small session of options B and B-low, with the files that the documents use."""
    documented = (ROOT / "docs/own-model.md").read_text()
    source = re.search(r"```python\n(.*?)```", documented, re.DOTALL)
    assert source is not None
    (lab / "linear_vae.py").write_text(source.group(1))
    files = [re.match(r"# (\w+\.toml)\n", text) for _, text in blocks("toml")]
    names = [found.group(1) for found in files if found is not None]
    assert names == ["options.toml", "settings.toml", "betas.toml"]
    for found in filter(None, files):
        (lab / found.group(1)).write_text(found.string)
    grids = np.random.default_rng(0).integers(0, 10, (40, 16, 16))
    np.save(lab / "my_grids.npy", grids)
    (lab / "my_tasks").mkdir()
    for number, grid in enumerate(grids.tolist()):
        (lab / f"my_tasks/{number}.json").write_text(json.dumps({"train": [{"input": grid}], "test": []}))
    options = ("--loss-options-file=betas.toml", "--loss-options", "B,B-low")
    status, said = session_here(*SMALLEST, *options)
    assert status == 1, said
    shutil.copytree((lab / "runs/latest").resolve(), lab / "before")
    return lab


def test_documents_have_only_code_blocks_that_are_tested() -> None:
    for path in DOCUMENTS:
        languages = re.findall(r"^```(\w*)\n", path.read_text(), re.MULTILINE)
        assert set(languages) - {""} <= {"bash", "python", "toml", "yaml", "json"}, path
    for _, block in blocks("bash"):
        for line in block.splitlines():
            assert line.startswith(("pip install", "pytest ", "python -m ", "#")), line


def test_documented_benchmarks_are_run_at_a_small_size_by_other_tests() -> None:
    tests = "".join((ROOT / f"tests/test_{name}.py").read_text() for name in ("benchmarks", "scale"))
    documented = lines("bash", "python -m benchmarks")
    assert len(documented) == 3
    for command in documented:
        assert f'"{command.split()[2]}"' in tests, command


@pytest.mark.usefixtures("trained")
def test_documented_training_commands_train(session_here: SessionHere) -> None:
    for command in lines("bash", "pytest experiments/"):
        if "--shard" in command:
            continue  # the next test trains the shards
        arguments = shlex.split(command)[2:]
        smallest = () if "--resume" in command else SMALLEST
        few = () if "options" in command or "--resume" in command else ("--loss-options", "B")
        limit = ("--epochs", "6") if "--until-plateau" in command else ()  # more epochs than the patience
        status, said = session_here(*arguments, *smallest, *few, *limit)
        assert status in (0, 1), f"{command}\n{said}"
        assert "loss options" in said or "--help" in command, said
        assert not re.search(r"^ERROR ", said, re.MULTILINE), f"{command}\n{said}"


def test_documented_commands_of_bvae_work(trained: Path, session_here: SessionHere) -> None:
    (printed,) = lines("bash", "python -m bvae shards")
    done = subprocess.run(
        [sys.executable, *shlex.split(printed)[1:]], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == lines("bash", "pytest experiments/ --shard")
    for command in done.stdout.splitlines():
        small = [each for each in SMALLEST_RUN if not each.startswith("--run-dir")]
        status, said = session_here(*shlex.split(command)[2:], *small, "--loss-options", "B")
        assert status == 0, said
    for command in lines("bash", "python -m bvae "):
        arguments = [sys.executable, *shlex.split(command)[1:]]
        if "train" in arguments and "--resume" not in command:
            arguments += SMALLEST_RUN
        done = subprocess.run(arguments, cwd=trained, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_the_notebook_runs_and_is_stored_with_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    stored = ROOT / "docs/notebook.ipynb"
    assert stored.stat().st_size <= 300_000
    notebook = nbformat.read(stored, as_version=4)
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "no-other-kernels"))
    executed = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()  # raises if a cell raises
    assert [len(cell.get("outputs", [])) for cell in executed.cells] == [*map(len, outputs)]
    pictures = [output for each in outputs for output in each if "image/png" in output.get("data", {})]
    assert len(pictures) == 3


def test_python_snippets_run(trained: Path) -> None:
    for name, block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            cwd=trained,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{name}\n{block}\n{done.stderr}"
