"""`python -m benchmarks`: how fast bvae trains, compared with a plain loop, Lightning and Pythae."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from pathlib import Path

import torch

from benchmarks import machine, parts, peers
from benchmarks.contenders import Contender, Job, train_bvae
from benchmarks.machine import say
from bvae.beta_vae import option_weights
from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
from bvae.corpus import load_corpus
from bvae.hardware import resolve_precision

DESCRIPTION = """\
Measures how fast bvae, a plain PyTorch loop, Lightning and Pythae train the same model with the same loss,
grids and batch size. Each combination of trainer, precision, processes and threads is a contender.

Contenders take turns of one epoch, each alone on the machine. The first epoch warms up; the later epochs are
counted. The first third of each epoch is not counted, because a process is slow after a pause. A ratio
compares epochs of the same round, so it stays valid if the speed of the machine drifts.

Then the parts of an experiment are timed, and whole experiments. Contenders use up to two cores, whole
experiments all cores. All contenders are in memory at once, which takes about 8 GB."""

PEERS = {"plain loop": peers.train_loop, "Lightning": peers.train_lightning, "Pythae": peers.train_pythae}
FEWEST_STEPS = 5
SPREADS = ((1, 1), (1, 2), (2, 1))
"""Numbers of processes and threads with which each peer is measured. bvae is only measured with (2, 1)."""


def make_job(corpus_name: str, option_name: str, epochs: int) -> Job:
    """Return the default training of bvae with a loss option, in fp32."""
    corpus, option, training = load_corpus(corpus_name), LOSS_OPTIONS[option_name], TrainingConfig()
    whole = len(corpus.train) // training.batch_size * training.batch_size
    return Job(
        grids=corpus.train[:whole],
        weight=tuple(option_weights(option, corpus.class_counts).tolist()),
        gamma=option.gamma,
        beta=training.beta,
        learning_rate=training.learning_rate,
        max_gradient_norm=training.max_gradient_norm,
        batch_size=training.batch_size,
        latent_dim=training.latent_dim,
        seed=0,
        epochs=epochs,
        tuned=False,
        corpus=corpus_name,
        option=option_name,
    )


def measure_training(job: Job, names: list[str]) -> dict[str, list[float]]:
    """Return the images per second of every contender in every counted epoch."""
    with contextlib.ExitStack() as stack:
        contenders = []
        for tuned in (False, True):
            own = dataclasses.replace(job, tuned=tuned)
            settings = "bf16" if tuned else "fp32"
            bvae = Contender(f"bvae {settings}", train_bvae, own, processes=2, threads=1)
            others = [
                Contender(f"{name} {settings}", PEERS[name], own, processes=processes, threads=threads)
                for name in names
                for processes, threads in SPREADS
            ]
            contenders += [bvae, *others]
        os.environ["TQDM_DISABLE"] = "1"  # Pythae's progress bars cannot be turned off otherwise
        for contender in contenders:
            say(f"preparing {contender.label}")
            stack.enter_context(contender)
        rates: dict[str, list[float]] = {contender.label: [] for contender in contenders}
        for epoch in range(job.epochs):
            for contender in contenders:
                rate = contender.epoch(last=epoch == job.epochs - 1)
                repeat = f"repeat {epoch}" if epoch else "warm-up"
                say(f"{repeat}: {contender.label}: {rate:,.0f} images/s")
                if epoch:
                    rates[contender.label].append(rate)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="Counted epochs. Default: 5")
    default = ExperimentConfig().corpus
    parser.add_argument("--corpus", default=default, metavar="NAME", help=f"Default: {default}")
    parser.add_argument("--option", default="B", choices=LOSS_OPTIONS, help="The loss. Default: B")
    parser.add_argument(
        "--peers", default=",".join(PEERS), metavar="NAMES", help=f"Default: {','.join(PEERS)}"
    )
    parser.add_argument("--only", choices=("training", "parts"), help="Measure only this. Default: both")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/benchmark"),
        metavar="FOLDER",
        help="Default: runs/benchmark",
    )
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.peers.split(",")]
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"--peers names {unknown[0]!r}; expected names among {','.join(PEERS)}")
    if arguments.repeats < 1:
        parser.error(f"--repeats is {arguments.repeats}; expected 1 or more")
    if (cores := int(str(machine.describe()["cores"]))) < machine.CORES:
        parser.error(f"this machine has {cores} core; expected {machine.CORES} or more")

    from benchmarks.tables import draw, parts_table, throughput_table  # contenders do not need matplotlib

    result: dict[str, object] = {"machine": machine.describe()}
    lines: list[str] = []
    if arguments.only != "parts":
        say("measuring matrix products")
        flops = machine.flops_of_a_step()
        limits = {
            name: machine.matmul_rate(dtype)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        }
        job = make_job(arguments.corpus, arguments.option, 1 + arguments.repeats)
        if len(job.grids) < FEWEST_STEPS * job.batch_size:
            parser.error(
                f"--corpus {arguments.corpus} gives fewer than {FEWEST_STEPS} steps per epoch; use more grids"
            )
        rates = measure_training(job, names)
        result |= {"flops_an_image": flops, "matmul_flops_a_second": limits, "images_a_second": rates}
        lines += throughput_table(rates, resolve_precision("auto"), flops, limits)
    if arguments.only != "training":
        seconds = parts.measure(arguments.repeats, say)
        result["seconds"] = seconds
        lines += parts_table(seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n")
    if "images_a_second" in result:
        draw(rates, arguments.output / "benchmark.png")
    print(*lines, sep="\n")
    say(f"wrote {arguments.output}/benchmark.json")


if __name__ == "__main__":
    main()
