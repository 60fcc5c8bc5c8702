from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bvae.training.optimization import Adam

pytestmark = pytest.mark.unit


def make(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def adam(model: nn.Module, max_norm: float = 1.0) -> Adam:
    return Adam(dict(model.named_parameters()), max_norm=max_norm)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    return model(torch.randn(7, 3, generator=torch.Generator().manual_seed(step))).square().mean()


@given(st.integers(0, 1000), st.floats(1e-3, 10.0), st.lists(st.floats(0.0, 0.1), min_size=1, max_size=5))
def test_updates_equal_the_updates_of_pytorch_bit_for_bit(
    seed: int, max_norm: float, rates: list[float]
) -> None:
    ours, theirs = make(seed), make(seed)
    optimizer = adam(ours, max_norm)
    reference = torch.optim.Adam(theirs.parameters(), fused=True)
    for step, rate in enumerate(rates):
        ours.zero_grad()
        loss_of(ours, step).backward()
        norm = optimizer.clip()
        optimizer.step(rate)
        reference.zero_grad()
        loss_of(theirs, step).backward()
        assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
        reference.param_groups[0]["lr"] = rate
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_parameters_that_are_frozen_or_without_gradient_do_not_change() -> None:
    model = make(0)
    model.unused = nn.Parameter(torch.ones(2))
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adam(model)
    model[2](model[1](model[0](torch.ones(1, 3)))).sum().backward()
    optimizer.clip()
    optimizer.step(0.1)
    after = model.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == ["unused", "0.weight"]


def test_a_parameter_whose_data_are_replaced_is_still_trained() -> None:
    model = make(0)
    optimizer = adam(model)
    model[0].weight.data = model[0].weight.data.clamp(-0.1, 0.1)
    before = model[0].weight.detach().clone()
    loss_of(model, 0).backward()
    optimizer.clip()
    optimizer.step(0.1)
    assert not torch.equal(model[0].weight, before)


def test_a_new_optimizer_has_a_state_of_zeros_for_every_parameter() -> None:
    model = make(0)
    state = adam(model).tensors()
    keys = ("step", "exp_avg", "exp_avg_sq")
    assert list(state) == [f"{name}.{key}" for name, _ in model.named_parameters() for key in keys]
    assert not any(tensor.any() for tensor in state.values())
