from __future__ import annotations

import io
import math
from itertools import combinations
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bvae.visualization.charts import curve, describe_curves, plot_curves

pytestmark = pytest.mark.unit

Histories = dict[str, list[list[dict[str, Any]]]]
HEADINGS = [
    "Training loss (nats)",
    "Validation loss (nats)",
    "Accuracy",
    "Foreground IoU",
    "Object IoU",
    "Object recall",
    "KL per grid (nats)",
]
TRAINING, VALIDATION, ACCURACY, FOREGROUND, OBJECT_IOU, OBJECT_RECALL, KL = range(7)

losses = st.none() | st.floats(allow_nan=True, allow_infinity=True)
fractions = st.none() | st.floats(0, 1)


def record(
    epoch: int, loss: float | None = 0.5, accuracy: float | None = 0.75, kl: float | None = 4.0
) -> dict[str, Any]:
    objects = {"foreground_iou": accuracy, "object_iou": accuracy, "object_recall": accuracy}
    return {
        "epoch": epoch,
        "learning_rate": 1e-3,
        "seconds": 1.0,
        "train": {"loss": loss, "reconstruction": loss, "kl": 1.0, "pixel_accuracy": accuracy},
        "validation": {
            "loss": loss,
            "pixel_accuracy": accuracy,
            "kl": kl,
            **objects,
            "shuffled": dict.fromkeys(objects, 0.1),
            "extent": dict.fromkeys(objects, 0.2),
        },
    }


@st.composite
def histories(draw: st.DrawFn) -> Histories:
    """Draw up to four options with up to three seeds and up to five epochs; some numbers are undefined."""

    def history() -> list[dict[str, Any]]:
        return [
            record(e, draw(losses), draw(fractions), draw(losses))
            for e in range(1, 1 + draw(st.integers(0, 5)))
        ]

    names = draw(st.lists(st.text(max_size=12), max_size=4, unique=True))
    return {name: [history() for _ in range(draw(st.integers(0, 3)))] for name in names}


def plot(of: Histories, path: io.BytesIO | None = None, title: str | None = None, **changed: Any) -> Figure:
    return plot_curves(of, **{"background_rate": 0.819, "band": (0.7, 0.8)} | changed, path=path, title=title)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def lines(figure: Figure, panel: int) -> list[Any]:
    """Return the lines of the options in a panel, without controls and background rate."""
    return [line for line in figure.axes[panel].lines if line.get_marker() != "None"]


@settings(max_examples=3)
@given(histories(), st.none() | st.text(max_size=80))
@example({"A": [[record(1, 3.4e38)], [record(1, 0.0)]]}, "$x^2$ <b>\n日本")
@example({"A": [[record(1, 1e308)], [record(1, -1e308)]]}, None)
@example({"A": [[record(1, 1.2e-38), record(2, 3.4e38)]]}, None)
@example({"A": [[record(1, 5e-324), record(2, 1.0)]]}, None)
def test_pictures_of_all_histories_have_the_same_width(of: Histories, title: str | None) -> None:
    png = io.BytesIO()
    figure = plot(of, png, title)
    with Image.open(png) as picture:
        width, height = picture.size
    assert width == 1640
    assert height <= 1300
    assert len(figure.axes) == (8 if any(any(seeds) for seeds in of.values()) else 0)


def test_panels_are_named_with_their_units() -> None:
    drawn = texts(plot({"A": [[record(1)]]}, title="Options"))
    assert [text for text in drawn if text in HEADINGS] == HEADINGS
    assert drawn.count("epoch") == len(HEADINGS)


