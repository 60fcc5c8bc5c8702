"""`python -m benchmarks.scale`: time per grid and memory for corpora of different sizes."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.machine import say
from benchmarks.turns import MEGABYTE, STATUS, Measured, Plan, measure
from bvae.corpus import COUNTS
from bvae.corpus.built_in import SIZE, generate_atomic

DESCRIPTION = """\
Trains on procedural corpora of three sizes, and on a .npy file that it writes into the temporary folder
(TMPDIR). Each corpus has its own process with a limit on private memory (RLIMIT_DATA). The processes take
turns of a few dozen steps. Ratios are relative to the smallest corpus in the same turn, so they stay valid if
the speed of the machine drifts.

Memory is read from /proc/self/status. RssAnon is private to the process. RssFile is shared with the page
cache, and the kernel can reclaim it."""

EXAMPLES = """\
examples:
  python -m benchmarks.scale                                      full size; about two minutes
  python -m benchmarks.scale --grids 50000 --file-gigabytes 0.1   small size; about one minute"""

ALLOWED_RATIO = 1.10
ALLOWED_GROWTH = 600
"""Megabytes by which loading and training on the largest procedural corpus may increase private memory."""


def write_grids(path: Path, megabytes: float) -> int:
    """Write procedural grids of about `megabytes` to a `.npy` file, and return the number of grids."""
    pool = generate_atomic(20_000).grids
    count = max(20, round(megabytes * MEGABYTE / SIZE**2))
    rng = np.random.default_rng(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIZE, SIZE)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, 2**16):
            file.write(pool[rng.integers(len(pool), size=min(2**16, count - start))].data)
    return count


def run(specs: list[str], plan: Plan, repeats: int) -> list[Measured]:
    """Measure each corpus in a separate process; the processes take turns."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for spec in specs:
        ours, theirs = context.Pipe()
        context.Process(target=measure, args=(spec, plan, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    corpora = dict(zip(specs, pipes, strict=True))
    for spec, pipe in corpora.items():
        say(f"{spec}: loading")
        say(f"{spec}: loaded in {_ask(spec, pipe):.1f} s; a turn to warm up")
        _ask(spec, pipe)
    for repeat in range(repeats):
        for spec, pipe in corpora.items():
            training, evaluation = _ask(spec, pipe)
            say(f"turn {repeat + 1}: {spec}: training {training:.3f}, evaluation {evaluation:.3f} ms/grid")
    return [_without_warm_up(_ask(spec, pipe, go_on=False)) for spec, pipe in corpora.items()]


def _ask(spec: str, pipe: Connection, *, go_on: bool = True) -> Any:
    """Tell a process to go on, and return its answer."""
    try:
        pipe.send(go_on)
        return pipe.recv()
    except (EOFError, ConnectionError):
        raise SystemExit(f"{spec}: the process ended; see the error above") from None


def _without_warm_up(measured: Measured) -> Measured:
    return measured._replace(training=measured.training[1:], evaluation=measured.evaluation[1:])


def ratios(times: list[float], reference: list[float]) -> list[float]:
    """Return the time of each turn of a corpus, divided by the time of another corpus in the same turn."""
    return [time / other for time, other in zip(times, reference, strict=True)]


def table(names: list[str], found: list[Measured]) -> list[str]:
    """Return a Markdown table: medians over the turns, with lower and upper quartiles."""
    lines = [
        "| corpus | grids | loading, s | training, ms per grid | ratio | evaluation, ms per grid | ratio "
        "| RssAnon, MB: base | + loading | + training | RssFile, MB |",
        "| --- " * 11 + "|",
    ]
    for name, each in zip(names, found, strict=True):
        columns = [name, f"{each.grids:,}", f"{each.loading_seconds:.1f}"]
        for kind in ("training", "evaluation"):
            times = getattr(each, kind)
            of = ratios(times, getattr(found[0], kind))
            low, _, high = statistics.quantiles(of, n=4, method="inclusive") if len(of) > 1 else of * 3
            columns += [
                f"{statistics.median(times):.3f}",
                f"{statistics.median(of):.2f} [{low:.2f} {high:.2f}]",
            ]
        memory = each.memory
        columns += [f"{memory['base']:.0f}"]
        columns += [f"{memory[key] - memory['base']:.0f}" for key in ("loading_peak", "training_peak")]
        lines.append(f"| {' | '.join([*columns, format(memory['training_file'], '.0f')])} |")
    return lines


def conclusions(found: list[Measured], limit: int) -> list[str]:
    """Return a line for each requirement: whether it is met, the measured number, and its limit."""
    *sizes, file = found
    slowest = max(statistics.median(ratios(each.training, sizes[0].training)) for each in sizes)
    growth = sizes[-1].peak() - sizes[-1].memory["base"]
    claims = [
        (f"time per grid with up to {sizes[-1].grids:,} grids", f"×{slowest:.2f}", slowest <= ALLOWED_RATIO),
        (f"memory above the base at {sizes[-1].grids:,} grids", f"{growth:.0f} MB", growth <= ALLOWED_GROWTH),
        (
            f"private memory with {file.grids:,} grids of a file",
            f"{file.peak():.0f} MB",
            file.peak() <= limit,
        ),
    ]
    allowed = (f"×{ALLOWED_RATIO:.2f}", f"{ALLOWED_GROWTH} MB", f"{limit} MB")
    return [
        f"{'met' if holds else 'NOT MET'}: {what}: {value}, at most {most}"
        for (what, value, holds), most in zip(claims, allowed, strict=True)
    ]


def parse() -> argparse.Namespace:
    """Parse the command line. Exits with a message if an argument is wrong."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scale",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--file-gigabytes", type=float, default=4, metavar="GB", help="Size of the .npy file. Default: 4"
    )
    for flag, default, text in (
        ("--grids", 500_000, "The largest procedural corpus; the others have N/10 and N/100."),
        ("--steps", 30, "Training steps per turn."),
        ("--repeats", 15, "Turns that are counted."),
        ("--limit-megabytes", 1000, "Limit on the private memory of each process."),
    ):
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} Default: {default}")
    output = Path("runs/scale.json")
    parser.add_argument("--output", type=Path, default=output, metavar="FILE", help=f"Default: {output}")
    arguments = parser.parse_args()
    smallest, largest = 100 * COUNTS[0], COUNTS[-1]
    if not smallest <= arguments.grids <= largest:
        parser.error(f"--grids is {arguments.grids}; expected {smallest} to {largest}")
    for name in ("steps", "repeats", "limit_megabytes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected 1 or more")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 10**9
    if not 0 < arguments.file_gigabytes < free:
        expected = f"above 0 and below the {free:.1f} GB free in {folder} (set TMPDIR to use another folder)"
        parser.error(f"--file-gigabytes is {arguments.file_gigabytes:g}; expected {expected}")
    if not STATUS.exists():
        parser.error(f"memory is read from {STATUS}, which does not exist here; run this on Linux")
    return arguments


def main() -> None:
    arguments = parse()
    plan = Plan(arguments.steps, arguments.grids // 1000, arguments.limit_megabytes)
    specs = [f"atomic:{arguments.grids // divisor}" for divisor in (100, 10, 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grids.npy"
        say(f"writing {arguments.file_gigabytes:g} GB to {path}")
        write_grids(path, arguments.file_gigabytes * 1000)
        found = run([*specs, str(path)], plan, arguments.repeats)
    names = [*specs, f".npy of {arguments.file_gigabytes:g} GB"]
    result = {
        "machine": machine.describe(),
        "plan": plan._asdict(),
        "corpora": {name: each._asdict() for name, each in zip(names, found, strict=True)},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(*table(names, found), "", *conclusions(found, arguments.limit_megabytes), sep="\n")
    say(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
