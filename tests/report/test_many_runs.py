"""Reports of sessions with many runs are bounded in size and text, and show the verdict on every run."""

from __future__ import annotations

import dataclasses
import json
import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from evidence_factory import CORPUS, REFERENCES, result
from hypothesis import given
from hypothesis import strategies as st
from large_session import ManyRuns

from bvae.config import LOSS_OPTIONS, ExperimentConfig
from bvae.experiment import Experiment
from bvae.judging.comparison import LARGE, LISTED, Comparison, Outcomes, compare
from bvae.judging.explanation import count_verdicts, outliers
from bvae.records import VerdictName
from bvae.report.html import report_head, report_page
from bvae.report.tables import OUTLIERS, rules_table
from bvae.report.text import explain_gate, to_markdown, to_terminal
from bvae.session import Session, SessionRecord
from bvae.verdict import SEVERITY, SIGNS

unit, slow = pytest.mark.unit, pytest.mark.slow
VERDICTS = st.sampled_from([*SEVERITY][1:])


def compared(outcomes: Outcomes) -> Comparison:
    options = tuple(dataclasses.replace(LOSS_OPTIONS["B"], name=name) for name in outcomes)
    return compare(CORPUS, ExperimentConfig(options=options), outcomes, REFERENCES)


def many(options: int, seeds: int, verdict: str = "mode_collapse") -> Comparison:
    names = [f"B{number}" for number in range(options)]
    return compared({name: {seed: result(name, seed, verdict) for seed in range(seeds)} for name in names})


def session_of(comparison: Comparison, folder: Path) -> Session:
    options = tuple(dataclasses.replace(LOSS_OPTIONS["B"], name=name) for name in comparison.options)
    record = SessionRecord(
        created="2026-01-01T00:00:00+00:00",
        command=("experiments/",),
        config=ExperimentConfig(options=options),
        corpus=CORPUS,
        versions={"bvae": "0"},
        commit=None,
        hardware={},
    )
    return Session(folder, record, "here")


# ---- which runs are shown, and how


@unit
@pytest.mark.parametrize("runs", [LARGE - 1, LARGE])
def test_only_a_large_session_has_a_map_of_verdicts(tmp_path: Path, runs: int) -> None:
    comparison = many(1, runs)
    session = session_of(comparison, tmp_path)
    head = report_head(session, comparison)
    page = report_page(session, comparison, {"B0-seed0: mode collapse": "the section of a run"})
    for html in (head, page):
        assert (html.count('class="bvae-map"') == 1) == (runs == LARGE)
    assert ("the section of a run" in page) == (runs < LARGE)
    assert ("B0-seed20: mode collapse" in page) == (runs == LARGE)


@unit
@pytest.mark.parametrize(("begun", "selected"), [(0, LARGE - 1), (0, LARGE), (LARGE - 2, 1), (LARGE - 1, 1)])
def test_a_run_is_shown_briefly_exactly_if_its_session_has_a_large_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: int, selected: int
) -> None:
    comparison = many(1, begun + selected)
    (option,) = (dataclasses.replace(LOSS_OPTIONS["B"], name=name) for name in comparison.options)
    experiment = Experiment(ExperimentConfig(options=(option,), seeds=2 * LARGE), tmp_path, [])
    session = session_of(comparison, tmp_path)
    record = dataclasses.replace(session.record, config=experiment.config)
    monkeypatch.setattr(experiment, "_session", dataclasses.replace(session, record=record))
    monkeypatch.setattr(
        "bvae.experiment.load_engine", lambda: SimpleNamespace(draw_run_curves=lambda *_: None)
    )
    for seed in range(begun):
        (tmp_path / f"{option.name}-seed{seed}").mkdir()
    experiment.select([(option, seed) for seed in range(begun, begun + selected)])
    (html,) = experiment.show_run(result(option.name, begun))
    assert ("bvae-lines" in html) == comparison.is_large == (begun + selected >= LARGE)


