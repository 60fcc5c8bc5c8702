"""Tables of the report: options, rules, and the runs of a large session."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from bvae.config import RunConfig
from bvae.judging.comparison import METRICS, Comparison, OptionSummary, RunSummary, colour_of
from bvae.judging.explanation import count_verdicts, outliers
from bvae.records import ControlledMetrics, MeanStd, RunResult
from bvae.session import Session
from bvae.session_files import FILMSTRIP, picture_of, pictured_checkpoints
from bvae.verdict import COLOURS, RULES, SIGNS, Rule, words

PICTURED, OUTLIERS = 10, 16
"""Maximum numbers of options, and of outliers, with a picture in the report of a large session."""

MARKS = {True: "✔", False: "✘"}


class Cell(NamedTuple):
    """A table cell: its text, and a second text such as the value of a control."""

    text: str
    beside: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.beside})" if self.beside else self.text


class Column(NamedTuple):
    """A column of the table of options: its heading, and its cell for an option and for a reference."""

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
    Column(Cell("KL per grid", "nats; bits"), lambda _, option: _divergence(option.kl)),
    *(_metric(name) for name, metric in METRICS.items() if metric.column == "report"),
    Column(Cell("γ"), lambda _, option: Cell(f"{option.gamma:g}")),
    Column(
        Cell("class weights", "largest : smallest"),
        lambda _, option: Cell(option.weighting, f"{option.weight_ratio:,.1f} : 1"),
    ),
    Column(
        Cell("active units"),
        lambda comparison, option: Cell(f"{_short(option.active_units)} of {_latents(comparison, option)}"),
    ),
)
"""Columns of the table of options after the name; a terminal shows only `FIRST_COLUMNS`.

The second text of a heading is a template for the `background` rate and the bounds `lo` and `hi` of the band.
"""

COLUMNS_ACROSS_SESSIONS = (
    FIRST_COLUMNS[0],
    Column(
        Cell("accuracy", "background"),
        lambda comparison, option: Cell(
            str(option.pixel_accuracy), number(comparison.corpus.background_rate)
        ),
    ),
    *(_metric(name) for name in ("object_iou", "object_recall")),
    Column(Cell("KL per grid", "bits"), lambda _, option: Cell(_short(_in_bits(option.kl)))),
    COLUMNS[-1],
)
"""Columns of the table of options for several sessions, which may differ in corpus and band."""

TABLE_CAPTION = (
    "Mean ± standard deviation over seeds. Shuffled: the control that decodes each grid from another grid's "
    "latent. Its metrics show what can be predicted without seeing the grid."
)

TERMINAL_COLUMNS = 1 + len(FIRST_COLUMNS)
"""Number of columns in a terminal, including the name."""


def table_head(comparison: Comparison) -> list[Cell]:
    """Return the headings of the table of options."""
    lo, hi = comparison.band
    known = {"background": comparison.corpus.background_rate, "lo": lo, "hi": hi}
    return [Cell("option"), *(Cell(text, beside.format(**known)) for (text, beside), *_ in COLUMNS)]


def table_rows(comparison: Comparison) -> list[list[Cell]]:
    """Return the table of options: a row for each option, followed by controls and references."""
    options, references = comparison.options, comparison.corpus.controls | comparison.corpus.references
    rows = [(name, [column.of_option(comparison, options[name]) for column in COLUMNS]) for name in options]
    rows += [(name, [column.of_reference(found) for column in COLUMNS]) for name, found in references.items()]
    return [[Cell(name), *cells] for name, cells in rows]


def number(value: float | None) -> str:
    """Return a number with three decimals, or "undefined"."""
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
    """Return the first `TERMINAL_COLUMNS` columns of the table of options as aligned lines."""
    rows = [table_head(comparison), *table_rows(comparison)]
    return aligned([[str(cell) for cell in row[:TERMINAL_COLUMNS]] for row in rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def options_table(comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Return the table of options and references for HTML.

    Args:
        names: all options of the session; their order determines the colours.
    """
    rows = table_rows(comparison)
    for row, (name, option) in zip(rows, comparison.options.items(), strict=False):
        row[0] = Cell(name, "recommended" if name == comparison.recommended else "")
        row[1] = Cell(f"{MARKS[option.healthy]} {row[1].text}")
    return {
        "head": table_head(comparison),
        "rows": rows,
        "chosen": [*comparison.options].index(comparison.recommended) if comparison.recommended else None,
        "colours": [colour_of(names.index(name)) for name in comparison.options],
    }


