from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from bvae.beta_vae import BetaVAE, one_hot
from bvae.config import OUTSIDE
from bvae.evaluation.metrics import grid_object_iou
from bvae.visualization.reconstructions import (
    MAX_CHECKPOINTS,
    describe_reconstructions,
    draw_reconstructions,
    plot_comparison,
    plot_filmstrip,
    plot_reconstructions,
)

pytestmark = pytest.mark.unit

Classes = NDArray[np.uint8]
small = hnp.arrays(np.uint8, (3, 6, 5), elements=st.integers(0, 9))
cut = hnp.arrays(np.uint8, (3, 6, 5), elements=st.integers(0, 9) | st.just(OUTSIDE)).filter(
    lambda grids: (grids != OUTSIDE).any((1, 2)).all()
)
"""Grids that may have cells outside. Each grid has at least one cell inside."""


def random_grids(*shape: int, seed: int = 0) -> Classes:
    return np.random.default_rng(seed).integers(0, 10, shape, dtype=np.uint8)


def cut_grids(*shape: int, seed: int = 0) -> Classes:
    """Return grids `[B, H, W]`: the first fills the square, the others are smaller."""
    grids = random_grids(*shape, seed=seed)
    for number, grid in enumerate(grids):
        grid[shape[1] - number :], grid[:, shape[2] - number :] = OUTSIDE, OUTSIDE
    return grids


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts if text.get_text()]


