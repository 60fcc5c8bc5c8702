"""The command line, `bvae` or `python -m bvae`: the parts of an experiment without pytest."""

from __future__ import annotations

import argparse
import inspect
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from bvae import __version__
from bvae.config import DEFAULT_MODEL
from bvae.corpus import is_built_in, load_corpus
from bvae.experiment import Experiment, load_engine
from bvae.experiments import EXAMPLE
from bvae.hooks import Interruptions
from bvae.options import EXTEND_EXPECTS, OPTIONS, options_document, options_of, parse_experiment, path_text
from bvae.report import side_by_side
from bvae.session.continuation import merge_shards, shard_of
from bvae.session_files import REPORT, SESSION, newest_checkpoint
from bvae.storage import atomic_write, make_folder, printable

DESCRIPTION = """\
Which losses let a β-VAE learn categorical grids, and which make it predict background everywhere?

The main command is `pytest experiments/ --html=report.html`: it compares loss options, and fails if none of
them trains well. The commands below run its parts separately."""

EXAMPLES = """\
examples:
  {0} init losses                           an example project, ready to run
  {0} train --option B --epochs 50          one run, with a progress bar
  {0} train --resume=runs/latest            resume after an interruption
  {0} train --resume=DIR --epochs 10 --extend
  {1}                                       extend the runs of a session to 10 epochs
  {0} report runs/latest                    compare again from the files of the session
  {0} shards 4 --seeds 10                   commands for four machines of a batch system
  {0} merge runs/shard-*/latest             one session of the runs that they trained
  {0} compare before runs/latest --html compare.html
  {1}                                       sessions side by side
  {0} show runs/latest/B-seed0/checkpoints/best.safetensors
  {0} show CHECKPOINT my_grids.npy          reconstruct your own grids
  {0} show CHECKPOINT --traversals          what each latent dimension changes"""

SLURM = """\
example, a Slurm array of four tasks:
  #SBATCH --array=1-4
  pytest experiments/ --shard=$SLURM_ARRAY_TASK_ID/4 --run-dir=runs/shard-$SLURM_ARRAY_TASK_ID --seeds 10
and after all of them:
  bvae merge runs/shard-*/latest"""


def called_as() -> str:
    """Return the name under which the command was called."""
    return "bvae" if Path(sys.argv[0]).stem == "bvae" else "python -m bvae"