@given(st.lists(st.lists(losses, min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_mean_is_between_the_lowest_and_the_highest_seed(values: list[list[float | None]]) -> None:
    drawn = curve([[record(e, loss) for e, loss in enumerate(seed, 1)] for seed in values], ("train", "loss"))
    largest = float(np.finfo(np.float32).max)
    for index, epoch in enumerate(drawn.epochs):
        known = [
            float(loss)
            for seed in values
            if epoch <= len(seed) and (loss := seed[epoch - 1]) is not None and abs(loss) <= largest
        ]
        if known:
            assert drawn.lowest[index] == min(known)
            assert drawn.highest[index] == max(known)
            assert drawn.mean[index] == pytest.approx(
                math.fsum(known) / len(known), abs=1e-9 * max(map(abs, known)) + np.finfo(float).tiny
            )
        else:
            assert np.isnan([drawn.lowest[index], drawn.mean[index], drawn.highest[index]]).all()
    assert list(drawn.epochs) == list(range(1, 1 + max(map(len, values))))


def test_an_undefined_number_leaves_a_gap() -> None:
    values = [0.5, None, 0.3, math.nan, math.inf]
    figure = plot({"B": [[record(epoch, loss) for epoch, loss in enumerate(values, 1)]]})
    (line,) = lines(figure, TRAINING)
    np.testing.assert_array_equal(line.get_ydata(), [0.5, math.nan, 0.3, math.nan, math.nan])


def test_a_record_without_validation_leaves_a_gap() -> None:
    figure = plot({"B": [[record(1), {"epoch": 2, "train": {"loss": 0.1}, "validation": None}]]})
    assert np.isnan(lines(figure, ACCURACY)[0].get_ydata()).tolist() == [False, True]


def test_object_panels_show_the_extent_and_each_shuffled_control() -> None:
    figure = plot({"A": [[record(1), record(2)]], "B": [[record(1), record(2)], [record(1), record(2)]]})
    for panel in (FOREGROUND, OBJECT_IOU, OBJECT_RECALL):
        controls = [line for line in figure.axes[panel].lines if line.get_marker() == "None"]
        assert [line.get_ydata().tolist() for line in controls] == [[0.1] * 2, [0.1] * 2, [0.2] * 2]
        colours = [line.get_color() for line in lines(figure, panel)]
        assert [line.get_color() for line in controls[:2]] == colours


def test_the_extent_is_drawn_up_to_the_last_epoch_of_any_option() -> None:
    figure = plot({"short": [[record(1)]], "long": [[record(1), record(2), record(3)]]})
    *_, drawn = [line for line in figure.axes[OBJECT_IOU].lines if line.get_marker() == "None"]
    assert drawn.get_xdata().tolist() == [1, 2, 3]


def test_an_option_keeps_its_colour_when_it_is_drawn_alone() -> None:
    both = {"A": [[record(1)]], "B": [[record(1)]]}
    alone = plot({"B": both["B"]}, options=["A", "B"])
    assert lines(alone, ACCURACY)[0].get_color() == lines(plot(both), ACCURACY)[1].get_color()


@pytest.mark.parametrize("epochs", [1, 2, 7, 60, 1000])
def test_ticks_of_the_epoch_axis_are_whole_epochs(epochs: int) -> None:
    figure = plot({"A": [[record(epoch) for epoch in range(1, epochs + 1)]]})
    lowest, highest = figure.axes[ACCURACY].get_xlim()
    ticks = [tick for tick in figure.axes[ACCURACY].get_xticks() if lowest <= tick <= highest]
    assert ticks
    assert all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)


@pytest.mark.parametrize(
    "values", [[0.5], [None, 0.5, None], [0.5] * 40, [*[0.4] * 12, None, 0.5, None, *[0.4] * 20]]
)
def test_a_value_without_neighbours_has_a_marker(values: list[float | None]) -> None:
    figure = plot({"A": [[record(epoch, loss) for epoch, loss in enumerate(values, 1)]]})
    (line,) = lines(figure, TRAINING)
    padded = [None, *values, None]
    alone = [
        index
        for index, loss in enumerate(values)
        if loss is not None and padded[index] is None and padded[index + 2] is None
    ]
    assert set(alone) <= set(line.get_markevery())
    assert 1 <= len(line.get_markevery()) <= 13


def test_one_epoch_shows_its_seeds_as_a_bar() -> None:
    figure = plot({"A": [[record(1, 0.2)], [record(1, 0.6)]]})
    bars = [path.vertices[:, 1].tolist() for c in figure.axes[TRAINING].collections for path in c.get_paths()]
    assert [0.2, 0.6] in bars


def test_every_pair_of_options_can_be_distinguished_without_colour() -> None:
    figure = plot({name: [[record(1), record(2)]] for name in "ABCDEFGHIJ"})
    looks = [
        (line.get_linestyle(), str(line._dash_pattern), line.get_marker()) for line in lines(figure, ACCURACY)
    ]
    assert len(looks) == 10
    assert all(one != other for one, other in combinations(looks, 2))
    colours = [line.get_color() for line in lines(figure, ACCURACY)]
    assert len(set(colours[:7])) == 7


def test_background_rate_and_band_are_drawn_and_named() -> None:
    figure = plot({"A": [[record(1)]]}, background_rate=0.819, band=[0.7, 0.8])
    panel = figure.axes[ACCURACY]
    (rate,) = [line for line in panel.lines if line.get_marker() == "None"]
    assert set(rate.get_ydata()) == {0.819}
    assert rate.get_linestyle() == "--"
    (band,) = panel.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.7, 0.8))
    assert {"Option A", "healthy: 70% to 80%", "all background: 81.9%"} <= set(texts(figure))


