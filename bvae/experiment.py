"""An experiment, from its options to its report, for `bvae.hooks` and `python -m bvae`.

The controller of pytest-xdist imports this module. It must not import PyTorch or matplotlib, which takes two
seconds. Processes that train or draw import them through `load_engine`.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shlex
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from filelock import BaseFileLock

from bvae import EvidenceWarning
from bvae.config import DEFAULT_MODEL, ExperimentConfig, LossOption, RunConfig
from bvae.corpus import Corpus, CorpusError, load_corpus
from bvae.hardware import check_log, resolve_precision
from bvae.judging.baseline import (
    BASELINE_FILE,
    Baseline,
    Difference,
    comparable_baseline,
    compare_with,
    read_baseline,
)
from bvae.judging.comparison import LARGE, Comparison, OptionOutcomes, RunOutcomes
from bvae.option_files import allow_models, own_models
from bvae.options import COMPARE_EXPECTS, parse_experiment
from bvae.records import CorpusRecord, RunResult
from bvae.report import html
from bvae.report.tables import pictured_runs
from bvae.report.text import explain_own_gates, to_markdown, to_terminal
from bvae.session.continuation import extended, go_on, refuse_changes
from bvae.session.folder import Session, compare_outcomes, found_outcomes, hold, read_comparison
from bvae.session.progress import ProgressDisplay
from bvae.session_files import LATEST, disk_usage
from bvae.storage import atomic_write, printable, refuse_foreign_entries, to_json
from bvae.verdict import words

if TYPE_CHECKING:
    from bvae.session.run import RunScheduler

Selection = tuple[LossOption, int]


class SetupError(ValueError):
    """The experiment cannot be run as requested; the message is one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def load_engine() -> ModuleType:
    """Import `bvae.engine`.

    Workers of pytest-xdist do this first, because PyTorch cannot be imported again after an interruption.
    """
    from bvae import engine

    return engine


RESOLVED = ("grid_size", "classes", "background")
"""Settings that may be "auto" until the corpus is loaded."""