def rules_table(comparison: Comparison) -> dict[str, Any]:
    """Return the table of rules: the number that each rule measures in each run; broken rules have a mark.

    For a large session, the table has the lowest and the highest number of each option instead.
    """
    columns, rows = list[tuple[Cell, Sequence[RunSummary]]](), []
    for name, option in comparison.options.items():
        each = [(Cell(name, f"seed {run.seed}"), [run]) for run in option.runs]
        columns += [(Cell(name, f"{len(each)} seeds"), option.runs)] if comparison.is_large else each
    for rule in RULES:
        names = [Cell(rule.quantity, f"else {words(rule.verdict)}"), Cell(rule.requirement)]
        rows.append([*names, *(_rule_cell(rule, runs) for _, runs in columns)])
    return {"head": [Cell("rule"), Cell("bound"), *(heading for heading, _ in columns)], "rows": rows}


def _rule_cell(rule: Rule, runs: Sequence[RunSummary]) -> Cell:
    found = [run.metrics for run in runs if run.metrics is not None]
    values = [value for metrics in found if (value := rule.measure(metrics)) is not None]
    if not values:
        return Cell("undefined")
    ends = dict.fromkeys(f"{value:.3f}" for value in (min(values), max(values)))
    mark = MARKS[False] + f" {sum(map(rule.is_broken, found))} of {len(runs)}" * (len(runs) > 1)
    return Cell(" to ".join(ends), mark if any(map(rule.is_broken, found)) else "")


def verdict_style() -> str:
    """Return the CSS rules for the colours of the verdicts."""
    rules = (
        f".bvae-map .bvae-{name}, .bvae-{name} {{ background: {colour}; color: {ink}; }}\n"
        for name, (colour, ink) in COLOURS.items()
    )
    return "".join(rules)


def many_runs(session: Session, comparison: Comparison, page: Path) -> dict[str, Any]:
    """Return the map of verdicts of a large session (options by seeds), and the lines of its outliers."""
    options = comparison.options
    verdicts = {run.verdict for option in options.values() for run in option.runs}
    found = outliers(options, OUTLIERS)
    return {
        "seeds": sorted({run.seed for option in options.values() for run in option.runs}),
        "rows": {
            f"{name}: {count_verdicts(option.runs)}": {run.seed: run for run in option.runs}
            for name, option in options.items()
        },
        "legend": {name: sign for name, sign in SIGNS.items() if name in verdicts},
        "pictured": PICTURED,
        "outliers": [run_line(session, run.path, run, page, {run.path}) | {"why": why} for run, why in found],
    }


def run_line(
    session: Session, name: str, run: RunSummary | RunResult, page: Path, pictured: Collection[str]
) -> dict[str, Any]:
    """Return the variables of the line of a run.

    A pictured run has the picture of its newest checkpoint. Its filmstrip, which is larger, is only linked.

    Args:
        page: the folder of the report, to which its links are relative.
        pictured: the names of the runs with a picture.
    """
    folder, start = session.path / name, page.resolve()
    places = {"folder": folder, "filmstrip": folder / FILMSTRIP}
    return {
        "name": name,
        "run": run,
        "links": {
            text: quote(os.path.relpath(path, start)) for text, path in places.items() if path.exists()
        },
        "pictures": [*map(picture_of, pictured_checkpoints(folder)[:1])] if name in pictured else [],
        "why": "",
    }


def pictured_runs(runs: Iterable[RunConfig]) -> set[str]:
    """Return the names of runs with a picture in a large session: the first run of `PICTURED` options."""
    options = groupby(runs, key=lambda run: run.option.name)
    return {next(group).name for _, group in islice(options, PICTURED)}
