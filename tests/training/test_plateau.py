"""Training that ends when the validation loss no longer falls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from evidence_factory import evaluation, history
from hypothesis import given
from hypothesis import strategies as st

from bvae.config import ConfigError, TrainingConfig
from bvae.judging.explanation import describe_end, how_it_ended
from bvae.records import EpochRecord
from bvae.training.optimization import learning_rate
from bvae.verdict import on_plateau

pytestmark = pytest.mark.unit

patiences = st.integers(1, 6)
validation_losses = st.lists(st.integers(0, 8).map(float), max_size=30)  # integers give equal losses


def epochs(losses: Sequence[float], beta: float = TrainingConfig.beta) -> list[EpochRecord]:
    return [
        dataclasses.replace(record, validation=evaluation(loss=loss), beta=beta)
        for record, loss in zip(history(*losses), losses, strict=True)
    ]


def until(patience: int, limit: int = 50) -> TrainingConfig:
    return TrainingConfig(epochs=limit, until_plateau=patience)


@given(validation_losses, patiences)
def test_a_plateau_is_counted_from_the_first_epoch_with_the_lowest_loss(
    losses: list[float], patience: int
) -> None:
    since = len(losses) - 1 - losses.index(min(losses)) if losses else 0
    assert on_plateau(epochs(losses), until(patience)) == (since >= patience)


@given(validation_losses, st.floats(0.1, 10.0), patiences)
def test_scaling_the_losses_does_not_change_a_plateau(
    losses: list[float], scale: float, patience: int
) -> None:
    assert on_plateau(epochs(losses), until(patience)) == on_plateau(
        epochs([scale * loss for loss in losses]), until(patience)
    )


@given(validation_losses)
def test_without_the_option_no_history_is_a_plateau(losses: list[float]) -> None:
    assert not on_plateau(epochs(losses), until(0))
    assert describe_end(epochs(losses), until(0)) == how_it_ended(epochs(losses), until(0)) == ""


@given(validation_losses, validation_losses, patiences)
def test_epochs_in_which_beta_still_rises_do_not_count(
    rising: list[float], full: list[float], patience: int
) -> None:
    records = [*epochs(rising, beta=0.001), *epochs(full)]
    assert on_plateau(records, until(patience)) == on_plateau(epochs(full), until(patience))


@given(st.integers(0, 10_000), st.integers(0, 200), st.floats(1e-5, 1.0))
def test_without_a_known_end_the_rate_rises_to_the_peak_and_stays(
    step: int, warmup: int, peak: float
) -> None:
    rate = learning_rate(step, total=None, warmup=warmup, peak=peak)
    assert rate == (peak * (step + 1) / warmup if step < warmup else peak)


@given(st.integers(0, 400), st.integers(0, 200))
def test_until_the_warmup_ends_the_rate_does_not_depend_on_a_known_end(step: int, warmup: int) -> None:
    rates = [learning_rate(step, total=total, warmup=warmup, peak=1.0) for total in (None, 1600)]
    assert (rates[0] == rates[1]) == (step <= warmup)


def test_the_patience_must_be_less_than_the_limit() -> None:
    assert until(4, limit=5).until_plateau == 4
    for patience in (5, 6):
        with pytest.raises(ConfigError, match=rf"until_plateau is {patience}; expected 0, or less than"):
            until(patience, limit=5)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (
            [3.0, 2.0, 2.0, 4.0],
            "ended after epoch 4, on a plateau: in 2 epochs the validation loss reached no new low",
        ),
        ([3.0, 2.0, 2.0, 4.0], "The lowest validation loss is 2 in epoch 2."),
        ([5.0, 4.0, 3.0, 2.0, 1.0], "ended after epoch 5, the limit"),
        ([5.0, 4.0], "stopped after epoch 2, before a plateau or the limit of 5 epochs"),
    ],
)
def test_a_sentence_says_why_a_run_ended(losses: list[float], words: str) -> None:
    assert words in describe_end(epochs(losses), until(2, limit=5))
