"""One run of a session, see `bvae.results`: trained by whoever asks first, read by everyone after."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from filelock import FileLock, Timeout

from bvae import EvidenceWarning
from bvae.checkpoint import CheckpointError
from bvae.config import AccuracyBand, RunConfig, to_json
from bvae.corpus import Corpus
from bvae.events import EpochEnded, Event
from bvae.files import make_folder, write_whole
from bvae.progress import ProgressNote, note_rest
from bvae.results import AHEAD, BEGUN, RunResult, checkpoints, is_begun, is_marked, read_result
from bvae.session import Session
from bvae.trainer import Trainer
from bvae.verdict import judge_run

if TYPE_CHECKING:
    from bvae.gallery import Gallery

HALF = ".half.safetensors"
"""The checkpoint of a run that rests until its turn, and none is later than it."""
FIRST_HALF = 0.5
"""The part of a run's steps that is trained ahead."""


class RunCrashError(RuntimeError):
    """A run was begun in this session and its process is gone without a result."""


def obtain_run(session: Session, run: RunConfig, corpus: Corpus) -> RunResult:
    """The result of a run: read if it is complete, waited for while another process trains it, else trained.

    The lock belongs to the operating system, which releases it when its holder dies. So nobody waits for a
    dead process, and a run that this invocation began, that has no result and that nobody holds has crashed.

    Raises:
        RunCrashError: where it did; it is not trained again.
        StorageError: where a file cannot be written.
    """
    directory = session.path / run.name
    make_folder(directory)
    with FileLock(directory / ".lock"):
        if (result := read_result(directory)) is not None:
            return result
        if is_begun(session, run.name):
            raise RunCrashError(f"{run.name} was begun in this session and ended without a result")
        write_whole(directory / BEGUN, session.invocation.encode())
        session.point_latest()
        return train_run(run, corpus, directory, session.record.config.band)


def begin_run(session: Session, run: RunConfig, corpus: Corpus) -> None:
    """Train the first half of a run ahead of its turn, unless another process is at it.

    It is tried once. Only in its turn the run counts as begun, and goes on from here or from its last
    checkpoint; so an error here, or the death of the worker, costs what was trained since that checkpoint.
    """
    directory = session.path / run.name
    make_folder(directory)
    with contextlib.suppress(Timeout), FileLock(directory / ".lock", timeout=0):
        tried = any(is_marked(directory / mark, session) for mark in (BEGUN, AHEAD))
        if tried or read_result(directory) is not None:
            return
        write_whole(directory / AHEAD, session.invocation.encode())
        session.point_latest()
        trainer, _ = _resumed(run, corpus, directory)
        try:
            trainer.fit(int(FIRST_HALF * trainer.steps))
            if trainer.divergence is None and trainer.progress.step:
                trainer.write(directory / HALF)
        finally:
            note_rest(directory)


def train_run(run: RunConfig, corpus: Corpus, directory: Path, band: AccuracyBand) -> RunResult:
    """Train a run in its directory, draw its pictures, judge it, and write `result.json` last."""
    trainer, gallery = _resumed(run, corpus, directory)
    (directory / HALF).unlink(missing_ok=True)
    history = trainer.fit()
    gallery.note_missing(directory)
    gallery.draw_filmstrip(directory)
    verdict = judge_run(history, trainer.divergence, band)
    result = RunResult(
        option=run.option.name,
        seed=run.seed,
        verdict=verdict.name,
        reason=verdict.reason,
        metrics=history[-1].validation if history else None,
        divergence=trainer.divergence,
        seconds=sum(record.seconds for record in history),
        failed_pictures=tuple(gallery.failures),
    )
    write_whole(directory / "result.json", to_json(result))
    return result


def _resumed(run: RunConfig, corpus: Corpus, directory: Path) -> tuple[Trainer, Gallery]:
    """The trainer of a run, where its newest checkpoint left it, and what draws its pictures."""
    from bvae.gallery import Gallery  # as slow to import as it says there

    for part in directory.rglob("*.part"):  # of a process that was killed while it wrote
        part.unlink()
    write_whole(directory / "config.json", to_json(run))
    gallery = Gallery(run, corpus)
    trainer = Trainer(
        run,
        corpus,
        directory,
        listeners=[
            ProgressNote(directory, run.training.epochs),
            MetricsLog(directory / "metrics.jsonl"),
            gallery,
        ],
    )
    restore_newest(trainer, directory)
    return trainer, gallery


def restore_newest(trainer: Trainer, directory: Path) -> None:
    """Take up training at the newest sound checkpoint, else at the beginning; warn of those passed over."""
    for path in (*directory.glob(HALF), *checkpoints(directory)):
        try:
            trainer.restore(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; an older checkpoint is used", EvidenceWarning, stacklevel=2)
        else:
            return


class MetricsLog:
    """Keeps `metrics.jsonl`: rewritten whole each epoch, so no line is ever torn, doubled or missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochEnded):
            write_whole(self.path, msgspec.json.Encoder().encode_lines(event.history))
