from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from evidence_factory import BLIND, evaluation, history
from hypothesis import given
from hypothesis import strategies as st

from bvae.config import AccuracyBand
from bvae.records import Divergence
from bvae.verdict import MEANINGS, RULES, SEVERITY, Verdict, broken_rule, judge_option, judge_run

pytestmark = pytest.mark.unit

BAND = AccuracyBand(0.70, 0.80)
FAILURES = (
    *("incomplete", "diverged", "unstable"),
    *("mode_collapse", "posterior_collapse", "flooding", "partial_collapse"),
)
"""Verdicts on runs that failed, worst first."""
fractions = st.floats(0.0, 1.0)
falling = (3.0, 2.0, 1.5)


def judged(*losses: float, **changes: Any) -> str:
    return judge_run(history(*losses or falling, last=evaluation(**changes)), None, BAND).name


def test_verdicts_are_ordered_worst_first_and_explained() -> None:
    assert list(SEVERITY) == [*FAILURES, "below_band", "above_band", "healthy"]
    assert list(MEANINGS) == list(SEVERITY)
    assert [name for name in SEVERITY if not Verdict(name, "").learned] == list(FAILURES)


def test_a_stable_run_that_learned_and_is_in_the_band_is_healthy() -> None:
    assert judged() == "healthy"


def test_a_mode_collapse_fails_despite_an_accuracy_in_the_band() -> None:
    changes = {"pixel_accuracy": 0.75, "background_rate": 0.75, "foreground_rate": 0.25}
    assert judged(**changes, predicted_foreground_rate=0.0) == "mode_collapse"


def test_ignoring_the_latent_fails_despite_an_accuracy_in_the_band() -> None:
    prior = {"foreground_recall": 0.35, "foreground_iou": 0.45, "pixel_accuracy": 0.76}
    assert judged(shuffled=prior, foreground_recall=0.40, foreground_iou=0.5) == "posterior_collapse"


def test_predicting_the_extent_in_one_class_is_a_partial_collapse() -> None:
    """Such a model predicts only the extent and main colour of a grid. Version 0.5.0 called it healthy."""
    changes = {"object_iou": 0.11, "object_recall": 0.45, "minor_object_recall": 0.0, "classes_learned": 6}
    assert judged(**changes, extent={"object_iou": 0.11}) == "partial_collapse"


def test_a_loss_that_rebounds_is_unstable_even_if_the_model_is_good() -> None:
    assert judged(3.0, 2.0, 2.11, 1.5) == "unstable"
    assert judged(3.0, 2.0, 2.09, 1.5) == "healthy"


def test_a_loss_that_does_not_fall_is_unstable() -> None:
    assert judged(1.0, 1.0) == "unstable"
    assert judged(1.0) == "healthy"  # one epoch is not enough to tell


def test_divergence_decides_before_all_rules() -> None:
    where = Divergence(epoch=2, step=17, batch=(1, 2), terms={"loss": "nan", "gradient_norm": "inf"})
    for epochs in (history(), history(*falling)):
        verdict = judge_run(epochs, where, BAND)
        assert verdict.name == "diverged"
        assert "step 17 (epoch 2): loss nan, gradient_norm inf" in verdict.reason


def test_without_an_epoch_there_is_nothing_to_judge() -> None:
    with pytest.raises(ValueError, match="history is empty"):
        judge_run([], None, BAND)


@pytest.mark.parametrize(
    "changes", [{"predicted_foreground_rate": None}, {"foreground_rate": None}, {"foreground_rate": 0.0}]
)
def test_without_foreground_there_is_nothing_to_judge(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="foreground metrics are undefined"):
        judged(**changes)


# ---- each rule by itself


class Bound(NamedTuple):
    """A rule of the documentation.

    Attributes:
        bound: the smallest allowed value, or the largest if `is_limit`.
        at: returns metrics for which the rule measures a given value, if the controls are `NOTHING`.
        fields: metrics that make the value undefined if they are None, or 0 for `classes_present`.
        most: the largest value that breaks no other rule.
    """

    verdict: str
    bound: float
    at: Callable[[float], dict[str, Any]]
    fields: tuple[str, ...]
    most: float = 1.0
    is_limit: bool = False

    def is_broken(self, value: float) -> bool:
        return value > self.bound if self.is_limit else value < self.bound


