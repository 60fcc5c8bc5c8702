"""One run of a session: trained by the first process that needs it, read by all others."""

from __future__ import annotations

import warnings
from pathlib import Path

import msgspec

from bvae import EvidenceWarning
from bvae.config import AccuracyBand, RunConfig
from bvae.corpus import Corpus
from bvae.records import EpochEnded, Event, RunResult
from bvae.session.folder import RunCrashError, Session, is_begun, read_result
from bvae.session.progress import ProgressNote
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
)
from bvae.storage import atomic_write, lock_file, make_folder, printable, sealed, to_json
from bvae.trainer import Trainer
from bvae.training.checkpoint import CheckpointError
from bvae.verdict import judge_run
from bvae.visualization.checkpoint_pictures import CheckpointPictures


def obtain_run(session: Session, run: RunConfig, corpus: Corpus) -> RunResult:
    """Return the result of a run: read it if complete, wait while another process trains it, or train it.

    The operating system releases the lock when its holder dies, so no process waits for a dead one. A run has
    crashed if this invocation began it, it has no result, and no process holds its lock.

    Raises:
        RunCrashError: if the run crashed; it is not trained again.
        StorageError: if a file cannot be written.
    """
    directory = session.path / run.name
    make_folder(directory)
    with lock_file(directory / LOCK):
        if (result := read_result(directory, run)) is not None:
            return result
        if is_begun(session, run.name):
            raise RunCrashError(f"{run.name} was begun in this session and ended without a result")
        atomic_write(directory / BEGUN, session.invocation.encode())
        session.point_latest()
        return train_run(run, corpus, directory, session.record.config.band)


def train_run(run: RunConfig, corpus: Corpus, directory: Path, band: AccuracyBand) -> RunResult:
    """Train a run in its directory, draw its pictures, judge it, and write `result.json` last."""
    trainer, pictures = restored_trainer(run, corpus, directory)
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


def restored_trainer(run: RunConfig, corpus: Corpus, directory: Path) -> tuple[Trainer, CheckpointPictures]:
    """Return a run's trainer, restored from its newest valid checkpoint, and its `CheckpointPictures`.

    Damaged checkpoints are skipped with a warning.
    """
    for left in (*leftovers(directory), *leftovers(directory / CHECKPOINTS)):
        left.unlink()
    atomic_write(directory / CONFIG, to_json(run))
    pictures = CheckpointPictures(run, corpus)
    progress, metrics = ProgressNote(directory, run.training.epochs), MetricsLog(directory / METRICS)
    trainer = Trainer(run, corpus, directory, listeners=[progress, metrics, pictures])
    for path in checkpoints(directory):
        try:
            trainer.restore(path)
            break
        except CheckpointError as error:
            warnings.warn(f"{error}; an older checkpoint is used", EvidenceWarning, stacklevel=2)
    if not trainer.epoch and (directory / METRICS).exists():
        atomic_write(directory / METRICS, b"")  # drops epochs that no valid checkpoint has
    return trainer, pictures


class MetricsLog:
    """Rewrites `metrics.jsonl` completely at each epoch, so no line is truncated, repeated or missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochEnded):
            atomic_write(self.path, msgspec.json.Encoder().encode_lines(event.history))
