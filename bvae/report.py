"""The head of the report in HTML: what came out, what to use, and why."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from bvae.comparison import Comparison, OptionSummary
from bvae.files import printable
from bvae.markup import code, disclosure, heading, listing, paragraph, picture_file, section, table
from bvae.palette import colour_of
from bvae.recipe import recipe
from bvae.records import Evaluation
from bvae.regression import CAPTION, DIFFERENCE_HEADINGS, Difference, difference_rows
from bvae.results import read_history
from bvae.session import Session
from bvae.story import tell_learning, tell_trend
from bvae.summary import Cell, describe_setting, explain_gate, table_head, table_rows
from bvae.verdict import MEANINGS, RULES, Rule
from bvae.why import Why, explain_why

SIGNS = {True: "✔", False: "✘"}


def report_head(session: Session, comparison: Comparison | None, *, gate_ran: bool = True) -> str:
    """What stands above the table of tests: outcome, options, recommendation, pictures, reasons."""
    if comparison is None:
        return paragraph("No run was begun, so there is nothing to compare.")
    folder = session.path / "comparison"
    parts = [
        *_outcome(comparison, gate_ran),
        _options_table(comparison, [option.name for option in session.record.config.options]),
        heading(3, "The same training grids under each option"),
        picture_file(folder / "reconstructions.png", "Newest checkpoint, first seed", "bvae-wide"),
        heading(3, "Validation grids: the worst, the median and the best"),
        picture_file(folder / "examples.png", "By object IoU, first seed", "bvae-wide"),
        *_reading(session, comparison),
        *_recommendation(session, comparison),
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
    head = [Cell(text) for text in DIFFERENCE_HEADINGS]
    rows = [[Cell(text) for text in row] for row in difference_rows(differences)]
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


def _options_table(comparison: Comparison, names: Sequence[str]) -> str:
    """The table of options and references; `names` are all options, in the order of their colours."""
    rows = table_rows(comparison)
    for row, (name, option) in zip(rows, comparison.options.items(), strict=False):
        row[0] = Cell(name, "recommended" if name == comparison.recommended else "")
        row[1] = Cell(f"{SIGNS[option.healthy]} {row[1].text}")
    chosen = [*comparison.options].index(comparison.recommended) if comparison.recommended else None
    colours = [colour_of(names.index(name)) for name in comparison.options]
    return table("Options", table_head(comparison), rows, chosen, colours)


def _rules_table(comparison: Comparison) -> str:
    """What each rule of the verdict measured, for every run; a rule that is broken carries a sign."""
    runs = [(name, run) for name, option in comparison.options.items() for run in option.runs]
    head = [Cell("rule"), Cell("bound"), *(Cell(name, f"seed {run.seed}") for name, run in runs)]
    rows = [
        [
            Cell(rule.quantity, f"else {rule.verdict.replace('_', ' ')}"),
            Cell(rule.requirement),
            *(_rule_cell(rule, run.metrics) for _, run in runs),
        ]
        for rule in RULES
    ]
    return table("Rules of the verdict", head, rows)


def _rule_cell(rule: Rule, metrics: Evaluation | None) -> Cell:
    value = None if metrics is None else rule.measure(metrics)
    if metrics is None or value is None:
        return Cell("undefined")
    return Cell(f"{value:.3f}", SIGNS[False] if rule.is_broken(metrics) else "")


def _reading(session: Session, comparison: Comparison) -> list[str]:
    """How to read the table, what the verdicts mean, and what all this rests on."""
    experiment = session.record.config
    seeds = max(len(option.runs) for option in comparison.options.values())
    certainty = (
        f"Mean ± standard deviation over {seeds} seeds."
        if seeds > 1
        else "One seed each, so nothing is known of the spread: run with --seeds 3 before relying on it."
    )
    verdicts = [f"{name.replace('_', ' ')}: {meaning}." for name, meaning in MEANINGS.items()]
    return [
        paragraph(
            "Accuracy alone proves nothing, as the row that predicts background only shows. What counts is "
            "how many objects a reconstruction shows, held against what is scored without seeing any: "
            "shuffled (in small letters), where each grid is decoded from another grid's latent; the extent "
            f"of the objects filled with one class; the nearest training grid; PCA.{_price(comparison)}"
        ),
        paragraph(
            f"{describe_setting(comparison)} Measured on validation grids after "
            f"{experiment.training.epochs} epochs. {certainty}"
        ),
        disclosure("What each rule of the verdict measured", _rules_table(comparison)),
        disclosure(
            "What the verdicts mean, worst first; an option is as bad as its worst seed",
            listing(verdicts, ordered=True),
        ),
        disclosure("Where the files are, and how to run this again", _provenance(session)),
    ]


def _price(comparison: Comparison) -> str:
    """Why a recommended option may be less accurate than painting nothing."""
    name, rate = comparison.recommended, comparison.corpus.background_rate
    accuracy = comparison.options[name].pixel_accuracy.mean if name else None
    if accuracy is None or accuracy >= rate:
        return ""
    return (
        f" {name} has {rate - accuracy:.3f} fewer of its cells right than predicting nothing: the price of "
        "predicting objects that it does not yet get right in every cell."
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
