"""The verdict on every run by epoch, as a picture and in words."""

from __future__ import annotations

import dataclasses
import io
from typing import get_args

import numpy as np
import pytest
from evidence_factory import evaluation, history
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from bvae.config import AccuracyBand
from bvae.judging.explanation import MOST_PARTS, Strip, describe_strips, verdicts_by_epoch
from bvae.records import Divergence, EpochRecord, VerdictName
from bvae.verdict import COLOURS, SIGNS, judge_run
from bvae.visualization.why_chart import plot_verdicts

pytestmark = pytest.mark.unit

BAND = AccuracyBand()
VERDICTS: tuple[VerdictName, ...] = get_args(VerdictName)
CHANGES = (
    *({}, {"pixel_accuracy": 0.9}, {"pixel_accuracy": 0.6}, {"object_recall": 0.1}),
    *({"predicted_foreground_rate": 0.01}, {"predicted_foreground_rate": 0.9}),
)


@st.composite
def histories(draw: st.DrawFn) -> list[EpochRecord]:
    losses = draw(st.lists(st.floats(0.9, 1.1), max_size=12))
    return [
        dataclasses.replace(record, validation=evaluation(**draw(st.sampled_from(CHANGES))))
        for record in history(*losses)
    ]


strips = st.lists(st.sampled_from(VERDICTS), max_size=12).map(lambda found: Strip(dict(enumerate(found, 1))))
experiments = st.lists(
    st.dictionaries(st.text(min_size=1, max_size=40), strips, min_size=1, max_size=3), min_size=1, max_size=3
)


@given(histories(), st.integers(1, 15))
def test_a_cell_shows_the_verdict_as_if_the_run_had_ended_there(
    records: list[EpochRecord], stride: int
) -> None:
    verdict: VerdictName = judge_run(records, None, BAND).name if records else "incomplete"
    found = verdicts_by_epoch(records, verdict, BAND, stride=stride)
    assert [*found.values()][-1] == verdict
    if records:
        assert [*found] == sorted({*range(stride, len(records), stride), len(records)})
        assert all(judge_run(records[:end], None, BAND).name == found[end] for end in found)


@given(histories(), st.sampled_from(["diverged", "incomplete"]))
def test_an_incomplete_epoch_follows_the_complete_epochs(
    records: list[EpochRecord], verdict: VerdictName
) -> None:
    found = verdicts_by_epoch(records, verdict, BAND)
    assert [*found] == [*range(1, len(records) + 2)]
    assert found[len(records) + 1] == verdict
    if records:
        assert found[len(records)] == judge_run(records, None, BAND).name


def test_epochs_without_foreground_are_incomplete() -> None:
    records = history(2.0, 1.0, last=evaluation(foreground_rate=0.0, predicted_foreground_rate=None))
    assert verdicts_by_epoch(records, "incomplete", BAND) == dict.fromkeys((1, 2, 3), "incomplete")


def test_a_divergence_does_not_change_earlier_epochs() -> None:
    divergence = Divergence(epoch=3, step=700, batch=(), terms={"loss": "nan"})
    records = history(2.0, 1.0)
    verdict = judge_run(records, divergence, BAND).name
    assert [*verdicts_by_epoch(records, verdict, BAND).values()] == ["healthy", "healthy", "diverged"]


def test_verdicts_differ_in_letter_and_in_colour() -> None:
    assert tuple(COLOURS) == tuple(SIGNS) == VERDICTS
    letters, colours = SIGNS.values(), COLOURS.values()
    assert len(set(letters)) == len(set(colours)) == len(VERDICTS)


@settings(max_examples=5, deadline=None)
@given(experiments)
def test_each_change_of_verdict_has_a_letter_and_each_verdict_a_name(options: list[dict[str, Strip]]) -> None:
    figure = plot_verdicts(options)
    drawn = [text.get_text() for text in figure.axes[0].texts]
    for strip in (strip for option in options for strip in option.values()):
        cells = [*strip.verdicts.values()]
        changes = [now for before, now in zip([None, *cells], cells, strict=False) if now != before]
        for verdict in changes:
            drawn.remove(SIGNS[verdict])
    assert not "".join(drawn).strip()
    legend = {text.get_text() for text in figure.findobj(Text)}
    used = {verdict for option in options for strip in option.values() for verdict in strip.verdicts.values()}
    assert {verdict.replace("_", " ") for verdict in used} <= legend


def test_the_picture_has_the_colour_of_every_cell_and_a_description() -> None:
    png = io.BytesIO()
    strip = Strip(dict(enumerate(VERDICTS, 1)), "plateau")
    figure = plot_verdicts([{"A-seed0": strip}, {"B-seed0": Strip({1: "healthy"})}], path=png)
    with Image.open(png) as image:
        pixels, description = np.asarray(image.convert("RGB")), image.info["Description"]
    for epoch, verdict in strip.verdicts.items():
        x, y = figure.axes[0].transData.transform((epoch + 0.3, 18))
        expected = 255 * np.array(to_rgb(COLOURS[verdict][0]))
        assert np.abs(pixels[len(pixels) - round(y), round(x)] - expected).max() <= 2, verdict
    assert description.endswith("healthy in epoch 10, ended by the plateau. B-seed0: healthy in epoch 1.")
    assert "plateau" in "".join(text.get_text() for text in figure.axes[0].texts)


def test_runs_with_equal_strips_share_a_sentence_with_epochs_of_phases() -> None:
    same = Strip({1: "mode_collapse", 2: "mode_collapse", 3: "healthy"})
    assert describe_strips({"A-seed0": same, "B-seed0": Strip({}), "A-seed1": same}) == [
        "A-seed0, A-seed1: mode collapse in epochs 1 to 2, healthy in epoch 3.",
        "B-seed0: the epochs are unknown.",
    ]


@given(strips)
def test_a_sentence_has_a_bounded_number_of_phases(strip: Strip) -> None:
    (sentence,) = describe_strips({"A-seed0": strip})
    assert sentence.count(",") < MOST_PARTS
    if strip.verdicts:
        assert [*strip.verdicts.values()][-1].replace("_", " ") in sentence.rpartition(",")[2]
