"""`python -m bvae`: what the experiments do, outside pytest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bvae.options import FLAGS, parse_experiment

DESCRIPTION = """\
Which loss does a β-VAE of categorical grids learn under, and which makes it paint everything background?

The main job is `pytest experiments/ --html=report.html`, which compares loss options and gates on the result.
These commands do its parts one at a time."""

EXAMPLES = """\
examples:
  python -m bvae train --option B --epochs 50          one run, with a progress bar
  python -m bvae train --resume=runs/latest            go on after an interruption
  python -m bvae report runs/latest                    the comparison again, from what lies on disk
  python -m bvae show runs/latest/B-seed0/checkpoints/best.safetensors
  python -m bvae show CHECKPOINT my_grids.npy          reconstructions of one's own grids"""


OF_A_COMPARISON = {"loss-options", "seeds", "baseline", "fail-on-regression"}
"""Options that make sense for several runs only."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        "python -m bvae",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train one option with one seed",
        description="Train one loss option with one seed into a session folder of its own: checkpoints, "
        "their pictures, metrics and a verdict.",
    )
    train.add_argument("--option", default="B", metavar="NAME", help="Loss option to train. Default: B")
    train.add_argument("--seed", default="0", metavar="N", help="Of weights, noise and order. Default: 0")
    for flag in FLAGS:
        if flag.name not in OF_A_COMPARISON:
            explanation = flag.explanation.replace("%", "%%")
            train.add_argument(f"--{flag.name}", metavar=flag.metavar, help=explanation)

    report = commands.add_parser(
        "report",
        help="compare the runs of a session again",
        description="Write the comparison/ of a session again from the runs in it; nothing is trained.",
    )
    report.add_argument("session", metavar="RUN_DIR", help="A session folder, such as runs/latest")

    show = commands.add_parser(
        "show",
        help="draw what a checkpoint reconstructs",
        description="Draw grids, their reconstructions by the model of a checkpoint, and the wrong cells.",
    )
    show.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="A .safetensors file of a run")
    show.add_argument("grids", nargs="?", metavar="GRIDS", help="A corpus to draw from; default: the run's")
    show.add_argument("--output", type=Path, default=Path("reconstructions.png"), metavar="FILE")
    for command in (report, show):
        command.add_argument(
            "--model", metavar="MODULE:FACTORY", help="The model, where it is not bvae's own"
        )
    return parser


def train(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Train a run, or what is left of the runs of a session, with progress on standard error."""
    import bvae.gallery
    import bvae.turns  # noqa: F401, see `bvae.plugin.pytest_configure`
    from bvae.laboratory import Laboratory

    given: dict[str, str | None] = {flag.key: getattr(arguments, flag.key, None) for flag in FLAGS}
    run_dir = Path(given["run_dir"] or "runs")
    if given["resume"] is not None:
        laboratory = Laboratory.resume(given, run_dir, command, given["resume"])
    else:
        if not arguments.seed.isdecimal():
            raise ValueError(f"--seed is {arguments.seed!r}; expected a whole number of at least 0")
        one = {"loss_options": arguments.option, "seeds": str(int(arguments.seed) + 1)}
        laboratory = Laboratory.prepare(parse_experiment({**given, **one}), run_dir, command)
    laboratory.open_session()
    experiment = laboratory.experiment
    last = [(option, experiment.seeds - 1) for option in experiment.options]
    runs = [run for run in laboratory.runs if (laboratory.session.path / run.name).exists()] or [
        laboratory.session.run_config(*selection) for selection in last
    ]
    write, live = sys.stderr.write, sys.stderr.isatty()
    laboratory.show_progress([run.name for run in runs], write, live=live)
    interrupted = False
    try:
        for run in runs:
            laboratory.obtain((run.option, run.seed))
    except KeyboardInterrupt:
        interrupted = True
    laboratory.close_session(interrupted=interrupted)
    print(*laboratory.summary(command="python -m bvae train"), sep="\n")
    return 2 if interrupted else 0


def report(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Write the comparison of a session again."""
    from bvae.laboratory import Laboratory

    given = {"model": arguments.model}
    laboratory = Laboratory.resume(given, Path("runs"), command, arguments.session)
    laboratory.close_session(interrupted=False)
    print(*laboratory.summary(), sep="\n")
    return 0


def show(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Draw what the model in a checkpoint makes of grids."""
    from bvae.config import DEFAULT_MODEL
    from bvae.corpus import is_built_in, load_corpus
    from bvae.files import printable
    from bvae.models import load_model
    from bvae.visualization import plot_reconstructions

    model, config = load_model(arguments.checkpoint, arguments.model or DEFAULT_MODEL)
    spec = arguments.grids or config.corpus
    padding_value = None if is_built_in(spec) else config.padding_value
    corpus = load_corpus(spec, config.grid_size, padding_value=padding_value)
    title = f"{printable(str(arguments.checkpoint))}: grids of {corpus.name}"
    plot_reconstructions(model, corpus.showcase(), path=arguments.output, title=title)
    print(f"Wrote {printable(str(arguments.output))}")
    return 0


def main(command: Sequence[str] | None = None) -> int:
    """Run a command; a mistake ends in one sentence and status 4, as under pytest."""
    command = sys.argv[1:] if command is None else command
    arguments = build_parser().parse_args(command)
    try:
        return {"train": train, "report": report, "show": show}[arguments.command](arguments, command)
    except (OSError, ValueError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(main())