def foreground_ratio(value: float) -> dict[str, Any]:
    return {"foreground_rate": 2**-4, "predicted_foreground_rate": value * 2**-4}


def recall_gain(value: float) -> dict[str, Any]:
    return {"foreground_recall": value, "foreground_iou": 0.0}


def iou_gain(value: float) -> dict[str, Any]:
    return {"foreground_recall": 0.0, "foreground_iou": value}


def only(field: str) -> Callable[[float], dict[str, Any]]:
    return lambda value: {field: value}


GAINS = ("foreground_recall", "foreground_iou")
RATIO = ("predicted_foreground_rate",)
BOUNDS = (
    Bound("mode_collapse", 0.25, foreground_ratio, RATIO, most=4.0),
    Bound("posterior_collapse", 0.10, recall_gain, GAINS),
    Bound("flooding", 4.0, foreground_ratio, RATIO, most=16.0, is_limit=True),
    Bound("flooding", 0.60, only("flooded_rate"), ("flooded_rate",), is_limit=True),
    Bound(
        "partial_collapse",
        0.5,
        lambda value: {"classes_present": 8, "classes_learned": round(8 * value)},
        ("classes_present",),
    ),
    Bound("partial_collapse", 0.05, only("object_iou"), ("object_iou",)),
    Bound("partial_collapse", 0.40, only("object_recall"), ("object_recall",)),
    Bound("partial_collapse", 0.15, only("minor_object_recall"), ("minor_object_recall",)),
)
FRACTIONS = {name for bound in BOUNDS for name in bound.fields if isinstance(BLIND.get(name), float)}
NOTHING: dict[str, Any] = dict.fromkeys(("shuffled", "extent"), dict.fromkeys(FRACTIONS, 0.0))
"""Controls that score 0. A gain over them equals the metric exactly."""

of_each_bound = pytest.mark.parametrize(
    "place", range(len(BOUNDS)), ids=[f"{bound.verdict}-{bound.fields[0]}" for bound in BOUNDS]
)


def values(bound: Bound) -> st.SearchStrategy[float]:
    """Draw values that break no other rule. They include the floats next to the bound."""
    if "classes_present" in bound.fields:
        return st.integers(0, 8).map(lambda learned: learned / 8)
    least = 0.25 if bound.verdict == "flooding" else 0.0
    near = [bound.bound, *(math.nextafter(bound.bound, side) for side in (-math.inf, math.inf))]
    return st.sampled_from(near) | st.floats(least, bound.most)


def test_the_rules_are_the_documented_rules() -> None:
    assert [(rule.verdict, rule.bound, rule.is_limit) for rule in RULES] == [
        (bound.verdict, bound.bound, bound.is_limit) for bound in BOUNDS
    ]


@of_each_bound
@given(data=st.data())
def test_a_number_outside_its_bound_breaks_only_its_own_rule(place: int, data: st.DataObject) -> None:
    bound, rule = BOUNDS[place], RULES[place]
    value = data.draw(values(bound))
    found = evaluation(**NOTHING | bound.at(value))
    assert rule.measure(found) == pytest.approx(value, abs=1e-300)
    assert rule.is_broken(found) == bound.is_broken(value)
    verdict = judge_run(history(*falling, last=found), None, BAND)
    assert verdict.name == (bound.verdict if bound.is_broken(value) else "healthy")


@of_each_bound
@given(data=st.data())
def test_a_reason_names_the_number_that_decided_and_its_bound(place: int, data: st.DataObject) -> None:
    bound, rule = BOUNDS[place], RULES[place]
    value = data.draw(values(bound).filter(bound.is_broken))
    reason = judge_run(history(*falling, last=evaluation(**NOTHING | bound.at(value))), None, BAND).reason
    requirement = f"{'at most' if bound.is_limit else 'at least'} {bound.bound:g}"
    assert reason.endswith(f" ({rule.quantity} {value:.3f}, expected {requirement})")
    assert "nan" not in reason


