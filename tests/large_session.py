"""Make a session with many runs in seconds: train one run of each option, and copy it under other seeds.

    python tests/large_session.py OPTIONS SEEDS

writes the session into the current folder and prints its path. Copies share unchanged files as hard links.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
from lab import squares

from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
from bvae.experiment import Experiment
from bvae.records import RunResult
from bvae.session.folder import Session, read_history
from bvae.session_files import CONFIG, METRICS, RESULT, digests
from bvae.storage import sealed, to_json


@dataclasses.dataclass(frozen=True)
class ManyRuns:
    """A session of `options` × `seeds` runs, two HTML reports on it, and what their commands printed."""

    options: int
    seeds: int
    session: Path
    pages: tuple[Path, Path]
    output: str


OUTLYING = {"mode_collapse": "flooding", "posterior_collapse": "partial_collapse"}
"""Verdict that every ninth copy gets, by verdict of the trained run. Without an entry, it is `unstable`."""


def make_session(folder: Path, options: int, seeds: int) -> Path:
    """Train and copy runs in `folder`; return the path of the session, which has no comparison."""
    corpus = folder / "squares.npz"
    np.savez(corpus, train=squares()["train"][:200], val=squares()["val"][:30])
    names = [f"{'ABC'[number % 3]}{number}" for number in range(options)]
    config = ExperimentConfig(
        corpus=str(corpus),
        grid_size=8,
        options=tuple(dataclasses.replace(LOSS_OPTIONS[name[0]], name=name) for name in names),
        seeds=seeds,
        training=TrainingConfig(epochs=2, latent_dim=4, batch_size=50, keep_checkpoints=1),
    )
    experiment = Experiment.prepare(config, folder / "runs", ["experiments/"])
    experiment.open_session()
    for option in experiment.config.options:
        result = experiment.obtain((option, 0))
        for seed in range(1, seeds):
            copy_run(experiment.session, result, seed)
    assert experiment._lock is not None
    experiment._lock.release()
    return experiment.session.path


def copy_run(session: Session, result: RunResult, seed: int) -> None:
    """Copy the run of a result under another seed, with a slightly different object IoU."""
    source = session.path / f"{result.option}-seed{result.seed}"
    option = next(option for option in session.record.config.options if option.name == result.option)
    run = session.run_config(option, seed)
    folder = session.path / run.name
    shutil.copytree(source, folder, copy_function=os.link)
    assert result.metrics is not None
    noise = np.random.default_rng([seed, len(result.option)]).uniform(0, 0.05)
    metrics = dataclasses.replace(result.metrics, object_iou=(result.metrics.object_iou or 0) + noise)
    *history, last = read_history(source)
    lines = msgspec.json.Encoder().encode_lines([*history, dataclasses.replace(last, validation=metrics)])
    for name, data in ((CONFIG, to_json(run)), (METRICS, lines)):
        (folder / name).unlink()
        (folder / name).write_bytes(data)
    verdict = OUTLYING.get(result.verdict, "unstable") if seed % 9 == 4 else result.verdict
    copied = dataclasses.replace(
        result, seed=seed, verdict=verdict, reason=f"copied: {result.reason}", metrics=metrics
    )
    copied = sealed(dataclasses.replace(copied, digests=digests(folder)))
    (folder / RESULT).unlink()
    (folder / RESULT).write_bytes(to_json(copied))


if __name__ == "__main__":
    print(make_session(Path.cwd(), *map(int, sys.argv[1:])))
