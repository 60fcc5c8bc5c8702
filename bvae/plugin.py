"""The pytest plugin: options, collection and fixtures; where experiments are run, `bvae.hooks` too.

The controller validates everything and makes the session folder before any worker starts; workers are given
the folder and train the runs that they are dealt. Neither imports PyTorch before it trains.
"""

from __future__ import annotations

import os

import pytest

from bvae.experiment import Experiment
from bvae.hardware import usable_cores
from bvae.hooks import EXPERIMENT, GATE, asked_experiment, register_hooks
from bvae.judging.baseline import Baseline
from bvae.options import options_of, separated_path


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bvae", "bvae: which loss does the β-VAE learn under?")
    for option in options_of("pytest"):
        group.addoption(option.flag, **option.keywords)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(args: list[str]) -> None:
    if complaint := separated_path(args):
        raise pytest.UsageError(complaint)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{GATE}: judges the runs of the session, so it is run last")
    if runs_experiments(config):
        register_hooks(config)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return the number of usable cores, but no more than runs; None leaves the number to xdist."""
    if not runs_experiments(config) or "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    experiment = asked_experiment(config)
    return min(usable_cores(), len(experiment.options) * experiment.seeds)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loss_run" in metafunc.fixturenames:
        experiment = asked_experiment(metafunc.config)
        runs = [(option, seed) for option in experiment.options for seed in range(experiment.seeds)]
        ids = [f"{option.name}-seed{seed}" for option, seed in runs]
        metafunc.parametrize("loss_run", runs, ids=ids)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker(GATE) is not None)
    experiment = config.stash.get(EXPERIMENT, None)
    if (experiment.baseline if experiment else config.getoption("baseline")) is None:
        idle = [item for item in items if "loss_baseline" in getattr(item, "fixturenames", ())]
        if idle:
            config.hook.pytest_deselected(items=idle)
            items[:] = [item for item in items if item not in idle]


@pytest.fixture(scope="session")
def laboratory(pytestconfig: pytest.Config) -> Experiment:
    """The experiment of this session: trains, judges and shows its runs."""
    found = pytestconfig.stash.get(EXPERIMENT, None)
    if found is None:
        pytest.fail("no experiment here: run `pytest experiments/` in the folder of pytest.ini", False)
    return found


@pytest.fixture(scope="session")
def loss_baseline(laboratory: Experiment) -> Baseline | None:
    """What this session is compared with; a test that asks for it is deselected if there is none."""
    return laboratory.baseline


def runs_experiments(config: pytest.Config) -> bool:
    """Return whether tests of `experiments/` are to be run, and not only listed."""
    option = config.option
    if any(getattr(option, name, False) for name in ("help", "version", "collectonly", "showfixtures")):
        return False
    experiments = config.rootpath / "experiments"
    paths = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    return experiments.is_dir() and any(
        path == experiments or experiments in path.parents or path in experiments.parents for path in paths
    )
