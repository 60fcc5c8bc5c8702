"""`python -m benchmarks.cluster`: costs of `--engine ray` in the controller, for many tiny runs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ray.cluster_utils import Cluster

from benchmarks import machine
from benchmarks.machine import say
from benchmarks.turns import STATUS
from bvae.engine import find_scheduler
from bvae.experiment import Experiment
from bvae.options import parse_experiment

DESCRIPTION = """\
Trains N tiny runs (three steps, one checkpoint) on a Ray cluster of this machine, first with two workers and
then with one. Measures the processor time and memory of the controller, the process that submits the runs and
waits for them. Then times three sessions of pytest: with two Ray workers, with -n2 and with -n1."""

SETTINGS = {"grid_size": "8", "epochs": "1", "batch_size": "16", "loss_options": "A", "precision": "fp32"}
PARTS = 4
"""Number of parts into which the runs are divided, to show whether time or memory grows."""


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


def measure(folder: Path, runs: int, workers: int) -> dict[str, Any]:
    """Train runs on a cluster; return the controller's times in s and memory in MB after each part."""
    given = {**SETTINGS, "corpus": write_corpus(folder), "seeds": str(runs)}
    experiment = Experiment.prepare(parse_experiment(given), folder / "runs", [])
    experiment.open_session()
    experiment.selected = experiment.runs
    with cluster(workers) as address:
        experiment.make_scheduler = find_scheduler(f"ray:{address}", "1", "cpu")
        began, spent = time.perf_counter(), time.process_time()
        scheduler = experiment.scheduler
        submitted = time.perf_counter() - began
        say(f"{workers} workers: {runs} runs submitted in {submitted:.1f} s")
        scheduler.obtain(experiment.runs[0])  # after this call, workers have imported PyTorch
        parts, began = [], time.perf_counter()
        for number, run in enumerate(experiment.runs, start=1):
            scheduler.obtain(run)
            if number * PARTS % runs < PARTS:
                part = number, time.perf_counter() - began, time.process_time() - spent, memory()
                say("{} workers: {} runs after {:.1f} s; {:.2f} s, {:.0f} MB".format(workers, *part))
                parts.append(part)
        experiment.close_session(interrupted=True)
    return {"workers": workers, "runs": runs, "submitted": submitted, "parts": parts}


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
    return time.perf_counter() - began


def lines(found: list[dict[str, Any]], sessions: dict[str, float]) -> Iterator[str]:
    """Yield the results as Markdown tables."""
    yield "| workers | runs | wall time, s | controller: processor time, s | memory, MB |"
    yield "| --- " * 5 + "|"
    for each in found:
        for number, wall, processor, megabytes in each["parts"]:
            yield f"| {each['workers']} | {number} | {wall:.1f} | {processor:.2f} | {megabytes:.0f} |"
    for each in found:
        per_run = 1000 * each["parts"][-1][2] / each["runs"]
        yield f"{each['workers']} workers: {per_run:.1f} ms of the controller's processor time for each run"
    yield from (f"pytest, {name}: {seconds:.1f} s" for name, seconds in sessions.items())


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
    if arguments.runs < PARTS:
        parser.error(f"--runs is {arguments.runs}; expected {PARTS} or more")
    found, sessions = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for workers in (2, 1):
            found.append(measure(Path(folder), arguments.runs, workers))
        if arguments.only is None:
            with cluster(2) as address:
                name = "ray with two workers"
                sessions[name] = whole_session(Path(folder), arguments.runs, f"--engine=ray:{address}")
            for workers in (2, 1):
                name = f"xdist -n{workers}"
                sessions[name] = whole_session(Path(folder), arguments.runs, f"-n{workers}")
    print(*lines(found, sessions), sep="\n")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine.describe(), "scheduler": found, "sessions": sessions}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
