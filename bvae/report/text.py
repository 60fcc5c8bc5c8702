"""A comparison as text: the table of options, sentences on the gate, and the Markdown report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bvae.config import AccuracyBand, TrainingConfig
from bvae.judging.baseline import CAPTION, DIFFERENCE_HEADINGS, Difference, difference_rows
from bvae.judging.comparison import LISTED, METRICS, Comparison, OptionSummary, listed
from bvae.judging.explanation import count_verdicts
from bvae.records import ControlledMetrics, MeanStd
from bvae.storage import printable


class Cell(NamedTuple):
    """The text of a table cell, and a second text beside it, such as the value of a control."""

    text: str
    beside: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.beside})" if self.beside else self.text


class Column(NamedTuple):
    """A column of the table of options: its heading, and the cell of an option and of a reference."""

    heading: Cell
    of_option: Callable[[Comparison, OptionSummary], Cell]
    of_reference: Callable[[ControlledMetrics], Cell] = lambda _: Cell("")


def _metric(name: str) -> Column:
    """Return the column of a metric and its shuffled control."""
    return Column(
        Cell(METRICS[name].heading, "shuffled"),
        lambda _, option: Cell(str(getattr(option, name)), number(getattr(option, f"shuffled_{name}").mean)),
        lambda found: Cell(number(getattr(found, name)), number(getattr(found.shuffled, name))),
    )


FIRST_COLUMNS = (
    Column(Cell("verdict"), lambda _, option: Cell(words(option.verdict)), lambda _: Cell("reference")),
    *(_metric(name) for name, metric in METRICS.items() if metric.column == "terminal"),
    Column(
        Cell("classes learned"),
        lambda _, option: _classes(option),
        lambda found: Cell(f"{found.classes_learned} of {found.classes_present}"),
    ),
    Column(
        Cell("accuracy", "background {background:.3f}, band {lo:g}–{hi:g}"),
        lambda _, option: Cell(str(option.pixel_accuracy)),
        lambda found: Cell(number(found.pixel_accuracy)),
    ),
)
COLUMNS = (
    *FIRST_COLUMNS,
    *(_metric(name) for name, metric in METRICS.items() if metric.column == "report"),
    Column(Cell("γ"), lambda _, option: Cell(f"{option.gamma:g}")),
    Column(
        Cell("class weights", "largest : smallest"),
        lambda _, option: Cell(option.weighting, f"{option.weight_ratio:,.1f} : 1"),
    ),
    Column(Cell("KL per grid", "nats; bits"), lambda _, option: _divergence(option.kl)),
    Column(
        Cell("active units"),
        lambda comparison, option: Cell(f"{_short(option.active_units)} of {comparison.training.latent_dim}"),
    ),
)
"""Columns of the table of options after the name, for terminal, Markdown and HTML.

