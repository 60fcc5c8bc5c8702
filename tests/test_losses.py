from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from bvae.config import OUTSIDE
from bvae.losses import BetaVAELoss, _focal, focal_loss, kl_divergence

pytestmark = pytest.mark.unit

gammas = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), st.floats(0.0, 5.0))
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.01, 1.0, 5.0, 20.0])


def draw(
    seed: int, scale: float, *, dtype: torch.dtype = torch.float32, classes: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Draw logits `[B, C, H, W]`, a target `[B, H, W]` and class weights `[C]`; by default, C is 2 to 6."""
    generator = torch.Generator().manual_seed(seed)
    batch, few, height, width = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(4))
    classes = classes or few + 1
    logits = scale * torch.randn(batch, classes, height, width, generator=generator, dtype=dtype)
    target = torch.randint(0, classes, (batch, height, width), generator=generator)
    weight = torch.rand(classes, generator=generator, dtype=dtype) * 10 + 0.01
    return logits, target, weight


def cut(target: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the target with some cells outside. Each grid keeps at least one cell."""
    generator = torch.Generator().manual_seed(seed)
    share = (0.2, 0.8)[seed % 2]
    outside = torch.rand(target.shape, generator=generator) < share
    outside[:, 0, 0] = False
    return target.masked_fill(outside, OUTSIDE)


def posteriors(logits: torch.Tensor, seed: int, latent_dim: int = 3) -> list[torch.Tensor]:
    """Draw mean and log variance `[B, Z]`."""
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randn(2, len(logits), latent_dim, generator=generator, dtype=logits.dtype)]


def reference(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, gamma: float) -> float:
    """Compute the mean focal loss of cells inside grids in float64. 1 − p is a sum of other probabilities."""
    z = logits.double().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    total, cells = 0.0, 0
    for (b, h, w), y in np.ndenumerate(target.numpy()):
        if y == OUTSIDE:
            continue
        cells += 1
        cell = p[b, :, h, w]
        rest = np.delete(cell, y).sum()
        surprise = -math.log1p(-rest) if rest < 0.5 else logsumexp(z[b, :, h, w]) - z[b, y, h, w]
        total += float(weight[y].double()) * rest**gamma * surprise
    return total / cells


def logsumexp(z: np.ndarray) -> float:
    return float(z.max() + np.log(np.exp(z - z.max()).sum()))


@given(seeds, scales)
def test_focal_loss_without_focus_is_the_cross_entropy(seed: int, scale: float) -> None:
    logits, target, _ = draw(seed, scale, dtype=torch.float64)
    torch.testing.assert_close(focal_loss(logits, target, gamma=0.0), F.cross_entropy(logits, target))
    target = cut(target, seed)
    expected = F.cross_entropy(logits, target, ignore_index=OUTSIDE)
    torch.testing.assert_close(focal_loss(logits, target, gamma=0.0), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
@given(seeds, scales, gammas, st.integers(2, 64), st.booleans(), st.booleans())
def test_focal_loss_of_any_number_of_classes_agrees_with_its_definition_in_float64(
    dtype: torch.dtype,
    tolerance: float,
    seed: int,
    scale: float,
    gamma: float,
    classes: int,
    weighted: bool,
    outside: bool,
) -> None:
    logits, target, weight = draw(seed, scale, dtype=dtype, classes=classes)
    target = cut(target, seed) if outside else target
    ours = focal_loss(logits, target, gamma=gamma, weight=weight if weighted else None).item()
    expected = reference(logits, target, weight if weighted else torch.ones(classes), gamma)
    assert ours == pytest.approx(expected, rel=tolerance, abs=1e-9)


@given(seeds, gammas, st.booleans())
def test_the_gradient_of_the_focal_loss_agrees_with_finite_differences(
    seed: int, gamma: float, outside: bool
) -> None:
    logits, target, weight = draw(seed, 2.0, dtype=torch.float64)
    target = cut(target, seed) if outside else target
    logits = logits[:1, :, :2, :2].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: focal_loss(z, target[:1, :2, :2], gamma=gamma, weight=weight), logits
    )


rare = st.sampled_from([-math.inf, -math.inf, math.nan, math.inf, 3e38, -3e38])


