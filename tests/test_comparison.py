"""The gate must not be fooled: made-up results, each wrong in one way."""

from __future__ import annotations

import json

import pytest
from evidence_factory import CORPUS, reconstruction, result

from bvae.comparison import Comparison, Outcomes, compare
from bvae.config import AccuracyBand, ExperimentConfig, from_json, to_json
from bvae.summary import explain_gate, to_markdown, to_text_table

pytestmark = pytest.mark.unit


def compared(outcomes: Outcomes) -> Comparison:
    return compare(CORPUS, ExperimentConfig(band=AccuracyBand(0.70, 0.80)), outcomes)


def seeds(option: str, *verdicts: str, **changes: object) -> dict:
    return {option: {seed: result(option, seed, verdict, **changes) for seed, verdict in enumerate(verdicts)}}


def test_the_gate_passes_when_c_alone_is_healthy() -> None:
    comparison = compared(
        seeds("A", "mode_collapse") | seeds("B", "above_band", pixel_accuracy=0.9) | seeds("C", "healthy")
    )
    assert comparison.gate.passed
    assert comparison.gate.passed_by == ("C",)
    assert comparison.recommended == "C"


@pytest.mark.parametrize("verdict", ["mode_collapse", "posterior_collapse", "diverged", "unstable"])
def test_the_gate_fails_on_a_failed_seed_though_the_accuracy_is_in_the_band(verdict: str) -> None:
    comparison = compared(seeds("B", "healthy", verdict, "healthy"))
    assert not comparison.gate.passed
    assert comparison.options["B"].verdict == verdict
    assert "The gate failed: no candidate is healthy" in explain_gate(comparison)


def test_the_gate_fails_when_only_the_baseline_passes() -> None:
    comparison = compared(seeds("A", "healthy") | seeds("B", "below_band", pixel_accuracy=0.5))
    assert comparison.options["A"].healthy
    assert not comparison.gate.passed
    assert comparison.recommended is None


@pytest.mark.parametrize("outcomes", [{}, seeds("A", "healthy")], ids=["no run", "only the baseline"])
def test_the_gate_fails_when_no_candidate_was_run(outcomes: Outcomes) -> None:
    comparison = compared(outcomes)
    assert not comparison.gate.passed
    assert comparison.gate.candidates == ()
    assert "no run of a candidate was selected" in explain_gate(comparison)


def test_a_run_that_crashed_fails_its_option() -> None:
    outcomes = {"B": {0: result("B", 0), 1: "B-seed1 was begun in this session and ended without a result"}}
    comparison = compared(outcomes)
    assert comparison.options["B"].verdict == "incomplete"
    assert not comparison.gate.passed
    assert "B-seed1 was begun" in explain_gate(comparison)


def test_the_candidate_with_the_highest_iou_is_recommended() -> None:
    comparison = compared(
        seeds("B", "healthy", "healthy", foreground_iou=0.4)
        | seeds("C", "healthy", "healthy", foreground_iou=0.6)
    )
    assert comparison.recommended == "C"
    assert "more than B" in comparison.recommendation


def test_where_none_passes_the_nearest_miss_is_named_with_its_reason() -> None:
    far = seeds("C", "below_band", pixel_accuracy=0.30)
    near = seeds("B", "above_band", pixel_accuracy=0.85)
    comparison = compared(far | near)
    assert comparison.recommended is None
    assert "nearest miss is B (above_band)" in comparison.recommendation
    collapsed = compared(seeds("B", "mode_collapse") | far)
    assert "nearest miss is C (below_band)" in collapsed.recommendation


def test_the_explanation_lists_every_candidate_with_its_numbers() -> None:
    comparison = compared(
        seeds("A", "mode_collapse") | seeds("B", "below_band") | seeds("C", "posterior_collapse")
    )
    lines = explain_gate(comparison).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["B", "C"]
    for line in lines[1:]:
        assert "background rate 0.800" in line
        assert "foreground IoU 0.500 (shuffled 0.150)" in line


def test_comparison_json_has_the_documented_schema_and_no_nan() -> None:
    outcomes = (
        seeds("A", "mode_collapse") | seeds("B", "healthy", "healthy") | seeds("C", "diverged", "healthy")
    )
    comparison = compared(outcomes)
    data = json.loads(to_json(comparison), parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert data["schema"] == 1
    assert data["band"] == [0.70, 0.80]
    assert data["corpus"].keys() == {
        *("name", "fingerprint", "train", "val", "class_counts", "background_rate", "weight_ratio")
    }
    b = data["options"]["B"]
    assert b["pixel_accuracy"] == {"mean": pytest.approx(0.76), "sd": pytest.approx(0.0)}
    assert b["foreground_iou"]["mean"] == pytest.approx(0.5)
    assert b["shuffled_foreground_recall"]["mean"] == pytest.approx(0.05)
    assert [run["seed"] for run in b["runs"]] == [0, 1]
    assert [run["path"] for run in b["runs"]] == ["B-seed0", "B-seed1"]
    assert data["options"]["A"]["pixel_accuracy"]["sd"] is None  # of one seed
    assert data["options"]["C"]["pixel_accuracy"] == {"mean": None, "sd": None}  # a seed diverged
    assert data["options"]["C"]["runs"][0]["metrics"] is None
    assert data["gate"] == {"candidates": ["B", "C"], "passed": True, "passed_by": ["B"]}
    assert data["recommended"] == "B"
    assert from_json(to_json(comparison), Comparison) == comparison


def test_the_tables_have_a_row_for_each_option_and_survive_undefined_numbers() -> None:
    comparison = compared(seeds("A", "mode_collapse") | seeds("C", "diverged"))
    text, document = "\n".join(to_text_table(comparison)), to_markdown(comparison)
    assert "mode collapse" in text
    assert "undefined" in text
    assert "| C | 1 | inverse | diverged | undefined |" in document


def test_a_position_prior_in_the_band_does_not_pass() -> None:
    prior = reconstruction(foreground_recall=0.39, pixel_accuracy=0.76)
    comparison = compared(seeds("B", "posterior_collapse", shuffled=prior))
    assert not comparison.gate.passed