@given(st.sets(st.integers(0, len(BOUNDS) - 1)).filter(lambda places: not places >= {0, 2}))
def test_the_first_broken_rule_gives_the_verdict(places: set[int]) -> None:
    changes: dict[str, Any] = {}
    for place in places:
        changes |= BOUNDS[place].at(BOUNDS[place].most if BOUNDS[place].is_limit else 0.0)
    expected = BOUNDS[min(places)].verdict if places else "healthy"
    assert judged(**NOTHING | changes) == expected
    assert broken_rule(evaluation(**NOTHING | changes)) is (RULES[min(places)] if places else None)


@of_each_bound
def test_a_number_that_is_undefined_breaks_no_rule(place: int) -> None:
    rule, fields = RULES[place], BOUNDS[place].fields
    nothing = 0 if "classes_present" in fields else None
    found = evaluation(**dict.fromkeys(fields, nothing))
    assert rule.measure(found) is None
    assert not rule.is_broken(found)
    if fields != RATIO:
        assert judged(**dict.fromkeys(fields, nothing)) == "healthy"


@of_each_bound
def test_without_its_controls_a_gain_is_undefined(place: int) -> None:
    blind = dict.fromkeys(name for name in BOUNDS[place].fields if name in BLIND)
    found = evaluation(shuffled=blind, extent=blind)
    assert (RULES[place].measure(found) is None) == ("control" in RULES[place].quantity)


@given(fractions, fractions)
def test_a_posterior_collapse_gains_little_in_recall_and_in_iou(recall: float, iou: float) -> None:
    found = judged(**NOTHING | {"foreground_recall": recall, "foreground_iou": iou})
    assert (found == "posterior_collapse") == (recall < 0.10 and iou < 0.10)


@given(fractions, fractions)
def test_foreground_recall_counts_only_as_a_gain_over_the_shuffled_control(
    recall: float, shuffled: float
) -> None:
    control = {"foreground_recall": shuffled, "foreground_iou": 0.5}
    found = judged(foreground_recall=recall, foreground_iou=0.5, shuffled=control)
    assert (found == "posterior_collapse") == (recall - shuffled < 0.10)


@given(fractions, st.none() | fractions, st.none() | fractions)
def test_object_iou_is_compared_with_the_larger_of_its_controls(
    iou: float, shuffled: float | None, extent: float | None
) -> None:
    found = judged(object_iou=iou, shuffled={"object_iou": shuffled}, extent={"object_iou": extent})
    controls = [control for control in (shuffled, extent) if control is not None]
    assert (found == "partial_collapse") == any(iou - control < 0.05 for control in controls)


@given(fractions, fractions)
def test_minor_objects_are_compared_with_the_shuffled_control(recall: float, shuffled: float) -> None:
    found = judged(minor_object_recall=recall, shuffled={"minor_object_recall": shuffled})
    assert (found == "partial_collapse") == (recall - shuffled < 0.15)


@given(st.integers(1, 9), st.data())
def test_half_of_the_present_classes_must_be_learned(present: int, data: st.DataObject) -> None:
    learned = data.draw(st.integers(0, present))
    found = judged(classes_present=present, classes_learned=learned)
    assert (found == "partial_collapse") == (2 * learned < present)


@given(fractions)
def test_the_band_decides_the_verdict_on_a_stable_model_that_learned(accuracy: float) -> None:
    expected = "below_band" if accuracy < 0.7 else "above_band" if accuracy > 0.8 else "healthy"
    assert judged(pixel_accuracy=accuracy) == expected


MEASURED = ("foreground_rate", "predicted_foreground_rate", "flooded_rate", "pixel_accuracy", *GAINS)
OF_OBJECTS = ("object_recall", "minor_object_recall", "object_iou")


