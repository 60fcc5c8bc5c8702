"""What the plugin's hooks and fixtures do, in terms of the laboratory and not of pytest."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import torch

from bvae.comparison import Comparison
from bvae.config import ExperimentConfig, LossOption, RunConfig
from bvae.corpus import Corpus, CorpusError, load_corpus
from bvae.curves import plot_curves
from bvae.evidence import (
    comparison_folder,
    found_outcomes,
    obtain_outcomes,
    read_comparison,
    write_comparison,
)
from bvae.report import STYLE, comparison_summary, picture, picture_text, run_verdict
from bvae.run import RunResult, obtain_run, picture_of, read_history
from bvae.session import Session
from bvae.summary import describe_setting, explain_gate, to_text_table
from bvae.trainer import resolve_precision

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
        """Make the session folder. Raises StorageError."""
        torch.set_num_threads(1)  # before the first operator: runs are spread over processes instead
        self._session = Session.create(self.run_dir, self.experiment, self.corpus, self.command)

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

    def close_session(self) -> None:
        """Write the comparison where the gate did not; remove the folder where nothing began."""
        if self._session is None:
            return
        if read_comparison(self.session) is None and (outcomes := found_outcomes(self.session)):
            self._gate_ran = False
            write_comparison(self.session, self.corpus, outcomes)
        self.session.discard_if_unused()

    def summary(self) -> list[str]:
        """The lines that end the terminal output; none where nothing was run."""
        comparison = read_comparison(self.session) if self._session is not None else None
        if comparison is None:
            return []
        lines = [describe_setting(comparison), "", *to_text_table(comparison), ""]
        if not self._gate_ran:
            lines += ["The gate was not run; this is a comparison of what was found.", ""]
        lines += [*explain_gate(comparison).splitlines(), comparison.recommendation]
        return [*lines, f"Session: {self.session.path}"]

    def report_head(self) -> list[str]:
        """HTML that comes before the table of tests in the report."""
        return [STYLE]