class OneHotModel(nn.Module):
    """Reconstructs its input in evaluation mode; in training mode its dropout draws random numbers.

    In cells outside a grid, the logit of the last class is `outside`, and the other logits are 0.
    """

    def __init__(self, outside: float = 0.0) -> None:
        super().__init__()
        self.outside = outside
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, grids: Tensor) -> Tensor:
        logits: Tensor = self.dropout(20.0 * one_hot(grids))
        logits[:, -1] += torch.where(grids == OUTSIDE, self.outside, 0.0)
        return logits


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_drawing_leaves_the_random_state_unchanged(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    figure = plot_reconstructions(OneHotModel(), random_grids(2, 6, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index]
    assert texts(figure).count("100.0%\n1.00\n0.000") == 2


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_every_submodule_is_restored(training: bool) -> None:
    model = OneHotModel()
    model.training = model.dropout.training = training
    before = [part.training for part in model.modules()]
    plot_reconstructions(model, random_grids(2, 6, 5))
    assert [part.training for part in model.modules()] == before

    def failing(_output: object, _target: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        plot_reconstructions(model, random_grids(2, 6, 5), loss=failing)
    assert [part.training for part in model.modules()] == before


def test_logits_may_be_returned_alone_in_a_tuple_or_as_an_attribute() -> None:
    model = OneHotModel()
    forms: list[Callable[[Tensor], Any]] = [
        model.eval(),
        lambda grids: (model(grids), None),
        lambda grids: SimpleNamespace(logits=model(grids)),
    ]
    pictures = []
    for form in forms:
        png = io.BytesIO()
        plot_reconstructions(form, torch.from_numpy(random_grids(2, 6, 5)), path=png)
        pictures.append(png.getvalue())
    assert len(set(pictures)) == 1


@pytest.mark.parametrize("grids", [random_grids(4, 8, 8), cut_grids(4, 8, 8)], ids=["whole", "cut"])
def test_captions_measure_accuracy_object_iou_and_loss_on_cells_inside(grids: Classes) -> None:
    torch.manual_seed(0)
    model = BetaVAE(grid_size=8)
    target = torch.from_numpy(grids).long()
    with torch.inference_mode():
        logits = model.eval()(target).logits
    ious = grid_object_iou(grids, logits.argmax(1).byte().numpy())
    expected = []
    for own, one, iou in zip(target, logits, ious, strict=True):
        label, z = own[own != OUTSIDE], one[:, own != OUTSIDE].T
        right, nats = int((z.argmax(1) == label).sum()), F.cross_entropy(z, label).item()
        expected.append(f"{1000 * right // len(label) / 10}%\n{iou:.2f}\n{nats:.3f}")
    drawn = texts(plot_reconstructions(model.train(), grids))
    assert [text for text in drawn if "%" in text] == expected


@settings(max_examples=5)
@given(cut, st.sampled_from([-5.0, 30.0, np.nan, np.inf, -np.inf]))
def test_logits_outside_change_no_number_and_no_pixel(grids: Classes, outside: float) -> None:
    pictures, numbers = set(), []
    for model in (OneHotModel(), OneHotModel(outside)):
        png = io.BytesIO()
        numbers.append(texts(plot_reconstructions(model, grids, path=png)))
        pictures.add(png.getvalue())
    assert numbers[0] == numbers[1]
    assert len(pictures) == 1


def test_each_grid_is_captioned_with_accuracy_object_iou_and_loss() -> None:
    target, predicted = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    target[0, 0], predicted[0, 0, :3] = 5, 5
    target[:, 2] = OUTSIDE
    drawn = texts(draw_reconstructions(target, predicted, [0.25, 12.0]))
    assert drawn == [
        "Original",
        "Reconstruction",
        "Wrong cells",
        "Accuracy\nObject IoU\nLoss (nats)",
        "87.5%\n0.75\n0.250",
        "100.0%\n–\n12.0",
    ]


def test_a_custom_loss_receives_the_output_and_the_grids() -> None:
    model, grids = BetaVAE(grid_size=8), random_grids(2, 8, 8)

    def kl(output: Any, target: Tensor) -> Tensor:
        assert target.dtype == torch.int64
        assert output.mean.shape[0] == len(target)
        return torch.tensor([1.25, float("nan")])

    drawn = texts(plot_reconstructions(model, grids, loss=kl))
    assert [text.splitlines()[2] for text in drawn if "%" in text] == ["1.250", "nan"]


@pytest.mark.parametrize(
    ("grids", "complaint"),
    [
        (np.zeros((4, 4), np.uint8), r"grids: shape \(4, 4\); expected \[B, H, W\]"),
        (np.zeros((0, 4, 4), np.uint8), r"shape \(0, 4, 4\)"),
        (np.zeros((41, 4, 4), np.uint8), "1–40.*select the grids"),
        (np.zeros((1, 65, 4), np.uint8), "1–64"),
        (np.zeros((1, 4, 4)), "float64 values; expected the classes 0–63"),
        (torch.zeros(1, 4, 4), "values; expected the classes 0–63 as whole numbers"),
        (np.zeros((1, 4, 4), bool), "bool values"),
        (np.full((1, 4, 4), 64), "values 64 to 64; expected the classes 0–63"),
        (np.full((1, 4, 4), -1), "values -1 to -1"),
        (np.array([[[OUTSIDE, 254]]]), "values 254 to 254; expected the classes 0–63 .*, 255 outside a grid"),
        (np.full((1, 4, 4), OUTSIDE), "no cell; expected the classes 0–63"),
        (np.array([[[0]], [[OUTSIDE]]]), "grid 1 has no cell; expected grids with cells"),
    ],
)
def test_grids_of_another_type_or_shape_are_refused_in_one_line(grids: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        plot_reconstructions(OneHotModel(), grids)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (
            lambda _: torch.zeros(1, 9, 4, 4),
            r"returned \(1, 9, 4, 4\); expected logits .* = \[1, C, 4, 4\] with C of 10–64",
        ),
        (lambda _: torch.zeros(1, 65, 4, 4), r"returned \(1, 65, 4, 4\)"),
        (lambda _: torch.zeros(1, 10, 4, 5), r"returned \(1, 10, 4, 5\)"),
        (lambda _: None, "returned NoneType; expected logits"),
    ],
)
def test_logits_of_another_type_or_shape_are_refused(model: Callable[[Tensor], Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plot_reconstructions(model, np.full((1, 4, 4), 9, np.uint8))


def test_a_loss_for_the_batch_instead_of_each_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"losses has shape \(\); expected one for each grid: \(2,\)"):
        plot_reconstructions(OneHotModel(), random_grids(2, 4, 4), loss=lambda output, _: output.mean())


def test_reconstructions_of_another_shape_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'B': shape \(2, 4, 5\); expected .* \(2, 4, 4\)"):
        plot_comparison(random_grids(2, 4, 4), {"A": random_grids(2, 4, 4), "B": random_grids(2, 4, 5)})


def test_reconstructions_that_lack_a_cell_are_refused_by_name() -> None:
    target, cut = random_grids(2, 4, 4), cut_grids(2, 4, 4)
    with pytest.raises(
        ValueError, match="'B': OUTSIDE in a cell of the originals; expected a class in every cell"
    ):
        plot_comparison(target, {"A": target, "B": cut})
    plot_comparison(cut, {"A": target, "B": cut})


@settings(max_examples=10)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="%"), max_size=40), max_size=4, unique=True
    )
)
@example(["\x00", "日本\n", "$x^2$", ""])
def test_a_comparison_has_a_row_for_each_option_with_any_name(names: list[str]) -> None:
    png, grids = io.BytesIO(), random_grids(3, 8, 6)
    options = {name: random_grids(3, 8, 6, seed=seed) for seed, name in enumerate(names)}
    figure = plot_comparison(grids, options, path=png, title="Same grids")
    width, height = figure.bbox.size
    with Image.open(png) as picture:
        assert picture.size == (width, height)
    assert width <= 1800
    assert height >= 6 * (len(names) + 1) * 8
    assert sum(text.endswith("%") for text in texts(figure)) == 3 * len(names)


