from __future__ import annotations

import gc
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

import bvae.evaluation
from bvae.beta_vae import BetaVAE, GridModel
from bvae.evaluation import derangement, evaluate, foreground_gradient_share
from bvae.losses import BetaVAELoss, kl_divergence
from bvae.metrics import confusion_matrix, mean_and_sd, reconstruction_metrics

pytestmark = pytest.mark.unit

grids = arrays.arrays(np.uint8, (4, 3, 3), elements=st.integers(0, 9))


def measured(target: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    perfect = int((target == predicted).all((1, 2)).sum())
    return vars(reconstruction_metrics(confusion_matrix(target, predicted), perfect, len(target)))


@given(grids, grids)
def test_metrics_are_those_of_their_definitions(target: np.ndarray, predicted: np.ndarray) -> None:
    metrics = measured(target, predicted)
    true, painted, right = target > 0, predicted > 0, target == predicted
    assert metrics["pixel_accuracy"] == pytest.approx(right.mean())
    assert metrics["background_rate"] == pytest.approx((~true).mean())
    assert metrics["foreground_rate"] == pytest.approx(true.mean())
    assert metrics["predicted_foreground_rate"] == pytest.approx(painted.mean())
    assert metrics["perfect_rate"] == pytest.approx(right.reshape(4, -1).all(1).mean())
    union = (true | painted).sum()
    expected = (true & painted).sum() / union if union else None
    assert metrics["foreground_iou"] == (None if expected is None else pytest.approx(expected))
    expected = right[true].mean() if true.any() else None
    assert metrics["foreground_recall"] == (None if expected is None else pytest.approx(expected))
    recalls = [right[target == c].mean() for c in range(10) if (target == c).any()]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))


@given(grids)
def test_painting_everything_background_scores_the_background_rate(target: np.ndarray) -> None:
    metrics = measured(target, np.zeros_like(target))
    assert metrics["pixel_accuracy"] == metrics["background_rate"]
    assert metrics["predicted_foreground_rate"] == 0.0


@given(grids)
def test_a_perfect_reconstruction_is_perfect(target: np.ndarray) -> None:
    metrics = measured(target, target)
    assert metrics["pixel_accuracy"] == metrics["perfect_rate"] == metrics["balanced_accuracy"] == 1.0


@given(st.integers(2, 200), st.integers(0, 100))
def test_every_grid_is_decoded_from_another_grid_in_the_control(n: int, seed: int) -> None:
    other = derangement(n, seed)
    assert sorted(other) == list(range(n))
    assert (other != np.arange(n)).all()


