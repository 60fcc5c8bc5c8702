"""`python -m benchmarks.cluster`: what `--engine ray` costs, for many tiny runs."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ray.cluster_utils import Cluster

from benchmarks import machine
from benchmarks.machine import say
from benchmarks.turns import STATUS
from bvae.engine import find_scheduler
from bvae.experiment import Experiment
from bvae.options import parse_experiment

DESCRIPTION = """\
Trains N tiny runs (three steps, one checkpoint) on a Ray cluster of this machine with two workers. Measures
the processor time and memory of the controller, the process that submits the runs and waits for them. Then
compares the speed of two workers with that of one, and the speed of two processes without an engine with that
of one. Each comparison trains N/10 runs. Finally times sessions of pytest with N runs, with two Ray workers
and with -n2. Measurements that are compared are made in turns."""

SETTINGS = {"grid_size": "8", "epochs": "1", "batch_size": "16", "loss_options": "A", "precision": "fp32"}
PARTS = 4
"""Number of parts into which the runs are divided, to show whether time or memory grows."""
TURNS, SESSIONS = 5, 2
"""How often speeds are compared, and how often sessions of pytest are timed."""


class Part(NamedTuple):
    """Measurements after a number of runs: wall time and controller's processor time in s, memory in MB."""

    runs: int
    wall: float
    processor: float
    memory: float


def write_corpus(folder: Path) -> str:
    """Write 60 grids to a file, and return its name."""
    path = folder / "corpus.npz"
    grids = np.random.default_rng(0).integers(0, 10, (60, 8, 8)) * (np.arange(8) < 3)
    np.savez(path, train=grids[:48], val=grids[48:])
    return str(path)


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """Start a cluster on this machine with one core for each worker, and yield its address."""
    size = {"num_cpus": workers, "object_store_memory": 128 * 2**20, "include_dashboard": False}
    found = Cluster(True, head_node_args=size)
    try:
        yield found.address
    finally:
        found.shutdown()


def prepare(folder: Path, runs: int) -> Experiment:
    """Return an experiment of tiny runs with an open session."""
    given = {**SETTINGS, "corpus": write_corpus(folder), "seeds": str(runs)}
    experiment = Experiment.prepare(parse_experiment(given), folder / "runs", [])
    experiment.open_session()
    experiment.selected = experiment.runs
    return experiment


def measure(folder: Path, runs: int, workers: int) -> list[Part]:
    """Train runs on a cluster, and return what was measured after each part of them."""
    experiment = prepare(folder, runs)
    with cluster(workers) as address:
        experiment.make_scheduler = find_scheduler(f"ray:{address}", "1", "cpu")
        spent, scheduler = time.process_time(), experiment.scheduler
        for run in experiment.runs[:workers]:  # after these runs, workers have imported PyTorch
            scheduler.obtain(run)
        parts, began = [], time.perf_counter()
        for number, run in enumerate(experiment.runs, start=1):
            scheduler.obtain(run)
            if number * PARTS % runs < PARTS:
                part = Part(number, time.perf_counter() - began, time.process_time() - spent, memory())
                say("{} workers: {} runs after {:.1f} s; {:.2f} s, {:.0f} MB".format(workers, *part))
                parts.append(part)
        experiment.close_session(interrupted=True)
    return parts


def duration(parts: list[Part]) -> float:
    """Return the seconds from the end of the first part to the end of the last; all workers train then."""
    return parts[-1].wall - parts[0].wall


def without_engine(runs: int) -> float:
    """Train runs in this process, and return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = prepare(Path(folder), runs + 1)
        experiment.scheduler.obtain(experiment.runs[0])
        began = time.perf_counter()
        for run in experiment.runs[1:]:
            experiment.scheduler.obtain(run)
        return time.perf_counter() - began


def compare_speeds(folder: Path, runs: int) -> tuple[float, float]:
    """Return the speed of two workers of Ray, and of two processes without an engine, relative to one."""
    two, one = (duration(measure(folder, runs, workers)) for workers in (2, 1))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        both = max(pool.map(without_engine, (runs // 2, runs // 2)))
        found = one / two, pool.submit(without_engine, runs).result() / both
    say("two workers are {:.2f} times as fast as one; two processes {:.2f} times".format(*found))
    return found


def memory() -> float:
    """Return the private memory of this process in megabytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024 / 1e6


def whole_session(folder: Path, runs: int, *engine: str) -> float:
    """Return the seconds of a pytest session with `runs` runs."""
    settings = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "bvae.plugin",
        "--pyargs",
        "bvae.experiments",
        "-q",
        *engine,
    ]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, *settings, f"--corpus={write_corpus(folder)}", f"--seeds={runs}"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest {' '.join(engine)} exited with {done.returncode}")
    seconds = time.perf_counter() - began
    say(f"pytest {' '.join(engine)}: {runs} runs in {seconds:.1f} s")
    return seconds


def lines(
    parts: list[Part], speeds: list[tuple[float, float]], sessions: dict[str, list[float]]
) -> Iterator[str]:
    """Yield the results as Markdown."""
    yield "| runs | wall time, s | controller: processor time, s | memory, MB |"
    yield "| --- " * 4 + "|"
    for part in parts:
        yield "| {} | {:.1f} | {:.2f} | {:.0f} |".format(*part)
    per_run = 1000 * parts[-1].processor / parts[-1].runs
    yield f"{per_run:.1f} ms of the controller's processor time for each run"
    names = ("workers of Ray", "processes without an engine")
    for name, found in zip(names, zip(*speeds, strict=True), strict=True):
        turns = ", ".join(f"{speed:.2f}" for speed in found)
        yield f"two {name}: {statistics.mean(found):.2f} times as fast as one ({turns})"
    for name, seconds in sessions.items() if all(sessions.values()) else ():
        yield f"pytest, {name}: {', '.join(f'{each:.1f} s' for each in seconds)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.cluster",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="Default: 1000")
    parser.add_argument("--only", choices=("scheduler",), help="Leave out the sessions of pytest")
    output = Path("runs/cluster.json")
    parser.add_argument("--output", type=Path, default=output, metavar="FILE", help=f"Default: {output}")
    arguments = parser.parse_args()
    if arguments.runs < 100 or arguments.runs % 20:
        parser.error(f"--runs is {arguments.runs}; expected a multiple of 20, and at least 100")
    sessions: dict[str, list[float]] = {"two workers of Ray": [], "-n2": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = measure(folder, arguments.runs, 2)
        speeds = [compare_speeds(folder, arguments.runs // 10) for _ in range(TURNS)]
        for _ in range(0 if arguments.only else SESSIONS):
            with cluster(2) as address:
                seconds = whole_session(folder, arguments.runs, f"--engine=ray:{address}")
                sessions["two workers of Ray"].append(seconds)
            sessions["-n2"].append(whole_session(folder, arguments.runs, "-n2"))
    print(*lines(parts, speeds, sessions), sep="\n")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine.describe(), "controller": parts, "speeds": speeds, "sessions": sessions}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
