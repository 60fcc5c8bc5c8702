"""Comparison with an earlier session: properties of the intervals, and baselines that are refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any, get_args

import pytest
from evidence_factory import CORPUS, result
from hypothesis import assume, example, given
from hypothesis import strategies as st
from lab import QUICK, TINY, newest, run_pytest

from bvae.config import LOSS_OPTIONS, ExperimentConfig, LossOption, TrainingConfig
from bvae.corpus import load_corpus
from bvae.judging.baseline import (
    CAPTION,
    COMPARED,
    MAX_BYTES,
    SAME_RESULT,
    BaselineError,
    comparable_baseline,
    compare_with,
    difference,
    explain_regressions,
    incomparable,
    read_baseline,
    welch_interval,
)
from bvae.judging.comparison import METRICS, Comparison, Schema, compare
from bvae.plugin import separated_path
from bvae.report.html import show_differences
from bvae.report.text import differences_to_text, to_markdown
from bvae.storage import to_json

unit, slow = pytest.mark.unit, pytest.mark.slow

FRACTIONS = st.floats(0.0, 1.0).map(lambda share: round(share, 12))  # squares do not underflow
COUNTED = st.integers(0, 1024).map(lambda cells: cells / 1024)
"""Multiples of 1/1024. Sums and differences of them are exact, so results can be compared with ==."""
SEEDS = st.lists(COUNTED, min_size=2, max_size=6)
OPPOSITE = {"better": "worse", "worse": "better"}


def judged(baseline: list, now: list) -> str:
    return difference("B", "foreground_iou", baseline, now).judgement


# ---- the interval


@unit
@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy warns if one side has no variance
@given(SEEDS, SEEDS)
def test_the_interval_agrees_with_scipy(baseline: list[float], now: list[float]) -> None:
    from scipy import stats

    assume(len(set(baseline)) > 1 or len(set(now)) > 1)
    expected = stats.ttest_ind(now, baseline, equal_var=False).confidence_interval(0.95)
    assert welch_interval(baseline, now) == pytest.approx((expected.low, expected.high), abs=1e-9)


@unit
@given(SEEDS, SEEDS)
def test_swapping_baseline_and_now_negates_the_interval(baseline: list[float], now: list[float]) -> None:
    low, high = welch_interval(baseline, now)
    assert welch_interval(now, baseline) == (-high, -low)
    word = judged(baseline, now)
    assert judged(now, baseline) == OPPOSITE.get(word, word)


@unit
@given(SEEDS, SEEDS, st.integers(-1024, 1024).map(lambda cells: cells / 1024))
def test_a_shift_of_every_seed_shifts_the_interval(
    baseline: list[float], now: list[float], shift: float
) -> None:
    low, high = welch_interval(baseline, now)
    shifted = welch_interval(baseline, [value + shift for value in now])
    assert shifted == pytest.approx((low + shift, high + shift), abs=1e-12)


@unit
@given(SEEDS, SEEDS, st.randoms())
def test_the_order_of_the_seeds_does_not_matter(baseline: list[float], now: list[float], random: Any) -> None:
    mixed = random.sample(now, len(now))
    assert welch_interval(baseline, mixed) == welch_interval(baseline, now)


@unit
@given(st.lists(FRACTIONS, min_size=2, max_size=6), st.lists(FRACTIONS, min_size=2, max_size=6))
@example([0.1, 0.1], [0.1, 0.1, 0.1])
def test_the_judgement_agrees_with_the_interval_around_the_difference(
    baseline: list[float], now: list[float]
) -> None:
    found = difference("B", "foreground_iou", baseline, now)
    low, high = found.interval
    assert low <= found.mean <= high
    assert (found.judgement == "better") == (low > 0)
    assert (found.judgement == "worse") == (high < 0)
    assert bool(explain_regressions([found])) == (found.judgement == "worse")


@unit
@given(st.lists(FRACTIONS, min_size=2, max_size=6))
def test_the_same_numbers_give_no_difference(values: list[float]) -> None:
    found = difference("B", "foreground_iou", values, values[::-1])
    assert found.mean == 0.0
    assert found.judgement == "no difference beyond noise"


@unit
@given(FRACTIONS, FRACTIONS, st.integers(2, 6), st.integers(2, 6))
@example(0.1, 0.1, 2, 3)
def test_without_variance_any_shift_is_a_difference(old: float, new: float, before: int, now: int) -> None:
    expected = {True: "better", False: "worse"}[new > old] if new != old else "no difference beyond noise"
    assert judged([old] * before, [new] * now) == expected
    assert welch_interval([old] * before, [new] * now) == (new - old, new - old)


@unit
@given(SEEDS, st.sampled_from([[], [0.5], [None, None], [0.5, None, 0.4]]))
def test_too_few_seeds_or_undefined_numbers_give_cannot_tell(
    values: list[float], unknown: list[float | None]
) -> None:
    for baseline, now in ((values, unknown), (unknown, values)):
        found = difference("B", "foreground_iou", baseline, now)
        assert found.judgement == "cannot tell"
        assert found.interval is None
        assert explain_regressions([found]) == ""


# ---- comparisons


def compared(experiment: ExperimentConfig | None = None, **ious: tuple[float, ...]) -> Comparison:
    """Return a comparison of options with the given foreground IoU of each seed."""
    runs = {
        name: {seed: result(name, seed, foreground_iou=value) for seed, value in enumerate(values)}
        for name, values in ious.items()
    }
    return compare(CORPUS, experiment or ExperimentConfig(), runs)


def stored(path: Path, comparison: Comparison, change: Callable[[dict], object] = lambda data: None) -> Path:
    """Write a comparison to a file, after a change to its JSON."""
    data = json.loads(to_json(comparison))
    change(data)
    path.write_text(json.dumps(data))
    return path


@unit
def test_a_comparison_is_its_own_baseline_for_every_kind_of_path(tmp_path: Path) -> None:
    comparison = compared(A=(0.1, 0.2), B=(0.4, 0.5, 0.6))
    folder = tmp_path / "session/comparison"
    folder.mkdir(parents=True)
    file = stored(folder / "comparison.json", comparison)
    for path in (file, folder, tmp_path / "session"):
        baseline = comparable_baseline(path, ExperimentConfig(), CORPUS)
        differences = compare_with(baseline, comparison)
        assert [(each.option, each.metric) for each in differences] == [
            (o, m) for o in "AB" for m in COMPARED
        ]
        assert {each.mean for each in differences} == {0.0}
        assert {each.judgement for each in differences} == {"no difference beyond noise"}
        copy = tmp_path / "copy.json"
        copy.write_bytes(to_json(baseline))
        assert read_baseline(copy) == baseline


@unit
def test_a_regression_is_shown_with_option_metric_and_numbers_everywhere(tmp_path: Path) -> None:
    before = compared(B=(0.60, 0.61, 0.62), C=(0.3, 0.3))
    now = compared(A=(0.1, 0.1), B=(0.40, 0.41, 0.42))
    differences = compare_with(read_baseline(stored(tmp_path / "baseline.json", before)), now)
    words = {(each.option, each.metric): each.judgement for each in differences}
    assert words.pop(("B", "foreground_iou")) == "worse"
    assert {words[option, metric] for option in "AC" for metric in COMPARED} == {"cannot tell"}
    told = explain_regressions(differences)
    assert "foreground IoU of B was 0.610 ± 0.010 and is 0.410 ± 0.010, a difference of -0.2000" in told
    text, document = "\n".join(differences_to_text(differences)), to_markdown(now, differences)
    for shown in (text, document, *[show_differences(differences)]):
        assert CAPTION in unescape(shown)
        assert "Welch" in shown
        for word in ("B", "foreground IoU", "0.610 ± 0.010", "-0.2000", "worse", "cannot tell"):
            assert word in shown
    assert differences_to_text([]) == []
    assert "baseline" not in to_markdown(now)


# ---- refusals

OTHERS: dict[str, Any] = {
    "epochs": 6,
    "until_plateau": 2,
    "extended_from": (3,),
    "beta": 0.5,
    "beta_schedule": "cyclical",
    "beta_warmup": 2.0,
    "free_bits": 0.1,
    "learning_rate": 0.5,
    "batch_size": 1,
    "latent_dim": 3,
    "warmup_steps": 0,
    "max_gradient_norm": 2.0,
    "model": "own:make\x1b",
    "precision": "fp32",
    "device": "cuda",
    "checkpoint_every": 2,
    "checkpoint_every_steps": 3,
    "keep_checkpoints": 1,
    "log": "tensorboard",
}


@unit
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainingConfig)])
def test_only_settings_that_can_change_results_prevent_a_comparison(tmp_path: Path, field: str) -> None:
    other = ExperimentConfig(training=TrainingConfig(**{field: OTHERS[field]}))
    path = stored(tmp_path / "baseline.json", compared(other, B=(0.4, 0.5)))
    if field in SAME_RESULT:
        comparable_baseline(path, ExperimentConfig(), CORPUS)
        return
    with pytest.raises(BaselineError, match=rf"is not comparable: {field}\S* was .* and is ") as caught:
        comparable_baseline(path, ExperimentConfig(), CORPUS)
    assert str(caught.value).isprintable()


@unit
def test_every_differing_field_is_listed(tmp_path: Path) -> None:
    other = ExperimentConfig(grid_size=8, training=TrainingConfig(epochs=9), seeds=7)
    path = stored(tmp_path / "baseline.json", compared(other, B=(0.4, 0.5), C=(0.3, 0.3)))
    mine = dataclasses.replace(LOSS_OPTIONS["B"], gamma=3.0, class_weights="inverse")
    experiment = ExperimentConfig(options=(mine, LOSS_OPTIONS["C"]))
    corpus = dataclasses.replace(CORPUS, fingerprint="1" * 64, class_counts=(*CORPUS.class_counts, 0))
    changes = incomparable(read_baseline(path), experiment, corpus)
    expected = ["corpus fingerprint", "classes", "grid_size", "epochs", "gamma of B", "class weights of B"]
    assert [change.split(" was ")[0] for change in changes] == expected
    assert "class weights of B was 'sqrt_inverse' and is 'inverse'" in changes
    apart = incomparable(read_baseline(path), ExperimentConfig(options=(LOSS_OPTIONS["A"],)), CORPUS)
    assert "it has none of the options A" in apart


@unit
def test_explicit_class_weights_are_compared_by_their_ratios(tmp_path: Path) -> None:
    def experiment(*weights: float) -> ExperimentConfig:
        option = LossOption(name="G", gamma=1.0, class_weights=weights, candidate=True)
        return ExperimentConfig(options=(option,))

    first = experiment(1.0, *[3.0] * 8, 4.0)
    baseline = read_baseline(stored(tmp_path / "baseline.json", compared(first, G=(0.4, 0.5))))
    assert incomparable(baseline, first, CORPUS) == []
    assert incomparable(baseline, experiment(2.0, *[6.0] * 8, 8.0), CORPUS) == []
    assert len(incomparable(baseline, experiment(1.0, *[2.0] * 8, 4.0), CORPUS)) == 1


@unit
def test_the_effective_settings_of_each_shared_option_are_compared(tmp_path: Path) -> None:
    def experiment(changes: dict[str, Any], **training: Any) -> ExperimentConfig:
        own = dataclasses.replace(LOSS_OPTIONS["B"], name="B-8", training=changes)
        return ExperimentConfig(options=(LOSS_OPTIONS["B"], own), training=TrainingConfig(**training))

    first = experiment({"latent_dim": 8})
    baseline = read_baseline(
        stored(tmp_path / "baseline.json", compared(first, **{"B": (0.4,), "B-8": (0.3,)}))
    )
    assert incomparable(baseline, first, CORPUS) == []
    assert incomparable(baseline, experiment({"latent_dim": 9}), CORPUS) == [
        "latent_dim of B-8 was 8 and is 9"
    ]
    assert incomparable(baseline, experiment({}), CORPUS) == ["latent_dim of B-8 was 8 and is 32"]
    assert incomparable(baseline, experiment({"latent_dim": 8}, epochs=6), CORPUS) == [
        "epochs was 5 and is 6"
    ]
    alone = dataclasses.replace(first, options=(dataclasses.replace(first.options[1], training={}),))
    assert incomparable(baseline, alone, CORPUS) == ["latent_dim of B-8 was 8 and is 32"]
    same = dataclasses.replace(alone, training=TrainingConfig(latent_dim=8))  # now a shared setting
    assert incomparable(baseline, same, CORPUS) == []


def damage(name: str) -> Callable[[dict], object]:
    def run(data: dict) -> dict:
        return data["options"]["B"]["runs"][0]

    return {
        "a schema in words": lambda data: data.update(schema=str(SCHEMA)),
        "no training": lambda data: data.pop("training"),
        "no epochs": lambda data: data["training"].update(epochs=0),
        "options a list": lambda data: data.update(options=[]),
        "a change of another setting": lambda data: data["options"]["B"].update(training={"device": "cpu"}),
        "a change to no epochs": lambda data: data["options"]["B"].update(training={"epochs": 0}),
        "a change to a word": lambda data: data["options"]["B"].update(training={"epochs": "many"}),
        "a name that is no option's": lambda data: data["options"].update(
            {"<script>\x1b[31m|": data["options"]["B"]}
        ),
        "too many options": lambda data: data.update(
            options={f"o{number}": data["options"]["B"] for number in range(999)}
        ),
        "a fingerprint in words": lambda data: data["corpus"].update(fingerprint="x" * 10**6),
        "an accuracy of 2": lambda data: run(data)["metrics"].update(pixel_accuracy=2),
        "an accuracy in words": lambda data: run(data)["metrics"].update(pixel_accuracy="\n" * 999),
        "a seed twice": lambda data: run(data).update(seed=1),
        "an endless weighting": lambda data: data["options"]["B"].update(weighting="\x1b" * 9999),
    }[name]


DAMAGES = (
    *(
        "a change of another setting",
        "a change to no epochs",
        "a change to a word",
        "a schema in words",
        "no training",
        "no epochs",
        "options a list",
        "a name that is no option's",
    ),
    *("too many options", "a fingerprint in words", "an accuracy of 2", "an accuracy in words"),
    *("a seed twice", "an endless weighting"),
)


(SCHEMA,) = get_args(Schema)


def refused(path: Path) -> str:
    with pytest.raises(BaselineError) as caught:
        read_baseline(path)
    message = str(caught.value)
    assert message.startswith("--baseline=")
    assert message.isprintable()
    assert len(message) < 800
    return message


@unit
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_comparison_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    refused(stored(tmp_path / "baseline.json", compared(B=(0.4, 0.5)), damage(name)))


@unit
@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1])
def test_another_schema_is_reported_before_other_faults_of_a_comparison(tmp_path: Path, schema: int) -> None:
    def change(data: dict) -> None:
        data.update(schema=schema)
        del data["options"]["B"]["runs"][0]["metrics"]["object_iou"]  # not present in the first version

    said = refused(stored(tmp_path / "baseline.json", compared(B=(0.4, 0.5)), change))
    other = f"written by another version of bvae (schema {schema}, expected {SCHEMA})"
    assert said.endswith(f"{other}; run it again")


@unit
def test_all_metrics_except_minor_object_recall_are_compared() -> None:
    assert METRICS.keys() - COMPARED == {"minor_object_recall"}


@unit
@pytest.mark.parametrize("metric", COMPARED)
def test_a_worse_value_of_a_metric_is_a_regression_of_this_metric_alone(tmp_path: Path, metric: str) -> None:
    def perfect(data: dict) -> None:
        for run in data["options"]["B"]["runs"]:
            run["metrics"][metric] = 1.0

    now = compared(B=(0.4, 0.4))
    found = compare_with(read_baseline(stored(tmp_path / "baseline.json", now, perfect)), now)
    assert [each.metric for each in found if each.judgement == "worse"] == [metric]
    (told,) = (each for each in found if each.metric == metric)
    assert told.now.mean == getattr(now.options["B"], metric).mean
    assert f"{METRICS[metric].heading} of B was 1.000 ± 0.000 and is " in explain_regressions(found)


@unit
def test_a_path_without_a_comparison_is_refused_in_one_sentence(tmp_path: Path) -> None:
    assert "no comparison found" in refused(tmp_path / "missing.json")
    assert "no comparison found" in refused(tmp_path)
    assert "no comparison found" in refused(Path("/dev/zero"))
    pipe = tmp_path / "pipe\n"
    os.mkfifo(pipe)
    assert "no comparison found" in refused(pipe)
    assert "File name too long" in refused(tmp_path / ("long" * 75))
    path = tmp_path / "baseline.json"
    path.touch()
    os.truncate(path, MAX_BYTES + 1)
    assert f"expected at most {MAX_BYTES}" in refused(path)
    for nested in (b'{"x":' + b"[" * 10**6, b'{"options":' * 10**5):
        path.write_bytes(nested)
        assert "nested too deeply" in refused(path)


@unit
@given(st.binary(max_size=60), st.integers(0, 4000), st.integers(0, 60))
def test_overwritten_bytes_in_a_comparison_give_only_a_baseline_error(
    tmp_path_factory: pytest.TempPathFactory, bytes_: bytes, start: int, cut: int
) -> None:
    data = to_json(compared(B=(0.4, 0.5)))
    path = tmp_path_factory.getbasetemp() / "overwritten.json"
    path.write_bytes(data[:start] + bytes_ + data[start + cut :])
    message = ""
    try:
        read_baseline(path)
    except BaselineError as error:
        message = str(error)
    assert message.isprintable()


@unit
def test_a_baseline_path_after_a_space_is_refused(tmp_path: Path) -> None:
    assert "--baseline=runs/latest" in separated_path(["--baseline", "runs/latest"])
    assert separated_path([f"--baseline={tmp_path}", "experiments/"]) is None


# ---- sessions

ONE_OPTION = (*QUICK, *TINY, "--seeds", "2", "--loss-options", "B", "--precision", "fp32")
WITHOUT_GATE = ("-k", "B-seed or regression")


def made_up(lab: Path, **changes: Any) -> str:
    """Write a baseline for `ONE_OPTION` in which all metrics of B are perfect; return the argument for it."""
    training = TrainingConfig(epochs=2, batch_size=16, precision="fp32", **changes)
    experiment = ExperimentConfig(grid_size=8, training=training)
    corpus = load_corpus(str(lab / "corpus.npz"), 8)
    perfect = dict.fromkeys(COMPARED, 1.0)
    runs = {"B": {seed: result("B", seed, **perfect) for seed in range(2)}}
    record = dataclasses.replace(CORPUS, fingerprint=corpus.fingerprint, class_counts=corpus.class_counts)
    (lab / "better.json").write_bytes(to_json(compare(record, experiment, runs)))
    return "--baseline=better.json"


@slow
def test_regressions_fail_on_request_but_not_against_the_session_itself(lab: Path) -> None:
    better, strict, resume = made_up(lab), "--fail-on-regression", "--resume=runs/latest"
    finding = run_pytest("experiments/", *ONE_OPTION, *WITHOUT_GATE, better, "-n1", "--html=report.html")
    assert finding.returncode == 0, finding.stdout + finding.stderr
    assert "3 xfailed" in finding.stdout
    assert "Differences to the baseline" in (lab / "report.html").read_text()

    failure = run_pytest("experiments/", *QUICK, *WITHOUT_GATE, "-n0", resume, strict)
    assert failure.returncode == 1, failure.stdout + failure.stderr
    assert (
        "AssertionError: worse than the baseline by more than the noise between the seeds: " in failure.stdout
    )
    assert "foreground recall of B was 1.000 ± 0.000 and is" in failure.stdout

    itself = ("--baseline=runs/latest", strict)
    done = run_pytest("experiments/", *ONE_OPTION, *WITHOUT_GATE, "-n0", *itself)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    (newest(lab) / "comparison/comparison.md").unlink()
    report = [sys.executable, "-m", "bvae", "report", "runs/latest"]
    again = subprocess.run(report, capture_output=True, text=True, timeout=120, check=True)
    document = (newest(lab) / "comparison/comparison.md").read_text()
    for shown in (done.stdout, again.stdout, document):
        assert shown.count("no difference beyond noise") == len(COMPARED)
    assert read_baseline(newest(lab) / "baseline.json") == read_baseline(newest(lab))


@slow
def test_an_incomparable_baseline_ends_in_one_sentence_and_exit_code_4(lab: Path) -> None:
    arguments = ("experiments/", *ONE_OPTION, "-n1")
    for more, complaint in (
        ([made_up(lab, beta=0.5)], "beta was 0.5 and is 0.004"),
        (["--fail-on-regression"], "--fail-on-regression has nothing to compare with; add --baseline=PATH"),
    ):
        done = run_pytest(*arguments, *more)
        assert done.returncode == 4, done.stdout + done.stderr
        (error,) = filter(None, done.stderr.splitlines())
        assert error.startswith("ERROR: ")
        assert complaint in error
    assert not (lab / "runs").exists()


@slow
def test_with_a_baseline_but_no_selected_test_no_session_is_left(lab: Path) -> None:
    done = run_pytest("experiments/", *ONE_OPTION, "-n0", made_up(lab), "-k", "nothing")
    assert done.returncode == 5, done.stdout + done.stderr
    assert list((lab / "runs").iterdir()) == []
