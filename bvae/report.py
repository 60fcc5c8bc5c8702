"""The head of the report in HTML: what came out, what to use, and why."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from bvae.comparison import Comparison, OptionSummary, Spread
from bvae.config import AccuracyBand
from bvae.files import printable
from bvae.markup import Cell, code, disclosure, heading, listing, paragraph, picture_file, section, table
from bvae.recipe import recipe
from bvae.regression import CAPTION, DIFFERENCE_HEADINGS, Difference, difference_rows
from bvae.results import read_history
from bvae.session import Session
from bvae.story import tell_learning, tell_trend
from bvae.summary import describe_setting, explain_gate
from bvae.verdict import GAIN, PAINTED, REBOUND
from bvae.why import Why, explain_why

SIGNS = {True: "✔", False: "✘"}


def report_head(session: Session, comparison: Comparison | None, *, gate_ran: bool = True) -> str:
    """What stands above the table of tests: outcome, options, recommendation, pictures, reasons."""
    if comparison is None:
        return paragraph("No run was begun, so there is nothing to compare.")
    folder = session.path / "comparison"
    parts = [
        *_outcome(comparison, gate_ran),
        _options_table(comparison),
        *_reading(session, comparison),
        *_recommendation(session, comparison),
        heading(3, "The same training grids under each option"),
        picture_file(folder / "reconstructions.png", "Newest checkpoint, first seed", "bvae-wide"),
        heading(3, "Curves"),
        picture_file(folder / "curves.png", "Losses, accuracy, foreground and KL by epoch", "bvae-wide"),
        heading(3, "Why"),
        *(_why(session, name, option) for name, option in comparison.options.items()),
        heading(3, "Runs"),
        paragraph(
            "A run that is not healthy is an expected failure, XFailed: a finding about its loss, no broken "
            "build. Select a row to see how its run went: its filmstrip, its curves and its checkpoints."
        ),
    ]
    return section("Comparison of loss options", "".join(parts))


def show_gate(comparison: Comparison) -> str:
    """The gate's outcome with a line of numbers for each candidate."""
    return "".join(map(paragraph, [*explain_gate(comparison).splitlines(), comparison.recommendation]))


def show_differences(differences: Sequence[Difference]) -> str:
    """The table of differences to the baseline."""
    head: list[Cell] = [(text, "") for text in DIFFERENCE_HEADINGS]
    rows: list[list[Cell]] = [[(text, "") for text in row] for row in difference_rows(differences)]
    label = "Differences to the baseline"
    return section(label, table(label, head, rows) + paragraph(CAPTION))


def _outcome(comparison: Comparison, gate_ran: bool) -> list[str]:
    passed = comparison.gate.passed
    sentence = f"{SIGNS[passed]} {explain_gate(comparison).splitlines()[0]}"
    return [
        paragraph(sentence, f"bvae-outcome bvae-{'passed' if passed else 'failed'}"),
        paragraph(comparison.recommendation, "bvae-advice"),
        "" if gate_ran else paragraph("The gate was not run; this is a comparison of what was found."),
    ]


def _options_table(comparison: Comparison) -> str:
    head = [
        ("option", ""),
        ("verdict", ""),
        ("accuracy", f"band {comparison.band[0]:g} to {comparison.band[1]:g}"),
        ("foreground IoU", "and control"),
        ("foreground recall", "and control"),
        ("γ", ""),
        ("class weights", "largest : smallest"),
        ("KL", "nats a grid"),
        ("active units", f"of {comparison.training.latent_dim}"),
    ]
    options = comparison.options
    rows = [_option_row(name, option, comparison) for name, option in options.items()]
    idle: list[Cell] = [
        ("paint nothing", ""),
        ("for comparison", ""),
        (f"{comparison.corpus.background_rate:.3f}", "background rate"),
        ("0.000", ""),
        ("0.000", ""),
        *[("", "")] * 4,
    ]
    chosen = [*options].index(comparison.recommended) if comparison.recommended else None
    return table("Options", head, [*rows, idle], chosen)