class Experiment:
    """The experiment of one invocation, in the controller or in a worker.

    Attributes:
        config: options, seeds, corpus and training settings.
        selected: the runs whose tests this invocation runs.
        added: the runs that this invocation added to a resumed session.
        baseline: the baseline to compare with, or None.
        complaint: why the session could not continue or could not be closed; otherwise empty.
        make_scheduler: function that makes the scheduler from the session, its corpus and its runs.
        gate_ran: whether the packaged gate was run.
        own_gates: whether each gate of the project passed, by name; the packaged gate is not included.
        page: folder of the HTML report; links in the report are relative to it.
    """

    def __init__(self, config: ExperimentConfig, run_dir: Path, command: Sequence[str]) -> None:
        self.config, self.run_dir, self.command = config, run_dir, tuple(map(printable, command))
        self.selected, self.added, self._pictured = list[RunConfig](), list[RunConfig](), set[str]()
        self.baseline: Baseline | None = None
        self.complaint = ""
        self._session: Session | None = None
        self._lock: BaseFileLock | None = None  # held until the session is closed
        self._display: ProgressDisplay | None = None
        self._closed, self._interrupted, self.gate_ran, self._is_large = False, False, False, False
        self.make_scheduler: Callable[..., RunScheduler] = lambda *about: load_engine().RunScheduler(*about)
        self.own_gates: dict[str, bool] = {}
        self.page: Path | None = None

    @classmethod
    def prepare(
        cls, config: ExperimentConfig, run_dir: Path, command: Sequence[str], baseline: str | None = None
    ) -> Experiment:
        """Validate an experiment, its corpus, and its baseline, given as a path. Raises SetupError."""
        try:
            training, resolve = config.training, resolve_precision
            check_log(training.log)
            if training.device != "cpu":
                resolve = partial(load_engine().resolve_gpu_precision, device=training.device)
            training = dataclasses.replace(training, precision=resolve(training.precision))
            experiment = cls(dataclasses.replace(config, training=training), run_dir, command)
            corpus = CorpusRecord.of(experiment.corpus)  # loading also validates the grid size
            found = {name: getattr(experiment.corpus, name) for name in RESOLVED}
            experiment.config = config = dataclasses.replace(experiment.config, **found)
            if any(training.changed(option.training).model != DEFAULT_MODEL for option in config.options):
                load_engine().RunScheduler.check(config, corpus)
            if baseline is not None:
                experiment.baseline = comparable_baseline(Path(baseline), config, corpus)
        except ValueError as error:
            raise SetupError(str(error)) from error
        return experiment

    @classmethod
    def resume(
        cls,
        given: Mapping[str, str | None],
        run_dir: Path,
        command: Sequence[str],
        resumed: str,
        *,
        extend: bool = False,
        compares: bool = False,
    ) -> Experiment:
        """Return the experiment that resumes a session, given by its folder or `latest`. Raises SetupError.

        `extend` allows more epochs, and `compares` requires a baseline.
        """
        try:
            path = (run_dir / LATEST if resumed == LATEST else Path(resumed)).resolve()
            session = Session.open(path, secrets.token_hex(8))
            refuse_foreign_entries(path)
            given = allow_models(session.record.config, given)
            if (baseline := given.get("baseline")) is None and (path / BASELINE_FILE).exists():
                baseline = str(path / BASELINE_FILE)
            if baseline is None and compares:
                raise ValueError(COMPARE_EXPECTS)
            asked = parse_experiment(given, session.record.config)
            config, changes = extended(session.record.config, asked, more_epochs=extend)
            experiment = cls.prepare(config, path.parent, command)
            refuse_changes(session.record, experiment.config, experiment.corpus)
            if baseline is not None:
                settings = experiment.config, session.record.corpus
                experiment.baseline = comparable_baseline(Path(baseline), *settings)
            experiment._lock = hold(path)
            experiment._session = go_on(session, experiment.config, experiment.command, changes)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: in use, or a loop of links
            raise SetupError(f"the session {resumed} cannot be used: {error}") from error
        known = {run.name for run in session.runs}
        experiment.added = [run for run in experiment.runs if run.name not in known]
        return experiment

    @classmethod
    def join(cls, path: Path, invocation: str) -> Experiment:
        """Return the experiment of a worker, in the session that the controller opened."""
        session = Session.open(path, invocation)
        experiment = cls(session.record.config, path.parent, session.record.command)
        experiment._session = session
        if (path / BASELINE_FILE).exists():
            experiment.baseline = read_baseline(path / BASELINE_FILE)
        return experiment

    @property
    def session(self) -> Session:
        """The open session. Raises RuntimeError if none is open."""
        if self._session is None:
            raise RuntimeError("no session is open; expected open_session to have been called")
        return self._session

    @cached_property
    def corpus(self) -> Corpus:
        """The grids, loaded once per process. Raises CorpusError, also if they have changed."""
        asked = {name: getattr(self.config, name) for name in RESOLVED}
        corpus = load_corpus(self.config.corpus, padding_value=self.config.padding_value, **asked)
        if self._session is not None and corpus.fingerprint != self._session.record.corpus.fingerprint:
            raise CorpusError(f"{corpus.name} changed while it was in use; start again")
        return corpus

    @cached_property
    def scheduler(self) -> RunScheduler:
        """The scheduler that trains the runs, made at first use. Raises EngineError."""
        return self.make_scheduler(self.session, self.corpus, self.selected)

    def open_session(self) -> None:
        """Make the session folder if no session is resumed, and store the baseline. Raises StorageError."""
        if self._session is None:
            device = self.config.training.device
            gpu = {} if device == "cpu" else load_engine().describe_gpu(device)
            self._session = Session.create(self.run_dir, self.config, self.corpus, self.command, gpu)
            self._lock = hold(self._session.path)
        if self.baseline is not None:
            atomic_write(self.session.path / BASELINE_FILE, to_json(self.baseline))

    def select(self, runs: Sequence[Selection]) -> None:
        """Select the runs of this invocation, given in any order."""
        asked = {self.session.run_config(option, seed).name for option, seed in runs}
        self.selected = [run for run in self.runs if run.name in asked]
        self._pictured = pictured_runs(self.selected)
        begun = {run.name for run in self.runs if (self.session.path / run.name).exists()}
        self._is_large = len(asked | begun) >= LARGE  # as in `Comparison.is_large`

    def show_progress(self, names: Iterable[str], write: Callable[[str], object], *, live: bool) -> None:
        """Start to display the progress of the named runs, see `ProgressDisplay`."""
        wanted = set(names)
        if self._display is None and (asked := [run for run in self.runs if run.name in wanted]):
            self._display = ProgressDisplay(self.session.path, asked, write, live=live)
            self._display.start()

    @property
    def runs(self) -> list[RunConfig]:
        """All runs of the experiment: every option with every seed."""
        return self.session.runs

    @property
    def shows_progress(self) -> bool:
        """Whether progress is displayed, in a line that result letters of pytest would break."""
        return self._display is not None

    def obtain(self, selection: Selection) -> RunResult:
        """Train, wait for, or read a run, and return its result. Raises like `RunScheduler.obtain`."""
        run = self.session.run_config(*selection)
        result = self.scheduler.obtain(run)
        for failure in result.failed_pictures:
            warnings.warn(f"{run.name} lacks a picture: {printable(failure)}", EvidenceWarning, stacklevel=2)
        return result

    def compare(self) -> Comparison:
        """Return the comparison of the selected runs. The first call obtains the runs and writes it."""
        return read_comparison(self.session) or self._write_comparison(self.scheduler.obtain_all())

    def _write_comparison(
        self, options: Iterable[tuple[str, OptionOutcomes]], *, in_haste: bool = False
    ) -> Comparison:
        engine, found = load_engine(), RunOutcomes()
        for option, outcomes in options:
            engine.write_why(self.session, option, outcomes)  # with workers, while the next option trains
            found[option] = outcomes
        write = engine.write_comparison
        return cast(Comparison, write(self.session, self.corpus, found, self.baseline, in_haste=in_haste))

    def compare_with_baseline(self) -> tuple[Difference, ...]:
        """Obtain the selected runs and compare them with the baseline, without writing the comparison."""
        return compare_with(self.baseline, compare_outcomes(self.session, dict(self.scheduler.obtain_all())))

    def show_run(self, result: RunResult) -> list[str]:
        """Return HTML of a run: its verdict, numbers and pictures; in a large session, one line."""
        if self._is_large:
            return [html.show_briefly(self.session, result, self.page, self._pictured)]
        return [html.show_run(self.session, result, load_engine().draw_run_curves(self.session, result))]

    def show_comparison(self, comparison: Comparison) -> list[str]:
        """Return HTML of the gate. The head of the report shows the comparison."""
        return [html.show_gate(comparison)]

    def show_differences(self, differences: Sequence[Difference]) -> list[str]:
        """Return HTML of the differences to the baseline."""
        return [html.show_differences(differences)]

    @property
    def is_open(self) -> bool:
        """Whether the session is opened and not yet closed."""
        return self._session is not None and not self._closed

    def close_session(self, *, interrupted: bool) -> None:
        """Write the comparison if no gate did; remove the session if no run began. Errors set `complaint`."""
        if not self.is_open:
            return
        self._closed, self._interrupted = True, interrupted
        if self._display is not None:
            self._display.stop()
        if interrupted:
            self.session.stop()
        if "scheduler" in vars(self):
            self.scheduler.close()
        try:
            if read_comparison(self.session) is None and (outcomes := found_outcomes(self.session)):
                self._write_comparison(outcomes.items(), in_haste=interrupted)
            self.session.discard_if_unused()
        except (OSError, ValueError) as error:
            self.complaint = f"The session could not be closed: {printable(str(error))}"
        if self._lock is not None:
            self._lock.release()
        try:
            self._write_step_summary()
        except OSError as error:
            reason = printable(f"GITHUB_STEP_SUMMARY could not be written: {error}")
            warnings.warn(reason, EvidenceWarning, stacklevel=2)

    def _write_step_summary(self) -> None:
        """Append the comparison to the Markdown file that GitHub shows for a workflow."""
        step_summary, comparison = os.environ.get("GITHUB_STEP_SUMMARY"), read_comparison(self.session)
        if step_summary and comparison is not None:
            text = to_markdown(comparison, compare_with(self.baseline, comparison), pictures=False)
            with Path(step_summary).open("a", encoding="utf-8") as file:
                file.write("\n\n".join(filter(None, [explain_own_gates(self.own_gates), text])))

    def summary(self, command: str = "pytest experiments/") -> list[str]:
        """Return the lines that end the terminal output."""
        comparison = read_comparison(self.session) if self._session is not None else None
        resume = self.how_to_resume(command, comparison, interrupted=self._interrupted)
        if comparison is None:
            return resume
        differences = compare_with(self.baseline, comparison)
        lines = to_terminal(comparison, differences, self.own_gates, gate_ran=self.gate_ran)
        size, of_checkpoints = (f"{size / 1e6:,.1f} MB" for size in disk_usage(self.session.path))
        where = f"{printable(str(self.session.path))} ({size}, of which {of_checkpoints} are checkpoints)"
        return [*lines, *map(str, self.session.record.extensions), f"Session: {where}", *resume]

    def how_to_resume(
        self, command: str, comparison: Comparison | None = None, *, interrupted: bool
    ) -> list[str]:
        """Return the complaint and the command that completes the session; no lines if it is complete."""
        runs = [run for option in comparison.options.values() for run in option.runs] if comparison else []
        unfinished = interrupted or any(run.verdict == "incomplete" for run in runs)
        lines = [self.complaint] if self.complaint else []
        if (unfinished or lines) and self.session.path.exists():
            reason = "Interrupted. " if interrupted else ""
            model = [f"--model={','.join(models)}"] if (models := own_models(self.config)) else []
            options = shlex.join([f"--resume={self.session.path}", *model])
            lines.append(f"{reason}Resume with: {command} {printable(options)}")
        return lines

    def report_head(self) -> list[str]:
        """Return the HTML above the table of tests in the report."""
        if self._session is None or not self.session.path.exists():
            return []
        known = self.session, read_comparison(self.session), self.own_gates
        return [html.report_head(*known, gate_ran=self.gate_ran, page=self.page)]

    def report_page(self) -> str:
        """Return the report of a closed session as one HTML page; empty if there is no comparison."""
        if not self.session.path.exists() or (comparison := read_comparison(self.session)) is None:
            return ""
        runs = {} if comparison.is_large else found_outcomes(self.session)
        results = [each for seeds in runs.values() for each in seeds.values() if isinstance(each, RunResult)]
        shown = {f"{r.option}-seed{r.seed}: {words(r.verdict)}": self.show_run(r)[0] for r in results}
        differences = compare_with(self.baseline, comparison)
        return html.report_page(self.session, comparison, shown, differences, self.page)
