"""The command line without pytest, called as `bvae` or as `python -m bvae`."""

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
from bvae.config import DEFAULT_MODEL, ConfigError
from bvae.corpus import is_built_in, load_corpus
from bvae.experiment import Experiment, load_engine
from bvae.experiments import EXAMPLE
from bvae.hooks import Interruptions
from bvae.options import EXTEND_EXPECTS, OPTIONS, options_document, options_of, parse_experiment, path_text
from bvae.report import side_by_side
from bvae.session.continuation import merge_shards
from bvae.session_files import REPORT, SESSION, newest_checkpoint
from bvae.storage import atomic_write, make_folder, printable
from bvae.training_config import LIMITS

DESCRIPTION = """\
Find out which losses let a β-VAE learn categorical grids, and which make it predict background everywhere.

The main command is `pytest experiments/ --html=report.html`. It compares loss options, and fails if no option
trains well. The commands below do parts of that work without pytest."""

EXAMPLES = """\
examples:
  {0} init losses                           an example project, ready to run
  {0} train --option B --epochs 50          one run, with its progress
  {0} train --resume=runs/latest            resume after an interruption
  {0} train --resume=DIR --epochs 10 --extend
  {1}                                       extend the runs of a session to 10 epochs
  {0} report runs/latest                    compare the runs of a session again
  {0} shards 4 --seeds 10                   print a command for each of four machines
  {0} merge runs/shard-*/latest             make one session of the four shards
  {0} compare before runs/latest --html compare.html
  {1}                                       show two sessions side by side
  {0} show runs/latest/B-seed0/checkpoints/best.safetensors
  {0} show CHECKPOINT my_grids.npy          reconstruct your own grids
  {0} show CHECKPOINT --traversals          what each latent dimension changes"""

SLURM = """\
example: a Slurm array of four tasks
  #SBATCH --array=1-4
  pytest experiments/ --shard=$SLURM_ARRAY_TASK_ID/4 --run-dir=runs/shard-$SLURM_ARRAY_TASK_ID --seeds 10
after all tasks:
  bvae merge runs/shard-*/latest"""


def called_as() -> str:
    """Return the command as the user typed it, for help texts and messages."""
    return "bvae" if Path(sys.argv[0]).stem == "bvae" else "python -m bvae"


class Parser(argparse.ArgumentParser):
    """A parser that exits with status 4 on wrong usage, like pytest; argparse would exit with 2."""

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
    for name, operand, metavar, count, text in (
        ("init", "folder", "DIR", "?", "Default: the current folder"),
        ("merge", "shards", "DIR", "+", "Session folder of a shard, such as runs/shard-1/latest"),
        ("report", "session", "SESSION", None, "Session folder, such as runs/latest"),
        ("compare", "runs", "RUN", "+", "Folder of a session or of a run, such as runs/latest/B-seed0"),
        ("show", "checkpoint", "CHECKPOINT", None, "Run folder (newest checkpoint), or a .safetensors file"),
        ("show", "grids", "GRIDS", "?", "Corpus whose grids are drawn. Default: the corpus of the run"),
    ):
        parsers[name].add_argument(operand, nargs=count, type=path_text, metavar=metavar, help=text)
    parsers["shards"].add_argument("count", metavar="N", help="Number of shards, at most the number of runs")
    parsers["shards"].formatter_class = argparse.RawDescriptionHelpFormatter
    parsers["shards"].epilog = SLURM
    return parser


