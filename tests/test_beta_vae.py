from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvae.beta_vae import BetaVAE, class_weights

pytestmark = pytest.mark.unit

methods = st.sampled_from(["none", "inverse", "sqrt_inverse"])
positive_counts = st.lists(st.integers(1, 10**9), min_size=2, max_size=12)
counts = st.lists(st.integers(0, 10**9), min_size=1, max_size=12).filter(any)
close = {"rtol": 1e-6, "atol": 0.0}


def test_123_to_1_stays_123_to_1_or_becomes_11_to_1() -> None:
    inverse, root = (class_weights([123, 1], method) for method in ("inverse", "sqrt_inverse"))
    assert (inverse[1] / inverse[0]).item() == pytest.approx(123.0, rel=1e-6)
    assert (root[1] / root[0]).item() == pytest.approx(math.sqrt(123.0), rel=1e-6)
    assert (root[1] / root[0]).item() == pytest.approx(11.09, abs=0.005)


@given(positive_counts)
def test_the_ratio_of_sqrt_inverse_is_the_root_of_that_of_inverse(n: list[int]) -> None:
    inverse, root = (class_weights(n, method).double() for method in ("inverse", "sqrt_inverse"))
    torch.testing.assert_close(root / root[0], (inverse / inverse[0]).sqrt(), **close)


@given(counts, methods)
def test_the_frequency_weighted_mean_is_one(n: list[int], method: str) -> None:
    frequency = np.array(n, float) / sum(n)
    assert float(frequency @ class_weights(n, method).double().numpy()) == pytest.approx(1.0, rel=1e-6)


@given(counts, methods)
def test_a_rarer_class_never_weighs_less(n: list[int], method: str) -> None:
    weight = class_weights(n, method)
    by_count = [w for _, w in sorted(zip(n, weight.tolist(), strict=True), key=lambda pair: -pair[0])]
    assert by_count == sorted(by_count)


@given(counts, methods, st.floats(1e-6, 1e6))
def test_scaling_all_counts_changes_nothing(n: list[int], method: str, scale: float) -> None:
    scaled = [scale * count for count in n]
    torch.testing.assert_close(class_weights(scaled, method), class_weights(n, method), **close)


@given(counts, methods, st.randoms(use_true_random=False))
def test_permuting_classes_permutes_weights(n: list[int], method: str, random: object) -> None:
    order = list(range(len(n)))
    random.shuffle(order)  # type: ignore[attr-defined]
    permuted = class_weights([n[i] for i in order], method)
    torch.testing.assert_close(permuted, class_weights(n, method)[order], **close)


@given(counts, methods)
def test_an_absent_class_weighs_as_much_as_the_rarest_present_one(n: list[int], method: str) -> None:
    weight = class_weights([*n, 0], method)
    rarest = min((count for count in n if count), default=0)
    assert weight[-1] == weight[n.index(rarest)]
    torch.testing.assert_close(weight[:-1], class_weights(n, method), **close)


@given(counts)
def test_without_a_method_every_class_weighs_one(n: list[int]) -> None:
    assert class_weights(n, "none").tolist() == [1.0] * len(n)


@given(counts, methods)
def test_lists_arrays_and_tensors_of_counts_weigh_the_same(n: list[int], method: str) -> None:
    assert torch.equal(class_weights(np.array(n), method), class_weights(torch.tensor(n), method))


@pytest.mark.parametrize(
    "bad", [[-1, 2], [0, 0], [], [math.nan, 1], [math.inf, 1], [[1, 2], [3, 4]], 5], ids=str
)
def test_counts_that_cannot_be_weighed_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="expected one finite number >= 0 for each class, at least one > 0"):
        class_weights(bad, "inverse")  # type: ignore[arg-type]


def test_an_unknown_method_is_refused_with_those_allowed() -> None:
    with pytest.raises(ValueError, match="'cubic'; expected one of none, sqrt_inverse, inverse"):
        class_weights([1, 2], "cubic")


@given(st.sampled_from([4, 8, 16, 20]), st.integers(1, 20), st.integers(1, 3))
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


@pytest.mark.parametrize("size", [0, 2, 15, 18])
def test_a_grid_size_that_the_strides_do_not_divide_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"grid_size is {size}; expected a multiple of 4"):
        BetaVAE(grid_size=size)
