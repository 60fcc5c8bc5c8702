from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from bvae.config import OUTSIDE
from bvae.visualization.grid_image import ARC_COLOURS, CLASS_COLOURS, RIGHT_BACKGROUND, SYMBOL_COLOURS, WRONG
from bvae.visualization.reconstructions import (
    describe_reconstructions,
    draw_reconstructions,
    plot_comparison,
    plot_filmstrip,
)

pytestmark = pytest.mark.unit

Classes = NDArray[np.uint8]
shapes = st.tuples(st.integers(1, 20), st.integers(4, 64), st.integers(4, 64))
small = hnp.arrays(np.uint8, (3, 6, 5), elements=st.integers(0, 9))
cut = hnp.arrays(np.uint8, (3, 6, 5), elements=st.integers(0, 9) | st.just(OUTSIDE)).filter(
    lambda grids: (grids != OUTSIDE).any((1, 2)).all()
)
"""Grids that may have cells outside. Each grid has at least one cell inside."""
NOTHING, ONE_CELL = np.zeros((2, 3, 6, 5), np.uint8)
ONE_CELL[0, 0, 0] = 1


def random_grids(*shape: int, seed: int = 0) -> Classes:
    return np.random.default_rng(seed).integers(0, 10, shape, dtype=np.uint8)


def pixels(png: io.BytesIO) -> NDArray[np.uint8]:
    """Return the pixels of a picture, `[height, width, RGBA]`."""
    with Image.open(png) as picture:
        return np.asarray(picture.convert("RGBA"))


def count_pixels(png: io.BytesIO, colour: str) -> int:
    return int((pixels(png)[..., :3] == list(bytes.fromhex(colour[1:]))).all(-1).sum())


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts if text.get_text()]


def draw_each(path: io.BytesIO, title: str) -> None:
    """Draw every kind of picture of grids, one after the other, into one stream."""
    target, predicted = random_grids(3, 6, 5), random_grids(3, 6, 5, seed=1)
    target[1, 4:] = OUTSIDE
    draw_reconstructions(target, predicted, [0.1, 0.2, 0.3], path=path, title=title)
    plot_comparison(target, {"A": predicted, "B": target}, path=path, title=title)
    plot_filmstrip(target, [("epoch 1", predicted), ("best", target)], path=path, title=title)


@settings(max_examples=6)
@given(shapes, st.integers(0, 99))
@example((10, 16, 16), 0)
@example((20, 64, 64), 0)
@example((1, 4, 64), 0)
def test_grids_of_any_size_give_a_picture_of_bounded_size(shape: tuple[int, int, int], seed: int) -> None:
    png = io.BytesIO()
    target, predicted = random_grids(*shape, seed=seed), random_grids(*shape, seed=seed + 1)
    figure = draw_reconstructions(target, predicted, [0.5] * shape[0], path=png, title="Option B\nepoch 1")
    height, width, _ = pixels(png).shape
    assert 600 <= width <= 1800
    assert 200 <= height <= 1800
    assert sum("%" in text for text in texts(figure)) == shape[0]


@given(st.text(max_size=300))
@example("$\\frac{1}{$ <b>bold</b> & \x00 \t日本 \U0001f9ea \u0301\r\n\u2028" + "W" * 500)
@example("\n" * 50)
@example("\U0001ee27")  # the bold face lacks this character
@settings(max_examples=12)
def test_any_title_gives_a_picture_of_bounded_size(title: str) -> None:
    png = io.BytesIO()
    draw_reconstructions(random_grids(1, 4, 4), random_grids(1, 4, 4), [0.5], path=png, title=title)
    assert max(pixels(png).shape) <= 1800


def test_markup_in_a_title_is_drawn_literally() -> None:
    figure = plot_comparison(random_grids(3, 6, 5), {}, title="$x^2$ <b>\nσ² & γ")
    assert {"$x^2$ <b>", "σ² & γ"} <= set(texts(figure))


@functools.cache
def pixels_of_a_cell(colour: str, *, wrong: bool = False) -> int:
    """Count the pixels of a colour for a single cell of class 1, or for a single wrong cell if `wrong`."""
    png = io.BytesIO()
    if wrong:
        draw_reconstructions(NOTHING, ONE_CELL, [0.0] * 3, path=png)
    else:
        plot_comparison(ONE_CELL, {}, path=png)
    count = count_pixels(png, colour)
    assert count > 0
    return count


@settings(max_examples=8)
@given(small | cut, small)
def test_wrong_cells_are_drawn_where_the_arrays_differ(target: Classes, predicted: Classes) -> None:
    drawn = io.BytesIO()
    draw_reconstructions(target, predicted, [0.0] * 3, path=drawn)
    each = pixels_of_a_cell(SYMBOL_COLOURS[WRONG], wrong=True)
    wrong = (target != predicted) & (target != OUTSIDE)
    assert count_pixels(drawn, SYMBOL_COLOURS[WRONG]) == each * wrong.sum()


