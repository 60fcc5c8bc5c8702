from __future__ import annotations

import math
import re
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bvae.beta_vae import BetaVAE, Downsample, Upsample, class_weights, initialize, one_hot, option_weights
from bvae.config import OUTSIDE, LossOption

pytestmark = pytest.mark.unit

methods = st.sampled_from(["none", "inverse", "sqrt_inverse"])
betas = st.floats(0.0, 1.0, exclude_max=True) | st.integers(0, 53).map(lambda bits: 1 - 2.0**-bits)
relative = methods.map(lambda method: {"method": method}) | st.floats(0, 50).map(
    lambda exponent: {"method": "power", "exponent": exponent}
)
"""Methods whose weights depend only on the ratios of the counts."""
weighings = relative | betas.map(lambda beta: {"method": "effective", "beta": beta})
positive_counts = st.lists(st.integers(1, 10**9), min_size=2, max_size=12)
counts = st.lists(st.integers(0, 10**9), min_size=1, max_size=12).filter(any)
close = {"rtol": 1e-6, "atol": 0.0}


def test_counts_of_123_to_1_give_weights_of_123_to_1_or_11_to_1() -> None:
    inverse, root = (class_weights([123, 1], method) for method in ("inverse", "sqrt_inverse"))
    assert (inverse[1] / inverse[0]).item() == pytest.approx(123.0, rel=1e-6)
    assert (root[1] / root[0]).item() == pytest.approx(math.sqrt(123.0), rel=1e-6)
    assert (root[1] / root[0]).item() == pytest.approx(11.09, abs=0.005)


@given(positive_counts)
def test_ratios_of_sqrt_inverse_are_square_roots_of_ratios_of_inverse(n: list[int]) -> None:
    inverse, root = (class_weights(n, method).double() for method in ("inverse", "sqrt_inverse"))
    torch.testing.assert_close(root / root[0], (inverse / inverse[0]).sqrt(), **close)


@given(counts, weighings)
def test_the_frequency_weighted_mean_is_one(n: list[int], how: dict[str, Any]) -> None:
    frequency = np.array(n, float) / sum(n)
    assert float(frequency @ class_weights(n, **how).double().numpy()) == pytest.approx(1.0, rel=1e-6)


@given(counts, weighings)
def test_a_rarer_class_never_weighs_less(n: list[int], how: dict[str, Any]) -> None:
    weight = class_weights(n, **how)
    by_count = [w for _, w in sorted(zip(n, weight.tolist(), strict=True), key=lambda pair: -pair[0])]
    assert by_count == sorted(by_count)


@given(counts, relative, st.floats(1e-6, 1e6))
def test_scaling_all_counts_changes_nothing(n: list[int], how: dict[str, Any], scale: float) -> None:
    scaled = [scale * count for count in n]
    torch.testing.assert_close(class_weights(scaled, **how), class_weights(n, **how), **close)


@given(counts, weighings, st.randoms(use_true_random=False))
def test_permuting_classes_permutes_weights(n: list[int], how: dict[str, Any], random: object) -> None:
    order = list(range(len(n)))
    random.shuffle(order)  # type: ignore[attr-defined]
    permuted = class_weights([n[i] for i in order], **how)
    torch.testing.assert_close(permuted, class_weights(n, **how)[order], **close)


@given(counts, weighings)
def test_an_absent_class_weighs_as_much_as_the_rarest_present_class(
    n: list[int], how: dict[str, Any]
) -> None:
    weight = class_weights([*n, 0], **how)
    rarest = min((count for count in n if count), default=0)
    assert weight[-1] == weight[n.index(rarest)]
    torch.testing.assert_close(weight[:-1], class_weights(n, **how), **close)


@given(counts)
def test_without_a_method_every_class_weighs_one(n: list[int]) -> None:
    assert class_weights(n, "none").tolist() == [1.0] * len(n)


@given(counts, weighings)
def test_arrays_and_tensors_of_counts_give_the_same_weights(n: list[int], how: dict[str, Any]) -> None:
    assert torch.equal(class_weights(np.array(n), **how), class_weights(torch.tensor(n), **how))


@given(counts, weighings)
def test_weights_are_positive_and_finite(n: list[int], how: dict[str, Any]) -> None:
    weight = class_weights(n, **how)
    assert bool((weight > 0).all() & weight.isfinite().all())


@given(counts)
def test_powers_1_and_one_half_are_inverse_and_sqrt_inverse(n: list[int]) -> None:
    assert torch.equal(class_weights(n, "power", exponent=1.0), class_weights(n, "inverse"))
    assert torch.equal(class_weights(n, "power", exponent=0.5), class_weights(n, "sqrt_inverse"))
    assert torch.equal(class_weights(n, "power", exponent=0.0), class_weights(n, "none"))


