from __future__ import annotations

import gc
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from bvae.beta_vae import BetaVAE, GridModel, one_hot
from bvae.config import OUTSIDE
from bvae.evaluation import Evaluator, evaluate, measure
from bvae.evaluation.measure import foreground_gradient_share
from bvae.evaluation.metrics import (
    Tally,
    derangement,
    extent,
    find_objects,
    sample_rows,
    score_objects,
    score_with_control,
)
from bvae.losses import BetaVAELoss, focal_loss, kl_divergence
from bvae.records import MeanStd, ReconstructionMetrics

pytestmark = pytest.mark.unit

OBJECT_METRICS = ("object_recall", "minor_object_recall", "object_iou", "objects_recognised")

cells = st.integers(0, 9) | st.just(OUTSIDE)
reconstructions = arrays.arrays(np.uint8, (4, 3, 3), elements=st.integers(0, 9))
grids = arrays.arrays(np.uint8, (4, 3, 3), elements=cells).filter(
    lambda grids: (grids != OUTSIDE).any((1, 2)).all()
)


def measured(target: np.ndarray, predicted: np.ndarray) -> ReconstructionMetrics:
    tally = Tally()
    tally.add(target, predicted)
    return tally.metrics(find_objects(target), predicted)


def mixed_grids(n: int, side: int, seed: int = 0, *, outside: bool = True) -> np.ndarray:
    """Return random grids `[n, side, side]` of a few classes, with different sizes if `outside`."""
    rng = np.random.default_rng(seed)
    grids = rng.choice(10, (n, side, side), p=[0.5, *[0.5 / 9] * 9]).astype(np.uint8)
    for grid, (height, width) in zip(grids, rng.integers(1, side + 1, (n, 2)), strict=True):
        if outside:
            grid[height:], grid[:, width:] = OUTSIDE, OUTSIDE
    return grids


def mean(values: np.ndarray) -> Any:
    return pytest.approx(values.mean()) if values.size else None


@given(grids, reconstructions)
def test_metrics_agree_with_their_definitions(target: np.ndarray, predicted: np.ndarray) -> None:
    metrics = measured(target, predicted)
    inside = target != OUTSIDE
    right = (target == predicted)[inside]
    perfect = ((target == predicted) | ~inside).all((1, 2))
    assert metrics.perfect_rate == mean(perfect)
    label, true, shown = target[inside], target[inside] > 0, predicted[inside] > 0
    assert metrics.pixel_accuracy == mean(right)
    assert metrics.background_rate == mean(~true)
    assert metrics.foreground_rate == mean(true)
    assert metrics.predicted_foreground_rate == mean(shown)
    assert metrics.flooded_rate == mean(shown[~true])
    assert metrics.foreground_iou == mean(true[true | shown] & shown[true | shown])
    assert metrics.foreground_recall == mean(right[true])
    assert list(metrics.class_recall) == [mean(right[label == c]) for c in range(10)]
    assert metrics.balanced_accuracy == mean(np.array([right[label == c].mean() for c in np.unique(label)]))


@given(grids, reconstructions, reconstructions)
def test_predictions_outside_change_no_metric(
    target: np.ndarray, predicted: np.ndarray, other: np.ndarray
) -> None:
    objects, changed = find_objects(target), np.where(target == OUTSIDE, other, predicted)
    assert score_with_control(objects, predicted, other) == score_with_control(objects, changed, other)
    assert score_with_control(objects, other, predicted) == score_with_control(objects, other, changed)


@given(grids)
def test_predicting_background_everywhere_scores_the_background_rate(target: np.ndarray) -> None:
    metrics = measured(target, np.zeros_like(target))
    assert metrics.pixel_accuracy == metrics.background_rate
    assert metrics.predicted_foreground_rate == 0.0
    assert metrics.flooded_rate == (0.0 if (target == 0).any() else None)


@given(grids)
def test_a_perfect_reconstruction_is_perfect(target: np.ndarray) -> None:
    metrics = measured(target, target)
    assert metrics.pixel_accuracy == metrics.perfect_rate == metrics.balanced_accuracy == 1.0


