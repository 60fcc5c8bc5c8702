"""Where runs are trained, and in what order; the interface for other engines (GPUs, other machines).

All training goes through `RunScheduler`, which only `bvae.engine` creates. Another engine needs the same
three methods and writes the same files to the folder of each run, see `bvae.session_files`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from bvae.config import ExperimentConfig, RunConfig
from bvae.corpus import Corpus
from bvae.judging.comparison import OptionOutcomes
from bvae.models import check_model
from bvae.records import CorpusRecord, RunResult
from bvae.session.folder import RunCrashError, Session
from bvae.session.run import obtain_run


class RunScheduler:
    """Trains runs in this process, one after the other, in one thread.

    For parallel training, several processes share the session folder; each locks the run that it trains.

    Args:
        session, corpus: what is trained.
        runs: all runs that the processes share, option by option.
    """

    def __init__(self, session: Session, corpus: Corpus, runs: Sequence[RunConfig]) -> None:
        self.session, self.corpus, self.runs = session, corpus, runs
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
        """Train, wait for, or read a run, and return its result. Raises RunCrashError or StorageError."""
        return obtain_run(self.session, run, self.corpus)

    def obtain_all(self) -> Iterator[tuple[str, OptionOutcomes]]:
        """Yield the outcomes by seed of each option; runs that no process has begun are trained now."""
        for option, runs in itertools.groupby(self.runs, key=lambda run: run.option.name):
            outcomes: OptionOutcomes = {}
            for run in runs:
                try:
                    outcomes[run.seed] = obtain_run(self.session, run, self.corpus)
                except RunCrashError as crash:
                    outcomes[run.seed] = str(crash)
            yield option, outcomes
