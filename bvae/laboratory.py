"""What the plugin's hooks and fixtures do, in terms of the laboratory and not of pytest."""

from __future__ import annotations

import dataclasses
import io
import secrets
import signal
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from filelock import FileLock

from bvae.comparison import Comparison
from bvae.config import ExperimentConfig, LossOption, RunConfig
from bvae.corpus import Corpus, CorpusError, load_corpus
from bvae.curves import plot_curves
from bvae.device import resolve_precision
from bvae.evidence import (
    comparison_folder,
    discard_comparison,
    found_outcomes,
    obtain_outcomes,
    read_comparison,
    write_comparison,
)
from bvae.grid_files import printable
from bvae.options import parse_experiment
from bvae.report import STYLE, comparison_summary, picture, picture_text, run_verdict
from bvae.run import RunResult, obtain_run, picture_of, read_history
from bvae.session import Session, SessionHeldError, changes_since, hold
from bvae.summary import describe_setting, explain_gate, to_text_table

Selection = tuple[LossOption, int]


class SetupError(ValueError):
    """The experiment cannot be run as asked; one sentence for the person who asked."""


class Laboratory:
    """The experiment of one pytest invocation, in the controller or in a worker of it.

    Attributes:
        experiment: what is compared.
        selected: the runs that this invocation collected and did not deselect.
    """

    def __init__(self, experiment: ExperimentConfig, run_dir: Path, command: Sequence[str]) -> None:
        self.experiment, self.run_dir, self.command = experiment, run_dir, tuple(command)
        self.selected: list[RunConfig] = []
        self._session: Session | None = None
        self._lock: FileLock | None = None  # held for as long as this object lives
        self._closed = self._interrupted = False
        self._gate_ran = True

    @classmethod
    def prepare(cls, experiment: ExperimentConfig, run_dir: Path, command: Sequence[str]) -> Laboratory:
        """Validate an experiment, its corpus included, before anything is trained. Raises SetupError."""
        try:
            training = experiment.training
            precision = resolve_precision(training.precision, training.device)
            experiment = dataclasses.replace(
                experiment, training=dataclasses.replace(training, precision=precision)
            )
            laboratory = cls(experiment, run_dir, command)
            laboratory.corpus  # noqa: B018  # loading is validating
        except (ValueError, CorpusError) as error:
            raise SetupError(str(error)) from error
        return laboratory

    @classmethod
    def resume(
        cls, given: Mapping[str, str | None], run_dir: Path, command: Sequence[str], resumed: str
    ) -> Laboratory:
        """Take up an interrupted session, named by its folder or as `latest`. Raises SetupError.

        Settings that are not given are those of the session; what differs from it is refused.
        """
        path = (run_dir / "latest" if resumed == "latest" else Path(resumed)).resolve()
        try:
            session = Session.open(path, secrets.token_hex(8))
            laboratory = cls.prepare(parse_experiment(given, session.record.config), path.parent, command)
            changes = changes_since(session.record, laboratory.experiment, laboratory.corpus)
            if changes:
                raise SetupError(
                    f"--resume {printable(str(path))} cannot go on to the same result: {'; '.join(changes)}; "
                    "restore that, or start a new session"
                )
            laboratory._lock = hold(path)
        except (OSError, ValueError, SessionHeldError) as error:
            if isinstance(error, SetupError):
                raise
            raise SetupError(
                f"--resume {printable(resumed)} is not possible: {printable(str(error))}"
            ) from error
        discard_comparison(session)
        laboratory._session = session
        return laboratory

    @classmethod
    def join(cls, path: Path, invocation: str) -> Laboratory:
        """The laboratory of the session that the controller made."""
        session = Session.open(path, invocation)
        laboratory = cls(session.record.config, path.parent, session.record.command)
        laboratory._session = session
        return laboratory

    @property
    def session(self) -> Session:
        """The session folder. Raises RuntimeError before it was opened."""
        if self._session is None:
            raise RuntimeError("no session is open; expected open_session to have been called")
        return self._session

    @cached_property
    def corpus(self) -> Corpus:
        """The grids, loaded once a process. Raises CorpusError, also where they changed since the start."""
        corpus = load_corpus(self.experiment.corpus, self.experiment.grid_size)
        if self._session is not None and corpus.fingerprint != self._session.record.corpus.fingerprint:
            raise CorpusError(f"{corpus.name} changed while it was in use; start again")
        return corpus

    def open_session(self) -> None:
        """Make the session folder, unless one was taken up. Raises StorageError."""
        torch.set_num_threads(1)  # before the first operator: runs are spread over processes instead
        if self._session is None:
            self._session = Session.create(self.run_dir, self.experiment, self.corpus, self.command)
            self._lock = hold(self._session.path)

    def select(self, runs: Sequence[Selection]) -> None:
        """Say which runs this invocation is to have."""
        self.selected = [self.session.run_config(option, seed) for option, seed in runs]

    def obtain(self, selection: Selection) -> RunResult:
        """The result of a run: trained, waited for or read. Raises RunCrashError or StorageError."""
        return obtain_run(self.session, self.session.run_config(*selection), self.corpus)

    def compare(self) -> Comparison:
        """Obtain all selected runs, compare them, and write the comparison."""
        outcomes = obtain_outcomes(self.session, self.corpus, self.selected)
        return write_comparison(self.session, self.corpus, outcomes)

    def show_run(self, result: RunResult) -> list[str]:
        """HTML of a run: its verdict, its curves, and the picture of every checkpoint."""
        name = f"{result.option}-seed{result.seed}"
        directory = self.session.path / name
        pictures = sorted(
            map(picture_of, (directory / "checkpoints").glob("*.safetensors")),
            key=lambda path: (path.stem.endswith("best"), path.name),
        )
        curves = io.BytesIO()
        plot_curves(
            {result.option: [msgspec.to_builtins(read_history(directory))]},
            background_rate=self.session.record.corpus.background_rate,
            band=(self.experiment.band.lo, self.experiment.band.hi),
            path=curves,
            title=f"Run {name}",
        )
        return [
            run_verdict(result),
            picture(curves.getvalue(), name=f"Curves of {name}", alt=f"Curves of {name}. {result.reason}"),
            *(
                picture(path.read_bytes(), name=f"{name}, {path.name}", alt=picture_text(path))
                for path in pictures
                if path.exists()
            ),
        ]

    def show_comparison(self, comparison: Comparison) -> list[str]:
        """HTML of a comparison: outcome, table, curves, and the same grids under each option."""
        folder = comparison_folder(self.session)
        return [comparison_summary(comparison)] + [
            picture(path.read_bytes(), name=path.name, alt=picture_text(path))
            for path in (folder / "curves.png", folder / "reconstructions.png")
        ]

    @property
    def is_open(self) -> bool:
        """Whether the session was opened and not yet closed."""
        return self._session is not None and not self._closed

    def close_session(self, *, interrupted: bool) -> None:
        """Write the comparison where the gate did not; remove the folder where nothing began."""
        if not self.is_open:
            return
        self._closed, self._interrupted = True, interrupted
        if interrupted:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what remains takes a second
            self.session.stop()
        if read_comparison(self.session) is None and (outcomes := found_outcomes(self.session)):
            self._gate_ran = False
            write_comparison(self.session, self.corpus, outcomes)
        self.session.discard_if_unused()

    def summary(self) -> list[str]:
        """The lines that end the terminal output; none where nothing was run."""
        comparison = read_comparison(self.session) if self._session is not None else None
        resume = [
            f"Interrupted. Resume with: pytest experiments/ --resume={printable(str(self.session.path))}"
        ]
        if comparison is None:
            return resume if self._interrupted and self.session.path.exists() else []
        lines = [describe_setting(comparison), "", *to_text_table(comparison), ""]
        if not self._gate_ran:
            lines += ["The gate was not run; this is a comparison of what was found.", ""]
        lines += [*explain_gate(comparison).splitlines(), comparison.recommendation]
        lines.append(f"Session: {printable(str(self.session.path))}")
        return [*lines, *(resume if self._interrupted else [])]

    def report_head(self) -> list[str]:
        """HTML that comes before the table of tests in the report."""
        return [STYLE]
