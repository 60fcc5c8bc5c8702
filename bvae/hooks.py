"""The pytest hooks of a session in which experiments are run; `bvae.plugin` registers them.

Each hook translates between pytest and `bvae.experiment`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from html import escape
from pathlib import Path
from typing import Any, cast

import pytest

from bvae.config import ExperimentConfig
from bvae.experiment import Experiment, SetupError, load_engine
from bvae.options import options_of, parse_experiment
from bvae.session.folder import RunCrashError, Session
from bvae.storage import StorageError

EXPERIMENT = pytest.StashKey[Experiment]()
GATE = "gate"
SESSION_KEY = "bvae_session"


def register_hooks(config: pytest.Config) -> None:
    """Prepare or join the experiment, and register its hooks. Raises UsageError."""
    if is_worker(config) or not config.getoption("numprocesses", None):
        load_engine()
    try:
        experiment = joined_experiment(config) if is_worker(config) else requested_experiment(config)
    except SetupError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[EXPERIMENT] = experiment
    config.pluginmanager.register(ExperimentHooks(config, experiment), "bvae-experiment")


def joined_experiment(config: pytest.Config) -> Experiment:
    """Return the experiment whose session the controller handed to this worker."""
    about = cast(Any, config).workerinput
    path, invocation = about[SESSION_KEY]
    try:
        experiment = Experiment.join(Path(path), invocation)
    except FileNotFoundError:
        os._exit(1)  # interrupted before a run began, the controller has removed the session
    follow_controller(experiment.session)
    return experiment


def requested_experiment(config: pytest.Config) -> Experiment:
    """Return the validated experiment of this command line, new or resumed. Raises SetupError."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, and so resumable
    given, command = given_values(config), config.invocation_params.args
    run_dir, baseline = Path(config.getoption("run_dir")), given["baseline"]
    if config.getoption("fail_on_regression") and baseline is None:
        raise SetupError("--fail-on-regression has nothing to compare with; add --baseline=PATH")
    if given["resume"] is not None:
        return Experiment.resume(given, run_dir, command, given["resume"])
    return Experiment.prepare(asked_experiment(config), run_dir, command, baseline)


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def asked_experiment(config: pytest.Config) -> ExperimentConfig:
    """Return the experiment that the command line asks for. Raises UsageError."""
    if (experiment := config.stash.get(EXPERIMENT, None)) is not None:
        return experiment.config
    try:
        return parse_experiment(given_values(config))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def given_values(config: pytest.Config) -> dict[str, str | None]:
    """Return the text of each option that takes a value, None for those that were not given."""
    return {option.key: config.getoption(option.key) for option in options_of("pytest") if option.metavar}


class ExperimentHooks:
    """Hooks of a process of a session in which experiments are run: the controller, or one of its workers."""

    def __init__(self, config: pytest.Config, experiment: Experiment) -> None:
        self.config, self.experiment = config, experiment
        self.is_controller = not is_worker(config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        if self.is_controller:
            try:
                self.experiment.open_session()
            except StorageError as error:
                raise pytest.UsageError(str(error)) from error
            repeat_dropped_interruptions()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        session = self.experiment.session
        node.workerinput[SESSION_KEY] = str(session.path), session.invocation

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        calls = (getattr(item, "callspec", None) for item in session.items)
        runs = [call.params["loss_run"] for call in calls if call and "loss_run" in call.params]
        self.experiment.select(runs)
        if self.is_controller:
            self._show_progress([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._show_progress(ids)

    def _show_progress(self, ids: list[str]) -> None:
        """Show the progress of the runs among these node ids: on a terminal one line, kept up to date."""
        if self.config.get_verbosity() != 0:
            return
        terminal = self.config.get_terminal_writer()
        capture = self.config.pluginmanager.get_plugin("capturemanager")

        def write(text: str) -> None:
            # A run that trains in this very process has its output captured, and ours with it.
            with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
                terminal.write(text, flush=True)

        self.experiment.show_progress(map(run_name, ids), write, live=bool(terminal.hasmarkup))

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Return no letter for a run while progress is shown, since it would break that line."""
        if not self.experiment.shows_progress or report.when != "call" or GATE in report.keywords:
            return None
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        return outcome, "", {"xfailed": "XFAIL"}.get(outcome, outcome.upper())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Show only the message of an error that is not in the code, which says what to do."""
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, StorageError | RunCrashError):
            report.longrepr = call.excinfo.getrepr(style="value", chain=False)
        return report

    @pytest.hookimpl(tryfirst=True, wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Iterator[None]:
        if self.is_controller:
            self.experiment.close_session(interrupted=exitstatus == pytest.ExitCode.INTERRUPTED)
            if self.experiment.complaint and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        yield

    def pytest_unconfigure(self) -> None:
        if self.is_controller and self.experiment.is_open:
            # Interrupted while workers were starting: pytest finishes no session then.
            self.experiment.close_session(interrupted=True)
            print(*self.experiment.summary(), sep="\n", file=sys.stderr)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if lines := self.experiment.summary():
            terminalreporter.section("loss options")
            for line in lines:
                terminalreporter.line(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_report_title(self, report: Any) -> None:
        report.title = "Which loss does the β-VAE learn under?"

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        prefix.extend(self.experiment.report_head())

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        verdict = dict(report.user_properties).get("verdict", "")
        text = f"{escape(report.nodeid)}<br><strong>{escape(str(verdict).replace('_', ' '))}</strong>"
        cells[1] = f'<td class="col-testId">{text}</td>'  # pytest-html itself does not escape the node id

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        if hasattr(report, "wasxfail") and report.skipped:
            # The reason, and not where it was raised.
            data[0] = f"The loss is judged, and the build is not broken. {escape(report.wasxfail)}\n"


def run_name(node_id: str) -> str:
    """Return the run of a test, such as `B-seed0`; something else for a test that has none."""
    return node_id.rpartition("[")[2].rstrip("]")


def repeat_dropped_interruptions() -> None:
    """Raise again a KeyboardInterrupt that Python dropped.

    Python only reports what is raised in `__del__` or in the callback of a weak reference, also on Ctrl-C.
    """
    report = sys.unraisablehook

    def repeat(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt) or not hasattr(signal, "setitimer"):
            report(dropped)
            return
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    sys.unraisablehook = repeat


def follow_controller(session: Session) -> None:
    """Ignore signals, and end with the controller or when it says so, even in the middle of a step.

    A terminal sends Ctrl-C to workers too. If it ended them, they would be reported as crashed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    controller = os.getppid()

    def watch() -> None:
        while os.getppid() == controller and not session.stopped:
            time.sleep(0.2)
        os._exit(1)  # files are whole or absent, so any moment will do

    threading.Thread(target=watch, daemon=True).start()
