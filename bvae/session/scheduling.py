"""Where runs are trained, and in what order: the door for other engines (GPUs, other machines).

Everything that trains is reached through `RunScheduler`, and nothing else of bvae imports this module but
`bvae.experiment`. An engine of another kind has the same three methods and leaves the same files in
the folder of each run; they are listed in `bvae.session_files`.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence

import torch
from filelock import FileLock, Timeout

from bvae import EvidenceWarning
from bvae.config import ExperimentConfig, RunConfig
from bvae.corpus import Corpus
from bvae.judging.comparison import OptionOutcomes
from bvae.models import check_model
from bvae.records import CorpusRecord, RunResult
from bvae.session.folder import RunCrashError, Session, is_marked, read_result
from bvae.session.progress import note_rest
from bvae.session.run import obtain_run, restored_trainer
from bvae.session_files import AHEAD, BEGUN, HALF, LOCK
from bvae.storage import atomic_write, make_folder

FRACTION = 0.5
"""Part of a run's steps that is trained ahead."""


def run_to_begin(runs: Sequence[RunConfig], workers: int, first: RunConfig) -> RunConfig | None:
    """Return the run that the worker whose first run is `first` begins ahead, None if it has no idle turn.

    Runs are dealt in turns, see `bvae.hooks.in_turns`, so its first run tells a worker's place.
    """
    turns, last = divmod(len(runs), workers)
    place = runs.index(first) if first in runs else workers
    idle_in_last_turn = turns and last <= place < min(2 * last, workers)
    return runs[place - 2 * last] if idle_in_last_turn else None


def begin_ahead(session: Session, run: RunConfig, corpus: Corpus) -> None:
    """Train the first half of a run, unless another process trains it; errors are left to its own turn."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("error", EvidenceWarning)
        begin_run(session, run, corpus)


def begin_run(session: Session, run: RunConfig, corpus: Corpus) -> None:
    """Train the first half of a run once in an invocation.

    The run counts as begun only in its turn, and then goes on from `.half.safetensors` or from its last
    checkpoint. So an error here, or the death of the worker, costs what was trained since that checkpoint.
    """
    directory = session.path / run.name
    make_folder(directory)
    with contextlib.suppress(Timeout), FileLock(directory / LOCK, timeout=0):
        tried = any(is_marked(directory / mark, session) for mark in (BEGUN, AHEAD))
        if tried or read_result(directory) is not None:
            return
        atomic_write(directory / AHEAD, session.invocation.encode())
        session.point_latest()
        trainer, _ = restored_trainer(run, corpus, directory)
        try:
            trainer.fit(int(FRACTION * trainer.steps))
            if trainer.divergence is None and trainer.progress.step:
                trainer.write(directory / HALF)
        finally:
            note_rest(directory)


class RunScheduler:
    """Trains runs in this process, one after the other, in one thread.

    Runs are spread over processes instead, which share the session folder and lock the run that they train.

    Args:
        session, corpus: what is trained.
        runs: all runs that the processes share, in the order in which they are dealt: option by option.
        workers: the number of processes.
    """

    def __init__(self, session: Session, corpus: Corpus, runs: Sequence[RunConfig], workers: int) -> None:
        self.session, self.corpus, self.runs, self.workers = session, corpus, runs, workers
        self._is_first = True
        torch.set_num_threads(1)  # before the first operator

    @staticmethod
    def check(config: ExperimentConfig, corpus: CorpusRecord) -> None:
        """Raise ModelError if the model cannot be trained on grids like those of a corpus."""
        check_model(
            config.training.model,
            grid_size=config.size,
            latent_dim=config.training.latent_dim,
            classes=len(corpus.class_counts),
            has_outside=corpus.has_outside,
        )

    def obtain(self, run: RunConfig) -> RunResult:
        """Return the result of a run: trained, waited for or read. Raises RunCrashError or StorageError."""
        if self._is_first and (ahead := run_to_begin(self.runs, self.workers, run)) is not None:
            begin_ahead(self.session, ahead, self.corpus)
        self._is_first = False
        return obtain_run(self.session, run, self.corpus)

    def obtain_all(self) -> Iterator[tuple[str, OptionOutcomes]]:
        """Yield the outcomes by seed of each option; a run that nobody has begun is trained now."""
        for option, runs in itertools.groupby(self.runs, key=lambda run: run.option.name):
            outcomes: OptionOutcomes = {}
            for run in runs:
                try:
                    outcomes[run.seed] = obtain_run(self.session, run, self.corpus)
                except RunCrashError as crash:
                    outcomes[run.seed] = str(crash)
            yield option, outcomes
