"""Tables of the HTML report: options, rules, the verdicts on many runs, and lines that link to them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bvae.config import RunConfig, colour_of
from bvae.judging.comparison import Comparison, RunSummary
from bvae.judging.explanation import count_verdicts, outliers
from bvae.records import RunResult
from bvae.report.text import Cell, table_head, table_rows, words
from bvae.session import Session
from bvae.session_files import FILMSTRIP, picture_of, pictured_checkpoints
from bvae.verdict import RULES, SIGNS, Rule

PICTURED, OUTLIERS = 10, 16
"""Maximum number of options and of outliers whose pictures the report of a large session shows."""

MARKS = {True: "✔", False: "✘"}


def options_table(comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Return the table of options and references.

    Args:
        names: all options of the session, in the order of their colours.
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
    """Return the table of rules: the number that each rule measured in every run, marked if broken.

    For a large session, it has the lowest and the highest number of each option.
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


def many_runs(session: Session, comparison: Comparison, page: Path) -> dict[str, Any]:
    """Return the map of verdicts of a large session, options by seeds, and lines on its outliers."""
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
        "outliers": [run_line(session, run.path, run, page, {run.path}) | {"why": why} for run, why in found],
    }


def run_line(
    session: Session, name: str, run: RunSummary | RunResult, page: Path, pictured: Collection[str]
) -> dict[str, Any]:
    """Return the variables of a line on a run.

    Its picture is that of the newest checkpoint, whose size does not depend on the number of epochs.

    Args:
        page: the folder of the report, to which links are relative.
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
    """Return the names of the runs of a large session that have a picture: the first of some options."""
    options = groupby(runs, key=lambda run: run.option.name)
    return {next(group).name for _, group in islice(options, PICTURED)}
