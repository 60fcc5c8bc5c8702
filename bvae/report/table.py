"""The table of options, as cells for Markdown and HTML and as aligned lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bvae.judging.comparison import METRICS, Comparison, OptionSummary
from bvae.records import ControlledMetrics, MeanStd


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
        lambda _, option: Cell(str(getattr(option, name)), _number(getattr(option, f"shuffled_{name}").mean)),
        lambda found: Cell(_number(getattr(found, name)), _number(getattr(found.shuffled, name))),
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
        lambda found: Cell(_number(found.pixel_accuracy)),
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
        lambda comparison, option: Cell(f"{_short(option.active_units)} of {_latents(comparison, option)}"),
    ),
)
"""Columns of the table of options after the name, for terminal, Markdown and HTML.

The second text of a heading is a template with the `background` rate and the bounds `lo`, `hi` of the band.
"""

COLUMNS_ACROSS_SESSIONS = (
    FIRST_COLUMNS[0],
    Column(
        Cell("accuracy", "background"),
        lambda comparison, option: Cell(
            str(option.pixel_accuracy), _number(comparison.corpus.background_rate)
        ),
    ),
    *(_metric(name) for name in ("object_iou", "object_recall")),
    Column(Cell("KL per grid", "bits"), lambda _, option: Cell(_short(_in_bits(option.kl)))),
    COLUMNS[-1],
)
"""Columns of the table of options of several sessions, whose corpora and bands may differ."""

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


def _number(value: float | None) -> str:
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


def _in_bits(kl: MeanStd) -> MeanStd:
    return MeanStd(*(None if nats is None else nats / math.log(2) for nats in (kl.mean, kl.sd)))


def _latents(comparison: Comparison, option: OptionSummary) -> int:
    return comparison.training.changed(option.training).latent_dim


def _divergence(kl: MeanStd) -> Cell:
    return Cell(_short(kl), "undefined" if kl.mean is None else f"{kl.mean / math.log(2):.3g}")


def to_text_table(comparison: Comparison) -> list[str]:
    """Return the first `TERMINAL_COLUMNS` of the table of options as aligned lines."""
    rows = [table_head(comparison), *table_rows(comparison)]
    return aligned([[str(cell) for cell in row[:TERMINAL_COLUMNS]] for row in rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