def init(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Write an example project.

    Writes three files and overwrites none: a test file with the packaged experiment and one more gate, a
    pytest.ini that loads the plugin, and a file of loss options.
    """
    folder = Path(arguments.folder or "")
    if existing := [str(folder / name) for name in EXAMPLE if (folder / name).exists()]:
        raise ValueError(f"{printable(', '.join(existing))} exists already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in EXAMPLE.items():
        atomic_write(folder / name, text.encode())
    place = "" if folder == Path() else f"cd {shlex.quote(printable(str(folder)))} && "
    print(f"Wrote {', '.join(EXAMPLE)}. Next: {place}pytest --html=report.html")
    return 0


def train(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Train one loss option with one seed.

    Creates a session folder with checkpoints, pictures, metrics and a verdict. With --resume, trains
    the runs that were begun and not finished, and those that more --seeds or --loss-options add.
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
        if arguments.seed not in map(str, range(most := LIMITS["seeds"])):
            raise ValueError(f"--seed is {arguments.seed!r}; expected a whole number from 0 to {most - 1}")
        one = {"loss_options": arguments.option, "seeds": str(int(arguments.seed) + 1)}
        try:
            asked = parse_experiment({**given, **one})
        except ConfigError as error:
            raise (error.shown_as("--option") if error.field == "options" else error) from None
        experiment = Experiment.prepare(asked, run_dir, command)
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
    """Print N commands, each of which trains one shard of an experiment.

    Shard I has every N-th run, beginning with run I. Each command can run on another machine. It runs no
    gate, and exits with 0 if its runs are complete, whatever the verdicts. `merge` then makes one session.
    """
    known = options_of("shards")
    given = {option.key: getattr(arguments, option.key) for option in known}
    config = parse_experiment(given)
    most = len(config.options) * config.seeds
    if arguments.count not in map(str, range(1, most + 1)):
        expected = f"a whole number from 1 to {most}, the number of runs"
        raise ValueError(f"N is {arguments.count!r}; expected {expected}")
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

    Only reads the shards. Refuses damaged shards, shards of different experiments, and different results of a
    run. If runs are missing, names them and exits with 1; --resume trains them.
    """
    session, missing, hardware = merge_shards(arguments.shards, Path(arguments.run_dir), command)
    if hardware:
        differing = "; ".join(f"{name}: {values}" for name, values in hardware.items())
        print(f"The hardware of the shards differs ({differing}), so results may not be bit-identical.")
    folder = printable(str(session.path))
    print(f"Merged into {folder}. Comparing its runs.")
    if missing:
        names = ", ".join(run.name for run in missing)
        print(f"Missing: {names}. Train them with: pytest experiments/ --resume={folder}")
    return int(bool(_report(str(session.path), {"model": arguments.model}, command) or missing))


def report(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Compare the runs of a session again, without training.

    Writes the comparison/ folder of the session, and the report as one HTML page. With --accuracy-band,
    judges the runs again.
    """
    given = {"model": arguments.model, "accuracy_band": arguments.accuracy_band}
    return _report(arguments.session, given, command, arguments.html)


def _report(
    folder: str, given: Mapping[str, str | None], command: Sequence[str], html: str | None = None
) -> int:
    parent = checked_parent(html or "")
    experiment = Experiment.resume(given, Path("runs"), command, folder)
    make_folder(parent, parents=True)
    experiment.close_session(interrupted=False)
    print(*experiment.summary(), sep="\n")
    path = Path(html or experiment.session.path / REPORT)
    experiment.page = path.parent
    if page := experiment.report_page():
        atomic_write(path, page.encode())
        print(f"Report: {printable(str(path))}")
    return int(bool(experiment.complaint))


def checked_parent(output: str | Path) -> Path:
    """Return the folder of an output file. Raises ValueError if it does not exist and is in a session."""
    folder = Path(output).parent
    if not folder.exists() and is_in_session(folder):
        raise ValueError(f"{printable(str(folder))} does not exist, and is in a session; name another folder")
    return folder


def is_in_session(path: Path) -> bool:
    return any((folder / SESSION).exists() for folder in path.resolve().parents)


def compare(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Show sessions side by side, whatever settings differ.

    Prints the shared settings, the different settings, the options of all sessions, and the differences from
    the first session. Changes no folder. Example: bvae compare before runs/latest --html compare.html
    """
    for path in map(Path, filter(None, (arguments.html, arguments.csv))):
        if path.is_symlink() or is_in_session(path) or arguments.html == arguments.csv:
            raise ValueError(
                f"{printable(str(path))} is refused; expected a file that is no link and in no session, and "
                "different files for --html and --csv"
            )
    sides = side_by_side.read_sides(arguments.runs)
    for output in (arguments.html, arguments.csv):
        make_folder(Path(output or "").parent, parents=True)
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
    """Draw reconstructions, traversals of latent dimensions, or samples with the model of a checkpoint.

    By default, draws grids, their reconstructions, and the wrong cells. With --traversals, decodes the first
    grid with other values of one latent dimension after another. With --samples N, decodes prior samples.
    """
    samples = arguments.samples
    if samples is not None and (arguments.traversals or arguments.grids):
        raise ValueError("--samples draws no grids of a corpus; remove --traversals and GRIDS")
    if samples is not None and samples not in map(str, range(1, 41)):
        raise ValueError(f"--samples is {samples!r}; expected a whole number from 1 to 40")
    engine = load_engine()
    checkpoint = newest_checkpoint(Path(arguments.checkpoint))
    model, config = engine.load_model(checkpoint, arguments.model or DEFAULT_MODEL)
    kind = "samples" if samples is not None else "traversals" if arguments.traversals else "reconstructions"
    output, name = Path(arguments.output or f"{kind}.png"), printable(arguments.checkpoint)
    parent = checked_parent(output)
    if samples is not None:
        title = f"{name}: samples from the prior"
        make_folder(parent, parents=True)
        more = {"latent_dim": config.training.latent_dim, "background": config.background}
        engine.plot_samples(model, int(samples), path=output, title=title, **more)
    else:
        spec = arguments.grids or config.corpus
        padding_value = None if is_built_in(spec) else config.padding_value
        corpus = load_corpus(spec, config.grid_size, padding_value=padding_value, classes=config.classes)
        make_folder(parent, parents=True)
        grids, title = corpus.sample_grids(), f"{name}: {kind} (corpus {corpus.name})"
        if arguments.traversals:
            engine.plot_traversals(model, grids[0], path=output, title=title)
        else:
            of_means, background = engine.PosteriorMean(model), config.background
            engine.plot_reconstructions(of_means, grids, path=output, title=title, background=background)
    print(f"Wrote {printable(str(output))}")
    return 0


def options(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Print a Markdown table of the options that bvae adds to pytest, and of these commands."""
    print(options_document(), end="")
    return 0


COMMANDS = (init, train, shards, merge, report, compare, show, options)
"""The commands. The function's name is the name of the command, and its docstring is the help text."""


def main(command: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. A user's mistake prints one sentence and returns 4."""
    command = sys.argv[1:] if command is None else command
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # some encodings have no γ
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