@given(
    seed=seeds,
    scale=scales,
    gamma=gammas,
    places=st.lists(st.tuples(*[st.integers(0, 5)] * 4, rare), max_size=12),
    masked=st.booleans(),
    weighted=st.booleans(),
)
def test_logits_that_are_not_finite_are_treated_as_in_cross_entropy(
    seed: int, scale: float, gamma: float, places: list[tuple], masked: bool, weighted: bool
) -> None:
    logits, target, weight = draw(seed, scale, dtype=torch.float64)
    target = cut(target, seed)
    if masked:  # most classes are impossible, but never the class of the target
        others = torch.arange(logits.shape[1]).reshape(1, -1, 1, 1) != target.unsqueeze(1)
        chance = torch.rand(others.shape, generator=torch.Generator().manual_seed(seed))
        logits[others & (chance < 0.8)] = -math.inf
    for *place, value in places:
        logits[tuple(index % size for index, size in zip(place, logits.shape, strict=True))] = value
    weight = weight if weighted else None

    def defined(z: torch.Tensor) -> torch.Tensor:
        nats = F.cross_entropy(z, target, weight, ignore_index=OUTSIDE, reduction="none")
        if gamma == 0:
            return nats
        label = target.where(target != OUTSIDE, 0).unsqueeze(1)
        rest = 1 - z.softmax(1).gather(1, label).squeeze(1)
        return (nats * rest**gamma).where(target != OUTSIDE, 0.0)

    def ours(z: torch.Tensor) -> torch.Tensor:
        return focal_loss(z, target, gamma=gamma, weight=weight, reduction="none")

    inputs = [logits.clone().requires_grad_() for _ in range(2)]
    found, expected = (of(z) for of, z in zip((ours, defined), inputs, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, equal_nan=True)
    by_ours, by_definition = (
        torch.autograd.grad(x.sum(), z)[0] for x, z in zip((found, expected), inputs, strict=True)
    )
    inside = (target != OUTSIDE).unsqueeze(1).expand_as(by_ours)
    assert not by_ours[~inside].any()
    # If gamma > 0, autograd gives NaN at p = 0 and p = 1, although the gradient has a finite limit there.
    known = inside & ~by_definition.isnan() if gamma else inside
    torch.testing.assert_close(by_ours[known], by_definition[known], rtol=1e-5, atol=1e-7, equal_nan=True)
    finite = found.isfinite().unsqueeze(1).expand_as(by_ours)
    assert by_ours[finite].isfinite().all()


@given(seeds, gammas, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_an_impossible_target_has_the_gradient_of_the_cross_entropy(
    seed: int, gamma: float, dtype: torch.dtype
) -> None:
    logits, target, weight = draw(seed, 1.0)
    logits = logits.scatter(1, target.unsqueeze(1), -math.inf).to(dtype).requires_grad_()
    loss = focal_loss(logits, target, gamma=gamma, weight=weight)
    assert loss == math.inf
    expected = F.cross_entropy(logits.float(), target, weight, reduction="none").sum() / target.numel()
    by_ours, by_cross_entropy = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(by_ours, by_cross_entropy)


@given(seeds, gammas)
def test_a_class_that_is_impossible_everywhere_changes_nothing(seed: int, gamma: float) -> None:
    logits, target, weight = draw(seed, 2.0)
    wider = torch.cat([logits, torch.full_like(logits[:, :1], -math.inf)], 1).requires_grad_()
    logits.requires_grad_()
    losses = [
        focal_loss(logits, target, gamma=gamma, weight=weight),
        focal_loss(wider, target, gamma=gamma, weight=torch.cat([weight, torch.ones(1)])),
    ]
    torch.testing.assert_close(*losses)
    (narrow,), (wide,) = (torch.autograd.grad(x, z) for x, z in zip(losses, (logits, wider), strict=True))
    torch.testing.assert_close(wide[:, :-1], narrow)
    assert not wide[:, -1].any()


@pytest.mark.parametrize(
    "shape", [(0, 3, 2, 2), (2, 3, 0, 2), (2, 3, 2, 2)], ids=["no grid", "no row", "outside"]
)
def test_the_mean_over_no_cells_is_nan_as_for_the_cross_entropy(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    target = torch.full((shape[0], *shape[2:]), OUTSIDE)
    found = focal_loss(logits, target, gamma=2.0)
    expected = F.cross_entropy(logits, target, ignore_index=OUTSIDE)
    assert found.isnan()
    assert expected.isnan()
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))
    assert focal_loss(logits, target, gamma=2.0, reduction="none").shape == target.shape


anything = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3e38])


