"""The pytest plugin: it translates between pytest and the laboratory, and decides nothing itself.

The controller validates everything and makes the session folder before any worker starts; workers are handed
the folder and train what they are given. This module is loaded in every pytest session of an environment that
has bvae, so it imports PyTorch only where runs are trained.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from bvae.config import ExperimentConfig
from bvae.options import FLAGS, parse_experiment, separated_path
from bvae.processes import follow_controller, in_turns, repeat_dropped_interruptions, spare_hypothesis

if TYPE_CHECKING:
    from bvae.baseline import Baseline
    from bvae.laboratory import Laboratory

LABORATORY = pytest.StashKey["Laboratory"]()
SESSION_KEY = "bvae_session"
GATE = "gate"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bvae", "bvae: which loss does the β-VAE learn under?")
    for flag in FLAGS:
        if flag.is_switch:
            group.addoption(f"--{flag.name}", action="store_true", help=flag.explanation)
        else:
            group.addoption(f"--{flag.name}", metavar=flag.metavar, help=flag.explanation)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(args: list[str]) -> None:
    if complaint := separated_path(args):
        raise pytest.UsageError(complaint)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{GATE}: judges the runs of the session, so it is run last")
    if not runs_experiments(config):
        return
    from bvae.laboratory import Laboratory, SetupError

    if is_worker(config) or not config.getoption("numprocesses", None):
        # Here runs are trained. An import that is interrupted in one could not be repeated at the end.
        import bvae.gallery
        import bvae.turns  # noqa: F401

    try:
        if is_worker(config):
            about = cast(Any, config).workerinput
            path, invocation, corpus = about.pop(SESSION_KEY)
            try:
                laboratory = Laboratory.join(Path(path), invocation, about["workercount"], corpus)
                config.stash[LABORATORY] = laboratory
            except FileNotFoundError:
                os._exit(1)  # interrupted before a run began, the controller has removed the session
            follow_controller(laboratory.session)
        else:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, and so resumable
            config.pluginmanager.register(Page(), "bvae-page")
            given, command = given_values(config), config.invocation_params.args
            run_dir = Path(given["run_dir"] or "runs")
            if config.getoption("fail_on_regression") and given["baseline"] is None:
                raise SetupError("--fail-on-regression has nothing to compare with; add --baseline=PATH")
            if given["resume"] is not None:
                config.stash[LABORATORY] = Laboratory.resume(given, run_dir, command, given["resume"])
            else:
                experiment = asked_experiment(config)
                config.stash[LABORATORY] = Laboratory.prepare(experiment, run_dir, command, given["baseline"])
    except SetupError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    from bvae.files import StorageError

    laboratory = session.config.stash.get(LABORATORY, None)
    if laboratory is None:
        return
    gc.freeze()  # what was imported stays; to look for garbage in it takes a tenth of a second every time
    if not is_worker(session.config):
        try:
            laboratory.open_session()
        except StorageError as error:
            raise pytest.UsageError(str(error)) from error
        repeat_dropped_interruptions()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    laboratory = node.config.stash.get(LABORATORY, None)
    if laboratory is not None:
        session = laboratory.session
        node.workerinput[SESSION_KEY] = (str(session.path), session.invocation, laboratory.packed_corpus)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """As many workers as cores, but no more than runs; None leaves the number to xdist."""
    if not runs_experiments(config) or "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    experiment = asked_experiment(config)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, len(experiment.options) * experiment.seeds)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loss_run" in metafunc.fixturenames:
        experiment = asked_experiment(metafunc.config)
        runs = [(option, seed) for option in experiment.options for seed in range(experiment.seeds)]
        ids = [f"{option.name}-seed{seed}" for option, seed in runs]
        metafunc.parametrize("loss_run", runs, ids=ids)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker(GATE) is not None)
    if not has_baseline(config):
        idle = [item for item in items if "loss_baseline" in getattr(item, "fixturenames", ())]
        if idle:
            config.hook.pytest_deselected(items=idle)
            items[:] = [item for item in items if item not in idle]
    if LABORATORY in config.stash and is_worker(config):
        items[:] = in_turns(items, cast(Any, config).workerinput["workercount"])


def pytest_collection_finish(session: pytest.Session) -> None:
    laboratory = session.config.stash.get(LABORATORY, None)
    if laboratory is not None:
        calls = (getattr(item, "callspec", None) for item in session.items)
        laboratory.select([call.params["loss_run"] for call in calls if call and "loss_run" in call.params])
        if not is_worker(session.config):
            show_progress(session.config, [item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """Deal a test again whose worker died before it began, while it trained another run ahead."""
    laboratory = sched.config.stash.get(LABORATORY, None)
    if laboratory is not None and laboratory.may_repeat(run_name(crashitem)):
        sched.mark_test_pending(crashitem)
        report.outcome = cast(Any, "rerun")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    show_progress(node.config, ids)


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
    """No letter for a run where progress is shown: it would be written into the middle of that."""
    laboratory = config.stash.get(LABORATORY, None)
    if (
        laboratory is None
        or not laboratory.shows_progress
        or report.when != "call"
        or GATE in report.keywords
    ):
        return None
    outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
    return outcome, "", {"xfailed": "XFAIL"}.get(outcome, outcome.upper())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of an error that is not in the code, the message alone, which says what to do."""
    report = yield
    if LABORATORY in item.config.stash and call.excinfo is not None:
        from bvae.files import StorageError
        from bvae.run import RunCrashError

        if isinstance(call.excinfo.value, StorageError | RunCrashError):
            report.longrepr = call.excinfo.getrepr(style="value", chain=False)
    return report


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    laboratory = session.config.stash.get(LABORATORY, None)
    mine = laboratory is not None and not is_worker(session.config)
    if laboratory is not None and mine:
        laboratory.close_session(interrupted=exitstatus == pytest.ExitCode.INTERRUPTED)
        if laboratory.complaint and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if laboratory is not None:
        spare_hypothesis(session.config.pluginmanager)
        gc.freeze()  # the end of a process would look for garbage in all that it is about to drop
    yield
    if mine and (page := session.config.getoption("htmlpath", None)):
        from bvae.report_page import mend_file

        path = Path(os.path.expandvars(page)).expanduser()  # as pytest-html reads it
        if path.is_file():
            mend_file(path)


