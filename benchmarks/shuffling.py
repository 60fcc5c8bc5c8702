"""`python -m benchmarks.shuffling`: the effect of shuffling in blocks, as for large files, on results."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
from bvae.corpus import Corpus, load_corpus
from bvae.corpus.built_in import generate_atomic
from bvae.hardware import resolve_precision
from bvae.trainer import Trainer
from bvae.training import optimization

DESCRIPTION = """\
Trains a loss option with three shuffles and the same seeds. The procedural grids are sorted by background
share, which is the worst order for a shuffle of blocks. The shuffles are:

  full     a full permutation, as for every corpus of up to 256 MiB;
  blocks   the shuffle of larger files, scaled down to a few windows of up to 1024 blocks;
  coarse   the same windows with 64 larger blocks each, to show the effect of a poor shuffle.

Accuracy and IoU of `full` and `blocks` should agree within the spread of the seeds. This takes about a
quarter of an hour."""

WINDOWS = 3
BLOCKS = optimization.WINDOW_CELLS // optimization.BLOCK_CELLS
"""Number of blocks in a window."""


def write_sorted(path: Path, count: int) -> None:
    """Save `count` procedural grids, sorted by increasing share of background."""
    grids = generate_atomic(count).grids
    np.save(path, grids[np.argsort((grids == 0).sum((1, 2)), kind="stable")])


def shuffles(n: int) -> dict[str, tuple[int, int]]:
    """Return the grids per block and the grids per window of each way to shuffle n grids."""
    block = max(1, n // WINDOWS // BLOCKS)
    window = block * BLOCKS
    return {"full": (1, n), "blocks": (block, window), "coarse": (16 * block, window)}


def train(corpus: Corpus, option: str, seed: int, epochs: int, rows: tuple[int, int]) -> dict[str, float]:
    """Train a run; return validation accuracy and foreground IoU after the last epoch."""
    training = TrainingConfig(epochs=epochs, precision=resolve_precision("auto"))
    experiment = ExperimentConfig(corpus=corpus.spec, training=training)
    config = experiment.run(LOSS_OPTIONS[option], seed, corpus.fingerprint)
    block, window = (count * corpus.grid_size**2 for count in rows)
    scaled = mock.patch.multiple(optimization, BLOCK_CELLS=block, WINDOW_CELLS=window)
    with tempfile.TemporaryDirectory() as folder, scaled:
        last = Trainer(config, corpus, Path(folder)).fit()[-1].validation
    if last.pixel_accuracy is None or last.foreground_iou is None:
        raise SystemExit("the validation split has no foreground, so there is no IoU to compare")
    return {"pixel_accuracy": last.pixel_accuracy, "foreground_iou": last.foreground_iou}


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.shuffling",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--grids", type=int, default=20_000, metavar="N", help="Default: 20000")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="Default: 5")
    parser.add_argument("--seeds", type=int, default=9, metavar="N", help="Default: 9")
    parser.add_argument("--option", default="B", choices=LOSS_OPTIONS, help="The loss. Default: B")
    output = Path("runs/shuffling.json")
    parser.add_argument("--output", type=Path, default=output, metavar="FILE", help=f"Default: {output}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sorted.npy"
        write_sorted(path, arguments.grids)
        corpus = load_corpus(str(path))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in shuffles(len(corpus.train))}
    for seed in range(arguments.seeds):
        for name, rows in shuffles(len(corpus.train)).items():
            results[name].append(train(corpus, arguments.option, seed, arguments.epochs, rows))
            print(f"[{time.strftime('%H:%M:%S')}] seed {seed}, {name}: {results[name][-1]}", file=sys.stderr)
    print(f"| shuffle | grids per block, per window | accuracy, mean of {arguments.seeds} [range] | IoU |")
    print("| --- | --- | --- | --- |")
    for name, (block, window) in shuffles(len(corpus.train)).items():
        measured = ([run[metric] for run in results[name]] for metric in ("pixel_accuracy", "foreground_iou"))
        columns = (f"{statistics.mean(of):.4f} [{min(of):.4f} {max(of):.4f}]" for of in measured)
        print(f"| {name} | {block}, {window} | {' | '.join(columns)} |")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