def _option_row(name: str, option: OptionSummary, comparison: Comparison) -> list[Cell]:
    return [
        (name, "recommended" if name == comparison.recommended else ""),
        (f"{SIGNS[option.healthy]} {option.verdict.replace('_', ' ')}", ""),
        (str(option.pixel_accuracy), ""),
        (str(option.foreground_iou), f"control {option.shuffled_foreground_iou}"),
        (str(option.foreground_recall), f"control {option.shuffled_foreground_recall}"),
        (f"{option.gamma:g}", ""),
        (option.weighting, f"{option.weight_ratio:,.1f} : 1"),
        (_short(option.kl), ""),
        (_short(option.active_units), ""),
    ]


def _short(spread: Spread) -> str:
    if spread.mean is None:
        return "undefined"
    return f"{spread.mean:.3g}" + (f" ± {spread.sd:.2g}" if spread.sd is not None else "")


def _reading(session: Session, comparison: Comparison) -> list[str]:
    """How to read the table, what the verdicts mean, and what all this rests on."""
    experiment, band = session.record.config, AccuracyBand(*comparison.band)
    seeds = max(len(option.runs) for option in comparison.options.values())
    certainty = (
        f"Mean ± standard deviation over {seeds} seeds."
        if seeds > 1
        else "One seed each, so nothing is known of the spread: run with --seeds 3 before relying on it."
    )
    verdicts = [
        "diverged: a loss or gradient norm was not finite.",
        f"unstable: training loss rebounded by more than {REBOUND:.0%}, or did not fall at all.",
        f"mode collapse: it paints less than {PAINTED:.0%} of the foreground there is.",
        f"posterior collapse: recall falls by less than {GAIN:.2f} under the control, so the decoder paints "
        "without looking.",
        f"below band, above band: stable and learned, but the mean accuracy is outside {band}.",
        "healthy: stable, learned, and accurate within the band. An option is as bad as its worst seed.",
    ]
    return [
        paragraph(
            "Accuracy alone proves nothing, as painting nothing shows. An option learned the objects when "
            "it paints them and, under the control, no longer can: there each grid is decoded from another "
            f"grid's latent, and what survives, the decoder knew without looking.{_price(comparison)}"
        ),
        paragraph(
            f"{describe_setting(comparison)} Measured on validation grids after "
            f"{experiment.training.epochs} epochs. {certainty}"
        ),
        disclosure("What the verdicts mean, first match wins", listing(verdicts, ordered=True)),
        disclosure("Where the files are, and how to run this again", _provenance(session)),
    ]


def _price(comparison: Comparison) -> str:
    """Why a recommended option may be less accurate than painting nothing."""
    name, rate = comparison.recommended, comparison.corpus.background_rate
    accuracy = comparison.options[name].pixel_accuracy.mean if name else None
    if accuracy is None or accuracy >= rate:
        return ""
    return (
        f" {name} scores {rate - accuracy:.3f} less than painting nothing: the price of painting objects "
        "that it does not yet get right in every cell."
    )


def _provenance(session: Session) -> str:
    record = session.record
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    folder = printable(str(session.path))
    return listing(
        [
            f"Everything lies in {folder}: comparison/comparison.json, and for each run its metrics, "
            "checkpoints and pictures.",
            f"Arguments of the command: {printable(shlex.join(record.command))}",
            f"Commit: {record.commit or 'unknown'}. Versions: {versions}.",
        ]
    )


def _recommendation(session: Session, comparison: Comparison) -> list[str]:
    if comparison.recommended is None:
        return []
    experiment = session.record.config
    option = next(option for option in experiment.options if option.name == comparison.recommended)
    text = recipe(experiment, option, comparison.corpus.class_counts)
    return [heading(3, f"Option {option.name} in code"), code(text, f"Python code of option {option.name}")]


def _why(session: Session, name: str, option: OptionSummary) -> str:
    histories = {run.seed: read_history(session.path / run.path) for run in option.runs}
    why = Why.of(option, [*histories.values()])
    stories = [
        f"Seed {seed}: {tell_learning(history)} {tell_trend(history)}" for seed, history in histories.items()
    ]
    file = session.path / "comparison" / f"why_{name}.png"
    return (
        heading(4, f"Option {name}: {option.verdict.replace('_', ' ')}")
        + paragraph(f"Verdict: {option.reason}.")
        + listing(explain_why(why), ordered=True)
        + picture_file(file, f"Option {name}: why", "bvae-wide")
        + disclosure(f"When option {name} learned the objects, and whether it still learns", listing(stories))
    )
