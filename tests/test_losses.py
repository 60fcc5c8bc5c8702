from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from bvae.losses import BetaVAELoss, focal_loss, kl_divergence

pytestmark = pytest.mark.unit

gammas = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), st.floats(0.0, 5.0))
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.01, 1.0, 5.0, 20.0])


def draw(seed: int, scale: float, *, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Logits [B, C, H, W], target [B, H, W] and class weights [C]."""
    generator = torch.Generator().manual_seed(seed)
    batch, classes, height, width = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(4))
    classes += 1
    logits = scale * torch.randn(batch, classes, height, width, generator=generator, dtype=dtype)
    target = torch.randint(0, classes, (batch, height, width), generator=generator)
    weight = torch.rand(classes, generator=generator, dtype=dtype) * 10 + 0.01
    return logits, target, weight


def reference(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, gamma: float) -> float:
    """The definition, cell by cell, in numpy's float64, with 1 − p summed from the other classes."""
    z = logits.double().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    total = 0.0
    for (b, h, w), y in np.ndenumerate(target.numpy()):
        cell = p[b, :, h, w]
        rest = np.delete(cell, y).sum()
        surprise = -math.log1p(-rest) if rest < 0.5 else logsumexp(z[b, :, h, w]) - z[b, y, h, w]
        total += float(weight[y].double()) * rest**gamma * surprise
    return total / target.numel()


def logsumexp(z: np.ndarray) -> float:
    return float(z.max() + np.log(np.exp(z - z.max()).sum()))


@given(seeds, scales)
def test_focal_loss_without_focus_is_the_cross_entropy(seed: int, scale: float) -> None:
    logits, target, _ = draw(seed, scale, dtype=torch.float64)
    torch.testing.assert_close(focal_loss(logits, target, gamma=0.0), F.cross_entropy(logits, target))


@given(seeds, scales, gammas)
def test_focal_loss_in_float32_agrees_with_its_definition_in_float64(
    seed: int, scale: float, gamma: float
) -> None:
    logits, target, weight = draw(seed, scale)
    ours = focal_loss(logits, target, gamma=gamma, weight=weight).item()
    assert ours == pytest.approx(reference(logits, target, weight, gamma), rel=1e-6, abs=1e-9)


@given(seeds, gammas)
def test_the_gradient_of_the_focal_loss_is_that_of_finite_differences(seed: int, gamma: float) -> None:
    logits, target, weight = draw(seed, 2.0, dtype=torch.float64)
    logits = logits[:1, :, :2, :2].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: focal_loss(z, target[:1, :2, :2], gamma=gamma, weight=weight), logits
    )


@given(seeds, scales, gammas, st.floats(0.0, 100.0), st.data())
def test_focal_loss_never_falls_when_a_weight_rises(
    seed: int, scale: float, gamma: float, rise: float, data: st.DataObject
) -> None:
    logits, target, weight = draw(seed, scale)
    heavier = weight.clone()
    heavier[data.draw(st.integers(0, len(weight) - 1))] += rise
    before, after = (focal_loss(logits, target, gamma=gamma, weight=w) for w in (weight, heavier))
    assert after >= before


@given(seeds, gammas)
def test_focal_loss_and_gradient_are_finite_at_extreme_logits(seed: int, gamma: float) -> None:
    logits, target, weight = draw(seed, 1.0)
    logits = (1e4 * logits.sign()).requires_grad_()
    loss = focal_loss(logits, target, gamma=gamma, weight=weight)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert math.isfinite(loss.item())
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("sure", [0.0, 10.0, 17.0, 30.0, 1e4])
def test_the_gradient_has_no_pole_where_the_target_is_certain(sure: float) -> None:
    logits = torch.tensor([sure, 0.0, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
    loss = focal_loss(logits, torch.zeros(1, 1, 1, dtype=torch.long), gamma=0.5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()


@given(seeds, gammas)
def test_focal_loss_of_bfloat16_logits_is_that_of_the_same_numbers_in_float32(
    seed: int, gamma: float
) -> None:
    logits, target, weight = draw(seed, 5.0)
    low = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = focal_loss(low, target, gamma=gamma, weight=weight)
    assert loss.dtype == torch.float32
    assert loss == focal_loss(low.float(), target, gamma=gamma, weight=weight)


def test_the_mean_is_over_cells_and_not_over_weights() -> None:
    logits, target, weight = draw(3, 1.0)
    cells = focal_loss(logits, target, gamma=2.0, weight=weight, reduction="none")
    assert cells.shape == target.shape
    torch.testing.assert_close(cells.mean(), focal_loss(logits, target, gamma=2.0, weight=weight))
    torch.testing.assert_close(
        2 * cells, focal_loss(logits, target, gamma=2.0, weight=2 * weight, reduction="none")
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"gamma": -1.0}, "gamma is -1.0; expected a number of at least 0"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"logits": torch.zeros(2, 1, 3, 3)}, "C >= 2"),
        ({"logits": torch.zeros(2, 4, 3, 2)}, r"expected \[B, C, H, W\]"),
        ({"weight": torch.ones(3)}, r"weight is \[3\]; expected one for each class: \[4\]"),
        ({"reduction": "sum"}, "reduction is 'sum'; expected 'mean' or 'none'"),
    ],
)
def test_focal_loss_says_what_it_expected(changes: dict, complaint: str) -> None:
    arguments = {"logits": torch.zeros(2, 4, 3, 3), "target": torch.zeros(2, 3, 3).long(), "gamma": 2.0}
    arguments |= changes
    with pytest.raises(ValueError, match=complaint):
        focal_loss(**arguments)
    latent = torch.zeros(2, 1)
    if "reduction" not in changes:
        loss = BetaVAELoss(gamma=arguments["gamma"], weight=arguments.get("weight"), beta=1.0)
        for of in (loss, loss.with_gradient):
            with pytest.raises(ValueError, match=complaint):
                of(arguments["logits"], latent, latent, arguments["target"])


