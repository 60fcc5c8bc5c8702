"""Time the parts of an experiment, and whole experiments."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent

Say = Callable[[str], None]


def _seconds(act: Callable[[], object], repeats: int) -> list[float]:
    """Call a function once to warm up, then return the wall time of each repeat in seconds."""
    act()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return taken


def measure(repeats: int, say: Say, *, experiments: int = 2) -> dict[str, list[float]]:
    """Return the seconds of each part on one thread, and of whole default experiments, in each repeat."""
    from bvae.corpus import load_corpus

    torch.set_num_threads(1)
    measured: dict[str, list[float]] = {}
    say("timing the parts of a run")
    with tempfile.TemporaryDirectory() as folder:
        measured |= _parts_of_a_run(repeats, Path(folder))
    for name in ("arc", "atomic:20000"):
        measured[f"load the corpus {name}"] = _seconds(functools.partial(load_corpus, name), repeats)
    say("timing imports")
    measured |= _imports(repeats)
    say(f"timing the default experiment {experiments} times, two to ten minutes each")
    with tempfile.TemporaryDirectory() as folder:
        measured |= _experiments(experiments, Path(folder))
    return measured


def _parts_of_a_run(repeats: int, folder: Path) -> dict[str, list[float]]:
    from bvae.beta_vae import Output
    from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
    from bvae.corpus import load_corpus
    from bvae.evaluation import evaluate
    from bvae.hardware import resolve_precision
    from bvae.records import Progress
    from bvae.trainer import Trainer, run_loss
    from bvae.training.checkpoint import load_checkpoint, save_checkpoint
    from bvae.visualization import plot_reconstructions

    corpus = load_corpus("arc")
    precision = resolve_precision("auto")
    experiment = ExperimentConfig(training=TrainingConfig(epochs=1, precision=precision))
    run = experiment.run(LOSS_OPTIONS["B"], 0, corpus.fingerprint)
    trainer = Trainer(run, corpus, folder)
    trainer.fit()
    saved = folder / "checkpoints/epoch_001.safetensors"
    checkpoint = load_checkpoint(saved, Progress)
    grids, loss = corpus.sample_grids(), run_loss(run, corpus)

    def loss_of(output: Output, target: torch.Tensor) -> torch.Tensor:
        return loss(*output, target).total

    def picture() -> None:
        plot_reconstructions(trainer.model, grids, path=io.BytesIO(), title="A title", loss=loss_of)

    return {
        "a picture of ten grids": _seconds(picture, repeats),
        f"an evaluation of {len(corpus.val)} grids": _seconds(
            lambda: evaluate(trainer.model, corpus.val, loss, precision=precision), repeats
        ),
        f"a checkpoint of {saved.stat().st_size / 1e6:.1f} MB, under two names": _seconds(
            lambda: save_checkpoint(checkpoint, saved, folder / "best.safetensors"), repeats
        ),
    }


def _imports(repeats: int) -> dict[str, list[float]]:
    """Return the time to import torch, and the time that importing bvae adds, from pairs of processes."""

    def of(statement: str) -> float:
        clock = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
        done = subprocess.run(
            [sys.executable, "-c", clock.format(statement)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        return float(done.stdout)

    of("import torch, bvae")
    pairs = [(of("import torch"), of("import torch, bvae")) for _ in range(repeats)]
    return {
        "import torch": [alone for alone, _ in pairs],
        "import bvae, beyond torch": [both - alone for alone, both in pairs],
    }


def _experiments(repeats: int, folder: Path) -> dict[str, list[float]]:
    """Return the seconds of the default experiment with its report, and of the parts in `stopwatch`."""
    measured: dict[str, list[float]] = {}
    for number in range(repeats):
        watch = folder / f"watch{number}"
        watch.mkdir()
        report, runs = folder / f"{number}.html", folder / f"runs{number}"
        started = time.perf_counter()
        watched = ("-p", "benchmarks.stopwatch")
        command = ("pytest", "experiments/", f"--html={report}", f"--run-dir={runs}", *watched)
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env={**os.environ, "BVAE_STOPWATCH": str(watch)},
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        if done.returncode not in (0, 1):  # 1: the gate failed, but the experiment is complete
            raise SystemExit(
                f"the experiment ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        whole = time.perf_counter() - started
        spent: dict[str, float] = {}
        for file in watch.iterdir():
            for name, seconds in json.loads(file.read_text()).items():
                spent[name] = spent.get(name, 0.0) + seconds
        for name, seconds in {"the default experiment": whole, **spent}.items():
            measured.setdefault(name, []).append(seconds)
        shutil.rmtree(runs)
    return measured