def test_rows_of_a_comparison_are_named_and_show_their_accuracy() -> None:
    target = random_grids(1, 4, 4)
    wrong = target.copy()
    wrong[0, 0, 0] ^= 1
    figure = plot_comparison(target, {"Option A": target, "Option B": wrong})
    assert texts(figure)[:-1] == [
        "Original",
        "Option A",
        "Accuracy",
        "100.0%",
        "Option B",
        "Accuracy",
        "93.7%",
    ]


@settings(max_examples=10)
@given(st.integers(0, 30))
def test_a_filmstrip_keeps_the_first_and_the_last_checkpoint(count: int) -> None:
    checkpoints = [(f"epoch {number}", random_grids(2, 5, 5, seed=number)) for number in range(count)]
    figure = plot_filmstrip(random_grids(2, 5, 5), checkpoints)
    shown = [int(text.removeprefix("epoch ")) for text in texts(figure) if text.startswith("epoch ")]
    assert figure.bbox.width <= 1800
    assert len(shown) == min(count, MAX_CHECKPOINTS)
    assert shown == sorted(set(shown))
    assert {0, count - 1} <= set(shown) if count else not shown


@given(small | cut, small)
def test_a_description_counts_the_wrong_cells(target: Classes, predicted: Classes) -> None:
    inside = target != OUTSIDE
    wrong = int((target != predicted)[inside].sum())
    sentence = describe_reconstructions(target, predicted)
    assert sentence.endswith(f"{wrong} of {inside.sum()} cells wrong.")
    assert ("accuracy 100.0%" in sentence) == (wrong == 0)
    overall, worst, best = (float(word.rstrip("%,);")) for word in sentence.split() if "%" in word)
    assert worst <= overall <= best
    each = [(grid == other)[grid != OUTSIDE].mean() for grid, other in zip(target, predicted, strict=True)]
    assert [worst, best] == pytest.approx([100 * min(each), 100 * max(each)], abs=0.1)


@settings(max_examples=20)
@given(cut, small, small)
def test_predictions_outside_do_not_change_the_description(
    target: Classes, predicted: Classes, other: Classes
) -> None:
    changed = np.where(target == OUTSIDE, other, predicted)
    assert describe_reconstructions(target, changed) == describe_reconstructions(target, predicted)
    comparisons = (plot_comparison(target, {"A": grids}).get_label() for grids in (changed, predicted))
    strips = (plot_filmstrip(target, [("1", grids)]).get_label() for grids in (changed, predicted))
    assert len({*comparisons}) == len({*strips}) == 1


def test_descriptions_name_every_option_and_checkpoint_with_its_accuracy() -> None:
    target = np.zeros((1, 2, 5), np.uint8)
    half = target.copy()
    half[0, 0] = 3
    assert plot_comparison(target, {"A": target, "B": half}).get_label() == (
        "Reconstructions of 1 grid under each option: A 100.0% accurate, B 50.0% accurate."
    )
    assert plot_filmstrip(target, [("epoch 1", half)]).get_label() == (
        "Reconstructions of 1 grid at each checkpoint: epoch 1 50.0% accurate."
    )
    assert str(plot_filmstrip(target, []).get_label()).endswith("none yet.")