def test_metrics_without_anything_to_count_are_undefined() -> None:
    empty = measured(np.zeros((2, 3, 3), np.uint8), np.ones((2, 3, 3), np.uint8))
    assert empty.foreground_recall is None
    assert empty.class_recall == (0.0, *[None] * 9)
    assert [getattr(empty, name) for name in OBJECT_METRICS] == [None] * 4
    full = np.ones((2, 3, 3), np.uint8)
    assert measured(full, full).flooded_rate is None
    assert measured(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)).foreground_iou is None


@pytest.mark.parametrize(("size", "present"), [(1000, 1), (1001, 0)])
def test_a_class_is_present_with_at_least_a_thousandth_of_the_cells(size: int, present: int) -> None:
    target = np.full((1, 1, 2 * size), OUTSIDE, np.uint8)  # half of the positions are cells
    target[..., ::2] = 0
    target[0, 0, 0] = 3
    assert measured(target, np.zeros_like(target)).classes_present == present


@given(grids, reconstructions, reconstructions)
def test_learned_classes_exceed_the_control_by_at_least_a_fifth(
    target: np.ndarray, predicted: np.ndarray, shuffled: np.ndarray
) -> None:
    found = score_with_control(find_objects(target), predicted, shuffled)
    assert found.shuffled == measured(target, shuffled)
    recalls = zip(found.class_recall[1:], found.shuffled.class_recall[1:], strict=True)
    present = [(mine, control) for mine, control in recalls if mine is not None and control is not None]
    assert found.classes_present == len(present)
    assert found.classes_learned == sum(mine - control >= 0.20 for mine, control in present)


@given(st.integers(1, 3), reconstructions, grids)
def test_metrics_do_not_depend_on_batches(cut: int, predicted: np.ndarray, target: np.ndarray) -> None:
    tally = Tally()
    tally.add(target[:cut], predicted[:cut])
    tally.add(target[cut:], predicted[cut:])
    assert tally.metrics(find_objects(target), predicted) == measured(target, predicted)