@unit
@given(st.dictionaries(st.integers(0, 60), VERDICTS, min_size=LARGE))
def test_the_map_names_the_verdict_on_each_run_by_text_and_by_sign(verdicts: dict[int, str]) -> None:
    comparison = compared({"B": {seed: result("B", seed, verdict) for seed, verdict in verdicts.items()}})
    page = report_head(session_of(comparison, Path()), comparison)
    cell = r'<td class="bvae-(\w+)" title="B-seed(\d+): ([a-z ]+)" aria-label="([^"]+)">(.)</td>'
    cells = re.findall(cell, page)
    assert len(cells) == len(verdicts)
    for name, seed, title, label, sign in cells:
        assert name == verdicts[int(seed)]
        assert title == name.replace("_", " ")
        assert label == f"seed {seed}: {title}"
        assert sign == SIGNS[name]


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@unit
def test_each_verdict_has_a_colour_that_contrasts_with_its_sign(tmp_path: Path) -> None:
    comparison = many(1, LARGE)
    page = report_head(session_of(comparison, tmp_path), comparison)
    for name in SIGNS:
        ((colour, ink),) = re.findall(
            rf"\.bvae-map \.bvae-{name}, \.bvae-{name} {{ background: (#\w{{6}}); color: (#\w{{6}}); }}", page
        )
        dark, light = sorted(map(luminance, (colour, ink)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


@unit
@given(
    st.dictionaries(
        st.sampled_from("ABCDEFGH"),
        st.lists(st.tuples(VERDICTS, st.none() | st.sampled_from([0.0, 0.1, 0.2])), min_size=1, max_size=6),
        min_size=1,
    ),
    st.integers(0, 12),
)
def test_outliers_are_the_runs_that_differ_from_their_option(
    options: dict[str, list[tuple[VerdictName, float | None]]], most: int
) -> None:
    comparison = compared(
        {
            name: {seed: result(name, seed, run[0], object_iou=run[1]) for seed, run in enumerate(runs)}
            for name, runs in options.items()
        }
    )
    found = outliers(comparison.options, 1000)
    assert outliers(comparison.options, most) == found[:most]
    assert len({run.path for run, _ in found}) == len(found)
    reasons = {run.path: why for run, why in found}
    for option in comparison.options.values():
        others = {run.verdict for run in option.runs} - {option.verdict}
        shown = {run.verdict for run in option.runs if "the option is" in reasons.get(run.path, "")}
        assert shown == others
        ious = [run.metrics.object_iou for run in option.runs if run.metrics]
        known = [iou for iou in ious if iou is not None]
        for text, end in (("lowest", min), ("highest", max)):
            picked = [run for run in option.runs if text in reasons.get(run.path, "")]
            assert len(picked) == (len({*known}) > 1)
            assert all(run.metrics and run.metrics.object_iou == end(known) for run in picked)


@unit
def test_the_rules_table_of_a_large_session_shows_a_range_per_option() -> None:
    runs = {seed: result("B", seed, object_recall=0.3 if seed < 5 else 0.6) for seed in range(LARGE)}
    table = rules_table(compared({"B": runs}))
    assert [heading.beside for heading in table["head"][2:]] == [f"{LARGE} seeds"]
    (row,) = (row for row in table["rows"] if row[0].text == "object recall")
    assert row[2] == ("0.300 to 0.600", f"✘ 5 of {LARGE}")


# ---- text


@unit
def test_the_markdown_lists_ten_seeds_of_an_option_and_counts_the_others() -> None:
    verdicts = ["mode_collapse"] * 98 + ["healthy"] * 2
    runs = {seed: result("B", seed, verdict) for seed, verdict in enumerate(verdicts)}
    comparison = compared({"B": runs})
    assert count_verdicts(comparison.options["B"].runs) == "98 mode collapse, 2 healthy"
    text = to_markdown(comparison)
    assert text.count("  - seed ") == LISTED
    assert "  - and 90 more: 88 mode collapse, 2 healthy\n" in text


@unit
@pytest.mark.parametrize("verdict", ["mode_collapse", "healthy", "above_band"])
def test_sentences_on_many_options_are_bounded(verdict: str) -> None:
    few, more = (many(options, 3, verdict) for options in (LISTED + 1, 20 * LISTED))
    assert "and 1 more" in explain_gate(few)
    for text in (explain_gate, lambda comparison: comparison.recommendation):
        assert len(text(more)) < 1.1 * len(text(few)) + 100 * (verdict == "above_band")
    lines = to_terminal(more, (), {f"gate {n}": False for n in range(50)}, gate_ran=True)
    assert len(lines) < 20 * LISTED + 30  # the table has a row for each option
    assert max(map(len, lines)) < 3000


# ---- files


def html_of(page: Path) -> str:
    """Return the HTML of a page and of the rows that pytest-html stores as JSON."""
    text = page.read_text()
    page_text, blob, rest = re.fullmatch(r'(.*?)(?:data-jsonblob="([^"]*)"(.*))?', text, re.DOTALL).groups("")
    rows = [row for rows in json.loads(unescape(blob) or '{"tests": {}}')["tests"].values() for row in rows]
    return page_text + rest + "".join(extra["content"] for row in rows for extra in row["extras"])


@slow
def test_reports_of_many_runs_are_small_and_link_to_every_run(
    many_runs: ManyRuns,
) -> None:
    runs = {path for path in many_runs.session.glob("*-seed*") if path.is_dir()}
    assert len(runs) == many_runs.options * many_runs.seeds
    of_comparison = 5 + many_runs.options  # two corpus pictures, three charts, explanations
    for page in many_runs.pages:
        assert page.stat().st_size < 4e6
        html = html_of(page)
        assert html.count("data:image/png;base64,") == of_comparison + many_runs.options + OUTLIERS
        links = {(page.parent / unquote(link)).resolve() for link in re.findall(r'<a href="([^":]+)"', html)}
        assert links == runs | {run / "filmstrip.png" for run in runs}
        assert all(link.exists() for link in links)
        for run in runs:
            assert f"{run.name}: " in html


@slow
def test_the_output_for_many_runs_is_bounded(many_runs: ManyRuns) -> None:
    lines = many_runs.output.splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) < 1000
    markdown = many_runs.session / "comparison/comparison.md"
    assert len(markdown.read_text().splitlines()) < many_runs.options * (LISTED + 2) + 60
