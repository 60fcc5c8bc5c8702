"""The runs of a session in one of the processes that share them: which it trains, and in what order."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence

import torch

from bvae import EvidenceWarning
from bvae.config import RunConfig
from bvae.corpus import Corpus
from bvae.evidence import OptionOutcomes
from bvae.results import RunResult
from bvae.run import RunCrashError, begin_run, obtain_run
from bvae.session import Session


class Turns:
    """Obtains runs, in a process that computes in one thread from now on.

    Args:
        session, corpus: what is trained.
        runs: all that the processes share, in the order in which they are dealt: option by option.
        workers: the number of processes.
    """

    def __init__(self, session: Session, corpus: Corpus, runs: Sequence[RunConfig], workers: int) -> None:
        self.session, self.corpus, self.runs, self.workers = session, corpus, runs, workers
        self._is_first = True
        torch.set_num_threads(1)  # before the first operator: runs are spread over processes instead

    def obtain(self, run: RunConfig) -> RunResult:
        """The result of a run: trained, waited for or read. Raises RunCrashError or StorageError."""
        if self._is_first:
            self._is_first = False
            self._begin_ahead(run)
        return obtain_run(self.session, run, self.corpus)

    def obtain_all(self) -> Iterator[tuple[str, OptionOutcomes]]:
        """The results of each option; a run nobody has begun is trained now, of a crashed one it is told."""
        for option, runs in itertools.groupby(self.runs, key=lambda run: run.option.name):
            outcomes: OptionOutcomes = {}
            for run in runs:
                try:
                    outcomes[run.seed] = obtain_run(self.session, run, self.corpus)
                except RunCrashError as crash:
                    outcomes[run.seed] = str(crash)
            yield option, outcomes

    def _begin_ahead(self, first: RunConfig) -> None:
        """Before its first run, a worker that would rest in the last turn trains half of one of that turn.

        Nine runs on two workers are five turns, in the last of which one worker would rest. Runs are dealt in
        turns, so the first of a worker's runs tells its place, and its place whose run it may begin.
        """
        turns, last = divmod(len(self.runs), self.workers)
        place = self.runs.index(first) if first in self.runs else self.workers
        if turns and last <= place < min(2 * last, self.workers):
            with contextlib.suppress(Exception), warnings.catch_warnings():
                # What is at fault shows, and is warned of, in the run's own turn.
                warnings.simplefilter("error", EvidenceWarning)
                begin_run(self.session, self.runs[place - 2 * last], self.corpus)
