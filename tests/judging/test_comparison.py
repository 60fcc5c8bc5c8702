"""The gate, the recommendation and the tables of comparisons, on constructed results."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from evidence_factory import CORPUS, REFERENCES, controlled, evaluation, result
from hypothesis import given
from hypothesis import strategies as st

from bvae.config import LOSS_OPTIONS, AccuracyBand, ExperimentConfig, LossOption, TrainingConfig
from bvae.judging.comparison import METRICS, Comparison, Outcomes, compare
from bvae.records import ControlledMetrics, CorpusRecord, ReconstructionMetrics
from bvae.report.tables import TERMINAL_COLUMNS, table_head, table_rows, to_text_table
from bvae.report.text import describe_epochs, describe_setting, explain_gate, to_markdown, to_terminal
from bvae.storage import from_json, to_json
from bvae.verdict import SEVERITY

pytestmark = pytest.mark.unit

BAND = AccuracyBand(0.70, 0.80)
FAILURES = list(SEVERITY)[: list(SEVERITY).index("below_band")]
BY_GRIDS = ("nearest training grid", "nearest training grid, weighted")


def compared(
    outcomes: Outcomes,
    *,
    corpus: CorpusRecord = CORPUS,
    references: Mapping[str, ControlledMetrics] = REFERENCES,
    band: AccuracyBand = BAND,
) -> Comparison:
    return compare(corpus, ExperimentConfig(band=band), outcomes, references)


def seeds(option: str, *verdicts: str, **changes: Any) -> dict:
    return {option: {seed: result(option, seed, verdict, **changes) for seed, verdict in enumerate(verdicts)}}


# ---- the gate


def test_the_gate_passes_when_c_alone_is_healthy() -> None:
    comparison = compared(
        seeds("A", "mode_collapse") | seeds("B", "flooding", pixel_accuracy=0.75) | seeds("C", "healthy")
    )
    assert comparison.gate.passed
    assert comparison.gate.passed_by == ("C",)
    assert comparison.recommended == "C"


@pytest.mark.parametrize("verdict", FAILURES)
def test_one_failed_seed_fails_the_gate_despite_an_accuracy_in_the_band(verdict: str) -> None:
    comparison = compared(seeds("B", "healthy", verdict, "healthy"))
    assert not comparison.gate.passed
    assert comparison.options["B"].verdict == verdict
    assert "The gate failed: no candidate is healthy" in explain_gate(comparison)


def test_the_gate_fails_when_only_the_known_bad_baseline_is_healthy() -> None:
    comparison = compared(seeds("A", "healthy") | seeds("B", "partial_collapse"))
    assert comparison.options["A"].healthy
    assert not comparison.gate.passed
    assert comparison.recommended is None


@pytest.mark.parametrize("outcomes", [{}, seeds("A", "healthy")], ids=["no run", "only the baseline"])
def test_the_gate_fails_when_no_candidate_was_run(outcomes: Outcomes) -> None:
    comparison = compared(outcomes)
    assert not comparison.gate.passed
    assert comparison.gate.candidates == ()
    assert comparison.recommended is None
    assert "no run of a candidate was selected" in explain_gate(comparison)
    assert "no run of a candidate was selected" in comparison.recommendation


def test_a_run_that_crashed_fails_its_option() -> None:
    outcomes = {"B": {0: result("B", 0), 1: "B-seed1 was begun by this command and ended without a result"}}
    comparison = compared(outcomes)
    assert comparison.options["B"].verdict == "incomplete"
    assert not comparison.gate.passed
    assert "B-seed1 was begun" in explain_gate(comparison)


# ---- the recommendation


@st.composite
def found_runs(draw: st.DrawFn) -> dict[str, dict[int, Any]]:
    """Draw options with one to three seeds each. Verdict, accuracy and object IoU of each seed vary."""
    return {
        option: {
            seed: result(
                option,
                seed,
                draw(st.sampled_from(["healthy"] * 5 + FAILURES)),
                pixel_accuracy=draw(st.sampled_from([0.5, 0.7, 0.75, 0.8, 0.9])),
                object_iou=draw(st.integers(0, 100)) / 100,
            )
            for seed in range(draw(st.integers(1, 3)))
        }
        for option in draw(st.sets(st.sampled_from("ABC")))
    }


@given(found_runs())
def test_a_healthy_candidate_passes_and_the_best_learned_is_recommended(
    outcomes: dict,
) -> None:
    comparison = compared(outcomes)
    candidates = {name: option for name, option in comparison.options.items() if name in "BC"}
    healthy = [name for name, option in candidates.items() if option.verdict == "healthy"]
    assert comparison.gate.passed == bool(healthy)
    assert list(comparison.gate.passed_by) == healthy
    learned = [name for name, option in candidates.items() if option.verdict not in FAILURES]
    ious = {name: candidates[name].object_iou.mean for name in learned}
    if comparison.recommended is None:
        assert not learned
    else:
        assert ious[comparison.recommended] == max(ious.values())


@given(found_runs())
def test_a_recommendation_outside_the_band_names_what_passes_the_gate(outcomes: dict) -> None:
    comparison = compared(outcomes)
    said, recommended, gate = comparison.recommendation, comparison.recommended, comparison.gate
    assert said.endswith(".")
    if recommended is None:
        assert "Nothing can be recommended" in said
        return
    assert said.startswith(f"Use option {recommended} (γ = ")
    assert f"Its object IoU is {comparison.options[recommended].object_iou}" in said
    outside = recommended not in gate.passed_by
    assert (f" the band {BAND}" in said) == outside
    assert ("The gate is passed by C with object IoU" in said) == (outside and gate.passed_by == ("C",))
    assert ("so the gate fails" in said) == (outside and not gate.passed)


def test_only_object_iou_decides_which_candidate_is_recommended() -> None:
    comparison = compared(
        seeds("A", "healthy", object_iou=0.9)
        | seeds("B", "healthy", "healthy", object_iou=0.2, foreground_iou=0.9, foreground_recall=0.9)
        | seeds("C", "healthy", "healthy", object_iou=0.3)
    )
    assert comparison.recommended == "C"
    assert comparison.recommendation.endswith(
        "Its object IoU is 0.300 ± 0.000, the highest of the stable candidates that break no rule (B has "
        "0.200 ± 0.000). The shuffled control of C has an object IoU of 0.030 ± 0.000."
    )


@pytest.mark.parametrize(("accuracy", "side"), [(0.853, "above"), (0.6, "below")])
def test_the_band_decides_the_gate_but_not_the_recommendation(accuracy: float, side: str) -> None:
    best = seeds("B", "healthy", object_iou=0.26, pixel_accuracy=accuracy)
    both = compared(best | seeds("C", "healthy", object_iou=0.14))
    assert both.recommended == "B"
    assert both.gate.passed_by == ("C",)
    assert both.recommendation.endswith(
        f"The accuracy of B, {accuracy:.3f}, is {side} the band 0.7:0.8. "
        "The gate is passed by C with object IoU 0.140."
    )
    alone = compared(best | seeds("C", "flooding", object_iou=0.9))
    assert alone.recommended == "B"
    assert not alone.gate.passed
    assert (
        "Its object IoU is 0.260. B is the only stable candidate that breaks no rule." in alone.recommendation
    )
    assert alone.recommendation.endswith("the band 0.7:0.8, so the gate fails.")


def test_if_no_candidate_learned_only_the_nearest_miss_is_named() -> None:
    mild, grave = seeds("C", "partial_collapse", object_iou=0.1), seeds("B", "mode_collapse", object_iou=0.2)
    comparison = compared(seeds("A", "healthy") | grave | mild)
    assert comparison.recommended is None
    assert comparison.recommendation.startswith(
        "Nothing can be recommended: no trained candidate is stable and learned"
    )
    assert "nearest miss is C (partial collapse)." in comparison.recommendation
    for iou, nearest in ((0.05, "C"), (0.2, "B")):
        alike = compared(seeds("B", "partial_collapse", object_iou=iou) | mild)
        assert f"nearest miss is {nearest} (partial collapse)" in alike.recommendation


def test_unfinished_runs_leave_the_outcome_open_unless_their_option_has_already_failed() -> None:
    begun = {1: "B-seed1 was begun and did not finish"}
    unfinished = "This may change: runs of B are unfinished."
    alone, failed = compared({"B": begun}), seeds("C", "mode_collapse")
    assert alone.recommendation == f"Nothing can be recommended yet. {unfinished}"
    assert alone.options["B"].reason.startswith("in 1 of 1 runs; ")  # not all seeds have a run here
    assert compared({"B": begun} | failed).recommendation == alone.recommendation
    for verdict in ("healthy", "below_band"):
        advice = compared({"B": begun} | seeds("C", verdict)).recommendation
        assert advice.startswith("Use option C")
        assert advice.endswith(f". {unfinished}")
    for verdict in FAILURES[1:]:
        decided = compared({"B": seeds("B", verdict)["B"] | begun} | failed).recommendation
        assert "unfinished" not in decided
        assert decided.endswith("The nearest miss is C (mode collapse).")


def test_a_run_that_diverged_is_no_near_miss() -> None:
    recommendation = compared(seeds("B", "diverged") | seeds("C", "diverged")).recommendation
    assert recommendation.endswith("no trained candidate is stable and learned the objects.")


# ---- what the models learned, according to the explanation of the gate


@given(*[st.none() | st.floats(0.0, 1.0)] * 3)
def test_shapes_count_as_learned_only_above_the_nearest_training_grids(
    share: float | None, nearest: float | None, weighted: float | None
) -> None:
    references = REFERENCES | {
        name: controlled(objects_recognised=value)
        for name, value in zip(BY_GRIDS, (nearest, weighted), strict=True)
    }
    comparison = compared(seeds("B", "healthy", objects_recognised=share), references=references)
    head = explain_gate(comparison).splitlines()[0]
    known = [value for value in (nearest, weighted) if value is not None]
    if share is None or not known:
        assert "learned colours and places of objects; shapes were not measured" in head
    elif share > max(known):
        assert "learned colours, places and shapes of objects" in head
        assert f"({share:.1%} of the objects recognised; nearest training grid: {max(known):.1%})" in head
    else:
        assert "learned colours and places of objects, not shapes" in head
        assert "learned the objects" not in explain_gate(comparison)
        assert "learned the objects" not in comparison.recommendation


def test_without_references_shapes_are_not_judged() -> None:
    head = explain_gate(compared(seeds("B", "healthy"), references={}))
    assert "learned colours and places of objects; shapes were not measured" in head
    assert "learned the objects" not in head


def test_other_references_do_not_decide_about_shapes() -> None:
    references = REFERENCES | {"PCA": controlled(objects_recognised=1.0)}
    assert "places and shapes" in explain_gate(compared(seeds("B", "healthy"), references=references))


def test_the_explanation_lists_every_candidate_with_its_numbers() -> None:
    comparison = compared(
        seeds("A", "mode_collapse") | seeds("B", "below_band") | seeds("C", "posterior_collapse")
    )
    lines = explain_gate(comparison).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["B", "C"]
    for line in lines[1:]:
        assert "object IoU 0.200 (shuffled 0.030), object recall 0.600 (shuffled 0.080)" in line
        assert "accuracy 0.760 (background rate 0.800)" in line


# ---- corpus and band

OTHERS = (1000, 9000, *[500] * 8)


@pytest.mark.parametrize(
    ("changes", "remarks"),
    [
        ({}, []),
        ({"has_outside": True}, ["Grids differ in size"]),
        ({"duplicates": 1234}, ["1,234 training grids that are also validation grids were removed."]),
        (
            {"duplicates": 3, "duplicates_sampled": True},
            ["3 training grids that are also validation grids were removed (among a sample of the file)."],
        ),
        ({"duplicates_sampled": True}, ["A sample of the file has no training grids that are also"]),
        ({"class_counts": OTHERS}, ["Class 1 is more frequent than class 0"]),
        (
            {"has_outside": True, "duplicates": 1, "class_counts": OTHERS},
            ["Grids differ in size", "1 training grids that are also", "Class 1 is more frequent"],
        ),
    ],
)
def test_only_unusual_properties_of_a_corpus_get_a_remark(changes: dict, remarks: list[str]) -> None:
    corpus = dataclasses.replace(CORPUS, **changes)
    found = corpus.remarks()
    assert len(found) == len(remarks)
    assert all(said in one for said, one in zip(remarks, found, strict=True))
    comparison = compared(seeds("B", "healthy"), corpus=corpus)
    for text in (describe_setting(comparison), to_markdown(comparison).replace("\\", "")):
        assert all(said in text for said in found)


@given(st.floats(0.02, 1.0), st.floats(0.0, 0.01), st.floats(0.0, 1.0))
def test_a_band_below_the_background_rate_gets_a_remark(hi: float, lo: float, rate: float) -> None:
    corpus = dataclasses.replace(CORPUS, background_rate=rate)
    said = describe_setting(compared(seeds("B", "healthy"), corpus=corpus, band=AccuracyBand(lo, hi)))
    assert (f"The band is below the background rate {rate:.3f}" in said) == (hi < rate)


@given(st.integers(1, 200))
def test_a_batch_of_more_than_all_training_grids_gets_a_remark(grids: int) -> None:
    corpus = dataclasses.replace(CORPUS, train=grids)
    said = describe_setting(compared(seeds("B", "healthy"), corpus=corpus))
    size = TrainingConfig().batch_size
    assert (f"A batch of {size} has all training grids" in said) == (size > grids)


@given(st.lists(st.integers(1, 10**6), min_size=10, max_size=10), st.integers(1, 10**5))
def test_beta_is_also_shown_in_units_of_a_loss_summed_over_cells(counts: list[int], grids: int) -> None:
    corpus = dataclasses.replace(CORPUS, class_counts=tuple(counts), train=grids)
    said = describe_setting(compared(seeds("B", "healthy"), corpus=corpus))
    found = re.search(r"β = (\S+) for a loss per cell, or (\S+) for a loss summed", said)
    assert found is not None
    beta, usual = map(float, found.groups())
    assert usual == pytest.approx(beta * sum(counts) / grids, rel=5e-3)


# ---- comparison.json and the tables


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_comparison_json_has_the_documented_schema_and_no_nan() -> None:
    outcomes = (
        seeds("A", "mode_collapse", minor_object_recall=None, class_recall=(1.0, None, *[0.0] * 8))
        | seeds("B", "healthy", "healthy")
        | seeds("C", "diverged", "healthy")
    )
    comparison = compared(outcomes)
    data = json.loads(to_json(comparison), parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert data["schema"] == 2
    assert data["band"] == [0.70, 0.80]
    assert data["corpus"].keys() == names(CorpusRecord) | {"controls", "references"}
    assert data["corpus"]["controls"].keys() == {"extent"}
    assert data["corpus"]["references"].keys() == {"background only", *BY_GRIDS, "PCA"}
    for scored in (data["corpus"]["controls"]["extent"], *data["corpus"]["references"].values()):
        assert scored.keys() == names(ControlledMetrics)
        assert scored["shuffled"].keys() == names(ReconstructionMetrics)
    b = data["options"]["B"]
    for name in METRICS:
        for key, source in ((name, evaluation()), (f"shuffled_{name}", evaluation().shuffled)):
            assert b[key] == {"mean": pytest.approx(getattr(source, name)), "sd": pytest.approx(0.0)}
            assert data["options"]["A"][key]["sd"] is None  # one seed has no deviation
            assert data["options"]["C"][key] == {"mean": None, "sd": None}  # a seed diverged
    assert b["classes_learned"] == {"mean": 9.0, "sd": 0.0}
    assert [run["seed"] for run in b["runs"]] == [0, 1]
    assert [run["path"] for run in b["runs"]] == ["B-seed0", "B-seed1"]
    metrics = b["runs"][0]["metrics"]
    assert metrics["shuffled"].keys() == names(ReconstructionMetrics)
    assert metrics["extent"].keys() == names(ControlledMetrics)
    assert metrics.keys() >= names(ReconstructionMetrics) | {"classes_learned", "kl_per_dim", "active_units"}
    undefined = data["options"]["A"]["runs"][0]["metrics"]
    assert undefined["minor_object_recall"] is None
    assert undefined["class_recall"][1] is None
    assert data["options"]["A"]["minor_object_recall"] == {"mean": None, "sd": None}
    assert data["options"]["C"]["runs"][0]["metrics"] is None
    assert data["gate"] == {"candidates": ["B", "C"], "passed": True, "passed_by": ["B"]}
    assert data["recommended"] == "B"
    assert from_json(to_json(comparison), Comparison) == comparison


def test_the_metrics_of_an_option_are_the_documented_metrics() -> None:
    documented = {
        *("pixel_accuracy", "foreground_iou", "foreground_recall", "object_recall", "minor_object_recall"),
        *("object_iou", "objects_recognised"),
    }
    assert set(METRICS) == documented


def test_without_an_evaluated_run_there_is_no_control() -> None:
    comparison = compared(seeds("B", "diverged"), references={})
    assert comparison.corpus.controls == comparison.corpus.references == {}
    assert [row[0].text for row in table_rows(comparison)] == ["B"]


def test_junit_properties_include_class_recalls_and_controls() -> None:
    run = result(
        "B",
        0,
        class_recall=(0.9, None, *[0.4] * 8),
        minor_object_recall=None,
        shuffled={"object_iou": 0.031},
        extent={"object_iou": 0.052, "shuffled": {"object_iou": 0.9}},
    )
    found = run.properties()
    assert found["verdict"] == "healthy"
    assert found["reason"] == "made up to be healthy"
    of_objects = [found[f"{prefix}object_iou"] for prefix in ("", "shuffled_", "extent_")]
    assert of_objects == [0.2, 0.031, 0.052]
    recalls = [found[name] for name in ("class_recall_0", "class_recall_1", "shuffled_class_recall_9")]
    assert recalls == [0.9, None, 0.05]
    assert found["classes_learned"] == 9
    assert found["minor_object_recall"] is None
    single = {
        field.name for field in dataclasses.fields(ReconstructionMetrics) if field.name != "class_recall"
    }
    for prefix in ("", "shuffled_", "extent_"):
        assert found.keys() >= {f"{prefix}{name}" for name in single}
        assert found.keys() >= {f"{prefix}class_recall_{label}" for label in range(10)}
    assert all(value is None or isinstance(value, int | float | str) for value in found.values())


def test_the_tables_have_a_row_for_each_option_control_and_reference() -> None:
    comparison = compared(seeds("A", "mode_collapse") | seeds("B", "healthy", "healthy"))
    rows = {row[0].text: row for row in table_rows(comparison)}
    assert list(rows) == ["A", "B", "extent", *REFERENCES]
    column = {cell.text: place for place, cell in enumerate(table_head(comparison))}
    assert {len(row) for row in rows.values()} == {len(column)}
    assert rows["B"][column["object IoU"]] == ("0.200 ± 0.000", "0.030")
    assert rows["extent"][column["object IoU"]] == ("0.050", "0.030")
    assert rows["nearest training grid, weighted"][column["objects recognised"]] == ("0.090", "0.010")
    assert rows["PCA"][column["verdict"]].text == "reference"
    assert rows["background only"][column["accuracy"]].text == "0.800"
    assert rows["B"][column["classes learned"]].text == "9 of 9"
    assert rows["PCA"][column["classes learned"]].text == "0 of 9"
    text, document = to_text_table(comparison), to_markdown(comparison).replace("\\", "")
    for name in rows:
        assert any(line.startswith(f"{name}  ") for line in text)
        assert f"\n| {name} | " in document
    assert set(list(column)[1:TERMINAL_COLUMNS]) >= {"verdict", "object IoU", "classes learned", "accuracy"}


def varied(*options: LossOption, **training: Any) -> Comparison:
    """Return a comparison of options with settings of their own; `training` has the shared settings."""
    experiment = ExperimentConfig(options=options, training=TrainingConfig(**training))
    return compare(CORPUS, experiment, {option.name: {0: result(option.name, 0)} for option in options})


def test_texts_say_in_which_settings_options_differ() -> None:
    b = LOSS_OPTIONS["B"]
    changed = dataclasses.replace(b, name="B-8", training={"latent_dim": 8, "beta": 0.001, "epochs": 5})
    other = dataclasses.replace(b, name="B-own", training={"model": "own:make\x1b", "epochs": 12})
    comparison = varied(b, changed, other)
    said = (
        "Options with other settings: B-8: latent_dim 8 instead of 32, beta 0.001 instead of 0.004; "
        "B-own: model own:make\\x1b instead of bvae.beta_vae:BetaVAE, epochs 12 instead of 5."
    )
    assert said in describe_setting(comparison)
    assert said in "\n".join(to_terminal(comparison, [], {}, gate_ran=True))
    assert said.replace("\\", "") in to_markdown(comparison).replace("\\", "")
    assert describe_epochs(comparison) == "5 to 12 epochs"
    column = [cell.text for cell in table_head(comparison)].index("active units")
    latents = {row[0].text: row[column].text.split(" of ")[-1] for row in table_rows(comparison)}
    assert (latents["B"], latents["B-8"]) == ("32", "8")
    assert from_json(to_json(comparison), Comparison) == comparison


@given(st.integers(1, 100), st.sampled_from([{}, {"latent_dim": 7}]))
def test_without_a_difference_nothing_is_said_of_settings(epochs: int, changes: dict[str, int]) -> None:
    comparison = varied(dataclasses.replace(LOSS_OPTIONS["B"], training=changes), epochs=epochs, latent_dim=7)
    assert "instead of" not in describe_setting(comparison)
    assert describe_epochs(comparison) == f"{epochs} epoch{'s' if epochs > 1 else ''}"


def test_the_tables_show_undefined_numbers() -> None:
    outcomes = seeds("A", "mode_collapse", object_iou=None) | seeds("C", "diverged")
    references = {"PCA": controlled(object_iou=None, objects_recognised=None)}
    comparison = compared(outcomes, references=references)
    text, document = "\n".join(to_text_table(comparison)), to_markdown(comparison)
    assert "mode collapse" in text
    assert "undefined" in text
    assert "| C | diverged | undefined (undefined) | " in document
    assert "| PCA | reference | undefined (0.030) | " in document


def test_different_numbers_of_learned_classes_are_shown_as_a_range() -> None:
    runs = {seed: result("B", seed, classes_learned=learned) for seed, learned in enumerate((7, 9, 8))}
    (row,) = (row for row in table_rows(compared({"B": runs})) if row[0].text == "B")
    assert "7 to 9 of 9" in {cell.text for cell in row}
