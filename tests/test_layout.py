"""The structure of the code: imports between modules, sizes of modules, and imports of PyTorch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import ROOT

pytestmark = pytest.mark.unit

LAYERS = (
    ("bvae",),
    ("bvae.storage", "bvae.session_files"),
    ("bvae.training_config",),
    ("bvae.config",),
    ("bvae.hardware", "bvae.records"),
    ("bvae.corpus",),
    ("bvae.losses", "bvae.beta_vae"),
    ("bvae.verdict",),
    ("bvae.evaluation", "bvae.judging"),
    ("bvae.training",),
    ("bvae.models",),
    ("bvae.trainer",),
    ("bvae.visualization",),
    ("bvae.session",),
    ("bvae.report",),
    ("bvae.option_files",),
    ("bvae.options",),
    ("bvae.engine",),
    ("bvae.experiment",),
    ("bvae.notebook",),
    ("bvae.experiments",),
    ("bvae.hooks",),
    ("bvae.plugin",),
    ("bvae.__main__",),
)
"""A module imports only from its own layer and from the layers above it in this list."""

WITHOUT_TORCH = (
    "bvae.__main__",
    "bvae.config",
    "bvae.corpus",
    "bvae.experiment",
    "bvae.judging.baseline",
    "bvae.judging.explanation",
    "bvae.options",
    "bvae.plugin",
    "bvae.report",
    "bvae.report.side_by_side",
    "bvae.session.folder",
)

SOURCES = sorted((ROOT / "bvae").rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    for number, layer in enumerate(LAYERS):
        if any(module == name or (name != "bvae" and module.startswith(f"{name}.")) for name in layer):
            return number
    pytest.fail(f"{module} is in no layer")


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of bvae that a module imports, even in functions, but not for type checking."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    known = {name_of(source) for source in SOURCES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node not in for_types and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_only_its_own_layer_and_the_layers_above(path: Path) -> None:
    here = layer_of(name_of(path))
    assert [name for name in imports(path) if layer_of(name) > here] == []


def test_only_load_engine_imports_inside_a_function() -> None:
    importing = [
        f"{name_of(path)}.{function.name}"
        for path in SOURCES
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function))
    ]
    assert importing == ["bvae.experiment.load_engine"]


def test_there_are_at_most_50_modules_on_two_levels() -> None:
    assert len([path for path in SOURCES if path.name != "__init__.py"]) <= 50
    assert max(len(path.relative_to(ROOT).parts) for path in SOURCES) <= 3


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_has_at_most_350_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def test_checking_the_settings_loads_neither_pytorch_nor_matplotlib() -> None:
    code = f"import sys, {', '.join(WITHOUT_TORCH)}; print({{'torch', 'matplotlib'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "document", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))], ids=str
)
def test_files_that_documents_name_exist(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        pytest.skip("it also names files of earlier versions")
    named = set(re.findall(r"(?:bvae|tests|benchmarks|docs)/[\w/-]+\.(?:py|md)", document.read_text()))
    assert {name for name in named if not (ROOT / name).exists()} == set()