@given(seeds, st.sampled_from([1e-6, 0.01, 1.0, 3.0]))
def test_kl_divergence_agrees_with_torch_distributions(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = (scale * torch.randn(5, 3, generator=generator).double() for _ in range(2))
    expected = reference_kl(
        Normal(mean, torch.exp(0.5 * log_variance)), Normal(torch.zeros_like(mean), torch.ones_like(mean))
    )
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected, rtol=1e-7, atol=1e-14)


def test_the_loss_is_reconstruction_plus_beta_times_kl_for_each_grid() -> None:
    logits, target, weight = draw(5, 1.0)
    mean, log_variance = torch.randn(len(logits), 4), torch.randn(len(logits), 4)
    terms = BetaVAELoss(gamma=1.5, weight=weight, beta=0.3)(logits, mean, log_variance, target)
    assert terms.total.shape == (len(logits),)
    torch.testing.assert_close(
        terms.reconstruction.mean(), focal_loss(logits, target, gamma=1.5, weight=weight)
    )
    torch.testing.assert_close(terms.kl, kl_divergence(mean, log_variance).sum(1))
    torch.testing.assert_close(terms.total, terms.reconstruction + 0.3 * terms.kl)


@given(seeds, scales, gammas, st.floats(0.0, 10.0), st.booleans())
def test_the_gradient_written_out_is_that_of_the_mean_of_the_loss(
    seed: int, scale: float, gamma: float, beta: float, weighted: bool
) -> None:
    logits, target, weight = draw(seed, scale, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    posterior = torch.randn(2, len(logits), 3, generator=generator, dtype=torch.float64).unbind()
    inputs = [tensor.requires_grad_() for tensor in (logits, *posterior)]
    loss = BetaVAELoss(gamma=gamma, weight=weight if weighted else None, beta=beta)
    expected = [term.mean() for term in loss(*inputs, target)]
    terms, gradient = loss.with_gradient(*inputs, target)
    torch.testing.assert_close([*terms], expected, check_dtype=False)
    torch.testing.assert_close([*gradient], [*torch.autograd.grad(expected[0], inputs)])
    assert not any(term.requires_grad for term in terms)


@pytest.mark.parametrize("shapes", [((2, 3), (1, 3)), ((1, 3), (1, 3)), ((2,), (2,))])
def test_a_posterior_of_another_shape_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    loss = BetaVAELoss(gamma=1.0, weight=None, beta=1.0)
    with pytest.raises(ValueError, match=r"expected \[2, Z\] of both"):
        loss.with_gradient(torch.zeros(2, 4, 3, 3), *map(torch.zeros, shapes), torch.zeros(2, 3, 3))


def test_the_gradient_of_narrow_numbers_is_that_of_the_same_numbers_in_float32() -> None:
    logits, target, weight = draw(7, 5.0)
    narrow = [
        tensor.bfloat16() for tensor in (logits, torch.randn(len(logits), 2), torch.randn(len(logits), 2))
    ]
    loss = BetaVAELoss(gamma=2.0, weight=weight, beta=0.1)
    found, expected = (
        loss.with_gradient(*inputs, target) for inputs in (narrow, [tensor.float() for tensor in narrow])
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@given(seeds, scales, st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_a_cell_is_right_where_its_class_leads_alone(
    seed: int, scale: float, layout: torch.memory_format
) -> None:
    logits, target, weight = draw(seed, scale)
    logits = logits.mul(8).round().contiguous(memory_format=layout)  # with ties among them
    latent = torch.zeros(len(logits), 2)
    found = BetaVAELoss(gamma=2.0, weight=weight, beta=0.0)(logits, latent, latent, target).accuracy
    alone = (logits == logits.amax(1, keepdim=True)).sum(1) == 1
    expected = (alone & (logits.argmax(1) == target)).double().mean((1, 2))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_a_weight_that_asks_for_a_gradient_is_refused() -> None:
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"pass weight\.detach\(\)"):
        focal_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2), gamma=1.0, weight=weight)