@given(seeds, gammas, anything, anything, st.booleans())
def test_logits_outside_change_no_loss_or_gradient(
    seed: int, gamma: float, one: float, other: float, weighted: bool
) -> None:
    logits, target, weight = draw(seed, 2.0)
    target, posterior = cut(target, seed), posteriors(logits, seed)
    changed = logits.where(target.unsqueeze(1) != OUTSIDE, one)
    changed[:, 0] = changed[:, 0].where(target != OUTSIDE, other)
    loss = BetaVAELoss(gamma=gamma, weight=weight if weighted else None, beta=0.5)

    def numbers(logits: torch.Tensor) -> list[torch.Tensor]:
        logits = logits.clone().requires_grad_()
        mean = focal_loss(logits, target, gamma=gamma, weight=loss.weight)
        cells = focal_loss(logits, target, gamma=gamma, weight=loss.weight, reduction="none")
        gradients = [*torch.autograd.grad(mean, logits), *torch.autograd.grad(cells.sum(), logits)]
        for gradient in gradients:
            assert not gradient.movedim(1, -1)[target == OUTSIDE].any()
        assert not cells[target == OUTSIDE].any()
        terms, by = loss.with_gradient(logits, *posterior, target)
        return [mean, cells, *gradients, *loss(logits, *posterior, target), *terms, *by]

    for found, expected in zip(numbers(changed), numbers(logits), strict=True):
        assert torch.equal(found, expected)


@given(seeds, scales, gammas)
def test_without_cells_outside_means_equal_plain_means_bit_for_bit(
    seed: int, scale: float, gamma: float
) -> None:
    logits, target, weight = draw(seed, scale)
    posterior = posteriors(logits, seed)
    cells = focal_loss(logits, target, gamma=gamma, weight=weight, reduction="none")
    assert torch.equal(focal_loss(logits, target, gamma=gamma, weight=weight), cells.mean())
    loss = BetaVAELoss(gamma=gamma, weight=weight, beta=0.5)
    assert torch.equal(loss(logits, *posterior, target).reconstruction, cells.flatten(1).mean(1))
    terms, gradient = loss.with_gradient(logits, *posterior, target)
    assert torch.equal(terms.reconstruction, cells.mean())
    found = _focal(logits, target, weight, gamma)
    assert torch.equal(gradient.logits, found.direction * (found.slope / target.numel()))
    assert torch.equal(terms.accuracy, found.hit.float().mean())


@settings(max_examples=20)
@given(seeds, gammas)
def test_the_loss_of_a_grid_is_the_mean_over_its_own_cells(seed: int, gamma: float) -> None:
    logits, target, weight = draw(seed, 2.0)
    target, posterior = cut(target, seed), posteriors(logits, seed)
    loss = BetaVAELoss(gamma=gamma, weight=weight, beta=0.5)
    terms = loss(logits, *posterior, target)
    each = []
    for one, own in zip(logits, target, strict=True):
        cells = own != OUTSIDE
        each.append(focal_loss(one[None, :, cells, None], own[None, cells, None], gamma=gamma, weight=weight))
    torch.testing.assert_close(terms.reconstruction, torch.stack(each))
    torch.testing.assert_close(terms.total, terms.reconstruction + 0.5 * terms.kl)


