"""Train runs at many settings, without pytest. A file stores the outcomes, so no run is trained twice."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from bvae.config import LOSS_OPTIONS, AccuracyBand, ExperimentConfig, RunConfig, TrainingConfig
from bvae.corpus import load_corpus
from bvae.hardware import resolve_precision
from bvae.records import Evaluation, VerdictName
from bvae.storage import from_json
from bvae.trainer import Trainer
from bvae.verdict import judge_run


@dataclasses.dataclass(frozen=True)
class Point:
    """One run: an option, a seed, a corpus, and the changes to the default training settings."""

    option: str
    seed: int
    corpus: str = ExperimentConfig().corpus
    changes: tuple[tuple[str, float | str], ...] = ()

    @property
    def training(self) -> TrainingConfig:
        """The training settings of the run."""
        return dataclasses.replace(
            TrainingConfig(), precision=resolve_precision("auto"), **dict[str, Any](self.changes)
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    point: Point
    training: TrainingConfig
    verdict: VerdictName
    reason: str
    metrics: Evaluation | None
    seconds: float


def train(point: Point) -> Outcome:
    """Train a run, in one thread and without pictures, and judge it."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    corpus, training = load_corpus(point.corpus), point.training
    config = RunConfig(
        option=LOSS_OPTIONS[point.option],
        seed=point.seed,
        corpus=point.corpus,
        corpus_fingerprint=corpus.fingerprint,
        grid_size=corpus.grid_size,
        padding_value=None,
        training=training,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, corpus, Path(folder))
        history = trainer.fit()
    verdict = judge_run(history, trainer.divergence, AccuracyBand())
    metrics = history[-1].validation if history else None
    return Outcome(point, training, verdict.name, verdict.reason, metrics, time.perf_counter() - started)


def sweep(points: Sequence[Point], file: Path, processes: int) -> list[Outcome]:
    """Return the outcome of each point. Points that are not in the file are trained and appended to it."""
    known = {outcome.point: outcome for outcome in read(file)}
    missing = [point for point in dict.fromkeys(points) if point not in known]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool, file.open("ab") as lines:
        for number, outcome in enumerate(pool.imap_unordered(train, missing), 1):
            known[outcome.point] = outcome
            lines.write(msgspec.json.encode(outcome) + b"\n")
            lines.flush()
            print(f"{number} of {len(missing)}: {describe(outcome)}", flush=True)
    return [known[point] for point in points]


def read(file: Path) -> Iterator[Outcome]:
    """Yield the outcomes in a file."""
    if file.exists():
        yield from (from_json(line, Outcome) for line in file.read_text().splitlines())


def describe(outcome: Outcome) -> str:
    """Return the outcome of a run as one line."""
    point, found = outcome.point, outcome.metrics
    changes = " ".join(f"{name}={value}" for name, value in point.changes)
    head = f"{point.corpus} {point.option}-seed{point.seed} {changes}: {outcome.verdict}"
    if found is None:
        return head
    numbers = ("pixel_accuracy", "object_iou", "object_recall", "minor_object_recall", "objects_recognised")
    text = ", ".join(f"{name} {getattr(found, name):.3f}" for name in numbers)
    return f"{head}, {text}, classes {found.classes_learned}, KL {found.kl:.1f}, {outcome.seconds:.0f} s"


def parse_arguments(program: str, description: str | None) -> tuple[Path, int]:
    """Read the command line of a sweep: the file of outcomes and the number of processes."""
    name = program.rpartition(".")[2]
    parser = argparse.ArgumentParser(f"python -m {program}", description=description)
    default = Path(f"runs/{name}.jsonl")
    parser.add_argument("--file", type=Path, default=default, help=f"File of outcomes. Default: {default}")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="Default: one per core")
    arguments = parser.parse_args()
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    return arguments.file, arguments.processes


def foreground_ratio(metrics: Evaluation | None) -> float | None:
    """Return predicted foreground / true foreground, None if undefined."""
    if metrics is None or metrics.predicted_foreground_rate is None or not metrics.foreground_rate:
        return None
    return metrics.predicted_foreground_rate / metrics.foreground_rate
