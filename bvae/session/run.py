"""Training the runs of a session in this process, and the interface for other engines.

The first process that needs a run trains it, and all other processes read its result. `bvae.engine` selects
the `RunScheduler` that trains. The scheduler of another engine, such as `bvae.session.ray_engine`, has the
same methods, and writes the same files in the folder of each run, see `bvae.session_files`.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from bvae import EvidenceWarning
from bvae.config import AccuracyBand, ExperimentConfig, RunConfig
from bvae.corpus import Corpus
from bvae.judging.comparison import OptionOutcomes
from bvae.models import check_model
from bvae.records import CorpusRecord, Listener, RunResult
from bvae.session.folder import RunCrashError, Session, read_marker, read_result
from bvae.session.listeners import CheckpointPictures, MetricsLog, ProgressNote, TensorBoardLog
from bvae.session_files import (
    BEGUN,
    CHECKPOINTS,
    CONFIG,
    LOCK,
    METRICS,
    RESULT,
    checkpoints,
    digests,
    leftovers,
    run_file_limit,
    run_files,
)
from bvae.storage import (
    atomic_write,
    lock_file,
    make_folder,
    printable,
    read_bounded,
    remove,
    sealed,
    to_json,
)
from bvae.trainer import Trainer
from bvae.training.checkpoint import CheckpointError, StrippedError
from bvae.verdict import judge_run

ATTEMPTS = 4
"""Maximum number of attempts at a run. Each further attempt follows the death of a worker."""
MAX_SENT = 2**30
"""Maximum bytes of a file that a worker sends. Files that change together are sent together."""


class RunScheduler:
    """Trains runs in this process, one after another, in one thread.

    Several processes can train in one session folder in parallel. Each process locks the run that it trains.

    Args:
        session: the session of the runs.
        corpus: the corpus of the session.
        runs: all runs of this invocation, grouped by option.
    """

    def __init__(self, session: Session, corpus: Corpus, runs: Sequence[RunConfig]) -> None:
        self.session, self.corpus, self.runs = session, corpus, runs
        torch.set_num_threads(1)  # must precede the first operator

    @staticmethod
    def check(config: ExperimentConfig, corpus: CorpusRecord) -> None:
        """Raise ModelError if the model of an option cannot be trained on the grids of a corpus."""
        settings = [config.training.changed(option.training) for option in config.options]
        for model, latent_dim in dict.fromkeys((each.model, each.latent_dim) for each in settings):
            check_model(
                model,
                grid_size=config.size,
                latent_dim=latent_dim,
                classes=len(corpus.class_counts),
                has_outside=corpus.has_outside,
            )

    def obtain(self, run: RunConfig) -> RunResult:
        """Train, wait for, or read a run, and return its result. Raises RunCrashError or StorageError."""
        return obtain_run(self.session, run, self.corpus)

    def close(self) -> None:
        """Do nothing. Called once, at the end of the session. Schedulers of other engines stop training."""

    def obtain_all(self) -> Iterator[tuple[str, OptionOutcomes]]:
        """Yield each option with its outcomes by seed. Train the runs that no process has begun."""
        for option, runs in itertools.groupby(self.runs, key=lambda run: run.option.name):
            outcomes: OptionOutcomes = {}
            for run in runs:
                try:
                    outcomes[run.seed] = self.obtain(run)
                except RunCrashError as crash:
                    outcomes[run.seed] = str(crash)
            yield option, outcomes


class RunFolders:
    """Begins runs for the workers of another engine, and reads and writes the folders of runs for them.

    Accepts only names that bvae gives to files of runs. A request may be carried out twice, because engines
    repeat requests that a network lost. `workers` has by run the ids of the workers that began it.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.workers: dict[str, list[str]] = {run.name: [] for run in session.runs}

    def begin(self, run: str, worker: str) -> list[str]:
        """Note that a worker begins a run; return the names of the files that the run already has.

        Raises:
            RunCrashError: if it was begun too often.
            StorageError: if its folder cannot be made.
        """
        directory = self.session.path / run
        if worker not in self.workers[run]:
            if len(self.workers[run]) == ATTEMPTS:
                raise RunCrashError(f"{run} was begun {ATTEMPTS} times, and each time its worker died")
            make_folder(directory)
            begin_run(self.session, directory)
            for left in (*leftovers(directory), *leftovers(directory / CHECKPOINTS)):
                left.unlink(missing_ok=True)
            self.workers[run].append(worker)
        return [*run_files(directory)]

    def read(self, run: str, name: str) -> bytes:
        """Return the content of a file. Raises ValueError."""
        return read_bounded(self._path(run, name), run_file_limit(name))

    def write(
        self, run: str, worker: str, files: Iterable[tuple[list[str], bytes]], gone: Iterable[str] = ()
    ) -> None:
        """Write files one after another, each atomically, with all its names (hard links); remove others.

        Raises:
            ValueError: if another worker began the run since, or a file does not belong to a run.
            RunCrashError: if a file is too large.
            StorageError: if a file cannot be written or removed.
        """
        if self.workers.get(run, [])[-1:] != [worker]:
            raise ValueError(f"{worker} is not the newest worker of {printable(run)}; its files are refused")
        for names, data in files:
            first, *others = (self._path(run, name, len(data)) for name in names)
            make_folder(first.parent)
            atomic_write(first, data, *others)
        for name in gone:
            remove(self._path(run, name))

    def _path(self, run: str, name: str, size: int = 0) -> Path:
        limit = min(run_file_limit(name), MAX_SENT)
        if run not in self.workers or not limit:
            raise ValueError(f"{printable(f'{run}/{name}')} is not a file of a run of this session")
        if size > limit:
            raise RunCrashError(
                f"{run}/{name} has {size} bytes; expected at most {limit} from another node: "
                "train on this machine, with --engine ray:local or -n"
            )
        return self.session.path / run / name


