"""The report: what its words, pictures and code say is what was measured."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from evidence_factory import evaluation, history, reconstruction
from hypothesis import given
from hypothesis import strategies as st
from lab import QUICK, TINY, newest, run_pytest
from PIL import Image

from bvae.beta_vae import option_weights
from bvae.canvas import pixel_figure, save_png
from bvae.comparison import painting_threshold
from bvae.config import LOSS_OPTIONS, ExperimentConfig, LossOption
from bvae.corpus import load_corpus
from bvae.losses import focal_loss
from bvae.markup import code, paragraph, picture, table
from bvae.recipe import recipe
from bvae.records import EpochRecord
from bvae.report_page import SCRIPT, STYLE, mend_page
from bvae.story import Learning, learning, tell_learning, tell_trend
from bvae.verdict import GAIN
from bvae.why import Why, describe_why, explain_why
from bvae.why_picture import plot_why

unit, slow = pytest.mark.unit, pytest.mark.slow

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=40) | st.sampled_from(
    ["<script>boom()</script>", "\"><img src=x onerror='boom()'>", "&lt;b&gt;", "</details></td>"]
)
COUNTS = st.lists(st.integers(0, 10**6), min_size=10, max_size=10).filter(lambda counts: sum(counts[:1]) > 0)
POWER = LossOption(name="P", gamma=1.5, class_weights="power", exponent=0.3, candidate=True)
GIVEN = LossOption(name="G", gamma=0.0, class_weights=(1.0, *[2.5] * 9), candidate=True)


class Reader(HTMLParser):
    """Collects the text, the tags and the attributes of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.values = "", [], []
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value for _, value in attributes]


# ---- escaping


@unit
@given(TEXTS)
def test_text_in_html_is_read_as_it_was_written(text: str) -> None:
    for html, tags in (
        (paragraph(text), ["p"]),
        (code(text, text), ["pre"]),
        (
            table(text, [(text, "")], [[(text, "")]]),
            ["div", "table", "thead", "tr", "th", "tbody", "tr", "th"],
        ),
    ):
        read = Reader(html)
        assert read.tags == tags
        assert text in read.text
    assert Reader(code("", text)).values[-1] == text


def png(width: int, height: int, description: str = "") -> bytes:
    """A picture with many colours and a text alternative."""
    figure, axes = pixel_figure(width, height)
    axes.imshow(np.random.default_rng(0).random((height, width)), extent=(0, width, height, 0))
    target = io.BytesIO()
    save_png(figure, target, description)
    return target.getvalue()


@unit
@given(TEXTS.filter(bool), TEXTS)
def test_a_picture_carries_its_description_from_the_png_into_the_page(description: str, name: str) -> None:
    read = Reader(picture(png(8, 8, description), name=name))
    assert read.tags == ["details", "summary", "img", "span"]
    assert description in read.values
    assert name in read.text


@unit
def test_a_picture_in_the_page_has_every_pixel_of_the_png() -> None:
    original = png(120, 70)
    data = re.findall(r"data:image/png;base64,([^\"]+)", picture(original, name="noise"))
    with (
        Image.open(io.BytesIO(base64.b64decode(data[0]))) as embedded,
        Image.open(io.BytesIO(original)) as file,
    ):
        assert np.array_equal(np.asarray(embedded.convert("RGB")), np.asarray(file.convert("RGB")))


# ---- the story of a run


def epochs(gains: list[float | None]) -> list[EpochRecord]:
    """A history in which foreground recall exceeds its control by these."""
    records = history(*[1.0] * len(gains))
    return [
        dataclasses.replace(
            record,
            validation=evaluation(
                foreground_recall=None if gain is None else 0.25 + gain,
                shuffled=reconstruction(foreground_recall=0.25),
            ),
        )
        for record, gain in zip(records, gains, strict=True)
    ]