@pytest.mark.parametrize("outside", [False, True])
def test_evaluation_agrees_with_the_model_and_leaves_it_unchanged(outside: bool) -> None:
    torch.manual_seed(3)
    model, loss = BetaVAE(latent_dim=3), BetaVAELoss(gamma=2.0, weight=torch.linspace(0.5, 2, 10), beta=0.5)
    corpus = torch.from_numpy(mixed_grids(7, 16, outside=outside))
    model.train()
    state = torch.get_rng_state()
    result = evaluate(model, corpus.numpy(), loss, batch_size=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training

    model.eval()
    with torch.no_grad():
        output = model(corpus)
    kl = kl_divergence(output.mean, output.log_variance)
    reconstruction = focal_loss(output.logits, corpus, gamma=2.0, weight=loss.weight).item()
    assert result.reconstruction == pytest.approx(reconstruction, rel=1e-5)
    assert result.kl == pytest.approx(kl.sum(1).mean().item(), rel=1e-5)
    assert result.loss == pytest.approx(result.reconstruction + 0.5 * result.kl, rel=1e-5)
    assert result.kl_per_dim == pytest.approx(kl.mean(0).tolist(), rel=1e-4)
    assert result.active_units == sum(value > 0.05 for value in result.kl_per_dim)
    predicted = output.logits.argmax(1).byte().numpy()
    expected = vars(measured(corpus.numpy(), predicted))
    assert {name: getattr(result, name) for name in expected} == expected
    assert np.sum(result.confusion) == (corpus != OUTSIDE).sum()


class Copy(GridModel):
    """Copies each grid: with certainty, but with logits near 0 if its first cell is of class 9.

    Args:
        side: height and width of the grids.
        shift: number of columns by which reconstructions are shifted.
        outside: the logit of class 0 in cells outside a grid, where the other logits are 0.
    """

    def __init__(self, side: int = 3, *, shift: int = 0, outside: float = 0.0) -> None:
        super().__init__()
        self.side, self.shift, self.outside = side, shift, outside
        self.sureness = nn.Parameter(torch.tensor(200.0))

    def encode(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        mean = grids.flatten(1).float()
        return mean, torch.zeros_like(mean)

    def decode(self, latent: Tensor) -> Tensor:
        grids = latent.unflatten(1, (self.side, self.side)).long()
        sureness = torch.where(latent[:, 0] == 9, 1e-3, self.sureness)
        logits = one_hot(grids).roll(self.shift, 3) * sureness[:, None, None, None]
        logits[:, 0] += torch.where(grids == OUTSIDE, self.outside, 0.0)
        return logits


loss = BetaVAELoss(gamma=2.0, weight=None, beta=0.0)


@pytest.mark.parametrize(("window", "edges"), [(7, (0, 7)), (4, (0, 3, 7))])
def test_the_control_is_decoded_from_the_latents_of_other_grids(
    window: int, edges: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "WINDOW_CELLS", window * 36)
    corpus, model = mixed_grids(7, 6), Copy(6)
    result = evaluate(model, corpus, loss, batch_size=2)
    assert result.pixel_accuracy == result.perfect_rate == result.object_iou == 1.0
    other = np.concatenate([start + derangement(stop - start) for start, stop in pairwise(edges)])
    with torch.no_grad():
        decoded = model.decode(model.encode(torch.from_numpy(corpus))[0][other]).argmax(1).byte().numpy()
    assert result.shuffled == measured(corpus, decoded)
    assert result.shuffled.pixel_accuracy is not None
    assert result.shuffled.pixel_accuracy < 0.5


@pytest.mark.parametrize("outside", [-200.0, 3.0, torch.inf, -torch.inf, torch.nan])
def test_logits_outside_do_not_change_an_evaluation(outside: float) -> None:
    corpus, plain, changed = mixed_grids(6, 5, outside=False), Copy(5), Copy(5, outside=outside)
    corpus[:, 3:], corpus[:, 0, 4] = OUTSIDE, OUTSIDE
    corpus[2, 0, 0] = 9
    assert evaluate(changed, corpus, loss, batch_size=4) == evaluate(plain, corpus, loss, batch_size=4)
    # The shuffled control decodes each grid from the latents of another grid. Cells that are outside that
    # other grid get the logit `outside`.
    corpus[1, 2] = OUTSIDE
    expected, found = (vars(evaluate(model, corpus, loss)) for model in (plain, changed))
    for name in expected.keys() - {"shuffled", "classes_learned"}:
        assert found[name] == expected[name], name


@pytest.mark.parametrize("window", [2**22, 4 * 36])
def test_objects_are_measured_on_a_seeded_sample(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_OBJECT_GRIDS", 5)
    monkeypatch.setattr(measure, "WINDOW_CELLS", window)
    corpus = mixed_grids(13, 6)
    result, again = (evaluate(Copy(6, shift=1), corpus, loss, batch_size=3) for _ in range(2))
    assert result == again
    rows = sample_rows(13, 5)
    assert len(rows) == len(set(rows)) == 5
    predicted = one_hot(torch.from_numpy(corpus)).roll(1, 3).argmax(1).byte().numpy()
    sampled = find_objects(corpus[rows])
    expected = score_objects(sampled, predicted[rows])._asdict()
    assert {name: getattr(result, name) for name in expected} == expected
    filled = extent(corpus[rows])
    assert result.extent == score_with_control(sampled, filled, filled[derangement(5)])
    whole = measured(corpus, predicted)
    for name in vars(whole).keys() - set(OBJECT_METRICS):
        assert getattr(result, name) == getattr(whole, name), name


def test_windows_do_not_change_the_metrics_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, model = mixed_grids(13, 6), Copy(6, shift=1)
    expected = evaluate(model, corpus, loss)
    monkeypatch.setattr(measure, "WINDOW_CELLS", 3 * 36)
    found = evaluate(model, corpus, loss)
    for name in (*OBJECT_METRICS, "extent", "class_recall", "classes_present"):
        assert getattr(found, name) == getattr(expected, name), name


def test_an_evaluator_measures_several_models() -> None:
    corpus = mixed_grids(6, 5)
    evaluator = Evaluator(corpus, loss)
    for shift in (0, 1, 0):
        assert evaluator.measure(Copy(5, shift=shift)) == evaluate(Copy(5, shift=shift), corpus, loss)


def test_the_gradient_share_is_measured_on_the_first_grids() -> None:
    corpus = np.ones((6, 3, 3), np.uint8)
    corpus[:, 2] = OUTSIDE
    corpus[3:, 0, 0] = 9  # the model is uncertain about these, so they have a gradient
    assert evaluate(Copy(), corpus, loss, batch_size=3).foreground_gradient_share is None
    assert evaluate(Copy(), corpus[::-1].copy(), loss, batch_size=3).foreground_gradient_share == 1.0


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_spread_over_seeds_is_mean_and_sample_deviation(values: list[float]) -> None:
    spread = MeanStd.of(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.sd == pytest.approx(np.std(values, ddof=1))


def test_spread_is_undefined_for_one_seed_or_an_undefined_value() -> None:
    assert MeanStd.of([0.5]) == MeanStd(0.5, None)
    assert MeanStd.of([0.5, None]) == MeanStd.of([None]) == MeanStd.of([]) == MeanStd(None, None)


@pytest.mark.parametrize("outside", [False, True])
def test_class_weights_move_the_gradient_from_background_to_foreground(outside: bool) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(4, 10, 8, 8), (torch.rand(4, 8, 8) < 0.1).long() * 3
    if outside:
        target[0, 5:] = OUTSIDE
        logits[0, :, 5:] = torch.nan
    weight = torch.tensor([0.5] + [5.0] * 9)
    plain = foreground_gradient_share(logits, target, BetaVAELoss(gamma=0.0, weight=None, beta=0.0))
    weighted = foreground_gradient_share(logits, target, BetaVAELoss(gamma=0.0, weight=weight, beta=0.0))
    probability = torch.softmax(logits.double(), 1)
    size = (probability - one_hot(target)).abs().sum(1)
    front, back = size[target == 3].sum().item(), size[target == 0].sum().item()
    assert plain == pytest.approx(front / (front + back), rel=1e-5)
    assert weighted == pytest.approx(5 * front / (5 * front + 0.5 * back), rel=1e-5)


class Endless:
    """Any number of grids of 4×4 cells, generated on access.

    Attributes:
        most: the maximum number of grids accessed at once.
        tensors: the maximum memory of PyTorch tensors, in bytes.
        others: the maximum memory of Python and NumPy, in bytes.
    """

    def __init__(self, n: int) -> None:
        self.shape, self.most, self.tensors, self.others = (n, 4, 4), 0, 0, 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        self.look()
        taken = range(len(self))[rows] if isinstance(rows, slice) else rows
        self.most = max(self.most, len(taken))
        return np.random.default_rng(int(taken[0])).integers(0, 10, (len(taken), 4, 4), np.uint8)

    def look(self) -> None:
        self.others = max(self.others, tracemalloc.get_traced_memory()[1])
        tensors = sum(held.nbytes for held in gc.get_objects() if type(held) is Tensor)
        self.tensors = max(self.tensors, tensors)
        tracemalloc.reset_peak()  # the list of all objects raised the peak


def test_an_evaluation_needs_no_more_memory_for_more_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    window = 1024
    monkeypatch.setattr(measure, "WINDOW_CELLS", window * 16)
    monkeypatch.setattr(measure, "MAX_OBJECT_GRIDS", 64)
    model, loss = BetaVAE(grid_size=4, latent_dim=1), BetaVAELoss(gamma=1.0, weight=None, beta=1.0)
    evaluate(model, Endless(window), loss)  # allocates memory that is needed only once, such as for imports
    few, many = Endless(2 * window), Endless(10 * window)
    for grids in (few, many):
        tracemalloc.start()
        evaluate(model, grids, loss)
        grids.look()
        tracemalloc.stop()
        assert grids.most == window
    # The limit is half the size of the predictions for eight more windows.
    assert many.others < few.others + 4 * window * 16
    assert many.tensors < 1.2 * few.tensors