@given(
    st.fixed_dictionaries(dict.fromkeys((*MEASURED, *OF_OBJECTS), st.floats(0.01, 1.0))),
    st.fixed_dictionaries(dict.fromkeys((*GAINS, "minor_object_recall", "object_iou"), st.floats(0.0, 0.3))),
)
def test_a_run_is_healthy_if_it_breaks_no_rule_and_is_in_the_band(
    e: dict[str, float], shuffled: dict[str, float]
) -> None:
    ratio = e["predicted_foreground_rate"] / e["foreground_rate"]
    learned = (
        0.25 <= ratio <= 4
        and any(e[name] - shuffled[name] >= 0.10 for name in GAINS)
        and e["flooded_rate"] <= 0.60
        and e["object_recall"] >= 0.40
        and e["minor_object_recall"] - shuffled["minor_object_recall"] >= 0.15
        and e["object_iou"] - max(shuffled["object_iou"], 0.1) >= 0.05
    )
    verdict = judged(**e, shuffled=shuffled, extent={"object_iou": 0.1})
    assert (verdict == "healthy") == (learned and e["pixel_accuracy"] in BAND)
    assert (verdict not in FAILURES) == learned


# ---- perhaps too little training

TOO_SHORT = "; perhaps too little training is the cause, not the loss: "


def reason_after(steps: int, before: float | None, recall: float | None, **changes: Any) -> str:
    """Return the reason of the verdict after two epochs with these foreground recalls and `steps` steps."""
    records = history(
        2.0,
        1.0,
        before=evaluation(foreground_recall=before),
        last=evaluation(foreground_recall=recall, **changes),
        steps=steps // 2,
    )
    return judge_run(records, None, BAND).reason


@given(st.integers(1, 500).map(lambda half: 2 * half), st.none() | st.floats(0.0, 0.1))
def test_few_steps_or_a_rising_recall_suggest_too_little_training(steps: int, rise: float | None) -> None:
    reason = reason_after(steps, 0.0, rise, predicted_foreground_rate=0.0)
    is_short, still_rises = steps < 500, rise is not None and rise > 0.02
    assert (TOO_SHORT in reason) == (is_short or still_rises)
    assert (f"the run had {steps} steps" in reason) == is_short
    assert ("foreground recall still rose by" in reason) == still_rises


@pytest.mark.parametrize(
    ("steps", "rise", "remarked"), [(498, 0.0, True), (500, 0.02, False), (500, 0.021, True)]
)
def test_the_bounds_of_too_little_training(steps: int, rise: float, remarked: bool) -> None:
    assert (TOO_SHORT in reason_after(steps, 0.0, rise, object_recall=0.0)) == remarked


def test_a_falling_recall_is_not_a_sign_of_too_little_training() -> None:
    assert TOO_SHORT not in reason_after(500, 0.6, 0.4, object_recall=0.0)


@pytest.mark.parametrize("changes", [{"flooded_rate": 0.7}, {"predicted_foreground_rate": 0.9}, {}])
def test_flooding_and_learned_models_get_no_remark_on_too_little_training(
    changes: dict[str, Any],
) -> None:
    assert TOO_SHORT not in reason_after(2, 0.0, 0.5, **changes)


# ---- over seeds

judged_runs = st.lists(st.tuples(st.sampled_from(list(SEVERITY)), fractions), min_size=1, max_size=5)


@given(judged_runs)
def test_the_worst_failed_seed_gives_the_verdict_on_an_option(
    runs: list[tuple[str, float]],
) -> None:
    verdicts = [Verdict(name, f"reason {seed}") for seed, (name, _) in enumerate(runs)]  # type: ignore[arg-type]
    option = judge_option(verdicts, [accuracy for _, accuracy in runs], BAND)
    failures = [name for name, _ in runs if name in FAILURES]
    if failures:
        worst = min(failures, key=FAILURES.index)
        first = next(verdict for verdict in verdicts if verdict.name == worst)
        assert option.name == worst
        count = failures.count(worst)
        assert option.reason == f"in {count} of {len(runs)} runs; first reason: {first.reason}"
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
