"""The pytest plugin, loaded by `-p bvae.plugin`: options, collection and fixtures.

The plugin registers `bvae.hooks` only if tests use an experiment. The controller validates all settings and
makes the session folder before a worker starts. Workers join the session and train the runs whose tests they
receive.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

from bvae.experiment import Experiment, Selection
from bvae.hardware import usable_cores
from bvae.hooks import EXPERIMENT, GATE, asked_experiment, is_worker, joins_session, register_hooks
from bvae.judging.baseline import Baseline
from bvae.options import options_of
from bvae.session.continuation import shard_of
from bvae.storage import printable

pytest.register_assert_rewrite("bvae.experiments")

FIXTURES = frozenset({"loss_run", "laboratory", "loss_baseline"})
PACKAGED = "bvae.experiments"
LISTINGS = (
    "help",
    "version",
    "collectonly",
    "showfixtures",
    "show_fixtures_per_test",
    "markers",
    "setupplan",
)
"""Options with which pytest runs no test."""
PARTNERS = {
    "xdist": ("pytest-xdist", ("-n", "--numprocesses", "--dist", "--maxschedchunk")),
    "html": ("pytest-html", ("--html", "--self-contained-html")),
}
"""Optional plugins by name: the package of each, and the options that exist only with it."""
USES = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bvae", "bvae: which loss options let the β-VAE learn?")
    for option in options_of("pytest"):
        group.addoption(option.flag, **option.keywords)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    if complaint := separated_path(args) or missing_partner(early_config, args):
        raise pytest.UsageError(complaint)


def separated_path(arguments: Sequence[str]) -> str | None:
    """Return an error message for the first path that follows a space instead of `=`, or None.

    pytest does not know these options when it looks for its configuration. It would take PATH in
    `--corpus PATH` for a test path, and import a conftest.py beside it. A word such as `arc` is allowed if no
    file has this name.
    """
    options = {option.flag: option for option in options_of("pytest") if option.takes_path}
    for argument, value in itertools.pairwise(arguments):
        if argument == "--":
            break
        if (option := options.get(argument)) is None:
            continue
        if not re.fullmatch(option.words, value) or Path(value).exists():
            return (
                f"{argument} and its value are separated by a space; write them as "
                f"{argument}={printable(value)}"
            )
    return None


def missing_partner(config: pytest.Config, arguments: list[str]) -> str | None:
    """Return an error message for the first option whose plugin is not active, or None."""
    for plugin, (package, flags) in PARTNERS.items():
        for argument in arguments if not config.pluginmanager.has_plugin(plugin) else ():
            if argument.partition("=")[0] in flags or ("-n" in flags and argument.startswith("-n")):
                return (
                    f"{argument} needs {package}, which is not active; install it, or remove the option, "
                    "also from addopts: -o addopts='-p bvae.plugin'"
                )
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{GATE}: judges all runs of the session, so pytest runs it last")
    if runs_experiments(config):
        register_hooks(config)
        asked_runs(config)  # refuses an invalid --shard before the session is made


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return the number of workers for `-n auto`: the usable cores, but at most the number of runs.

    With `--resume`, it is the usable cores. Return 0 with another engine, which needs no workers, and None to
    let pytest-xdist choose.
    """
    if runs_experiments(config) and config.getoption("engine") != "xdist":
        return 0
    if not runs_experiments(config) or "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    if config.getoption("resume") is not None:
        return usable_cores()  # the session, which has the number of runs, is not read yet
    return min(usable_cores(), len(asked_runs(config)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loss_run" in metafunc.fixturenames and uses_experiments(metafunc.config):
        runs = asked_runs(metafunc.config)
        ids = [f"{option.name}-seed{seed}" for option, seed in runs]
        metafunc.parametrize("loss_run", runs, ids=ids)


def asked_runs(config: pytest.Config) -> Sequence[Selection]:
    """Return the runs that the command line requests; with `--shard`, its part. Raises UsageError."""
    experiment, shard = asked_experiment(config), config.getoption("shard")
    runs = [(option, seed) for option in experiment.options for seed in range(experiment.seeds)]
    try:
        return runs if shard is None else shard_of(runs, shard)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not uses_experiments(config):
        return
    items.sort(key=lambda item: item.get_closest_marker(GATE) is not None)
    experiment = config.stash.get(EXPERIMENT, None)
    if (experiment.baseline if experiment else config.getoption("baseline")) is None:
        deselect(config, items, lambda fixtures: "loss_baseline" in fixtures)
    if config.getoption("shard") is not None:
        deselect(config, items, lambda fixtures: "loss_run" not in fixtures)


def deselect(
    config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[Sequence[str]], bool]
) -> None:
    """Deselect each test if `unwanted` returns true for the names of its fixtures."""
    if idle := [item for item in items if unwanted(getattr(item, "fixturenames", ()))]:
        config.hook.pytest_deselected(items=idle)
        items[:] = [item for item in items if item not in idle]


@pytest.fixture(scope="session")
def laboratory(pytestconfig: pytest.Config) -> Experiment:
    """Return the experiment, which trains, judges and shows the runs of this session."""
    found = pytestconfig.stash.get(EXPERIMENT, None)
    if found is None:
        pytest.fail(
            f"no experiment was prepared; expected a test file that uses {', '.join(sorted(FIXTURES))} "
            f"or imports {PACKAGED}; use or import one of them in this file",
            pytrace=False,
        )
    return found


@pytest.fixture
def loss_run(laboratory: Experiment) -> None:
    """A loss option and a seed. A test with this parameter runs once for each run of the experiment."""
    pytest.fail("loss_run has no value here; expected it as an argument of the test", pytrace=False)


@pytest.fixture(scope="session")
def loss_baseline(laboratory: Experiment) -> Baseline | None:
    """Return the baseline of this session. Without a baseline, tests that use this are deselected."""
    return laboratory.baseline


@pytest.fixture
def attach_html(request: pytest.FixtureRequest) -> Callable[[list[str]], None]:
    """Return a function that adds HTML to the row of the test in the report, if pytest-html is active."""
    html = request.config.pluginmanager.get_plugin("html")
    extras: list[object] = request.getfixturevalue("extras") if html else []

    def attach(sections: list[str]) -> None:
        extras.extend(html.extras.html(section) for section in sections if html)

    return attach


def runs_experiments(config: pytest.Config) -> bool:
    """Return whether pytest will run tests of an experiment, and not only list them."""
    return not any(getattr(config.option, name, False) for name in LISTINGS) and uses_experiments(config)


def uses_experiments(config: pytest.Config) -> bool:
    """Return whether the collected tests use fixtures of this plugin or import `bvae.experiments`.

    This reads the sources of the test files, because the session must exist before workers collect tests.
    """
    if is_worker(config):
        return joins_session(config)
    if USES not in config.stash:
        found = [names_in(path.read_bytes()) for path in collected_files(config)]
        used, defined = (set[str]().union(*(names[part] for names in found)) for part in (0, 1))
        config.stash[USES] = bool(used - defined)
    return config.stash[USES]


def collected_files(config: pytest.Config) -> Iterator[Path]:
    """Yield the test files and `conftest.py` files that the arguments of pytest select."""
    for argument in config.args:
        path = _argument_path(config, argument.partition("[")[0].partition("::")[0])
        above = (folder / "conftest.py" for folder in path.parents if folder.is_relative_to(config.rootpath))
        yield from filter(Path.is_file, (path, *above))
        yield from _files_below(config, path)


def _argument_path(config: pytest.Config, name: str) -> Path:
    """Return the path of an argument. With `--pyargs`, the argument may name a module or package."""
    if config.getoption("pyargs"):
        try:
            spec = importlib.util.find_spec(name)
        except (AttributeError, ImportError, ValueError):
            spec = None  # the argument is a path
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            return origin.parent if spec.submodule_search_locations else origin
    return Path(os.path.abspath(config.invocation_params.dir / name))  # noqa: PTH100 (keeps symbolic links)


def _files_below(config: pytest.Config, path: Path) -> Iterator[Path]:
    """Yield the test files in a folder, except ignored ones. Symbolic links are followed."""
    patterns, seen = config.getini("python_files"), set[Path]()

    def is_new(folder: Path) -> bool:
        real = folder.resolve()
        known = real in seen
        seen.add(real)
        return not known and not ignored(folder)

    def ignored(path: Path) -> bool:
        return bool(config.hook.pytest_ignore_collect(collection_path=path, config=config))

    for name, folders, files in os.walk(path, followlinks=True):
        folder = Path(name)
        folders[:] = [each for each in folders if is_new(folder / each)]
        for file in (folder / each for each in files if each.endswith(".py")):
            wanted = (fnmatch(str(file) if os.sep in each else file.name, each) for each in patterns)
            if (file.name == "conftest.py" or any(wanted)) and not ignored(file):
                yield file


def names_in(source: bytes) -> tuple[set[str], set[str]]:
    """Return the names of this plugin that a test file uses, and the functions that the file defines."""
    used, defined = set[str](), set[str]()
    if not any(name.encode() in source for name in (*FIXTURES, "bvae")):
        return used, defined
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return used, defined  # pytest reports the syntax error
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name, args=args) | ast.AsyncFunctionDef(name=name, args=args):
                taken = {each.arg for each in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
                used |= taken & FIXTURES
                defined |= {name} - taken
            case ast.Call(func=ast.Attribute(attr="usefixtures" | "getfixturevalue"), args=values):
                named = {each.value for each in values if isinstance(each, ast.Constant)}
                used |= {name for name in FIXTURES if name in named}
            case ast.Import(names=aliases):
                used |= {PACKAGED for each in aliases if f"{each.name}.".startswith(f"{PACKAGED}.")}
            case ast.ImportFrom(module=str(module), names=aliases):
                names = (f"{module}.{each.name}." for each in aliases)
                used |= {PACKAGED for each in names if each.startswith(f"{PACKAGED}.")}
    return used, defined