GAINS = st.lists(st.none() | st.sampled_from([-0.1, 0.0, 0.0625, 0.125, 0.5]), max_size=8)


@unit
@given(GAINS)
def test_the_story_of_a_run_names_the_epochs_at_which_objects_were_learned_and_lost(gains: list) -> None:
    learned = [gain is not None and gain >= GAIN for gain in gains]
    first, lost, again = learning(epochs(gains))
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
@pytest.mark.parametrize(
    ("gains", "expected", "words"),
    [
        ([], Learning(None, None, None), "No epoch was completed"),
        ([0.0, 0.05], Learning(None, None, None), "never learned: the nearest was epoch 2"),
        ([None], Learning(None, None, None), "foreground recall undefined"),
        ([0.0, 0.2, 0.3], Learning(2, None, None), "learned in epoch 2 (foreground recall 0.450"),
        ([0.0, 0.2], Learning(2, None, None), ", the last."),
        ([0.2, 0.0, 0.0], Learning(1, 2, None), "lost again in epoch 2"),
        ([0.2, 0.0, 0.3], Learning(1, None, 3), "to stay in epoch 3"),
    ],
)
def test_the_story_in_words(gains: list, expected: Learning, words: str) -> None:
    assert learning(epochs(gains)) == expected
    assert words in tell_learning(epochs(gains))


@unit
def test_the_trend_compares_the_last_two_epochs() -> None:
    assert tell_trend(epochs([0.1])) == tell_trend(epochs([None, 0.2])) == ""
    assert "recall from 0.350 to 0.375 and validation loss from 1 to 1." in tell_trend(
        epochs([0.5, 0.1, 0.125])
    )


# ---- the why


@unit
@given(COUNTS, st.sampled_from([*LOSS_OPTIONS.values(), POWER, GIVEN]))
def test_a_rarer_class_is_painted_at_a_lower_likelihood_and_an_absent_one_at_none(
    counts: list[int], option: LossOption
) -> None:
    thresholds = painting_threshold(counts, option)
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
def test_the_best_prediction_paints_a_class_exactly_above_its_threshold(
    option: LossOption, factor: float
) -> None:
    """Of a cell that is class 1 with likelihood p and background otherwise, by exhaustive search."""
    counts = [900, 100, *[50] * 8]
    threshold = painting_threshold(counts, option)[0]
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


def why(*, confusion: np.ndarray | None = None, shares: tuple = ((0.4, 0.6), (0.5, 0.7))) -> Why:
    cells = np.diag([80, *[2] * 9]) if confusion is None else confusion
    return Why(thresholds=(0.2, *[0.1] * 7, None), gradient_shares=shares, confusion=cells)


@unit
@given(st.lists(st.integers(0, 1000), min_size=100, max_size=100), st.floats(0, 1))
def test_every_reason_is_a_sentence_with_numbers_whatever_was_counted(cells: list, share: float) -> None:
    reasons = explain_why(why(confusion=np.array(cells).reshape(10, 10), shares=((share,),)))
    for reason in reasons:
        assert re.fullmatch(r"[A-Z].*\.", reason)
        assert "nan" not in reason
        assert "inf" not in reason


@unit
def test_the_reasons_say_what_was_counted() -> None:
    confusion = np.zeros((10, 10), int)
    confusion[0, 0], confusion[0, 5] = 600, 200  # a quarter of the background is painted over
    confusion[1, 1], confusion[1, 0], confusion[1, 2] = 100, 60, 40
    thresholds, gradient, taken = explain_why(why(confusion=confusion))
    assert "20 %" in thresholds
    assert "10 %" in thresholds
    assert "20 % of all and give 65 %" in gradient
    assert "as much as 7.4 background cells" in gradient  # (0.65 / 0.2) / (0.35 / 0.8)
    assert re.findall(r"[\d.]+ %", taken) == ["50 %", "30 %", "20 %", "25 %"]


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
def test_the_picture_of_the_reasons_tells_them_in_its_description(reasons: Why, tmp_path: Path) -> None:
    plot_why(reasons, path=tmp_path / "why.png", title="Why")
    with Image.open(tmp_path / "why.png") as image:
        assert image.info["Description"] == describe_why(reasons)


