from __future__ import annotations

import pytest
from evidence_factory import evaluation, history, reconstruction
from hypothesis import given
from hypothesis import strategies as st

from bvae.config import AccuracyBand
from bvae.records import Divergence
from bvae.verdict import SEVERITY, Verdict, judge_option, judge_run

pytestmark = pytest.mark.unit

BAND = AccuracyBand(0.70, 0.80)
fractions = st.floats(0.0, 1.0)
falling = (3.0, 2.0, 1.5)


def judged(*losses: float, **changes: object) -> str:
    return judge_run(history(*losses or falling, last=evaluation(**changes)), None, BAND).name


def test_a_stable_run_that_learned_and_is_in_the_band_is_healthy() -> None:
    assert judged() == "healthy"


def test_a_collapsed_model_is_not_saved_by_an_accuracy_in_the_band() -> None:
    changes = {"pixel_accuracy": 0.75, "background_rate": 0.75, "foreground_rate": 0.25}
    assert judged(**changes, predicted_foreground_rate=0.0) == "mode_collapse"


def test_a_decoder_that_does_not_look_is_not_saved_by_an_accuracy_in_the_band() -> None:
    prior = reconstruction(foreground_recall=0.35, pixel_accuracy=0.76)
    assert judged(shuffled=prior, foreground_recall=0.40) == "posterior_collapse"


def test_a_loss_that_rebounds_is_unstable_however_good_the_model() -> None:
    assert judged(3.0, 2.0, 2.11, 1.5) == "unstable"
    assert judged(3.0, 2.0, 2.09, 1.5) == "healthy"


def test_a_loss_that_does_not_fall_is_unstable() -> None:
    assert judged(1.0, 1.0) == "unstable"
    assert judged(1.0) == "healthy"  # one epoch cannot say


def test_divergence_comes_before_everything() -> None:
    where = Divergence(epoch=2, step=17, batch=(1, 2), terms={"loss": "nan", "gradient_norm": "inf"})
    for epochs in (history(), history(*falling)):
        verdict = judge_run(epochs, where, BAND)
        assert verdict.name == "diverged"
        assert "step 17 (epoch 2): loss nan, gradient_norm inf" in verdict.reason


def test_without_an_epoch_there_is_nothing_to_judge() -> None:
    with pytest.raises(ValueError, match="history is empty"):
        judge_run([], None, BAND)


@given(fractions)
def test_the_band_decides_over_a_stable_model_that_learned(accuracy: float) -> None:
    expected = "below_band" if accuracy < 0.7 else "above_band" if accuracy > 0.8 else "healthy"
    assert judged(pixel_accuracy=accuracy) == expected


@given(fractions, fractions, fractions, fractions, fractions)
def test_healthy_means_painted_and_looked_and_in_the_band(
    accuracy: float, painted: float, true: float, recall: float, shuffled: float
) -> None:
    verdict = judged(
        pixel_accuracy=accuracy,
        predicted_foreground_rate=painted,
        foreground_rate=true,
        foreground_recall=recall,
        shuffled=reconstruction(foreground_recall=shuffled),
    )
    learned = painted >= 0.25 * true and recall - shuffled >= 0.10
    assert (verdict == "healthy") == (learned and accuracy in BAND)


names = st.sampled_from(["incomplete", "diverged", "unstable", "mode_collapse", "posterior_collapse"])
judged_runs = st.lists(
    st.tuples(names | st.sampled_from(["below_band", "above_band", "healthy"]), fractions),
    min_size=1,
    max_size=5,
)


@given(judged_runs)
def test_one_failed_seed_fails_the_option_and_the_worst_names_it(runs: list[tuple[str, float]]) -> None:
    verdicts = [Verdict(name, "a reason") for name, _ in runs]  # type: ignore[arg-type]
    option = judge_option(verdicts, [accuracy for _, accuracy in runs], BAND)
    failures = [name for name, _ in runs if SEVERITY[name] <= SEVERITY["posterior_collapse"]]
    if failures:
        assert option.name == min(failures, key=SEVERITY.__getitem__)
    else:
        mean = sum(accuracy for _, accuracy in runs) / len(runs)
        near_an_edge = min(abs(mean - 0.7), abs(mean - 0.8)) < 1e-9
        expected = "below_band" if mean < 0.7 else "above_band" if mean > 0.8 else "healthy"
        assert near_an_edge or option.name == expected


def test_the_band_is_judged_on_the_mean_over_seeds_and_not_on_each() -> None:
    runs = [Verdict("below_band", ""), Verdict("above_band", ""), Verdict("healthy", "")]
    assert judge_option(runs, [0.69, 0.81, 0.75], BAND).healthy


def test_an_option_without_a_run_is_incomplete() -> None:
    assert judge_option([], [], BAND).name == "incomplete"