def pytest_unconfigure(config: pytest.Config) -> None:
    laboratory = config.stash.get(LABORATORY, None)
    if laboratory is not None and not is_worker(config) and laboratory.is_open:
        # Interrupted while workers were starting: pytest finishes no session then.
        laboratory.close_session(interrupted=True)
        print(*laboratory.summary(), sep="\n", file=sys.stderr)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    laboratory = terminalreporter.config.stash.get(LABORATORY, None)
    if laboratory is not None and (lines := laboratory.summary()):
        terminalreporter.section("loss options")
        for line in lines:
            terminalreporter.line(line)


class Page:
    """What the report of a laboratory has otherwise than other reports of pytest-html."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_report_title(self, report: Any) -> None:
        report.title = "Which loss does the β-VAE learn under?"

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        verdict = dict(report.user_properties).get("verdict", "")
        text = f"{escape(report.nodeid)}<br><strong>{escape(str(verdict).replace('_', ' '))}</strong>"
        cells[1] = f'<td class="col-testId">{text}</td>'  # pytest-html itself does not escape the node id

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        if hasattr(report, "wasxfail") and report.skipped:
            # The reason, and not where it was raised.
            data[0] = f"A finding about a loss, so no failure of the build. {escape(report.wasxfail)}\n"


@pytest.hookimpl(optionalhook=True)
def pytest_html_results_summary(prefix: list[str], session: pytest.Session) -> None:
    laboratory = session.config.stash.get(LABORATORY, None)
    if laboratory is not None:
        prefix.extend(laboratory.report_head())


@pytest.fixture(scope="session")
def laboratory(pytestconfig: pytest.Config) -> Laboratory:
    """Trains, judges and shows the runs of this session."""
    found = pytestconfig.stash.get(LABORATORY, None)
    if found is None:
        pytest.fail("no laboratory here: run `pytest experiments/` in the folder of pytest.ini", False)
    return found


@pytest.fixture(scope="session")
def loss_baseline(laboratory: Laboratory) -> Baseline | None:
    """What this session is compared with; a test that asks for it is deselected where there is none."""
    return laboratory.baseline


def has_baseline(config: pytest.Config) -> bool:
    """Whether the session has a baseline; in a listing, whether one was given."""
    if (laboratory := config.stash.get(LABORATORY, None)) is not None:
        return laboratory.baseline is not None
    return config.getoption("baseline") is not None


def runs_experiments(config: pytest.Config) -> bool:
    """Whether tests of `experiments/` are to be run: a path given overlaps it, and this is no listing."""
    option = config.option
    if any(getattr(option, name, False) for name in ("help", "version", "collectonly", "showfixtures")):
        return False
    experiments = config.rootpath / "experiments"
    paths = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    return experiments.is_dir() and any(
        path == experiments or experiments in path.parents or path in experiments.parents for path in paths
    )


def show_progress(config: pytest.Config, ids: list[str]) -> None:
    """Show the progress of the runs among these node ids: on a terminal one line, kept up to date."""
    laboratory = config.stash.get(LABORATORY, None)
    if laboratory is None or config.get_verbosity() != 0:
        return
    terminal = config.get_terminal_writer()
    capture = config.pluginmanager.get_plugin("capturemanager")

    def write(text: str) -> None:
        # A run that trains in this very process has its output captured, and ours with it.
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            terminal.write(text, flush=True)

    laboratory.show_progress(map(run_name, ids), write, live=bool(terminal.hasmarkup))


def run_name(node_id: str) -> str:
    """The run of a test, such as `B-seed0`; of a test that has none, something else."""
    return node_id.rpartition("[")[2].rstrip("]")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def asked_experiment(config: pytest.Config) -> ExperimentConfig:
    """The experiment that the command line asks for. Raises UsageError."""
    if (laboratory := config.stash.get(LABORATORY, None)) is not None:
        return laboratory.experiment
    try:
        return parse_experiment(given_values(config))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def given_values(config: pytest.Config) -> dict[str, str | None]:
    """The text of each of our options that has one, None where it was not given."""
    return {flag.key: config.getoption(flag.key) for flag in FLAGS if not flag.is_switch}
