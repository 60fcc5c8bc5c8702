from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from bvae.canvas import pixel_figure
from bvae.lettering import FONT, LEVELS, write

pytestmark = pytest.mark.unit

WIDTH, HEIGHT = 800, 300
latin = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
sides = st.sampled_from(["left", "center", "right"])
heights = st.sampled_from(["top", "center", "center_baseline", "bottom"])


def inked(text: str, *, width: float = WIDTH, matplotlib: bool = False, **style: object) -> np.ndarray:
    """Where a text in the middle of a picture left ink: first and last column and row, from the middle."""
    figure, axes = pixel_figure(WIDTH, HEIGHT)
    x, y = WIDTH // 2, HEIGHT // 2
    if matplotlib:
        look = {"fontsize": style.pop("size"), "fontfamily": FONT, "linespacing": 1.25, "parse_math": False}
        axes.add_artist(Text(x, y, text, clip_on=False, **look, **style))
    else:
        write(axes, x, y, text, width=width, **style)
    figure.canvas.draw()
    dark = np.asarray(figure.canvas.buffer_rgba())[..., 0] < 128
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return np.array([columns[0] - x, columns[-1] - x, rows[0] - y, rows[-1] - y])


@settings(max_examples=25)
@given(latin, st.lists(latin, max_size=2), sides, heights, st.sampled_from([18, 22, 26, 30]), st.booleans())
def test_text_lies_where_matplotlib_would_set_it(
    first: str, more: list[str], ha: str, va: str, size: int, bold: bool
) -> None:
    text = "\n".join(f"lp{line}" for line in (first, *more))
    look = {"ha": ha, "va": va, "size": size, "fontweight": "bold" if bold else "normal"}
    ours, theirs = inked(text, **look), inked(text, matplotlib=True, **look)
    np.testing.assert_allclose(ours[2:], theirs[2:], atol=3)
    kerning = 0.15 * np.ptp(theirs[:2])  # of which Pillow knows less
    np.testing.assert_allclose(ours[:2], theirs[:2], atol=3 + kerning)


@settings(max_examples=25)
@given(latin, st.integers(60, 300))
@example("~" * 12, 88)  # sizes are hinted, so setting them once was not enough for these
@example("&" * 12, 186)
def test_text_that_would_be_wider_is_set_smaller(text: str, width: int) -> None:
    left, right, _, _ = inked(text, size=30, width=width, ha="left", va="center")
    assert right - left <= width + 1


@given(
    st.text(min_size=1, max_size=40), sides, st.sampled_from(["top", "center", "center_baseline", "bottom"])
)
@example("لغة", "right", "top")
@example("e\u0301\n\u0301", "center", "bottom")
@example("\n\n", "left", "center")
@example("\u2067abc\x00\U0001f9ea", "left", "top")
def test_any_text_is_set_on_pixels_and_as_vectors(text: str, ha: str, va: str) -> None:
    figure, axes = pixel_figure(WIDTH, HEIGHT)
    write(axes, 5, 5, text, size=26, width=200, ha=ha, va=va)
    for kind in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=kind)


@pytest.mark.parametrize("change", [{"visible": False}, {"alpha": 0.3}, {"rotation": 90}])
def test_what_is_changed_afterwards_shows(change: dict) -> None:
    def drawn(change: dict) -> np.ndarray:
        figure, axes = pixel_figure(WIDTH, HEIGHT)
        write(axes, 100, 100, "letters", size=30, width=WIDTH)
        axes.texts[0].set(**change)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba()).copy()

    assert (drawn({}) < 60).any()
    assert not np.array_equal(drawn(change), drawn({}))
    assert ("visible" in change) == (drawn(change) == 255).all()


def test_letters_have_few_shades() -> None:
    figure, axes = pixel_figure(WIDTH, HEIGHT)
    write(axes, 20, 20, "Sphinx of black quartz, judge my vow", size=30, width=WIDTH, va="top")
    figure.canvas.draw()
    colours = np.unique(np.asarray(figure.canvas.buffer_rgba()).reshape(-1, 4), axis=0)
    assert 4 < len(colours) <= LEVELS