@given(counts)
def test_effective_is_none_at_zero_and_inverse_towards_one(n: list[int]) -> None:
    assert torch.equal(class_weights(n, "effective", beta=0.0), class_weights(n, "none"))
    # 1 − βⁿ = n·(1 − β) up to a relative error of n·(1 − β)/2 ≤ 10⁹·2⁻⁵⁴.
    nearly_one = math.nextafter(1.0, 0.0)
    torch.testing.assert_close(
        class_weights(n, "effective", beta=nearly_one), class_weights(n, "inverse"), **close
    )


@given(st.lists(st.integers(1, 4 * 10**9), min_size=2, max_size=4), betas)
def test_effective_has_the_ratios_of_60_digit_arithmetic(n: list[int], beta: float) -> None:
    weight = class_weights(n, "effective", beta=beta).double()
    with localcontext() as context:
        context.prec = 60
        exact = [(1 - Decimal(beta)) / (1 - Decimal(beta) ** count) for count in n]
        ratios = [float(value / exact[0]) for value in exact]
    assert (weight / weight[0]).tolist() == pytest.approx(ratios, rel=1e-6)


@given(positive_counts, st.floats(0.0, 0.999_999), st.integers(1, 1000))
def test_effective_with_more_data_is_effective_with_a_smaller_beta(
    n: list[int], beta: float, scale: int
) -> None:
    more = class_weights([scale * count for count in n], "effective", beta=beta)
    torch.testing.assert_close(more, class_weights(n, "effective", beta=beta**scale), rtol=1e-5, atol=0.0)


@given(positive_counts, betas)
def test_effective_lies_between_none_and_inverse(n: list[int], beta: float) -> None:
    weight = class_weights(n, "effective", beta=beta)
    assert 1 <= (weight.max() / weight.min()).item() <= max(n) / min(n) * (1 + 1e-6)


explicit = st.lists(st.floats(1e-6, 1e6), min_size=10, max_size=10).map(tuple)
ten_counts = st.lists(st.integers(0, 10**9), min_size=10, max_size=10).filter(any)


def option(**changes: Any) -> LossOption:
    return LossOption(name="D", gamma=2.0, candidate=True, **changes)


@given(ten_counts, explicit)
def test_explicit_weights_keep_their_ratios_and_have_a_mean_of_one(
    n: list[int], given_weights: tuple[float, ...]
) -> None:
    weight = option_weights(option(class_weights=given_weights), n).double().numpy()
    assert float(np.array(n) / sum(n) @ weight) == pytest.approx(1.0, rel=1e-6)
    assert weight / weight[0] == pytest.approx(np.array(given_weights) / given_weights[0], rel=1e-6)


@given(ten_counts)
def test_extreme_explicit_weights_stay_positive_and_finite(n: list[int]) -> None:
    weight = option_weights(option(class_weights=(1e-308, 1e308) * 5), n)
    assert bool((weight > 0).all() & weight.isfinite().all())


@given(ten_counts, weighings)
def test_an_option_has_the_weights_of_its_method(n: list[int], how: dict[str, Any]) -> None:
    parameters = {name: value for name, value in how.items() if name != "method"}
    weight = option_weights(option(class_weights=how["method"], **parameters), n)
    assert torch.equal(weight, class_weights(n, **how))


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"method": "power"}, "exponent is missing, but class weights 'power' need it; expected exponent"),
        ({"method": "effective"}, "beta is missing, but class weights 'effective' need it"),
        ({"method": "power", "exponent": -0.1}, "exponent is -0.1; expected exponent with 0 <="),
        ({"method": "power", "exponent": math.inf}, "exponent is inf"),
        ({"method": "effective", "beta": 1.0}, "beta is 1.0; expected beta with 0 <= beta < 1"),
        ({"method": "effective", "beta": math.nan}, "beta is nan"),
        ({"method": "inverse", "beta": 0.5}, "beta is 0.5; expected none, as it belongs to class weights"),
        ({"method": "effective", "beta": 0.5, "exponent": 1}, "exponent is 1; expected none"),
    ],
    ids=str,
)
def test_a_missing_or_unknown_parameter_of_a_method_is_refused(how: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        class_weights([1, 2], **how)


@pytest.mark.parametrize(
    "bad", [[-1, 2], [0, 0], [], [math.nan, 1], [math.inf, 1], [[1, 2], [3, 4]], 5], ids=str
)
def test_invalid_counts_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="expected one finite number >= 0 for each class, at least one > 0"):
        class_weights(bad, "inverse")  # type: ignore[arg-type]


