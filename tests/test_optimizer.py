from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bvae.optimizer import FlatAdam

pytestmark = pytest.mark.unit


def make(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    images = torch.randn(7, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return model(images).square().mean()


@given(st.integers(0, 1000), st.floats(1e-3, 10.0), st.lists(st.floats(0.0, 0.1), min_size=1, max_size=5))
def test_it_moves_parameters_as_adam_does_with_clipped_gradients(
    seed: int, max_norm: float, rates: list[float]
) -> None:
    ours, theirs = make(seed), make(seed)
    flat = FlatAdam(ours, max_norm=max_norm)
    adam = torch.optim.Adam(theirs.parameters())
    for step, rate in enumerate(rates):
        norm = flat.backward(loss_of(ours, step))
        flat.step(rate)
        adam.zero_grad()
        loss_of(theirs, step).backward()
        expected_norm = torch.cat([p.grad.flatten() for p in theirs.parameters()]).norm()
        for parameter in theirs.parameters():
            parameter.grad *= min(1.0, max_norm / expected_norm.item())
        adam.param_groups[0]["lr"] = rate
        adam.step()
        torch.testing.assert_close(norm, expected_norm)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_parameters_without_a_gradient_and_frozen_ones_stay() -> None:
    model = make(0)
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flat = FlatAdam(model, max_norm=1.0)
    flat.backward(model[2](model[1](model[0](torch.ones(1, 3, dtype=torch.float64)))).sum())
    flat.step(0.1)
    after = model.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == ["unused", "0.weight"]


def test_a_new_one_has_counted_no_step_and_moved_nothing() -> None:
    model, untouched = make(0), make(0)
    state = FlatAdam(model, max_norm=1.0).tensors()
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert not any(tensor.any() for tensor in state.values())
    for mine, other in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(mine, other)