The second text of a heading is a template with the `background` rate and the bounds `lo`, `hi` of the band.
"""

PICTURES = {
    "curves.png": "Curves of loss, accuracy, object IoU, object recall and KL by epoch",
    "reconstructions.png": "The same training grids, and what each option reconstructs",
    "examples.png": "The worst, the median and the best validation grids under each option",
}
"""Pictures of the Markdown report, each with its text alternative."""

TABLE_CAPTION = (
    "Mean ± standard deviation over seeds. In brackets: the shuffled control, which decodes each grid from "
    "another grid's latent and thus scores what can be predicted without seeing the grid."
)

TERMINAL_COLUMNS = 1 + len(FIRST_COLUMNS)
"""Number of columns that a terminal shows, including the name."""


def table_head(comparison: Comparison) -> list[Cell]:
    """Return the headings of the table of options."""
    lo, hi = comparison.band
    known = {"background": comparison.corpus.background_rate, "lo": lo, "hi": hi}
    return [Cell("option"), *(Cell(text, beside.format(**known)) for (text, beside), *_ in COLUMNS)]


def table_rows(comparison: Comparison) -> list[list[Cell]]:
    """Return the table of options: a row for each option, then for each control and reference."""
    options, references = comparison.options, comparison.corpus.controls | comparison.corpus.references
    rows = [(name, [column.of_option(comparison, options[name]) for column in COLUMNS]) for name in options]
    rows += [(name, [column.of_reference(found) for column in COLUMNS]) for name, found in references.items()]
    return [[Cell(name), *cells] for name, cells in rows]


def words(name: str) -> str:
    """Return the name of a verdict as it is written in sentences."""
    return name.replace("_", " ")


def number(value: float | None) -> str:
    """Return a number as tables show it."""
    return "undefined" if value is None else f"{value:.3f}"


def _short(value: MeanStd) -> str:
    if value.mean is None:
        return "undefined"
    return f"{value.mean:.3g}" + ("" if value.sd is None else f" ± {value.sd:.2g}")


def _classes(option: OptionSummary) -> Cell:
    known = [run.metrics for run in option.runs if run.metrics is not None]
    if not known:
        return Cell("undefined")
    counts = sorted({metrics.classes_learned for metrics in known})
    learned = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return Cell(f"{learned} of {known[0].classes_present}")


def _divergence(kl: MeanStd) -> Cell:
    return Cell(_short(kl), "undefined" if kl.mean is None else f"{kl.mean / math.log(2):.3g}")


def explain_gate(comparison: Comparison, *, ran: bool = True) -> str:
    """Return the gate's outcome: a sentence, then a line of numbers for each candidate.

    Args:
        ran: whether the gate's test was run; if not, the sentence says what its outcome would be.
    """
    gate, band = comparison.gate, AccuracyBand(*comparison.band)
    passed, failed = "The gate passed", "The gate failed"
    if not ran:
        given = "The gate was not run; by the existing results it would"
        passed, failed = f"{given} pass", f"{given} fail"
    if gate.passed:
        learned = [
            f"{name} trained stably and {what_was_learned(comparison, name)}" for name in gate.passed_by
        ]
        head = f"{passed}: {'; '.join(listed(learned))}."
    elif not gate.candidates:
        head = f"{failed}: no run of a candidate was selected. Select one, such as --loss-options=A,B,C."
    else:
        head = f"{failed}: no candidate is healthy (stable, no rule broken, accuracy in {band})."
    rate = f"background rate {comparison.corpus.background_rate:.3f}"
    lines = [
        f"{name}: {words(option.verdict)}: object IoU {option.object_iou} (shuffled "
        f"{option.shuffled_object_iou}), object recall {option.object_recall} (shuffled "
        f"{option.shuffled_object_recall}), accuracy {option.pixel_accuracy} ({rate}). {option.reason}"
        for name, option in comparison.options.items()
        if name in gate.candidates
    ]
    return "\n  ".join([head, *listed(lines)])


def explain_own_gates(passed: Mapping[str, bool]) -> str:
    """Return a sentence on the gates that a project added, empty if there are none.

    Args:
        passed: whether each gate passed, by name.
    """
    if not passed:
        return ""
    failed = [printable(name) for name, is_passed in passed.items() if not is_passed]
    outcome = "failed" if failed else "passed"
    return f"The session's own gates {outcome}: {', '.join(listed(failed or [*map(printable, passed)]))}."


def explain_outcome(
    comparison: Comparison, own_gates: Mapping[str, bool], *, gate_ran: bool
) -> tuple[bool, str]:
    """Return whether all gates that were run passed, and sentences on them, the decisive one first."""
    own, own_passed = explain_own_gates(own_gates), all(own_gates.values())
    packaged = explain_gate(comparison, ran=gate_ran).splitlines()[0]
    if own and not gate_ran:
        return own_passed, own
    sentences = [packaged, own] if own_passed else [own, packaged]
    return own_passed and comparison.gate.passed, " ".join(filter(None, sentences))


def what_was_learned(comparison: Comparison, option: str) -> str:
    """Return a verb phrase on what an option learned that breaks no rule of the verdict.

    Shapes count as learned if more objects are recognised than by the nearest training grid.
    """
    share = comparison.options[option].objects_recognised.mean
    copied = [
        found.objects_recognised
        for name, found in comparison.corpus.references.items()
        if name.startswith("nearest training grid") and found.objects_recognised is not None
    ]
    if share is None or not copied:
        return "learned colours and places of objects; shapes were not measured"
    numbers = f"{share:.1%} of them recognised, {max(copied):.1%} by the nearest training grid"
    if share > max(copied):
        return f"learned the objects: colours, places and shapes ({numbers})"
    return f"learned colours and places of objects, not shapes ({numbers})"


def describe_setting(comparison: Comparison) -> str:
    """Return sentences on the corpus, β and the accuracy band of a comparison."""
    corpus, band, beta = comparison.corpus, AccuracyBand(*comparison.band), comparison.training.beta
    cells = sum(corpus.class_counts) / corpus.train
    sentences = [
        f"Corpus {corpus.name}: {corpus.train:,} training and {corpus.val:,} validation grids, "
        f"background rate {corpus.background_rate:.3f}, most to least frequent class "
        f"{corpus.weight_ratio['inverse']:.0f}:1 ({corpus.weight_ratio['sqrt_inverse']:.1f}:1 after the "
        f"square root).",
        *corpus.remarks(),
        # Papers give β for a loss that is a sum over cells.
        f"β = {beta:g} for a loss per cell, {beta * cells:.3g} in the usual units (× {cells:.0f} cells).",
        *filter(None, [describe_beta(comparison.training)]),
        f"Accuracy band {band}.",
    ]
    if band.hi < corpus.background_rate:
        sentences.append(
            f"The band is below the background rate {corpus.background_rate:.3f}: a model in it has fewer "
            "cells right than one that predicts only background, which is the cost of predicting objects."
        )
    return " ".join(sentences)


def describe_beta(training: TrainingConfig) -> str:
    """Return a sentence on the schedule of β and on free bits; empty for a constant β without them."""
    parts = {
        "constant": [],
        "linear": [f"β rises from 0 over {training.beta_warmup:g} epochs"],
        "cyclical": ["β rises from 0 in four cycles"],
    }[training.beta_schedule]
    if training.free_bits:
        parts = [*parts, f"{training.free_bits:g} nats per latent dimension are free"]
    return f"In training, {' and '.join(parts)}; shown losses have the full β." if parts else ""


def to_terminal(
    comparison: Comparison,
    differences: Sequence[Difference],
    own_gates: Mapping[str, bool],
    *,
    gate_ran: bool,
) -> list[str]:
    """Return the lines that a terminal shows of a comparison."""
    _, outcome = explain_outcome(comparison, own_gates, gate_ran=gate_ran)
    lines = [describe_setting(comparison), "", *to_text_table(comparison), TABLE_CAPTION, ""]
    lines += [outcome, *explain_gate(comparison).splitlines()[1:], comparison.recommendation]
    return [*lines, *(["", *table] if (table := differences_to_text(differences)) else [])]


def to_text_table(comparison: Comparison) -> list[str]:
    """Return the first `TERMINAL_COLUMNS` of the table of options as aligned lines."""
    rows = [table_head(comparison), *table_rows(comparison)]
    return _aligned([[str(cell) for cell in row[:TERMINAL_COLUMNS]] for row in rows])


def differences_to_text(differences: Sequence[Difference]) -> list[str]:
    """Return the table of differences to the baseline as aligned lines; empty without differences."""
    if not differences:
        return []
    table = _aligned([DIFFERENCE_HEADINGS, *difference_rows(differences)])
    return ["Against the baseline:", "", *table, "", CAPTION, ""]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def to_markdown(
    comparison: Comparison, differences: Sequence[Difference] = (), *, pictures: bool = True
) -> str:
    """Return the comparison as a Markdown document, with links to the pictures in the same folder."""
    lines = [
        "# Comparison of loss options",
        "",
        markdown(explain_gate(comparison).splitlines()[0]),
        "",
        f"**{markdown(comparison.recommendation)}**",
        "",
        markdown(describe_setting(comparison)),
        "",
        _row([str(cell) for cell in table_head(comparison)]),
        _row(["---"] * (1 + len(COLUMNS))),
        *(_row([str(cell) for cell in row]) for row in table_rows(comparison)),
        "",
        TABLE_CAPTION,
        "",
        "## Verdicts",
        "",
    ]
    for name, option in comparison.options.items():
        lines.append(f"- **{name}** {words(option.verdict)}: {markdown(option.reason)}")
        first, others = option.runs[:LISTED], option.runs[LISTED:]
        lines += [f"  - seed {run.seed}: {words(run.verdict)}: {markdown(run.reason)}" for run in first]
        lines += [f"  - and {len(others)} more: {count_verdicts(others)}"] * bool(others)
    if differences:
        rows = [DIFFERENCE_HEADINGS, ["---"] * len(DIFFERENCE_HEADINGS), *difference_rows(differences)]
        lines += ["", "## Against the baseline", "", *map(_row, rows), "", CAPTION]
    if pictures:
        for name, description in PICTURES.items():
            lines += ["", f"![{description}]({name})"]
    return "\n".join([*lines, ""])


def markdown(text: str) -> str:
    """Return text with the special characters of Markdown escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", text)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
