"""β over the steps of a run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvae.config import ConfigError, TrainingConfig
from bvae.training.optimization import beta_share

pytestmark = pytest.mark.unit

lengths = st.integers(1, 100_000)


@given(lengths, st.data())
def test_a_constant_beta_is_always_the_full_beta(total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert beta_share(step, total=total, warmup=1.0, schedule="constant") == 1.0


@given(lengths, st.floats(0.01, 1e5), st.data())
def test_a_linear_beta_rises_from_0_in_equal_steps_and_then_stays(
    total: int, warmup: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total - 1))
    found, after = (beta_share(s, total=total, warmup=warmup, schedule="linear") for s in (step, step + 1))
    assert beta_share(0, total=total, warmup=warmup, schedule="linear") == 0.0
    if step >= warmup:
        assert found == 1.0
    else:
        assert after == 1.0 or math.isclose(after - found, 1 / warmup, abs_tol=1e-9)


@given(st.integers(1, 25_000), st.data())
def test_a_cyclical_beta_follows_fu_et_al(quarter: int, data: st.DataObject) -> None:
    total, cycles, rise = 4 * quarter, 4, 0.5
    step = data.draw(st.integers(1, total))
    position = (step - 1) % math.ceil(total / cycles) / (total / cycles)
    expected = position / rise if position <= rise else 1.0
    assert beta_share(step - 1, total=total, warmup=1.0, schedule="cyclical") == pytest.approx(expected)


@given(st.integers(8, 100_000))
def test_a_cyclical_beta_starts_at_0_and_ends_at_the_full_beta(total: int) -> None:
    shares = [beta_share(s, total=total, warmup=1.0, schedule="cyclical") for s in (0, total - 1)]
    assert shares == [0.0, 1.0]


def test_a_warm_up_must_end_within_the_training() -> None:
    assert TrainingConfig(epochs=3, beta_schedule="linear", beta_warmup=3).beta_warmup == 3
    assert TrainingConfig(epochs=3, beta_warmup=4).beta_schedule == "constant"
    with pytest.raises(ConfigError, match=r"beta_warmup is 3.5; expected at most 3, the epochs of a run"):
        TrainingConfig(epochs=3, beta_schedule="linear", beta_warmup=3.5)
