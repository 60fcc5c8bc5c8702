"""The report: its text, pictures and code agree with the measurements."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import tomllib
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evidence_factory import CORPUS, REFERENCES, evaluation, history, result
from hypothesis import assume, given
from hypothesis import strategies as st
from lab import QUICK, ROOT, TINY, newest, run_pytest
from PIL import Image

from bvae.__main__ import main
from bvae.beta_vae import option_weights
from bvae.config import LOSS_OPTIONS, AccuracyBand, ExperimentConfig, LossOption
from bvae.corpus import load_corpus
from bvae.judging.baseline import difference
from bvae.judging.comparison import Comparison, Outcomes, compare, prediction_thresholds
from bvae.judging.explanation import (
    Diagnosis,
    RulesMet,
    describe_last_epoch,
    describe_rules_met,
    describe_why,
    explain_why,
    percent,
    when_rules_met,
)
from bvae.losses import focal_loss
from bvae.records import EpochRecord
from bvae.report.html import (
    TEMPLATES,
    Picture,
    code_snippet,
    report_head,
    report_page,
    show_differences,
    show_run,
)
from bvae.report.tables import Cell
from bvae.session import Session, SessionRecord
from bvae.verdict import RULES, judge_run
from bvae.visualization.canvas import pixel_figure, save_png
from bvae.visualization.why_chart import plot_why

unit, slow = pytest.mark.unit, pytest.mark.slow

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=40) | st.sampled_from(
    ["<script>boom()</script>", "\"><img src=x onerror='boom()'>", "&lt;b&gt;", "</details></td>"]
)
COUNTS = st.lists(st.integers(0, 10**6), min_size=10, max_size=10).filter(lambda counts: sum(counts[:1]) > 0)
POWER = LossOption(name="P", gamma=1.5, class_weights="power", exponent=0.3, candidate=True)
GIVEN = LossOption(name="G", gamma=0.0, class_weights=(1.0, *[2.5] * 9), candidate=True)


class Reader(HTMLParser):
    """Collects the text of a page, its tags with attribute names, and the values of all attributes.

    Style and script do not count as text.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open = "", ""
        self.tags: list[tuple[str, ...]] = []
        self.values: list[str] = []
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        if self.open not in ("style", "script"):
            self.text += data

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open = tag
        self.tags.append((tag, *(name for name, _ in attributes)))
        self.values += [value or "" for _, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        self.open = ""


def said(html: str) -> str:
    """Return the text of a page on one line."""
    return re.sub(r"\s+", " ", Reader(html).text)


def macro(name: str, *arguments: Any, **more: Any) -> Reader:
    """Return the output of a template macro."""
    write = getattr(TEMPLATES.get_template("macros.jinja").module, name)
    return Reader(str(write(*arguments, **more)))


# ---- escaping


@unit
@given(TEXTS.filter(bool))
def test_text_is_unchanged_by_escaping_in_html(text: str) -> None:
    code = macro("code", text, text)
    assert code.tags == macro("code", "plain", "plain").tags
    assert code.text.removesuffix("\n") == text
    assert code.values[-1] == text
    cells = [Cell(text, text)]
    table = macro("table", text, cells, [cells * 2], colours=["red"])
    plain = [Cell("plain", "plain")]
    assert table.tags == macro("table", "plain", plain, [plain * 2], colours=["red"]).tags
    assert table.text.count(text) >= 6
    assert text in table.values


@unit
@given(TEXTS.filter(bool))
def test_names_and_reasons_change_only_the_text_of_a_report(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    pages = []
    for name in ("plain", text):
        reason = dataclasses.replace(result("B", 0, "mode_collapse"), reason=name)
        runs = {"A": {0: f"A-seed0 {name}"}, "B": {0: reason}}
        session, comparison = compared(tmp_path_factory.getbasetemp(), runs, name=name)
        sections = {name: show_run(session, reason, None)}
        html = report_head(session, comparison) + report_page(session, comparison, sections)
        pages.append(Reader(html))
    assert pages[0].tags == pages[1].tags
    assert pages[1].text.count(text) > 5


@unit
@given(TEXTS)
def test_every_text_of_a_difference_is_shown_unchanged(text: str) -> None:
    one = difference("B", "object_iou", [0.1, 0.2], [0.3, 0.4])
    plain, hostile = (
        Reader(show_differences([dataclasses.replace(one, option=name)])) for name in ("B", text)
    )
    assert hostile.tags == plain.tags
    assert text in hostile.text


def png(width: int, height: int, description: str = "") -> bytes:
    """Return a PNG with many colours and a text alternative."""
    figure = pixel_figure(width, height)
    figure.figimage(np.random.default_rng(0).random((height, width)))
    target = io.BytesIO()
    save_png(figure, target, description)
    return target.getvalue()


@unit
@given(TEXTS.filter(bool), TEXTS)
def test_a_picture_carries_its_description_from_the_png_into_the_page(description: str, name: str) -> None:
    read = macro("picture", Picture.of(png(8, 8, description), name))
    assert [tag for tag, *_ in read.tags] == ["details", "summary", "img", "span"]
    assert description in read.values
    assert name in read.text


@unit
def test_a_picture_in_the_page_has_every_pixel_of_the_png() -> None:
    original = png(120, 70)
    (source,) = (
        value for value in macro("picture", Picture.of(original, "noise")).values if value[:5] == "data:"
    )
    with (
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as embedded,
        Image.open(io.BytesIO(original)) as file,
    ):
        assert np.array_equal(np.asarray(embedded.convert("RGB")), np.asarray(file.convert("RGB")))


# ---- the epochs in which a run met the rules


def epochs(recalls: list[float | None]) -> list[EpochRecord]:
    """Return epochs that are healthy but for these object recalls. Object IoU is half the recall."""
    records = history(*[1.0] * len(recalls))
    return [
        dataclasses.replace(
            record,
            validation=evaluation(object_recall=recall, object_iou=None if recall is None else recall / 2),
        )
        for record, recall in zip(records, recalls, strict=True)
    ]


@unit
@given(st.lists(st.none() | st.sampled_from([0.0, 0.3, 0.39, 0.4, 0.9]), max_size=8))
def test_the_epochs_that_met_and_broke_the_rules_are_named(recalls: list) -> None:
    learned = [recall is None or recall >= 0.4 for recall in recalls]
    first, lost, again = when_rules_met(epochs(recalls))
    assert (first is not None) == any(learned)
    if first is None:
        assert lost is again is None
        return
    assert learned[first - 1]
    assert not any(learned[: first - 1])
    assert (lost is not None) == (not learned[-1])
    for turn, state in ((lost, False), (again, True)):
        if turn is not None:
            assert turn > first
            assert all(now is state for now in learned[turn - 1 :])
            assert learned[turn - 2] is not state
    assert (again is None) == (lost is not None or all(learned[first - 1 :]))


@unit
@given(st.lists(st.sampled_from([None, 0.0, 0.3, 0.5]), max_size=6))
def test_the_rules_met_after_the_last_epoch_agree_with_the_verdict(recalls: list) -> None:
    records = epochs(recalls)
    assume(records)
    first, lost, _ = when_rules_met(records)
    learned = first is not None and lost is None
    assert learned == (judge_run(records[-1:], None, AccuracyBand()).name == "healthy")


@unit
@pytest.mark.parametrize(
    ("recalls", "expected", "words"),
    [
        ([], RulesMet(None, None, None), "No epoch was completed"),
        ([0.1, 0.2], RulesMet(None, None, None), "never met. Object IoU was highest in epoch 2 (object IoU"),
        ([0.2, 0.1], RulesMet(None, None, None), "never met. Object IoU was highest in epoch 1 (object IoU"),
        (
            [None],
            RulesMet(1, None, None),
            "first met in epoch 1 (without objects to judge by), the last epoch.",
        ),
        ([0.2, 0.5, 0.6], RulesMet(2, None, None), "met in epoch 2 (object IoU 0.250, object recall 0.500, "),
        ([0.2, 0.5, 0.6], RulesMet(2, None, None), ", 9 of 9 classes) and met to the end."),
        ([0.2, 0.5], RulesMet(2, None, None), ", the last epoch."),
        ([0.5, 0.2, 0.1], RulesMet(1, 2, None), "and not met from epoch 2 (object IoU 0.100"),
        ([0.5, 0.1, 0.6], RulesMet(1, None, 3), "then broken, and met from epoch 3 (object IoU"),
    ],
)
def test_a_sentence_says_in_which_epochs_the_rules_were_met(
    recalls: list, expected: RulesMet, words: str
) -> None:
    assert when_rules_met(epochs(recalls)) == expected
    assert words in describe_rules_met(epochs(recalls))


@unit
def test_the_trend_compares_the_last_two_epochs() -> None:
    for recalls in ([0.1], [None, 0.2], [0.2, None]):
        assert describe_last_epoch(epochs(recalls)) == ""
    assert "object IoU from 0.200 to 0.150 and validation loss from 1 to 1." in describe_last_epoch(
        epochs([0.9, 0.4, 0.3])
    )


# ---- the head


def compared(tmp_path: Path, outcomes: Outcomes, **changes: Any) -> tuple[Session, Comparison]:
    """Return a session of constructed runs and its comparison."""
    corpus = dataclasses.replace(CORPUS, **changes)
    record = SessionRecord(
        created="2026-01-01T00:00:00+00:00",
        command=("experiments/",),
        config=ExperimentConfig(),
        corpus=corpus,
        versions={"bvae": "0"},
        commit=None,
        hardware={},
    )
    return Session(tmp_path, record, "here"), compare(corpus, record.config, outcomes, REFERENCES)


def head(tmp_path: Path, outcomes: Outcomes, **changes: Any) -> str:
    """Return the head of a report on constructed runs."""
    return report_head(*compared(tmp_path, outcomes, **changes))


@unit
def test_style_and_script_are_in_the_page_even_if_no_run_was_begun(tmp_path: Path) -> None:
    session = Session(tmp_path, None, "here")  # type: ignore[arg-type]
    without = report_head(session, None)
    assert "There is no comparison: no run was begun" in said(without)
    for page in (without, head(tmp_path, {"B": {0: result("B", 0)}})):
        assert "<style>/* Style of the report" in page
        assert "documentElement.lang = 'en'" in page


@unit
def test_the_explanations_use_the_background_of_the_corpus(tmp_path: Path) -> None:
    session, comparison = compared(tmp_path, {"B": {0: result("B", 0)}}, background=7)
    sentences = explain_why(Diagnosis.of(comparison.options["B"], [], background=7))
    assert sentences[0] in said(report_head(session, comparison))


@unit
def test_the_page_without_pytest_is_a_whole_document_with_every_run(tmp_path: Path) -> None:
    runs = {"A": {0: result("A", 0, "mode_collapse")}, "B": {0: result("B", 0)}}
    session, comparison = compared(tmp_path, runs)
    sections = {f"{name}-seed0": show_run(session, run[0], None) for name, run in runs.items()}
    page = report_page(session, comparison, sections, [difference("B", "object_iou", [0.1, 0.2], [0.3, 0.4])])
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    tags = [tag for tag, *_ in Reader(page).tags]
    assert [tags.count(tag) for tag in ("html", "main", "h1", "script")] == [1, 1, 1, 0]
    for text in ("A-seed0", "B-seed0", "Differences to the baseline", "The gate was not run", "Select a run"):
        assert text in page
    assert "XFailed" not in page


def rows_of(page: str, label: str) -> list[list[str]]:
    """Return the cells of a table, row by row, without spans; each `|` stands for tags inside the cell."""
    body = re.search(rf'aria-label="{label}"><table .*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body is not None
    plain = re.sub(r"<span.*?</span>", "", body[1])
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in plain.split("</tr>")[:-1]]
    return [[unescape(re.sub("(<[^>]*>)+", "|", cell)) for cell in row] for row in rows]


@unit
def test_every_option_control_and_reference_has_a_row_in_the_report(
    tmp_path: Path,
) -> None:
    runs = {"A": {0: result("A", 0, "mode_collapse", object_iou=0.0)}, "B": {0: result("B", 0)}}
    rows = {first.partition("|")[0]: rest for first, *rest in rows_of(head(tmp_path, runs), "Options")}
    assert list(rows) == ["A", "B", "extent", *REFERENCES]
    assert rows["A"][:2] == ["✘ mode collapse", "0.000|0.030|"]
    assert rows["B"][:2] == ["✔ healthy", "0.200|0.030|"]
    assert rows["extent"][:2] == ["reference", "0.050|0.030|"]
    assert rows["nearest training grid, weighted"][:2] == ["reference", "0.120|0.030|"]


@unit
@given(
    recall=st.none() | st.sampled_from([0.0, 0.399, 0.4, 1.0]),
    ratio=st.sampled_from([0.1, 0.25, 3.5, 4.5]),
    classes=st.integers(0, 9),
)
def test_the_table_of_rules_shows_all_numbers_and_marks_broken_rules(
    tmp_path_factory: pytest.TempPathFactory, recall: float | None, ratio: float, classes: int
) -> None:
    changes = {
        "object_recall": recall,
        "predicted_foreground_rate": 0.2 * ratio,
        "classes_learned": classes,
        "minor_object_recall": None,
    }
    runs: dict = {"B": {0: result("B", 0, **changes), 1: "B-seed1 did not finish"}}
    rows = rows_of(head(tmp_path_factory.getbasetemp(), runs), "Rules of the verdict")
    found = evaluation(**changes)
    for rule, (name, bound, first, unfinished) in zip(RULES, rows, strict=True):
        value = rule.measure(found)
        broken = "|✘|" if rule.is_broken(found) else ""
        assert name == f"{rule.quantity}|else {rule.verdict.replace('_', ' ')}|"
        assert bound == rule.requirement
        assert first == ("undefined" if value is None else f"{value:.3f}{broken}")
        assert unfinished == "undefined"


@unit
@pytest.mark.parametrize(
    ("recognised", "learned"),
    [(0.12, "colours, places and shapes of objects"), (0.05, "colours and places of objects, not shapes")],
)
def test_the_head_describes_what_was_learned_and_unusual_properties(
    tmp_path: Path, recognised: float, learned: str
) -> None:
    runs = {"B": {0: result("B", 0, objects_recognised=recognised)}}
    words = said(head(tmp_path, runs, has_outside=True, duplicates=7))
    assert f"✔ The gate passed: B trained stably and learned {learned}" in words
    assert "Use option B" in words
    assert "The accuracy of B is 0.040 below that of predicting only background" in words
    assert "The band is below the background rate" not in words  # the rate is the upper end of the band
    assert "Grids differ in size" in words
    assert "7 training grids that are also validation grids were removed" in words


# ---- explanations


@unit
@given(COUNTS, st.sampled_from([*LOSS_OPTIONS.values(), POWER, GIVEN]))
def test_rarer_classes_have_lower_thresholds_and_absent_classes_none(
    counts: list[int], option: LossOption
) -> None:
    thresholds = prediction_thresholds(counts, option)
    assert [share is None for share in thresholds] == [count == 0 for count in counts[1:]]
    known = sorted((n, share) for n, share in zip(counts[1:], thresholds, strict=True) if share is not None)
    assert all(0 < share < 1 for _, share in known)
    if option.class_weights == "none":
        assert all(share == 0.5 for _, share in known)
    if isinstance(option.class_weights, str):
        assert [share for _, share in known] == sorted(share for _, share in known)


@unit
@pytest.mark.parametrize("option", LOSS_OPTIONS.values(), ids=lambda option: option.name)
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_class_is_the_best_prediction_exactly_above_its_threshold(
    option: LossOption, factor: float
) -> None:
    """Search for the best prediction of a cell that is class 1 with probability p, else background."""
    counts = [900, 100, *[50] * 8]
    threshold = prediction_thresholds(counts, option)[0]
    assert threshold is not None
    p = threshold * factor
    logits = torch.zeros(4001, 10, 1, 1, dtype=torch.float64)
    logits[:, 2:] = -60
    logits[:, 1, 0, 0] = torch.linspace(-8, 8, 4001)
    weight = option_weights(option, counts).double()
    loss = [
        focal_loss(
            logits, torch.full((4001, 1, 1), c), gamma=option.gamma, weight=weight, reduction="none"
        ).flatten()
        for c in (0, 1)
    ]
    best = (p * loss[1] + (1 - p) * loss[0]).argmin()
    assert (logits[best, 1, 0, 0] > 0) == (factor > 1)


def why(*, confusion: np.ndarray | None = None, shares: tuple = ((0.4, 0.6), (0.5, 0.7))) -> Diagnosis:
    cells = np.diag([80, *[2] * 9]) if confusion is None else confusion
    return Diagnosis(thresholds=(0.2, *[0.1] * 7, None), gradient_shares=shares, confusion=cells)


@unit
@given(st.lists(st.integers(0, 1000), min_size=100, max_size=100), st.floats(0, 1))
def test_every_explanation_is_a_sentence_with_numbers(cells: list, share: float) -> None:
    reasons = explain_why(why(confusion=np.array(cells).reshape(10, 10), shares=((share,),)))
    for reason in reasons:
        assert re.fullmatch(r"[A-Z].*\.", reason)
        assert "nan" not in reason
        assert "inf" not in reason


@unit
def test_the_explanations_agree_with_the_counts() -> None:
    confusion = np.zeros((10, 10), int)
    confusion[0, 0], confusion[0, 5] = 600, 200  # a quarter of the background is predicted as class 5
    confusion[1, 1], confusion[1, 0], confusion[1, 2] = 100, 60, 40
    thresholds, gradient, taken = explain_why(why(confusion=confusion))
    assert "The lowest threshold is 10 %, for class 2; the highest is 20 %, for class 1." in thresholds
    assert "20 % of all cells and contribute 65 %" in gradient
    assert "as much as 7.4 background cells" in gradient  # (0.65 / 0.2) / (0.35 / 0.8)
    assert re.findall(r"[\d.]+ %", taken) == ["50 %", "30 %", "20 %", "25 %"]


@unit
@pytest.mark.parametrize(
    ("changes", "gradient", "taken"),
    [
        ({"confusion": np.zeros((10, 10), int), "shares": ()}, "no epoch was", "no epoch was completed."),
        ({"shares": ((0.5, None), (None,))}, "it was zero after", "Of the foreground cells, 100 %"),
        ({"confusion": np.diag([0, *[2] * 9])}, "100 % of all cells", "no validation cell is background."),
        ({"confusion": np.diag([80, *[0] * 9])}, "0 % of all cells", "no validation cell is foreground."),
    ],
    ids=["no epoch", "no gradient", "no background", "no foreground"],
)
def test_an_explanation_without_evidence_says_which_evidence_is_missing(
    changes: dict, gradient: str, taken: str
) -> None:
    _, of_gradient, of_confusion = explain_why(why(**changes))
    assert gradient in of_gradient
    assert taken in of_confusion
    assert ("no epoch" in of_gradient) == ("no epoch" in of_confusion)


@unit
@given(st.floats(0, 1))
def test_only_nothing_is_zero_per_cent_and_only_everything_is_a_hundred(share: float) -> None:
    assert (percent(share) in ("0 %", "0.0 %")) == (share == 0)
    assert (percent(share) in ("100 %", "100.0 %")) == (share == 1)


@unit
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_no_class_is_confused_with_another_if_all_other_cells_are_background(right: int, erased: int) -> None:
    confusion = np.diag([80, right, *[0] * 8])
    confusion[1, 0] = erased
    assert "and 0 % as another class; 0 % of the background" in explain_why(why(confusion=confusion))[2]


@unit
@given(st.floats(0.01, 0.99))
def test_thresholds_of_half_or_more_predict_background_when_in_doubt(share: float) -> None:
    equal = dataclasses.replace(why(), thresholds=(share,) * 9)
    assert ("when in doubt, the model predicts background" in explain_why(equal)[0]) == (share >= 0.5)


@unit
@pytest.mark.parametrize(
    "reasons",
    [
        why(),
        why(confusion=np.zeros((10, 10), int), shares=()),
        why(shares=((None, None), (0.5, None, 0.1))),
        why(shares=((0.5,) * 40,)),
    ],
    ids=["seeds", "no epoch", "undefined shares", "many epochs"],
)
def test_the_explanations_are_the_text_alternative_of_their_picture(
    reasons: Diagnosis, tmp_path: Path
) -> None:
    plot_why(reasons, path=tmp_path / "why.png", title="Why")
    with Image.open(tmp_path / "why.png") as image:
        assert image.info["Description"] == describe_why(reasons)


# ---- code to copy


@unit
@pytest.mark.parametrize(
    "option", [*LOSS_OPTIONS.values(), POWER, GIVEN], ids=lambda option: str(option.class_weights)[:12]
)
def test_the_code_of_a_recommendation_runs_and_gives_the_same_loss(option: LossOption) -> None:
    experiment = ExperimentConfig(corpus="atomic:40", options=(option,))
    counts = load_corpus("atomic:40").class_counts
    names: dict = {}
    exec(code_snippet(experiment, option, counts), names)
    logits = torch.randn(2, 10, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(32).reshape(2, 4, 4) % 10
    expected = focal_loss(logits, target, gamma=option.gamma, weight=option_weights(option, counts))
    assert names["reconstruction_loss"](logits, target) == expected
    assert names["training"] == experiment.training


# ---- files


@unit
def test_every_template_style_and_script_is_declared_as_package_data() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = ROOT / "bvae/report"
    found = {path for path in folder.rglob("*") if path.suffix in (".jinja", ".css", ".js")}
    assert found == {path for pattern in declared["bvae.report"] for path in folder.glob(pattern)}


# ---- pictures of a run


def pieces(report: Path) -> list[str]:
    """Return the HTML of every row of a report, as pytest-html stores it."""
    blob = re.findall(r'data-jsonblob="([^"]*)"', report.read_text())[0]
    rows = [row for rows in json.loads(unescape(blob))["tests"].values() for row in rows]
    return ["".join(extra["content"] for extra in row["extras"]) for row in rows]


@slow
def test_twelve_of_many_checkpoints_are_shown_with_the_folder_of_all(lab: Path) -> None:
    run_pytest(
        *("experiments/", *QUICK, *TINY, "-n0", "--html=report.html", "-k", "A-seed0"),
        *("--epochs", "15", "--learning-rate", "1e-5"),
    )
    (run,) = pieces(lab / "report.html")
    captions = re.findall(r'bvae-caption">([^(]*) \(', run)
    assert captions[0].startswith("Filmstrip")
    assert len(captions) == 2 + 12
    assert captions[-1] in ("Epoch 15", "Lowest validation loss")
    assert "of 15 checkpoints are shown. All pictures are in" in run
    assert str(newest(lab) / "A-seed0/checkpoints") in run


@slow
def test_a_picture_that_two_checkpoints_share_is_embedded_once(lab: Path) -> None:
    run_pytest("experiments/", *QUICK, *TINY, "-n0", "--html=report.html", "-k", "A-seed0")
    (run,) = pieces(lab / "report.html")
    images = re.findall(r"data:image/png;base64,[^\"]+", run)
    assert len(set(images)) == len(images) == 4  # the filmstrip, the curves and two epochs
    assert re.search(r"The checkpoint with the lowest validation loss is that of epoch \d\.", run)


@slow
def test_a_filmstrip_that_cannot_be_drawn_is_reported_with_its_run(lab: Path) -> None:
    (lab / "conftest.py").write_text(
        "import bvae.session.listeners\n"
        "def broken(*arguments, **more):\n"
        "    raise MemoryError('<no room>')\n"
        "bvae.session.listeners.plot_filmstrip = broken\n"
    )
    run_pytest("experiments/", *QUICK, *TINY, "-n0", "--html=report.html", "-k", "B-seed0")
    result = json.loads((newest(lab) / "B-seed0/result.json").read_text())
    assert result["failed_pictures"] == ["filmstrip.png: MemoryError: <no room>"]
    (run,) = pieces(lab / "report.html")
    assert "filmstrip.png: MemoryError: &lt;no room&gt;" in run


@slow
def test_the_head_of_the_report_says_that_the_gate_was_not_run(lab: Path) -> None:
    run_pytest("experiments/", *QUICK, *TINY, "-n2", "--html=report.html", "-k", "A-seed or B-seed")
    head = (lab / "report.html").read_text().partition("data-jsonblob")[0]
    assert "The gate was not run. With the existing results, it would fail" in head
    pictures = head.count("<img ") - head.count('<img src=""')
    assert pictures == 7  # two corpus pictures, verdicts, curves, tradeoff, and two explanations


@slow
def test_the_command_writes_the_report_as_one_page(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_pytest("experiments/", *QUICK, *TINY, "-n0", "-k", "A-seed0")
    session = newest(lab)
    for arguments, path in (
        ([], session / "report.html"),
        (["--html", "new/mine.html"], Path("new/mine.html")),
    ):
        assert main(["report", "runs/latest", *arguments]) == 0
        assert capsys.readouterr().out.endswith(f"Report: {path}\n")
        page = path.read_text()
        assert "<summary>A-seed0: " in page
        assert len(re.findall("data:image/png;base64,", page)) == 10  # six in the head, four of the run
        assert not re.search(r"(src|href)=\"(?!data:)", page)
    for told, html in (
        ("runs/latest", session / "B-seed0/page.html"),
        ("missing", Path("missing/page.html")),
    ):
        assert main(["report", told, f"--html={html}"]) == 4
        assert not html.parent.exists()
        assert (session / "comparison/comparison.json").exists()