def test_evaluation_agrees_with_the_model_grid_by_grid_and_leaves_no_trace() -> None:
    torch.manual_seed(3)
    model, loss = BetaVAE(latent_dim=3), BetaVAELoss(gamma=2.0, weight=None, beta=0.5)
    corpus = torch.randint(0, 10, (7, 16, 16), dtype=torch.uint8)
    model.train()
    state = torch.get_rng_state()
    result = evaluate(model, corpus.numpy(), loss, batch_size=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training

    model.eval()
    with torch.no_grad():
        output = model(corpus.long())
        terms = loss(*output, corpus.long())
    kl = kl_divergence(output.mean, output.log_variance)
    assert result.loss == pytest.approx(terms.total.mean().item(), rel=1e-5)
    assert result.kl == pytest.approx(kl.sum(1).mean().item(), rel=1e-5)
    assert result.kl_per_dim == pytest.approx(kl.mean(0).tolist(), rel=1e-4)
    assert result.active_units == sum(value > 0.05 for value in result.kl_per_dim)
    right = output.logits.argmax(1) == corpus
    assert result.pixel_accuracy == pytest.approx(right.double().mean().item())


class Copy(GridModel):
    """Knows each 3×3 grid by its latent and is sure of it, but for grids whose first cell is of class 9."""

    def __init__(self) -> None:
        super().__init__()
        self.sureness = nn.Parameter(torch.tensor(200.0))

    def encode(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        mean = grids.flatten(1).float()
        return mean, torch.zeros_like(mean)

    def decode(self, latent: Tensor) -> Tensor:
        sureness = torch.where(latent[:, 0] == 9, 1e-3, self.sureness)
        copied = F.one_hot(latent.long(), 10).float() * sureness[:, None, None]
        return copied.unflatten(1, (3, 3)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("window", "edges"), [(7, (0, 7)), (4, (0, 3, 7))])
def test_the_control_is_what_the_latents_of_others_decode_to(
    window: int, edges: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bvae.evaluation, "WINDOW_CELLS", window * 9)
    corpus = torch.randint(0, 10, (7, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = Copy()
    result = evaluate(model, corpus.numpy(), BetaVAELoss(gamma=2.0, weight=None, beta=0.0), batch_size=2)
    assert result.pixel_accuracy == result.perfect_rate == 1.0
    other = np.concatenate([start + derangement(stop - start) for start, stop in pairwise(edges)])
    decoded = model.decode(model.encode(corpus)[0][other]).argmax(1)
    assert result.shuffled.pixel_accuracy == pytest.approx((decoded == corpus).double().mean().item())
    assert result.shuffled.pixel_accuracy < 0.5


def test_the_share_of_the_gradient_is_that_of_the_first_grids() -> None:
    corpus = np.ones((6, 3, 3), np.uint8)
    corpus[3:, 0, 0] = 9  # of which the model is not sure, and so has a gradient
    loss = BetaVAELoss(gamma=2.0, weight=None, beta=0.0)
    assert evaluate(Copy(), corpus, loss, batch_size=3).foreground_gradient_share is None
    assert evaluate(Copy(), corpus[::-1].copy(), loss, batch_size=3).foreground_gradient_share == 1.0


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_spread_over_seeds_is_mean_and_sample_deviation(values: list[float]) -> None:
    mean, sd = mean_and_sd(values)
    assert mean == pytest.approx(np.mean(values))
    assert sd == pytest.approx(np.std(values, ddof=1))


def test_spread_is_undefined_where_it_cannot_be_said() -> None:
    assert mean_and_sd([0.5]) == (0.5, None)
    assert mean_and_sd([0.5, None]) == (None, None)
    assert mean_and_sd([]) == (None, None)


def test_class_weights_move_the_gradient_from_background_to_foreground() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(4, 10, 8, 8), (torch.rand(4, 8, 8) < 0.1).long() * 3
    weight = torch.tensor([0.5] + [5.0] * 9)
    plain = foreground_gradient_share(logits, target, BetaVAELoss(gamma=0.0, weight=None, beta=0.0))
    weighted = foreground_gradient_share(logits, target, BetaVAELoss(gamma=0.0, weight=weight, beta=0.0))
    probability = torch.softmax(logits.double(), 1)
    size = (probability - torch.nn.functional.one_hot(target, 10).permute(0, 3, 1, 2)).abs().sum(1)
    front, back = size[target > 0].sum().item(), size[target == 0].sum().item()
    assert plain == pytest.approx(front / (front + back), rel=1e-5)
    assert weighted == pytest.approx(5 * front / (5 * front + 0.5 * back), rel=1e-5)


class Endless:
    """As many grids of 4×4 cells as are asked for, made when they are."""

    def __init__(self, n: int) -> None:
        self.shape, self.most, self.held = (n, 4, 4), 0, 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        taken = range(len(self))[rows]
        self.most = max(self.most, len(taken))
        tensors = [held for held in gc.get_objects() if type(held) is Tensor]
        self.held = max(self.held, sum(tensor.nbytes for tensor in tensors))
        return np.random.default_rng(taken.start).integers(0, 10, (len(taken), 4, 4), np.uint8)


def test_an_evaluation_needs_no_more_memory_for_more_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    window = 1024
    monkeypatch.setattr(bvae.evaluation, "WINDOW_CELLS", window * 16)
    model, loss = BetaVAE(grid_size=4, latent_dim=1), BetaVAELoss(gamma=1.0, weight=None, beta=1.0)
    evaluate(model, Endless(window), loss)  # what is made once, as by an import
    peaks, tensors = [], []
    for windows in (2, 32):
        grids = Endless(windows * window)
        tracemalloc.start()
        evaluate(model, grids, loss)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        tensors.append(grids.held)
        assert grids.most == window
    assert peaks[1] < 1.2 * peaks[0]  # of Python and numpy
    assert tensors[1] < 1.2 * tensors[0]