class Parser(argparse.ArgumentParser):
    """A parser that exits with 4 on wrong usage, like pytest, because 2 means interrupted."""

    def error(self, message: str) -> NoReturn:
        self.exit(4, f"ERROR: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        called_as(),
        description=DESCRIPTION,
        epilog=EXAMPLES.format(called_as(), " " * len(called_as())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bvae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for function in COMMANDS:
        name, description = function.__name__, inspect.getdoc(function) or ""
        summary = description.partition("\n")[0].removesuffix(".")
        parsers[name] = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
        parsers[name].set_defaults(function=function)
        for option in options_of(name):
            parsers[name].add_argument(option.flag, **option.keywords)
    parsers["init"].add_argument(
        "folder", nargs="?", type=path_text, default=".", metavar="DIR", help="Default: the current folder"
    )
    parsers["shards"].add_argument("count", metavar="N", help="Number of shards, at most one for each run")
    parsers["shards"].formatter_class = argparse.RawDescriptionHelpFormatter
    parsers["shards"].epilog = SLURM
    parsers["merge"].add_argument(
        "shards",
        nargs="+",
        type=path_text,
        metavar="DIR",
        help="The session folder of a shard, such as runs/shard-1/latest",
    )
    parsers["report"].add_argument(
        "session", type=path_text, metavar="RUN_DIR", help="A session folder, such as runs/latest"
    )
    parsers["compare"].add_argument(
        "runs",
        nargs="+",
        type=path_text,
        metavar="RUN",
        help="The folder of a session or of one of its runs, such as runs/latest or runs/latest/B-seed0",
    )
    parsers["show"].add_argument(
        "checkpoint",
        type=path_text,
        metavar="CHECKPOINT",
        help="A run, for its newest checkpoint, or a .safetensors file",
    )
    parsers["show"].add_argument(
        "grids",
        nargs="?",
        type=path_text,
        metavar="GRIDS",
        help="Corpus to take grids from. Default: the corpus of the run",
    )
    return parser


def init(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Write an example project.

    Writes a test file that runs the packaged experiment and adds a gate, a pytest.ini that loads the plugin,
    and loss options. Nothing is overwritten.
    """
    folder = Path(arguments.folder)
    if existing := [str(folder / name) for name in EXAMPLE if (folder / name).exists()]:
        raise ValueError(f"{printable(', '.join(existing))} is there already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in EXAMPLE.items():
        atomic_write(folder / name, text.encode())
    place = "" if folder == Path() else f"cd {shlex.quote(printable(str(folder)))} && "
    print(f"Wrote {', '.join(EXAMPLE)}. Next: {place}pytest --html=report.html")
    return 0


def train(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Train one loss option with one seed.

    Creates a session folder with checkpoints, their pictures, metrics and a verdict. With --resume, trains
    the unfinished runs of a session, and those that more --seeds or --loss-options add to it.
    """
    with Interruptions() as interruptions:
        interruptions.open()
        interruptions.repeat_dropped()
        return _train(arguments, command, interruptions)


def _train(arguments: argparse.Namespace, command: Sequence[str], interruptions: Interruptions) -> int:
    load_engine()
    given: dict[str, str | None] = {option.key: getattr(arguments, option.key, None) for option in OPTIONS}
    run_dir = Path(arguments.run_dir)
    if arguments.extend and None in (arguments.resume, arguments.epochs):
        raise ValueError(EXTEND_EXPECTS)
    if arguments.resume is not None:
        experiment = Experiment.resume(given, run_dir, command, arguments.resume, extend=arguments.extend)
        for run in experiment.added:
            make_folder(experiment.session.path / run.name)
    else:
        if added := [name for name in ("seeds", "loss_options") if given[name] is not None]:
            flag = f"--{added[0].replace('_', '-')}"
            raise ValueError(f"{flag} extends a session; expected --resume=DIR, or --option and --seed")
        if not arguments.seed.isdecimal():
            raise ValueError(f"--seed is {arguments.seed!r}; expected a whole number of at least 0")
        one = {"loss_options": arguments.option, "seeds": str(int(arguments.seed) + 1)}
        experiment = Experiment.prepare(parse_experiment({**given, **one}), run_dir, command)
    experiment.open_session()
    resuming = f"{called_as()} train"
    interruptions.last_words = lambda: experiment.how_to_resume(resuming, interrupted=True)
    session, config = experiment.session, experiment.config
    runs = [run for run in experiment.runs if (session.path / run.name).exists()] or [
        session.run_config(option, config.seeds - 1) for option in config.options
    ]
    experiment.show_progress([run.name for run in runs], sys.stderr.write, live=sys.stderr.isatty())
    interrupted = False
    try:
        for run in runs:
            experiment.obtain((run.option, run.seed))
    except KeyboardInterrupt:
        interrupted = True
    interruptions.prepare_closing()
    experiment.close_session(interrupted=interrupted)
    print(*experiment.summary(resuming), sep="\n")
    return 2 if interrupted else int(bool(experiment.complaint))


def shards(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Print the commands that train an experiment in N parts, without training.

    Each command trains every N-th run, on any machine, and exits with 0 if its runs are complete, whatever
    their verdicts. No gate is run. `merge` makes one session of the parts, bit-identical to an undivided one.
    """
    known = options_of("shards")
    given = {option.key: getattr(arguments, option.key) for option in known}
    config = parse_experiment(given)
    shard_of(range(len(config.options) * config.seeds), f"1/{arguments.count}")
    run_dir = given.pop("run_dir")
    words = [
        f"{option.flag}={given[option.key]}"
        for option in known
        if given.get(option.key) not in (None, option.keywords["default"])
    ]
    for place in range(1, int(arguments.count) + 1):
        parts = f"--shard={place}/{arguments.count}", f"--run-dir={Path(run_dir) / f'shard-{place}'}"
        print(shlex.join(["pytest", "experiments/", *parts, *words]))
    return 0


def merge(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Make one session of finished shards, and compare its runs.

    Shards of another experiment, damaged ones, and different results of one run are refused. The folders of
    shards stay as they are. Missing runs are named, and --resume trains them. Exits with 1 if runs are
    missing.
    """
    session, missing, hardware = merge_shards(arguments.shards, Path(arguments.run_dir), command)
    if hardware:
        differing = "; ".join(f"{name}: {values}" for name, values in hardware.items())
        print(f"The shards were trained on different hardware ({differing}), so bits may differ.")
    status = _report(str(session.path), {"model": arguments.model}, command)
    if missing:
        names, folder = ", ".join(run.name for run in missing), printable(str(session.path))
        print(f"Missing: {names}. Train them with: pytest experiments/ --resume={folder}")
    return int(bool(missing or status))


def report(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Compare the runs of a session again.

    Writes the comparison/ folder of the session, and the report as one HTML page, without training. With
    --accuracy-band, judges the runs again.
    """
    given = {"model": arguments.model, "accuracy_band": arguments.accuracy_band}
    return _report(arguments.session, given, command, arguments.html)


def _report(
    folder: str, given: Mapping[str, str | None], command: Sequence[str], html: str | None = None
) -> int:
    experiment = Experiment.resume(given, Path("runs"), command, folder)
    experiment.close_session(interrupted=False)
    print(*experiment.summary(), sep="\n")
    path = Path(html or experiment.session.path / REPORT)
    experiment.page = path.parent
    if page := experiment.report_page():
        atomic_write(path, page.encode())
        print(f"Report: {printable(str(path))}")
    return int(bool(experiment.complaint))


def compare(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Set finished sessions side by side, whatever they differ in.

    Prints the settings that they share, those that differ, the options of all sessions, and their differences
    from the first. Nothing is trained, and nothing in the folders is changed. Example: bvae compare before
    runs/latest --html compare.html
    """
    for path in map(Path, filter(None, (arguments.html, arguments.csv))):
        in_session = any((folder / SESSION).exists() for folder in path.resolve().parents)
        if path.is_symlink() or in_session or arguments.html == arguments.csv:
            raise ValueError(f"{printable(str(path))} is a link, in a session or given twice; name another")
    sides = side_by_side.read_sides(arguments.runs)
    print(*side_by_side.to_text(sides), sep="\n")
    written = {arguments.csv: side_by_side.to_csv(sides)} if arguments.csv else {}
    if arguments.html:
        points, looks = side_by_side.chart_points(sides)
        title, engine = "Object IoU against KL: large marks are means over seeds", load_engine()
        chart = engine.png_of(engine.plot_rate_distortion(points, looks=looks, title=title))
        written[arguments.html] = side_by_side.to_page(sides, chart)
    for path, text in written.items():
        atomic_write(Path(path), text.encode())
        print(f"Wrote {printable(path)}")
    return 0


def show(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Draw reconstructions by a checkpoint, traversals of its latent dimensions, or samples.

    Draws grids, their reconstructions by the checkpoint's model, and the wrong cells. With --traversals,
    draws what the model decodes for the first grid while one latent dimension at a time takes other values.
    With --samples N, draws grids decoded from samples of the prior.
    """
    samples = arguments.samples
    if samples is not None and (arguments.traversals or arguments.grids):
        raise ValueError("--samples draws no grids of a corpus; give it without --traversals and GRIDS")
    if samples is not None and not samples.isdecimal():
        raise ValueError(f"--samples is {samples!r}; expected a whole number from 1 to 40")
    engine = load_engine()
    checkpoint = newest_checkpoint(Path(arguments.checkpoint))
    model, config = engine.load_model(checkpoint, arguments.model or DEFAULT_MODEL)
    kind = "samples" if samples is not None else "traversals" if arguments.traversals else "reconstructions"
    output, name = Path(arguments.output or f"{kind}.png"), printable(arguments.checkpoint)
    if samples is not None:
        title = f"{name}: samples from the prior"
        more = {"latent_dim": config.training.latent_dim, "background": config.background}
        engine.plot_samples(model, int(samples), path=output, title=title, **more)
    else:
        spec = arguments.grids or config.corpus
        padding_value = None if is_built_in(spec) else config.padding_value
        corpus = load_corpus(spec, config.grid_size, padding_value=padding_value, classes=config.classes)
        grids = corpus.sample_grids()
        if arguments.traversals:
            title = f"{name}: traversals of a grid of {corpus.name}"
            engine.plot_traversals(model, grids[0], path=output, title=title)
        else:
            title = f"{name}: grids of {corpus.name}"
            engine.plot_reconstructions(model, grids, path=output, title=title, background=config.background)
    print(f"Wrote {printable(str(output))}")
    return 0


def options(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Print all options of these commands and of pytest as Markdown, with their defaults."""
    print(options_document(), end="")
    return 0


COMMANDS = (init, train, shards, merge, report, compare, show, options)
"""The commands; each has the name of its function, and the docstring as its help text."""


def main(command: Sequence[str] | None = None) -> int:
    """Run a command. A user's mistake prints one sentence and returns status 4, as in pytest."""
    command = sys.argv[1:] if command is None else command
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # γ cannot be shown in every encoding
    arguments = build_parser().parse_args(command)
    try:
        return int(arguments.function(arguments, command))
    except (OSError, ValueError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