def obtain_run(session: Session, run: RunConfig, corpus: Corpus) -> RunResult:
    """Return the result of a run: read it, wait while another process trains the run, or train the run.

    The operating system releases the lock of a run when the process that trains it dies. A run has crashed if
    this invocation began it, it has no result, and no process holds its lock.

    Raises:
        RunCrashError: if the run has crashed; it is not trained again.
        StorageError: if a file cannot be written.
    """
    directory = session.path / run.name
    make_folder(directory)
    with lock_file(directory / LOCK):
        if (result := read_result(directory, run)) is not None:
            return result
        if read_marker(directory / BEGUN) == session.invocation:
            raise RunCrashError(f"{run.name} was begun by this command and ended without a result")
        begin_run(session, directory)
        return train_run(run, corpus, directory, session.record.config.band)


def begin_run(session: Session, directory: Path) -> None:
    """Record in the folder of a run which invocation began it. Raises StorageError."""
    atomic_write(directory / BEGUN, session.invocation.encode())
    session.point_latest()


def train_run(
    run: RunConfig, corpus: Corpus, directory: Path, band: AccuracyBand, listeners: Sequence[Listener] = ()
) -> RunResult:
    """Train a run in a directory, draw its pictures, judge it, and write `result.json` last.

    `listeners` are called after the listeners that write the files of the run.
    """
    log = TensorBoardLog(directory, on=run.training.log == "tensorboard")
    with contextlib.closing(log):
        trainer, pictures = restored_trainer(run, corpus, directory, [log, *listeners])
        history = trainer.fit()
    pictures.note_missing(directory)
    pictures.draw_filmstrip(directory)
    verdict = judge_run(history, trainer.divergence, band)
    result = RunResult(
        option=run.option.name,
        seed=run.seed,
        verdict=verdict.name,
        reason=verdict.reason,
        metrics=history[-1].validation if history else None,
        divergence=trainer.divergence,
        seconds=sum(record.seconds for record in history),
        failed_pictures=tuple(map(printable, pictures.failures)),
        digests=digests(directory),
    )
    result = sealed(result)
    atomic_write(directory / RESULT, to_json(result))
    return result


def restored_trainer(
    run: RunConfig, corpus: Corpus, directory: Path, listeners: Sequence[Listener] = ()
) -> tuple[Trainer, CheckpointPictures]:
    """Return the trainer of a run, restored from its newest valid checkpoint, and its `CheckpointPictures`.

    Only a checkpoint with the optimizer state can be restored. Damaged checkpoints are skipped with a
    warning. If no valid checkpoint is left, the run starts from the beginning, with a warning.
    """
    for left in (*leftovers(directory), *leftovers(directory / CHECKPOINTS)):
        # It may be the trial lock of another process (`storage._has_locks`), and removed by now.
        left.unlink(missing_ok=True)
    remove(directory / RESULT)  # from before the run was extended, or invalid
    atomic_write(directory / CONFIG, to_json(run))
    pictures = CheckpointPictures(run, corpus)
    progress, metrics = ProgressNote(directory, run.training), MetricsLog(directory / METRICS)
    trainer = Trainer(run, corpus, directory, listeners=[progress, metrics, pictures, *listeners])
    for path in (saved := checkpoints(directory)):
        try:
            trainer.restore(path)
            break
        except StrippedError:
            continue  # one of the older checkpoints, whose optimizer state was removed
        except CheckpointError as error:
            warnings.warn(f"{error}; it is skipped", EvidenceWarning, stacklevel=2)
    else:
        if saved:
            warnings.warn(
                f"{run.name} has no valid checkpoint with optimizer state, which only the newest two have; "
                "the run starts again from the beginning",
                EvidenceWarning,
                stacklevel=2,
            )
    if not trainer.epoch and (directory / METRICS).exists():
        atomic_write(directory / METRICS, b"")  # drops epochs that no valid checkpoint has
    return trainer, pictures
