"""Text in pictures is drawn literally, within its width and without failures."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bvae.visualization.canvas import (
    drawable,
    house_style,
    pixel_figure,
    save_png,
    text_width,
    titled_figure,
    write,
)

pytestmark = pytest.mark.unit

WIDTH, HEIGHT = 800, 300
latin = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


def inked(text: str, *, width: float = WIDTH, **look: object) -> tuple[int, int, int, int]:
    """Draw a text at the center of a picture. Return its extent from there: left, right, top, bottom."""
    with house_style():
        figure = pixel_figure(WIDTH, HEIGHT)
        write(figure, WIDTH // 2, HEIGHT // 2, text, width=width, **look)
        figure.canvas.draw()
    dark = np.asarray(figure.canvas.buffer_rgba())[..., 0] < 128
    rows, columns = np.flatnonzero(dark.any(1)) - HEIGHT // 2, np.flatnonzero(dark.any(0)) - WIDTH // 2
    return columns[0], columns[-1], rows[0], rows[-1]


@settings(max_examples=15)
@given(latin, st.integers(60, 300), st.sampled_from(["normal", "bold"]))
@example("~" * 12, 88, "normal")
@example("&" * 12, 186, "normal")
@example("W" * 60, 300, "bold")
def test_text_that_is_too_wide_gets_a_smaller_font(text: str, width: int, weight: str) -> None:
    left, right, _, _ = inked(text, size=30, width=width, fontweight=weight)
    assert right - left <= width + 2


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_text_is_measured_as_it_is_drawn(weight: str) -> None:
    text = "Option B, epoch 12"
    left, right, _, _ = inked(text, size=30, fontweight=weight)
    assert text_width(text, 30, weight) == pytest.approx(right - left, rel=0.03)


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
@example(256, 0)
def test_a_file_has_exactly_the_pixels_that_were_drawn(colours: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (colours, 3), dtype=np.uint8)
    figure, file = pixel_figure(40, 30), io.BytesIO()
    figure.figimage(palette[rng.integers(0, colours, (30, 40))])
    save_png(figure, file)
    drawn = np.asarray(figure.canvas.buffer_rgba())
    assert np.array_equal(drawn, Image.open(file).convert("RGBA"))


def test_text_begins_ends_or_is_centred_at_its_position() -> None:
    assert np.allclose(inked("HHH", size=30)[::2], 0, atol=10)
    left, right, top, bottom = inked("HHH", size=30, ha="center", va="center")
    assert abs(left + right) <= 2
    assert abs(top + bottom) <= 8
    assert np.allclose(inked("HHH", size=30, ha="right", va="bottom")[1::2], 0, atol=10)


@given(st.text(max_size=40))
@example("لغة e\u0301\n\u0301")
@example("\u2067abc\x00\U0001f9ea\U0001ee27$\\frac{")  # the bold face lacks the character before the dollar
@settings(max_examples=15)
def test_any_text_is_drawn_without_a_warning(text: str) -> None:
    with warnings.catch_warnings(), house_style():
        warnings.simplefilter("error")
        figure = pixel_figure(300, 100)
        write(figure, 5, 5, text, size=26, width=200, fontweight="bold")
        save_png(figure, io.BytesIO())


def test_only_characters_that_cannot_be_drawn_are_replaced() -> None:
    assert (
        drawable("σ² $x$ <b>\x00日\n\té")
        == "σ² $x$ <b>\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\n é"
    )


def test_a_title_that_is_too_long_is_wrapped_and_ends_in_an_ellipsis() -> None:
    figure, top = titled_figure(800, 100, "headline\n\n" + "word " * 200)
    headline, details = (text.get_text() for text in figure.texts)
    assert headline == "headline"
    assert len(details.splitlines()) == 3
    assert details.endswith(" …")
    assert figure.bbox.height == top + 100


@pytest.mark.parametrize("title", [None, "", " \n\n"])
def test_without_a_title_no_space_is_reserved_for_it(title: str | None) -> None:
    figure, top = titled_figure(800, 100, title)
    assert not figure.texts
    assert top < titled_figure(800, 100, "headline")[1]