@settings(max_examples=20)
@given(seeds, gammas)
def test_the_loss_of_a_batch_is_the_mean_over_all_of_its_cells(seed: int, gamma: float) -> None:
    logits, target, weight = draw(seed, 2.0)
    target, posterior = cut(target, seed), posteriors(logits, seed)
    loss = BetaVAELoss(gamma=gamma, weight=weight, beta=0.5)
    each, (terms, _) = loss(logits, *posterior, target), loss.with_gradient(logits, *posterior, target)
    cells = (target != OUTSIDE).sum((1, 2))
    torch.testing.assert_close(terms.reconstruction, (each.reconstruction * cells).sum() / cells.sum())
    torch.testing.assert_close(terms.accuracy, (each.accuracy * cells).sum() / cells.sum())
    torch.testing.assert_close(terms.kl, each.kl.mean())
    torch.testing.assert_close(terms.reconstruction, focal_loss(logits, target, gamma=gamma, weight=weight))
    torch.testing.assert_close(terms.total, terms.reconstruction + 0.5 * terms.kl)


@settings(max_examples=20)
@given(seeds, gammas)
def test_uint8_targets_give_the_same_loss_as_int64_targets(seed: int, gamma: float) -> None:
    logits, target, weight = draw(seed, 2.0)
    target, posterior = cut(target, seed), posteriors(logits, seed)
    loss = BetaVAELoss(gamma=gamma, weight=weight, beta=0.5)
    for of in (loss, loss.with_gradient):
        found, expected = of(logits, *posterior, target.byte()), of(logits, *posterior, target)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


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
def test_focal_loss_of_bfloat16_logits_is_computed_in_float32(seed: int, gamma: float) -> None:
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
        ({"gamma": -1.0}, "gamma is -1.0; expected a finite number of at least 0"),
        ({"gamma": math.nan}, "gamma is nan; expected a finite number"),
        ({"gamma": math.inf}, "gamma is inf; expected a finite number"),
        ({"gamma": -math.inf}, "gamma is -inf; expected a finite number"),
        ({"logits": torch.zeros(2, 1, 3, 3)}, "C from 2 to 255"),
        ({"logits": torch.zeros(2, 256, 3, 3)}, "C from 2 to 255"),
        ({"logits": torch.zeros(4, 3, 3)}, r"expected \[B, C, H, W\]"),
        ({"logits": torch.zeros(2, 4, 3, 3).long()}, "logits are torch.int64.*expected a floating type"),
        ({"logits": np.zeros((2, 4, 3, 3))}, "logits is a ndarray; expected a tensor"),
        ({"target": torch.full((2, 4, 3, 3), 0.25)}, "probabilities are not supported"),
        ({"target": torch.zeros(2, 3, 3)}, "target torch.float32.*expected .*class indices"),
        ({"target": np.zeros((2, 3, 3), int)}, "target is a ndarray; expected a tensor"),
        ({"target": torch.full((2, 3, 3), 4)}, "target holds 4; expected classes from 0 to 3, or 255"),
        ({"target": torch.full((2, 3, 3), -100)}, "target holds -100; expected classes from 0 to 3, or 255"),
        ({"target": torch.full((2, 3, 3), 254).byte()}, "target holds 254; expected classes from 0 to 3"),
        ({"weight": [1.0, 2.0, 3.0, 4.0]}, "weight is a list; expected a tensor"),
        ({"weight": torch.ones(1, 4)}, r"weight is \[1, 4\]; expected one for each class: \[4\]"),
        ({"weight": torch.tensor(1.0)}, r"weight is \[\]; expected one for each class: \[4\]"),
        ({"logits": torch.zeros(2, 4, 3, 2)}, r"expected \[B, C, H, W\]"),
        ({"weight": torch.ones(3)}, r"weight is \[3\]; expected one for each class: \[4\]"),
        ({"reduction": "sum"}, "reduction is 'sum'; expected 'mean' or 'none'"),
    ],
)
def test_invalid_arguments_of_the_focal_loss_are_refused(changes: dict, complaint: str) -> None:
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