@settings(max_examples=8)
@given(small | cut)
def test_every_cell_is_drawn_in_the_colour_of_its_class(target: Classes) -> None:
    # Black, grey and the shades between them are not compared, because text has these colours.
    drawn = io.BytesIO()
    plot_comparison(target, {}, path=drawn)
    each = pixels_of_a_cell(ARC_COLOURS[1])
    for colour in (1, 2, 3, 4, 6, 7, 8, 9):
        assert count_pixels(drawn, ARC_COLOURS[colour]) == each * (target == colour).sum()


def test_64_classes_have_distinct_colours_beginning_with_those_of_arc() -> None:
    assert CLASS_COLOURS[:10] == ARC_COLOURS
    assert len({*CLASS_COLOURS, *SYMBOL_COLOURS[RIGHT_BACKGROUND:]}) == 64 + 4
    png = io.BytesIO()
    plot_comparison(np.arange(64, dtype=np.uint8).reshape(1, 8, 8), {}, path=png)
    assert all(count_pixels(png, colour) for colour in CLASS_COLOURS)


@functools.cache
def centre(*cell: int) -> NDArray[np.float64]:
    png, grids = io.BytesIO(), NOTHING.copy()
    grids[cell] = 1
    plot_comparison(grids, {}, path=png)
    blue = list(bytes.fromhex(ARC_COLOURS[1][1:]))
    return np.argwhere((pixels(png)[..., :3] == blue).all(-1)).mean(0)


@settings(max_examples=8)
@given(st.integers(0, 2), st.integers(0, 5), st.integers(0, 4))
def test_every_cell_is_drawn_at_its_position(grid: int, row: int, column: int) -> None:
    origin = centre(0, 0, 0)
    down, right, next_grid = (centre(*step) - origin for step in np.eye(3, dtype=int)[[1, 2, 0]].tolist())
    assert down[0] == right[1] > 1
    assert down[1] == right[0] == next_grid[0] == 0
    assert next_grid[1] > 5 * right[1]
    np.testing.assert_allclose(
        centre(grid, row, column), origin + grid * next_grid + row * down + column * right
    )


def test_positions_outside_a_grid_stay_white_in_every_row() -> None:
    # All cells have one class and are wrong, so the captions are the same with and without cells outside.
    whole = np.full((3, 6, 5), 1, np.uint8)
    target, predicted = np.where(random_grids(3, 6, 5) < 5, OUTSIDE, whole), whole + 1

    def drawn(target: Classes) -> Iterator[NDArray[np.uint8]]:
        for draw in (
            partial(draw_reconstructions, target, predicted, [0.5] * 3),
            partial(plot_comparison, target, {"A": predicted}),
            partial(plot_filmstrip, target, [("epoch 1", predicted)]),
        ):
            picture = io.BytesIO()
            draw(path=picture)
            yield pixels(picture)[..., :3]

    for cut, uncut in zip(drawn(target), drawn(whole), strict=True):
        assert (cut[(cut != uncut).any(-1)] == 255).all()
        for colour in (1, 2, WRONG):
            code = list(bytes.fromhex(SYMBOL_COLOURS[colour][1:]))
            left, all_of_it = ((picture == code).all(-1).sum() for picture in (cut, uncut))
            assert left == all_of_it * (target == 1).sum() / target.size


def test_positions_without_a_grid_stay_empty() -> None:
    png, grids = io.BytesIO(), np.full((11, 4, 4), 1, np.uint8)
    draw_reconstructions(grids, grids, [0.0] * 11, path=png)
    assert count_pixels(png, SYMBOL_COLOURS[WRONG]) == 0
    assert (pixels(png)[-200:-90, -100:, :3] == 255).all()


def test_more_than_ten_grids_continue_below_in_the_same_order_of_rows() -> None:
    png, grids = io.BytesIO(), np.full((11, 4, 4), 1, np.uint8)
    draw_reconstructions(grids, grids + 1, [0.0] * 11, path=png)
    colours = {name: list(bytes.fromhex(SYMBOL_COLOURS[name][1:])) for name in (1, 2, WRONG)}
    seen: list[int] = []
    for line in pixels(png)[..., :3]:
        seen += [name for name, colour in colours.items() if (line == colour).all(-1).any()]
    assert [name for name, _ in groupby(seen)] == [1, 2, WRONG] * 2


@pytest.mark.parametrize("symbol", [WRONG - 2, WRONG - 1], ids=["background", "object"])
def test_wrong_cells_differ_from_right_ones_without_colour(symbol: int) -> None:
    def luminance(colour: str) -> float:
        return float(np.dot([0.2126, 0.7152, 0.0722], list(bytes.fromhex(colour[1:])))) / 255

    assert luminance(SYMBOL_COLOURS[symbol]) - luminance(SYMBOL_COLOURS[WRONG]) > 0.5


