"""The pytest hooks of an experiment, which call `bvae.experiment`; `bvae.plugin` registers them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from html import escape
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

from bvae import EngineError
from bvae.config import ExperimentConfig
from bvae.experiment import Experiment, SetupError, load_engine
from bvae.options import COMPARE_EXPECTS, EXTEND_EXPECTS, options_of, parse_experiment
from bvae.report.html import TITLE
from bvae.session.folder import RunCrashError, Session
from bvae.session_files import SESSION
from bvae.storage import StorageError, printable
from bvae.verdict import words

EXPERIMENT = pytest.StashKey[Experiment]()
GATE, PACKAGED_GATE, SESSION_KEY = "gate", "test_stable_option_exists", "bvae_session"
"""Marker of gate tests, name of the packaged gate test, and key of the session in `workerinput`."""


def register_hooks(config: pytest.Config) -> None:
    """Prepare the experiment, or join it in a worker, and register its hooks. Raises UsageError."""
    if is_worker(config) or not config.getoption("numprocesses", None):
        load_engine()
    # The last filter takes precedence, so an EvidenceWarning fails no test.
    config.addinivalue_line("filterwarnings", "default::bvae.EvidenceWarning")
    interruptions = Interruptions()
    config.add_cleanup(interruptions.close)
    try:
        if is_worker(config):
            experiment = joined_experiment(config)
        else:
            interruptions.open()
            experiment = requested_experiment(config)
            if (engine := config.getoption("engine")) != "xdist":
                options = config.getoption("gpus_per_run"), experiment.config.training.device
                workers = len(config.getoption("tx", None) or ())
                experiment.make_scheduler = load_engine().find_scheduler(engine, *options, workers)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    if page := config.getoption("htmlpath", None):
        experiment.page = Path(os.path.expandvars(page)).expanduser().parent
    config.stash[EXPERIMENT] = experiment
    config.pluginmanager.register(ExperimentHooks(config, experiment, interruptions), "bvae-experiment")


def joined_experiment(config: pytest.Config) -> Experiment:
    """Return the experiment of this worker, whose session the controller has opened."""
    about = cast(Any, config).workerinput
    path, invocation = about[SESSION_KEY]
    try:
        experiment = Experiment.join(Path(path), invocation)
    except FileNotFoundError:
        os._exit(1)  # the interrupted controller has removed the session, because no run had begun
    follow_controller(experiment.session)
    return experiment


def requested_experiment(config: pytest.Config) -> Experiment:
    """Return the new or resumed experiment of this command line. Raises SetupError."""
    given, command = given_values(config), config.invocation_params.args
    run_dir = Path(config.getoption("run_dir"))
    if (extend := config.getoption("extend")) and None in (given["resume"], given["epochs"]):
        raise SetupError(EXTEND_EXPECTS)
    compares = config.getoption("fail_on_regression")
    if (resumed := given["resume"]) is not None:
        return Experiment.resume(given, run_dir, command, resumed, extend=extend, compares=compares)
    if compares and given["baseline"] is None:
        raise SetupError(COMPARE_EXPECTS)
    return Experiment.prepare(asked_experiment(config), run_dir, command, given["baseline"])


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def joins_session(config: pytest.Config) -> bool:
    """Return whether the controller has passed a session to this worker."""
    return SESSION_KEY in cast(Any, config).workerinput


def resuming_command(config: pytest.Config) -> str:
    """Return the resuming command without `--resume`: the test paths, and the options to repeat."""
    given, repeated = config.invocation_params.args, [each for each in options_of("pytest") if each.repeated]
    with_value = {"-c", "--config-file", "--rootdir", *(each.flag for each in repeated if each.metavar)}
    kept = {"--pyargs", *with_value, *(each.flag for each in repeated), *config.args}
    copied = [
        word
        for before, word in zip(("", *given), given, strict=False)
        if before in with_value or word in kept or word.partition("=")[0] in with_value
    ]
    plugin = ["-p", "bvae.plugin"] if "bvae.plugin" in given else []
    return printable(shlex.join(["pytest", *plugin, *copied]))


def asked_experiment(config: pytest.Config) -> ExperimentConfig:
    """Return the settings that the command line requests. Raises UsageError."""
    if (experiment := config.stash.get(EXPERIMENT, None)) is not None:
        return experiment.config
    try:
        return parse_experiment(given_values(config))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def given_values(config: pytest.Config) -> dict[str, str | None]:
    """Return the value of each option as text; None if the option was not given. Switches are left out."""
    return {option.key: config.getoption(option.key) for option in options_of("pytest") if option.metavar}


class ExperimentHooks:
    """Hooks of one process, the controller or a worker."""

    def __init__(self, config: pytest.Config, experiment: Experiment, interruptions: Interruptions) -> None:
        self.config, self.experiment, self.interruptions = config, experiment, interruptions
        self.is_controller = not is_worker(config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        if self.is_controller:
            try:
                self.experiment.open_session()
            except StorageError as error:
                raise pytest.UsageError(str(error)) from error
            self.interruptions.last_words = self._how_to_resume
            self.interruptions.repeat_dropped()
            self.config.add_cleanup(self.interruptions.close)  # before pytest restores `sys.unraisablehook`

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        session = self.experiment.session
        node.workerinput[SESSION_KEY] = str(session.path), session.invocation

    def _how_to_resume(self) -> list[str]:
        return self.experiment.how_to_resume(resuming_command(self.config), interrupted=True)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self) -> None:
        """End pytest if the session folder was removed, before xdist replaces the worker."""
        # Look for session.json: a worker that locks a run creates the folder again.
        if not (self.experiment.session.path / SESSION).exists():
            pytest.exit(f"The session folder {self.experiment.session.path} was removed.", returncode=1)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        calls = (getattr(item, "callspec", None) for item in session.items)
        runs = [call.params["loss_run"] for call in calls if call and "loss_run" in call.params]
        self.experiment.select(runs)
        if self.is_controller:
            self._show_progress([item.nodeid for item in session.items])
            try:
                if runs and self.config.getoption("engine") != "xdist":
                    _ = self.experiment.scheduler  # starts all runs; each test then waits for its run
            except EngineError as error:
                raise pytest.UsageError(f"--engine {self.config.getoption('engine')}: {error}") from error

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._show_progress(ids)

    def _show_progress(self, ids: list[str]) -> None:
        """Show the progress of the runs that these node ids name."""
        if not self.config.pluginmanager.has_plugin("terminalreporter") or self.config.get_verbosity() != 0:
            return
        terminal = self.config.get_terminal_writer()
        capture = self.config.pluginmanager.get_plugin("capturemanager")

        def write(text: str) -> None:
            # pytest captures all output while a run trains in this process.
            with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
                terminal.write(text, flush=True)

        self.experiment.show_progress(map(run_name, ids), write, live=bool(terminal.hasmarkup))

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Return no result letter for a run while progress is shown, because it would break the line."""
        if not self.experiment.shows_progress or report.when != "call" or GATE in report.keywords:
            return None
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        return outcome, "", {"xfailed": "XFAIL"}.get(outcome, outcome.upper())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Leave out the traceback of an error that is not a bug; its message says what to do."""
        report = yield
        is_gate = item.get_closest_marker(GATE) is not None
        cast(Any, report).is_own_gate = is_gate and item.name != PACKAGED_GATE
        if call.excinfo is not None and isinstance(call.excinfo.value, EngineError):
            # No other run can be trained. The summary shows this message and how to resume.
            item.session.shouldfail = self.experiment.complaint = str(call.excinfo.value)
        expected = StorageError | RunCrashError | EngineError
        if call.excinfo is not None and isinstance(call.excinfo.value, expected):
            report.longrepr = call.excinfo.getrepr(style="value", chain=False)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record whether the packaged gate was run, and which gates of the project passed or failed."""
        gates, name = self.experiment.own_gates, report.nodeid.partition("::")[2]
        was_judged = report.failed or (report.passed and report.when == "call")
        self.experiment.gate_ran |= was_judged and name == PACKAGED_GATE
        if was_judged and getattr(report, "is_own_gate", False):
            gates[name] = report.passed and gates.get(name, True)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Treat `--maxfail` as a failure, as pytest does. pytest-xdist treats it as an interruption."""
        try:
            return (yield)
        except KeyboardInterrupt:
            if not session.shouldfail:
                raise
            raise session.Failed(session.shouldfail) from None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.is_controller:
            interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
            self.interruptions.prepare_closing()
            self.experiment.close_session(interrupted=interrupted)
            if self.experiment.complaint and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self) -> None:
        if self.is_controller and self.experiment.is_open:
            # pytest does not call pytest_sessionfinish if it is interrupted while workers start.
            self.experiment.close_session(interrupted=True)
            print(*self.experiment.summary(resuming_command(self.config)), sep="\n", file=sys.stderr)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if lines := self.experiment.summary(resuming_command(self.config)):
            terminalreporter.section("loss options")
            for line in lines:
                terminalreporter.line(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_report_title(self, report: Any) -> None:
        report.title = TITLE

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        prefix.extend(self.experiment.report_head())

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        verdict = dict(report.user_properties).get("verdict", "")
        text = f"{escape(report.nodeid)}<br><strong>{escape(words(str(verdict)))}</strong>"
        cells[1] = f'<td class="col-testId">{text}</td>'  # pytest-html does not escape the node id

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        if hasattr(report, "wasxfail") and report.skipped:
            data[0] = f"A finding about the loss, not a broken build. {escape(report.wasxfail)}\n"


def run_name(node_id: str) -> str:
    """Return the name of the run in a node id, such as `B-seed0`; another text if the test has no run."""
    return node_id.rpartition("[")[2].rstrip("]")


class Interruptions(contextlib.ExitStack):
    """Handles Ctrl-C and SIGTERM: the first signal raises KeyboardInterrupt, the second ends the process.

    `close` restores the previous handlers. Only the main thread can set handlers; elsewhere `open` sets none.

    Attributes:
        last_words: returns the lines to print when the second signal ends the process.
    """

    last_words: Callable[[], Iterable[str]] = tuple
    _numbers = (signal.SIGINT, signal.SIGTERM)

    def open(self) -> None:
        """Set the handlers. A signal that the process ignores stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._stderr = os.dup(2)  # pytest replaces descriptor 2 to capture output
        self.callback(os.close, self._stderr)
        for number in self._numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handle(number, self._interrupt)

    def _handle(self, number: int, handler: Any) -> None:
        self.callback(signal.signal, number, signal.signal(number, handler) or signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        for each in self._numbers:
            if signal.getsignal(each) == self._interrupt:
                self._handle(each, self._end)
        raise KeyboardInterrupt

    def _end(self, number: int, frame: FrameType | None) -> None:
        os.write(self._stderr, "".join(f"\n{line}" for line in [*self.last_words(), ""]).encode())
        os._exit(pytest.ExitCode.INTERRUPTED)

    def prepare_closing(self) -> None:
        """Ignore SIGTERM from now on if no signal has arrived, because closing takes only seconds."""
        if signal.getsignal(signal.SIGTERM) == self._interrupt:
            self._handle(signal.SIGTERM, signal.SIG_IGN)

    def repeat_dropped(self) -> None:
        """Raise a KeyboardInterrupt again if Python dropped it, as it does in `__del__`."""
        if threading.current_thread() is threading.main_thread():
            self._report = sys.unraisablehook
            self.callback(setattr, sys, "unraisablehook", self._report)
            sys.unraisablehook = self._repeat

    def _repeat(self, dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt) or not hasattr(signal, "setitimer"):
            self._report(dropped)
            return
        self._handle(signal.SIGALRM, signal.default_int_handler)
        self.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.1)


def follow_controller(session: Session) -> None:
    """Ignore signals. End this worker when the controller ends or asks for it, even during a step.

    A terminal also sends Ctrl-C to workers. A worker that Ctrl-C ended would be reported as crashed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    controller = os.getppid()

    def watch() -> None:
        while os.getppid() == controller and not session.stopped:
            time.sleep(0.2)
        os._exit(1)  # every file is complete or absent, so a worker can end at any moment

    threading.Thread(target=watch, daemon=True).start()