# ---- code to copy


@unit
@pytest.mark.parametrize(
    "option", [*LOSS_OPTIONS.values(), POWER, GIVEN], ids=lambda option: str(option.class_weights)[:12]
)
def test_the_code_of_a_recommendation_runs_and_gives_that_loss(option: LossOption) -> None:
    experiment = ExperimentConfig(corpus="atomic:40", options=(option,))
    counts = load_corpus("atomic:40").class_counts
    names: dict = {}
    exec(recipe(experiment, option, counts), names)
    logits = torch.randn(2, 10, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(32).reshape(2, 4, 4) % 10
    expected = focal_loss(logits, target, gamma=option.gamma, weight=option_weights(option, counts))
    assert names["reconstruction_loss"](logits, target) == expected
    assert names["training"] == experiment.training


# ---- the page


@unit
@given(TEXTS)
def test_mending_a_page_keeps_what_it_says_and_names_its_language(text: str) -> None:
    page = f"<html><head></head><body><p>{escape(text)}</p></body></html>"
    read = Reader(mend_page(page).replace(STYLE, "").replace(SCRIPT, ""))
    assert read.text == text
    assert read.values[0] == "en"
    assert read.tags[-3:] == ["main", "p", "script"]


@unit
def test_a_page_without_a_body_is_left_as_it_is() -> None:
    assert mend_page("no page at all") == "no page at all"


def pieces(report: Path) -> list[str]:
    """The HTML of every row of a report, as pytest-html keeps it."""
    blob = re.findall(r'data-jsonblob="([^"]*)"', report.read_text())[0]
    rows = [row for rows in json.loads(unescape(blob))["tests"].values() for row in rows]
    return ["".join(extra["content"] for extra in row["extras"]) for row in rows]


@slow
def test_of_many_checkpoints_twelve_are_shown_and_the_folder_of_the_others_is_named(lab: Path) -> None:
    run_pytest(
        *("experiments/", *QUICK, *TINY, "-n0", "--html=report.html", "-k", "A-seed0"),
        *("--epochs", "15", "--learning-rate", "1e-5"),
    )
    (run,) = pieces(lab / "report.html")
    captions = re.findall(r'bvae-caption">([^(]*) \(', run)
    assert captions[0].startswith("Filmstrip")
    assert len(captions) == 2 + 12
    assert captions[-1] in ("Epoch 15", "Least validation loss")
    assert "of 15 checkpoints are shown; the pictures of all are in" in run
    assert str(newest(lab) / "A-seed0/checkpoints") in run


@slow
def test_a_picture_that_two_checkpoints_share_is_embedded_once(lab: Path) -> None:
    run_pytest("experiments/", *QUICK, *TINY, "-n0", "--html=report.html", "-k", "A-seed0")
    (run,) = pieces(lab / "report.html")
    images = re.findall(r"data:image/png;base64,[^\"]+", run)
    assert len(set(images)) == len(images) == 4  # the filmstrip, the curves and two epochs
    assert re.search(r"The best checkpoint, of least validation loss, is that of epoch \d\.", run)


@slow
def test_a_filmstrip_that_cannot_be_drawn_costs_nothing_else_and_is_reported(lab: Path) -> None:
    (lab / "conftest.py").write_text(
        "import bvae.gallery\n"
        "def broken(*arguments, **more):\n"
        "    raise MemoryError('<no room>')\n"
        "bvae.gallery.plot_filmstrip = broken\n"
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
    assert "The gate was not run; this is a comparison of what was found." in head
    assert head.count("<img ") - head.count('<img src=""') == 4  # grids, curves and a why for A and B
