"""Trainers in separate processes. Each epoch starts when the benchmark sends a signal."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The training that every contender runs.

    Attributes:
        grids: uint8 `[N, 16, 16]`; N is a multiple of the batch size.
        weight: `[C]`, the class weights of the loss option.
        epochs: number of epochs, including the first, which is not counted.
        tuned: whether to use bf16. Tuned peers also use channels_last and, except Lightning, the fused Adam.
        corpus, option: names from which bvae itself makes the grids and the weights.
    """

    grids: NDArray[np.uint8]
    weight: tuple[float, ...]
    gamma: float
    beta: float
    learning_rate: float
    max_gradient_norm: float
    batch_size: int
    latent_dim: int
    seed: int
    epochs: int
    tuned: bool
    corpus: str
    option: str


class Pace:
    """Starts each epoch of a trainer on a signal from the benchmark, and reports the speed of the epoch.

    The first third of the steps is not counted, because a process is slow after a pause.
    """

    def __init__(self, wire: Connection) -> None:
        self._wire = wire
        self._ends: list[float] = []

    def epoch_begins(self) -> None:
        """Report that the trainer is ready, and wait for the signal to begin."""
        self._wire.send(None)
        self._wire.recv()
        self._ends = []

    def step_ends(self) -> None:
        """Record the time at which a step ends."""
        self._ends.append(time.perf_counter())

    def epoch_ends(self) -> None:
        """Report the steps per second."""
        counted = self._ends[len(self._ends) // 3 :]
        self._wire.send((len(counted) - 1) / (counted[-1] - counted[0]))


Train = Callable[[Job, Pace], None]


class Contender:
    """A trainer in `processes` processes with `threads` threads each. All processes train at the same time.

    Args:
        name: the trainer and its precision.
        train: a function at module level, because the new process looks it up by name.
    """

    def __init__(self, name: str, train: Train, job: Job, *, processes: int, threads: int) -> None:
        self.name, self.train, self.job = name, train, job
        self.processes, self.threads = processes, threads
        self._running: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    @property
    def label(self) -> str:
        return f"{self.name}, {self.processes}×{self.threads}"

    def __enter__(self) -> Contender:
        spawn = multiprocessing.get_context("spawn")
        for number in range(self.processes):
            here, there = spawn.Pipe()
            job = dataclasses.replace(self.job, seed=self.job.seed + number)
            process = spawn.Process(target=_begin, args=(self.train, job, there, self.threads), daemon=True)
            process.start()
            there.close()
            self._running.append((process, here))
        for _, wire in self._running:
            wire.recv()
        return self

    def epoch(self, *, last: bool) -> float:
        """Train an epoch in all processes at once; return their total images per second."""
        for _, wire in self._running:
            wire.send(None)
        steps_a_second: float = sum(wire.recv() for _, wire in self._running)
        if not last:
            for _, wire in self._running:
                wire.recv()  # wait until it is ready for its next epoch, so that it does not disturb others
        return steps_a_second * self.job.batch_size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, _ in self._running:
            process.join(timeout=30)
            process.kill()


def _begin(train: Train, job: Job, wire: Connection, threads: int) -> None:
    torch.set_num_threads(
        threads
    )  # before the first operator; otherwise idle threads of several processes keep the cores busy
    with Path(os.devnull).open("w") as nowhere:  # hide the output of trainers
        os.dup2(nowhere.fileno(), 1)
    train(job, Pace(wire))


def train_bvae(job: Job, pace: Pace) -> None:
    """Train with bvae's Trainer. Checkpoints and evaluations are not part of the measured time."""
    import tempfile

    from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
    from bvae.corpus import load_corpus
    from bvae.records import CheckpointSaved, Event, Stepped
    from bvae.trainer import Trainer

    corpus = load_corpus(job.corpus)
    training = TrainingConfig(
        epochs=job.epochs,
        beta=job.beta,
        learning_rate=job.learning_rate,
        batch_size=job.batch_size,
        latent_dim=job.latent_dim,
        max_gradient_norm=job.max_gradient_norm,
        precision="bf16" if job.tuned else "fp32",
    )
    experiment = ExperimentConfig(corpus=job.corpus, training=training)
    run = experiment.run(LOSS_OPTIONS[job.option], job.seed, corpus.fingerprint)

    def follow(event: Event) -> None:
        if isinstance(event, Stepped):
            pace.step_ends()
            if event.step == event.epoch * trainer.steps_per_epoch:
                pace.epoch_ends()
        if isinstance(event, CheckpointSaved) and trainer.epoch < job.epochs:
            pace.epoch_begins()

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, corpus, Path(folder), listeners=[follow])
        pace.epoch_begins()
        trainer.fit()
