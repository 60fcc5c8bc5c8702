"""A training run in a separate process that pauses after each turn and measures its times and memory."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
from bvae.corpus import load_corpus
from bvae.evaluation import evaluate
from bvae.hardware import resolve_precision
from bvae.records import Event, Stepped
from bvae.trainer import Trainer

STATUS = Path("/proc/self/status")
MEGABYTE = 10**6


class Plan(NamedTuple):
    """Steps per turn, evaluated grids per turn, and memory limit of each process."""

    steps: int
    evaluated: int
    limit_megabytes: int


class Measured(NamedTuple):
    """Measurements of one process: loading in s, milliseconds per grid by turn, memory in megabytes."""

    grids: int
    loading_seconds: float
    training: list[float]
    evaluation: list[float]
    memory: dict[str, float]

    def peak(self) -> float:
        """Return the largest RssAnon."""
        return max(self.memory["loading_peak"], self.memory["training_peak"])


class Memory(threading.Thread):
    """Samples RssAnon in the background. `peak` is the maximum in megabytes since `peak` was set to 0."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            self.sample()
            time.sleep(0.02)

    def sample(self) -> dict[str, float]:
        """Return the current RssAnon and RssFile in megabytes."""
        fields = (line.split() for line in STATUS.read_text().splitlines() if line.startswith("Rss"))
        now = {field[0].rstrip(":"): int(field[1]) * 1024 / MEGABYTE for field in fields}
        self.peak = max(self.peak, now["RssAnon"])
        return now


class _EnoughError(Exception):
    """Ends training when all turns are done."""


class Turns:
    """Pauses a Trainer after each turn until the parent process asks for the next turn."""

    def __init__(self, parent: Connection, plan: Plan) -> None:
        self._parent, self._plan = parent, plan
        self._trainer: Trainer
        self.training: list[float] = []
        self.evaluation: list[float] = []

    def fit(self, trainer: Trainer) -> None:
        """Train until the parent process ends the measurement."""
        self._trainer = trainer
        self._begin()
        try:
            trainer.fit()
        except _EnoughError:
            return
        raise RuntimeError("training ended before its turns did")

    def _begin(self) -> None:
        if not self._parent.recv():
            raise _EnoughError
        self._intervals: list[float] = []
        self._since: float | None = None

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, Stepped) and self._since is not None:
            self._intervals.append((now - self._since) * 1000 / event.grids)
        self._since = now  # evaluations and checkpoints also end with an event, so no step includes them
        if len(self._intervals) == self._plan.steps:
            self._end()

    def _end(self) -> None:
        trainer, precision = self._trainer, self._trainer.config.training.precision
        validation = trainer.corpus.val
        started = time.perf_counter()
        spread = np.linspace(0, len(validation) - 1, min(self._plan.evaluated, len(validation))).astype(
            np.int64
        )
        evaluate(trainer.model, validation[spread], trainer.loss, precision=precision)
        self.evaluation.append((time.perf_counter() - started) * 1000 / len(spread))
        self.training.append(statistics.median(self._intervals))
        self._parent.send((self.training[-1], self.evaluation[-1]))
        self._begin()


def measure(spec: str, plan: Plan, parent: Connection) -> None:
    """Load a corpus, train a turn whenever the parent process asks, and send it the measurements."""
    with contextlib.suppress(EOFError):  # the parent process has ended, and has reported why
        _measure(spec, plan, parent)


def _measure(spec: str, plan: Plan, parent: Connection) -> None:
    import resource  # not available on every system

    torch.set_num_threads(1)
    limit = plan.limit_megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    memory = Memory()
    seen = {"base": memory.sample()["RssAnon"]}
    memory.start()
    parent.recv()  # imports may overlap; from here on, only one process works at a time
    started = time.perf_counter()
    corpus = load_corpus(spec)
    loading = time.perf_counter() - started
    loaded = memory.sample()
    parent.send(loading)
    seen |= {"loading_peak": memory.peak, "loaded": loaded["RssAnon"], "loaded_file": loaded["RssFile"]}
    memory.peak = 0.0
    training = TrainingConfig(epochs=10**6, precision=resolve_precision("auto"))
    config = ExperimentConfig(corpus=spec, training=training).run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)
    turns = Turns(parent, plan)
    with tempfile.TemporaryDirectory() as folder:
        turns.fit(Trainer(config, corpus, Path(folder), listeners=[turns]))
    seen |= {"training_file": memory.sample()["RssFile"], "training_peak": memory.peak}
    grids = len(corpus.train) + len(corpus.val)
    parent.send(Measured(grids, loading, turns.training, turns.evaluation, seen))