def test_an_unknown_method_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="'cubic'; expected one of none, inverse, sqrt_inverse"):
        class_weights([1, 2], "cubic")


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3))
def test_the_model_reconstructs_grids_of_its_size(size: int, latent_dim: int, batch: int) -> None:
    model = BetaVAE(grid_size=size, latent_dim=latent_dim).eval()
    output = model(torch.randint(0, 10, (batch, size, size)))
    assert output.logits.shape == (batch, 10, size, size)
    assert output.mean.shape == output.log_variance.shape == (batch, latent_dim)


def test_evaluation_decodes_the_posterior_mean_and_training_a_sample() -> None:
    torch.manual_seed(0)
    model, grids = BetaVAE(), torch.randint(0, 10, (2, 16, 16))
    model.eval()
    assert torch.equal(model(grids).logits, model.decode(model.encode(grids)[0]))
    assert torch.equal(model(grids).logits, model(grids).logits)
    model.train()
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(model(grids, generator).logits, model(grids, generator).logits)


@pytest.mark.parametrize("size", [0, -4])
def test_a_grid_size_without_cells_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"grid_size is {size}; expected a whole number of at least 1"):
        BetaVAE(grid_size=size)


@pytest.mark.parametrize("size", range(1, 13))
def test_a_model_crops_the_logits_of_the_next_multiple_of_4(
    size: int,
) -> None:
    torch.manual_seed(0)
    model = BetaVAE(grid_size=size).eval()
    torch.manual_seed(0)
    whole = BetaVAE(grid_size=-(-size // 4) * 4).eval()
    assert len(model.decoder) == len(whole.decoder) + (size % 4 > 0)
    model.load_state_dict(whole.state_dict())  # the parameters have the same names
    latent = torch.randn(2, 32)
    assert torch.equal(model.decode(latent), whole.decode(latent)[:, :, :size, :size])


kinds = st.sampled_from([torch.uint8, torch.int16, torch.int64])


def cut_grids(seed: int, shape: tuple[int, ...], classes: int = 10) -> torch.Tensor:
    """Return random grids with some cells outside."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.randint(0, classes, shape, generator=generator)
    return grids.masked_fill(torch.rand(shape, generator=generator) < 0.3, OUTSIDE)


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, 12), kinds)
def test_one_hot_is_zero_outside_and_the_usual_encoding_inside(
    seed: int, classes: int, kind: torch.dtype
) -> None:
    grids = cut_grids(seed, (2, 3, 4), classes)
    inside = grids != OUTSIDE
    encoded = one_hot(grids.to(kind), classes)
    assert encoded.dtype == torch.float32
    cells = encoded.permute(0, 2, 3, 1)
    assert torch.equal(cells[inside], F.one_hot(grids[inside], classes).float())
    assert not cells[~inside].any()


@given(st.integers(-1000, 1000), st.integers(1, 12))
def test_one_hot_refuses_values_that_are_neither_a_class_nor_outside(value: int, classes: int) -> None:
    grids = torch.tensor([[[0, value], [OUTSIDE, 0]]])
    if 0 <= value < classes or value == OUTSIDE:
        assert one_hot(grids, classes).shape == (1, classes, 2, 2)
        return
    with pytest.raises(IndexError, match=f"other than the classes 0–{classes - 1} and 255"):
        one_hot(grids, classes)


@settings(max_examples=10)
@given(st.integers(0, 99), st.sampled_from([4, 8]), kinds)
def test_the_encoder_sees_zeros_outside(seed: int, size: int, kind: torch.dtype) -> None:
    model, grids = BetaVAE(grid_size=size, latent_dim=3), cut_grids(seed, (3, size, size))
    expected = model.encoder(one_hot(grids)).chunk(2, dim=1)
    for found, other in zip(model.encode(grids.to(kind)), expected, strict=True):
        assert torch.equal(found, other)


def test_the_one_hot_encoding_is_not_stored_with_a_model() -> None:
    assert all(name.startswith(("encoder.", "decoder.")) for name in BetaVAE(grid_size=4).state_dict())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(300, 200), (400, 300)),
        (nn.Conv2d(24, 40, 3, padding=1), (40, 24, 12, 12)),
        (Downsample(24, 40), (40, 24, 16, 16)),
        (Upsample(24, 40), (40, 24, 8, 8)),
    ],
    ids=["linear", "convolution", "halving", "doubling"],
)
def test_activations_keep_their_size_through_a_new_layer_and_relu(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    initialize(nn.Sequential(layer, nn.ReLU(), nn.Linear(1, 1)))
    given = torch.randn(shape)
    found = F.relu(layer(given))
    inner = found[..., 2:-2, 2:-2] if found.ndim == 4 else found  # without edges, which include zero padding
    assert inner.square().mean().item() == pytest.approx(given.square().mean().item(), rel=0.1)