def test_wrong_cells_have_a_mark() -> None:
    background = np.zeros((1, 4, 4), np.uint8)
    wrong, dotted = io.BytesIO(), io.BytesIO()
    draw_reconstructions(background, background + 1, [0.0], path=wrong)
    plot_comparison(background, {"A": background + 1}, path=dotted)
    cell = 48 * 48
    assert 0 < count_pixels(wrong, SYMBOL_COLOURS[WRONG]) < 16 * cell * 0.95
    assert 0 < count_pixels(dotted, ARC_COLOURS[1]) < count_pixels(wrong, ARC_COLOURS[1])


def test_the_same_input_gives_the_same_file_on_any_thread_with_any_style() -> None:
    def drawn(_: int = 0) -> bytes:
        png = io.BytesIO()
        draw_each(png, title="Option B\nσ²")
        return png.getvalue()

    expected = drawn()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(drawn, range(4))) == {expected}
    with (
        plt.style.context(["classic", "dark_background", "ggplot"]),
        matplotlib.rc_context({"savefig.dpi": 300}),
    ):
        assert drawn() == expected


def test_a_file_holds_picture_and_description_but_no_date_or_version() -> None:
    png, grids = io.BytesIO(), random_grids(2, 8, 8)
    draw_reconstructions(grids, 9 - grids, [0.1, 0.2], path=png)
    data, chunks, place = png.getvalue(), dict[bytes, bytes](), 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks[data[place + 4 : place + 8]] = data[place + 8 : place + 8 + length]
        place += 12 + length
    assert chunks.keys() == {b"IHDR", b"PLTE", b"tEXt", b"IDAT", b"IEND"}
    assert chunks[b"tEXt"] == b"Description\0" + describe_reconstructions(grids, 9 - grids).encode()


def test_a_file_has_every_pixel_as_it_was_drawn() -> None:
    png, grids = io.BytesIO(), random_grids(10, 16, 16)
    figure = draw_reconstructions(grids, 9 - grids, [0.5] * 10, path=png, title="Option B\nσ²")
    drawn = np.asarray(figure.canvas.buffer_rgba())
    assert np.array_equal(pixels(png), drawn)


def test_ten_grids_of_noise_stay_well_under_80_kilobytes() -> None:
    png = io.BytesIO()
    grids = random_grids(10, 16, 16), random_grids(10, 16, 16, seed=1)
    draw_reconstructions(*grids, [0.5] * 10, path=png, title="Option B, seed 0, epoch 5\naccuracy 77.1%")
    assert len(png.getvalue()) < 70_000


def test_a_path_may_be_text_a_path_or_a_stream(tmp_path: Path) -> None:
    stream = io.BytesIO()
    for path in (str(tmp_path / "text.png"), tmp_path / "path.png", stream):
        plot_comparison(random_grids(2, 5, 4), {}, path=path)
    assert {file.read_bytes() for file in tmp_path.iterdir()} == {stream.getvalue()}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cropped_picture_keeps_grids_and_captions_together() -> None:
    def first(figure: Figure, colour: str, **how: object) -> tuple[int, int]:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=figure.dpi, **how)
        place = (pixels(png)[..., :3] == list(bytes.fromhex(colour[1:]))).all(-1)
        return int(np.flatnonzero(place.any(1))[0]), int(np.flatnonzero(place.any(0))[0])

    figure = plot_comparison(np.full((2, 4, 4), 1), {}, title="Title")
    apart = [
        np.subtract(first(figure, ARC_COLOURS[1], **how), first(figure, "#1A1A1A", **how))
        for how in ({}, {"bbox_inches": "tight"})
    ]
    np.testing.assert_allclose(*apart, atol=1)


def test_drawing_leaves_pyplot_and_the_settings_alone() -> None:
    settings_before = dict(matplotlib.rcParams)
    draw_each(io.BytesIO(), title="x")
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings_before


@pytest.mark.parametrize("scale", [2, 1.5])
def test_a_picture_may_be_drawn_at_another_resolution(scale: float) -> None:
    def share_of_blue(dpi: float) -> float:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=dpi)
        height, width, _ = pixels(png).shape
        assert (width, height) == pytest.approx(figure.bbox.size * dpi / figure.dpi, abs=1)
        return count_pixels(png, ARC_COLOURS[1]) / (width * height)

    figure = plot_comparison(np.full((2, 4, 4), 1), {}, title="Title")
    assert share_of_blue(scale * figure.dpi) == pytest.approx(share_of_blue(figure.dpi), rel=0.02)