@given(seeds, scales, gammas, st.floats(0.0, 10.0), st.booleans(), st.booleans())
def test_the_handwritten_gradient_equals_the_gradient_of_autograd(
    seed: int, scale: float, gamma: float, beta: float, weighted: bool, outside: bool
) -> None:
    logits, target, weight = draw(seed, scale, dtype=torch.float64)
    target = cut(target, seed) if outside else target
    inputs = [tensor.requires_grad_() for tensor in (logits, *posteriors(logits, seed))]
    loss = BetaVAELoss(gamma=gamma, weight=weight if weighted else None, beta=beta)
    each, cells = loss(*inputs, target), (target != OUTSIDE).sum((1, 2))
    by_cells = cells / cells.sum()
    expected = [
        (each.reconstruction * by_cells).sum() + beta * each.kl.mean(),
        (each.reconstruction * by_cells).sum(),
        each.kl.mean(),
        (each.accuracy * by_cells).sum(),
    ]
    terms, gradient = loss.with_gradient(*inputs, target)
    torch.testing.assert_close([*terms], expected, check_dtype=False)
    torch.testing.assert_close([*gradient], [*torch.autograd.grad(expected[0], inputs)])
    assert not any(term.requires_grad for term in terms)


@given(seeds, gammas, st.floats(0.0, 10.0), st.floats(0.0, 1.0), st.floats(0.0, 2.0), st.booleans())
def test_gradients_use_the_beta_of_the_step_and_terms_the_full_beta(
    seed: int, gamma: float, beta: float, share: float, free_bits: float, outside: bool
) -> None:
    logits, target, weight = draw(seed, 1.0, dtype=torch.float64)
    target = cut(target, seed) if outside else target
    logits, mean, log_variance = (x.requires_grad_() for x in (logits, *posteriors(logits, seed)))
    loss = BetaVAELoss(gamma=gamma, weight=weight, beta=beta, free_bits=free_bits)
    terms, gradient = loss.with_gradient(logits, mean, log_variance, target, beta=share * beta)
    per_dim = reference_kl(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean(0)
    reconstruction = focal_loss(logits, target, gamma=gamma, weight=weight)
    minimized = reconstruction + share * beta * per_dim.clamp(min=free_bits).sum()
    expected = torch.autograd.grad(minimized, (logits, mean, log_variance))
    torch.testing.assert_close([*gradient], [*expected])
    torch.testing.assert_close(terms.total, (reconstruction + beta * per_dim.sum()).detach())
    torch.testing.assert_close(terms.kl, per_dim.sum().detach())


@pytest.mark.parametrize("shapes", [((2, 3), (1, 3)), ((1, 3), (1, 3)), ((2,), (2,))])
def test_a_posterior_of_another_shape_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    loss = BetaVAELoss(gamma=1.0, weight=None, beta=1.0)
    with pytest.raises(ValueError, match=r"expected \[2, Z\] for both"):
        loss.with_gradient(torch.zeros(2, 4, 3, 3), *map(torch.zeros, shapes), torch.zeros(2, 3, 3).byte())


def test_the_gradient_of_bfloat16_values_is_computed_in_float32() -> None:
    logits, target, weight = draw(7, 5.0)
    narrow = [
        tensor.bfloat16() for tensor in (logits, torch.randn(len(logits), 2), torch.randn(len(logits), 2))
    ]
    loss = BetaVAELoss(gamma=2.0, weight=weight, beta=0.1)
    found, expected = (
        loss.with_gradient(*inputs, target) for inputs in (narrow, [tensor.float() for tensor in narrow])
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@given(seeds, scales, st.sampled_from([torch.contiguous_format, torch.channels_last]), st.booleans())
def test_a_cell_is_right_if_the_logit_of_its_class_is_strictly_largest(
    seed: int, scale: float, layout: torch.memory_format, outside: bool
) -> None:
    logits, target, weight = draw(seed, scale)
    target = cut(target, seed) if outside else target
    logits = logits.mul(8).round().contiguous(memory_format=layout)  # some logits are equal
    latent = torch.zeros(len(logits), 2)
    found = BetaVAELoss(gamma=2.0, weight=weight, beta=0.0)(logits, latent, latent, target).accuracy
    alone = (logits == logits.amax(1, keepdim=True)).sum(1) == 1
    right, cells = alone & (logits.argmax(1) == target), target != OUTSIDE
    expected = right.double().sum((1, 2)) / cells.sum((1, 2))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_a_weight_that_requires_a_gradient_is_refused() -> None:
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"pass weight\.detach\(\)"):
        focal_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).byte(), gamma=1.0, weight=weight)