def test_the_legend_stays_within_the_picture_for_any_names() -> None:
    figure = plot({f"{number}-{'W' * 60}": [[record(1)], [record(1)]] for number in range(10)})
    for part in (figure.axes[-1].get_legend(), *figure.axes[-1].texts):
        left, bottom, right, top = part.get_window_extent().extents
        assert figure.axes[KL].bbox.x1 < left < right < figure.bbox.width
        assert 0 < bottom < top < figure.axes[OBJECT_IOU].bbox.y1 + 20


def test_an_unknown_background_rate_is_left_out() -> None:
    assert not any(
        "all background" in text for text in texts(plot({"A": [[record(1)]]}, background_rate=None))
    )


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.5, 40.0], "linear"), ([0.5, 60.0], "log"), ([0.0, 60.0], "linear"), ([None], "linear")],
)
def test_a_loss_that_explodes_gets_a_logarithmic_axis(values: list[float | None], scale: str) -> None:
    figure = plot({"A": [[record(epoch, loss) for epoch, loss in enumerate(values, 1)]]})
    assert figure.axes[TRAINING].get_yscale() == figure.axes[VALIDATION].get_yscale() == scale
    assert figure.axes[ACCURACY].get_yscale() == figure.axes[KL].get_yscale() == "linear"


def test_a_curve_along_zero_is_above_the_axis() -> None:
    figure = plot({"A": [[record(1, accuracy=0.0, kl=0.0), record(2, accuracy=0.4, kl=0.1)]]})
    assert all(figure.axes[panel].get_ylim()[0] < 0 for panel in (FOREGROUND, OBJECT_IOU, KL))


@pytest.mark.parametrize("of", [{}, {"A": []}, {"A": [[]], "B": [[], []]}])
def test_without_an_epoch_the_picture_says_so(of: Histories) -> None:
    assert "No run has finished an epoch yet." in texts(plot(of))
    assert describe_curves(of) == "No run has finished an epoch yet."


def test_an_option_without_an_epoch_is_not_named() -> None:
    assert not any("Option B" in text for text in texts(plot({"A": [[record(1)], []], "B": [[]]})))


@pytest.mark.parametrize("wrong", [{"band": (0.8, 0.7)}, {"band": (-0.1, 0.7)}, {"background_rate": 81.9}])
def test_percentages_and_reversed_bands_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected fractions 0–1"):
        plot({}, **wrong)


def test_the_same_input_gives_the_same_file_under_every_style() -> None:
    def drawn() -> bytes:
        png = io.BytesIO()
        plot(
            {"A": [[record(e, 1 / e) for e in range(1, 6)]], "B": [[record(1, 500.0)]]}, png, "Options on arc"
        )
        return png.getvalue()

    settings_before, expected = dict(matplotlib.rcParams), drawn()
    assert dict(matplotlib.rcParams) == settings_before
    assert plt.get_fignums() == []
    styles = ["classic", "dark_background", "ggplot", "fivethirtyeight", {"savefig.dpi": 300}]
    with plt.style.context(styles):
        assert drawn() == expected


def test_a_description_has_the_final_values_of_every_option() -> None:
    of = {
        "A": [[record(1, accuracy=0.7)], [record(1, accuracy=0.8)]],
        "B": [[record(1, accuracy=None)]],
        "C": [[]],
    }
    assert describe_curves(of) == (
        "Curves by epoch, ending at option A accuracy 75.0% and object IoU 75.0%; "
        "option B accuracy undefined and object IoU undefined."
    )
