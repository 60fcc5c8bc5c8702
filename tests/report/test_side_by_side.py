"""Sessions side by side: shared and different settings, numbers, and folders that are not trusted."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence_factory import CORPUS, result
from fuzz_session_files import SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st

from bvae import EvidenceWarning
from bvae.__main__ import main
from bvae.config import LOSS_OPTIONS, AccuracyBand, ExperimentConfig, LossOption, TrainingConfig
from bvae.experiment import Experiment
from bvae.judging.baseline import difference
from bvae.judging.comparison import Outcomes, compare
from bvae.options import parse_experiment
from bvae.records import CorpusRecord, RunResult
from bvae.report.side_by_side import (
    Side,
    chart_points,
    contrast,
    differences_table,
    options_table,
    remarks,
    to_csv,
    to_page,
    to_text,
)
from bvae.session import SessionRecord
from bvae.storage import read_json, sealed, to_json
from bvae.visualization.latents import plot_rate_distortion

HOSTILE = '=cmd("\x1b[31m")<script>alert(1)</script>\u202e'
OUTCOMES: Outcomes = {
    name: {seed: result(name, seed, object_iou=0.2 + seed / 100) for seed in range(3)} for name in "AB"
}


def side(
    label: str,
    outcomes: Outcomes = OUTCOMES,
    *,
    folder: str = "",
    corpus: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Side:
    """Return a session with constructed results."""
    experiment = ExperimentConfig(training=TrainingConfig(**(training or {})), **(config or {}))
    record = SessionRecord(
        **{
            "created": "2026-11-29T12:00:00+00:00",
            "command": (),
            "config": experiment,
            "corpus": dataclasses.replace(CORPUS, **(corpus or {})),
            "versions": {"bvae": "1", "torch": "2"},
            "commit": None,
            "hardware": {"processor": "x", "cores": 2},
            **changes,
        }
    )
    comparison = compare(record.corpus, experiment, outcomes)
    return Side(label, folder or f"runs/{label}", record, comparison)


OTHER_A = LossOption(name="A", gamma=1.0, class_weights="none", candidate=False, role="known-bad baseline")
OWN_B = dataclasses.replace(LOSS_OPTIONS["B"], training={"epochs": 3})
CHANGES: list[tuple[dict[str, Any], dict[str, tuple[str, str]]]] = [
    ({}, {}),
    ({"training": {"beta": 0.008}}, {"β": ("0.004", "0.008")}),
    ({"training": {"beta": 0.0040000001}}, {"β": ("0.004", "0.0040000001")}),
    ({"training": {"latent_dim": 8}}, {"latent dimensions": ("32", "8")}),
    ({"training": {"model": "own:make"}}, {"model": ("bvae.beta_vae:BetaVAE", "own:make")}),
    ({"config": {"band": AccuracyBand(0.5, 0.9)}}, {"accuracy band": ("0.7:0.8", "0.5:0.9")}),
    ({"config": {"padding_value": 0}}, {"padding value": ("none", "0")}),
    ({"config": {"background": 3}}, {"background": ("0", "3")}),
    (
        {"config": {"options": (*ExperimentConfig().options[:1], OWN_B)}},
        {"settings that options set for themselves": ("none", "B: epochs 3 instead of 5")},
    ),
    ({"corpus": {"fingerprint": "1" * 64}}, {"corpus fingerprint": ("0" * 12, "1" * 12)}),
    (
        {"corpus": {"name": HOSTILE}},
        {"corpus": ("made-up", HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e"))},
    ),
    ({"versions": {"bvae": "1", "torch": "3"}}, {"version of torch": ("2", "3")}),
    ({"versions": {"bvae": "1"}}, {"version of torch": ("2", "none")}),
    ({"commit": "c" * 40}, {"commit": ("unknown", "c" * 12)}),
    ({"hardware": {"processor": "x", "cores": 2, "gpu": "H"}}, {"machine: gpu": ("none", "H")}),
    ({"config": {"options": (OTHER_A, *ExperimentConfig().options[1:])}}, {"γ of A": ("2.0", "1.0")}),
    ({"outcomes": {"A": OUTCOMES["A"]}}, {"options": ("A, B", "A")}),
    ({"outcomes": {name: {0: OUTCOMES[name][0]} for name in "AB"}}, {"seeds": ("0, 1, 2", "0")}),
]


@pytest.mark.unit
@pytest.mark.parametrize(("changes", "expected"), CHANGES, ids=str)
def test_exactly_the_settings_that_differ_are_named_with_each_value(
    changes: dict[str, Any], expected: dict[str, tuple[str, str]]
) -> None:
    shared, differing = contrast([side("a"), side("b", **changes)])
    assert differing == expected
    assert contrast([side("a", **changes), side("b")])[1] == {k: v[::-1] for k, v in expected.items()}
    for name, (ours, theirs) in expected.items():
        assert f" {name} {ours}" not in shared
        assert f"{name}: a {ours}; b {theirs}" in to_text([side("a"), side("b", **changes)])


@pytest.mark.unit
def test_shared_settings_are_one_sentence_without_defaults() -> None:
    training = {"learning_rate": 0.5}
    shared, _ = contrast([side(label, training=training) for label in "ab"])
    assert shared == (
        "The sessions share corpus made-up, corpus fingerprint 000000000000, training grids 100, "
        "validation grids 10, background rate 0.800, grid size 16, classes 10, background 0, "
        "accuracy band 0.7:0.8, options A, B, seeds 0, 1, 2, learning rate 0.5, "
        "the defaults of all other settings, the definitions of their options, the versions and the machine."
    )


@pytest.mark.unit
def test_differences_to_the_first_session_equal_those_to_a_baseline() -> None:
    better = {"A": {seed: result("A", seed, object_iou=0.5 + seed / 100) for seed in range(3)}}
    iou, accuracy = differences_table([side("a"), side("b", better)])
    expected = difference("A", "object_iou", [0.2, 0.21, 0.22], [0.5, 0.51, 0.52])
    assert expected.interval is not None
    low, high = expected.interval
    assert iou[:3] == ("b − a", "A", "object IoU")
    assert iou[5:] == ("+0.3000", f"{low:+.4f} to {high:+.4f}", "better")
    assert accuracy[5:] == ("+0.0000", "+0.0000 to +0.0000", "no difference beyond noise")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcomes": {"A": {0: OUTCOMES["A"][0]}}}, "cannot tell: a session has one seed"),
        ({"outcomes": {"A": {**OUTCOMES["A"], 2: "interrupted"}}}, "cannot tell: a number is undefined"),
        ({"corpus": {"fingerprint": "1" * 64}}, "not comparable"),
        ({"config": {"grid_size": 8}}, "not comparable"),
    ],
)
def test_the_table_says_why_a_difference_is_meaningless(changes: dict[str, Any], words: str) -> None:
    sides = [side("a"), side("b", **changes)]
    assert {row[-1] for row in differences_table(sides)} == {words}
    assert any("not comparable" in each for each in remarks(sides)) == (words == "not comparable")


@pytest.mark.unit
def test_sessions_without_a_common_option_have_no_differences() -> None:
    sides = [side(name.lower(), {name: OUTCOMES[name]}) for name in "AB"]
    assert differences_table(sides) == []
    assert to_text(sides)[-1].startswith("The first session shares no option with another")


@pytest.mark.unit
def test_a_run_that_did_not_finish_is_incomplete_and_counted() -> None:
    sides = [side("a"), side("b", {"A": {0: OUTCOMES["A"][0], 1: "A-seed1 was begun and did not finish"}})]
    row = [str(cell) for cell in options_table(sides)[-1]]
    assert row[:4] == ["b A", "1 of 2", "incomplete", "undefined (0.800)"]
    assert remarks(sides) == ["b: incomplete: A-seed1 was begun and did not finish."]
    assert len(list(csv.reader(io.StringIO(to_csv(sides))))) == 1 + 6 + 2


@pytest.mark.unit
def test_the_csv_has_every_number_of_every_run_exactly() -> None:
    sides = [side("a"), side("b", training={"beta": 0.5})]
    rows = [*csv.DictReader(io.StringIO(to_csv(sides)))]
    runs = [run for each in sides for _, run in each.runs]
    assert [row["β"] for row in rows] == ["0.004"] * 6 + ["0.5"] * 6
    for row, run in zip(rows, runs, strict=True):
        assert run.metrics is not None
        for name, value in run.metrics.numbers().items():
            assert row[name] == ("" if value is None else str(value))


@pytest.mark.unit
@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_cell_of_the_csv_is_a_formula(start: str) -> None:
    text = f"{start}cmd()"
    sides = [side("a", folder=text), side("b", corpus={"name": text}, versions={text: text})]
    cells = [cell for row in csv.reader(io.StringIO(to_csv(sides), newline="")) for cell in row]
    assert any("cmd()" in cell for cell in cells)
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] == []


@pytest.mark.unit
def test_markup_and_control_characters_are_only_text() -> None:
    sides = [side("a"), side("b", corpus={"name": HOSTILE}, versions={HOSTILE: HOSTILE})]
    points, looks = chart_points(sides)
    picture = io.BytesIO()
    plot_rate_distortion(points, looks=looks, path=picture)
    page = to_page(sides, picture.getvalue())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3
    for text in (page, "".join(to_text(sides))):
        assert "\x1b" not in text
        assert "\u202e" not in text


# ---- the chart


@pytest.mark.unit
@settings(max_examples=20)
@given(
    st.dictionaries(
        st.text(max_size=40), st.lists(st.tuples(st.floats(), st.floats()), max_size=4), max_size=5
    )
)
def test_the_chart_shows_finite_points_in_bits_and_the_mean_per_label(
    points: dict[str, list[tuple[float, float]]],
) -> None:
    largest = float(np.finfo(np.float32).max)
    figure = plot_rate_distortion(points)
    finite = {k: [p for p in v if max(map(abs, p)) <= largest] for k, v in points.items()}
    finite = {label: [p for p in each if not np.isnan(p).any()] for label, each in finite.items()}
    finite = {label: each for label, each in finite.items() if each}
    drawn = [c.get_offsets().tolist() for axes in figure.axes for c in axes.collections]
    assert len(drawn) == 2 * len(finite)
    for number, each in enumerate(finite.values()):
        bits = np.array(each) / (np.log(2), 1)
        assert np.allclose(drawn[2 * number], bits)
        assert np.allclose(drawn[2 * number + 1], [bits.mean(0)])


@pytest.mark.unit
def test_colours_show_options_and_marks_show_sessions() -> None:
    points, looks = chart_points([side("a"), side("b", {"B": OUTCOMES["B"]})])
    assert [*points] == [*looks] == ["a A", "a B", "b B"]
    assert looks == {"a A": (0, 0), "a B": (1, 0), "b B": (1, 1)}
    assert points["b B"] == [(4.0, 0.2 + seed / 100) for seed in range(3)]


# ---- sessions on disk


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions that differ in corpus, classes, β and seeds. Tests must not change them."""
    folder = tmp_path_factory.mktemp("side")
    grids = np.random.default_rng(0).integers(0, 10, (60, 8, 8)) * (np.arange(8) < 3)
    for name, changes in {
        "one": {"loss_options": "A"},
        '=cmd("")<script>': {"loss_options": "A,B", "seeds": "2", "beta": "0.5", "classes": "12"},
    }.items():
        np.savez(folder / f"{name}.npz", train=grids[:48], val=grids[48:])
        given = SETTINGS | {"corpus": str(folder / f"{name}.npz"), "epochs": "1"} | changes
        experiment = Experiment.prepare(parse_experiment(given), folder / name[0], [])
        experiment.open_session()
        for option in experiment.config.options:
            for seed in range(experiment.config.seeds):
                experiment.obtain((option, seed))
        experiment.session.point_latest()
        experiment.close_session(interrupted=False)
        grids = grids[::-1]
    return folder


@pytest.fixture
def session(runs: Path, tmp_path: Path) -> Path:
    """A copy of the second session."""
    return shutil.copytree((runs / "=/latest").resolve(), tmp_path / "session")


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the modification time and the content of every entry of a folder."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def refusal(capsys: pytest.CaptureFixture[str], *folders: Path | str) -> str:
    """Return the message with which the command refuses folders, which must be one line."""
    assert main(["compare", *map(str, folders)]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("ERROR: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.unit
def test_the_csv_has_the_training_settings_of_each_option() -> None:
    options = (LOSS_OPTIONS["A"], OWN_B)
    sides = [side("a", config={"options": options}), side("b", training={"epochs": 8})]
    rows = [*csv.DictReader(io.StringIO(to_csv(sides)))]
    epochs = {(row["session"], row["option"]): row["epochs"] for row in rows}
    assert epochs == {("a", "A"): "5", ("a", "B"): "3", ("b", "A"): "8", ("b", "B"): "8"}


@pytest.mark.unit
def test_sessions_of_another_background_are_not_comparable() -> None:
    assert (
        "b differs from session a in corpus, grid size, number of classes or background class"
        in remarks([side("a"), side("b", config={"background": 3})])[0]
    )


@pytest.mark.slow
def test_no_file_is_written_into_a_session_or_through_a_link(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, sessions = contents(runs), (str(runs / "o/latest"), str(runs / "=/latest"))
    (tmp_path / "link").symlink_to(tmp_path / "page.html")
    for path in (runs / "o/latest/session.json", runs / "o/latest/new/page.html", tmp_path / "link"):
        for flag in ("--html", "--csv"):
            other = f"--{'csv' if flag == '--html' else 'html'}={tmp_path / 'new/file'}"
            assert main(["compare", *sessions, other, f"{flag}={path}"]) == 4
            assert not (tmp_path / "new").exists()
            assert "is refused; expected a file that is no link and in no session" in capsys.readouterr().err
    both = (f"{flag}={tmp_path / 'both'}" for flag in ("--html", "--csv"))
    assert main(["compare", *sessions, *both]) == 4
    assert contents(runs) == before
    assert {path.name for path in tmp_path.iterdir()} == {"link"}


@pytest.mark.slow
def test_the_command_writes_only_the_requested_files(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(runs)
    files = [f"--html={tmp_path / 'page.html'}", f"--csv={tmp_path / 'new/table.csv'}"]
    assert main(["compare", str(runs / "o/latest"), str(runs / "=/latest"), *files]) == 0
    assert contents(runs) == before
    said = capsys.readouterr().out
    for line in (
        "β: a 0.004; b 0.5",
        "classes: a 10; b 12",
        "options: a A; b A, B",
        "seeds: a 0; b 0, 1",
        'corpus: a one.npz; b =cmd("")<script>.npz',
        "not comparable",
    ):
        assert line in said
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    rows = [*csv.DictReader(io.StringIO((tmp_path / "new/table.csv").read_text()))]
    assert [(row["session"], row["option"], row["seed"]) for row in rows] == [
        *(("a", "A", "0"), ("b", "A", "0"), ("b", "A", "1"), ("b", "B", "0"), ("b", "B", "1"))
    ]
    assert rows[1]["corpus"] == '\'=cmd("")<script>.npz'


@pytest.mark.slow
def test_single_runs_and_latest_are_compared(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(runs / "o")
    assert main(["compare", "latest", str(runs / "=/latest/B-seed1")]) == 0
    said = capsys.readouterr().out
    assert "options: a A; b B" in said
    assert "seeds: a 0; b 1" in said


@pytest.mark.slow
def test_a_result_that_was_changed_is_incomplete(
    runs: Path, session: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = session / "A-seed1/result.json"
    path.write_bytes(path.read_bytes().replace(b'"seconds": ', b'"seconds": 1'))
    with pytest.warns(EvidenceWarning, match="counts as incomplete"):
        assert main(["compare", str(session), str(runs / "o/latest")]) == 0
    said = capsys.readouterr().out
    assert "1 of 2  incomplete" in said
    assert "a: incomplete: A-seed1: result.json is not what bvae wrote" in said


@pytest.mark.slow
def test_wrong_folders_are_refused_in_one_sentence(
    runs: Path, session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = runs / "o/latest"
    assert "1 given; expected two" in refusal(capsys, other)
    assert "is given twice" in refusal(capsys, other, other.resolve())
    assert "has no session.json; expected the folder" in refusal(capsys, other, tmp_path / "none\x1b")
    assert "has no session.json" in refusal(capsys, other, tmp_path)
    assert "it has no run that was begun" in refusal(capsys, other, session / "comparison")
    (tmp_path / "loop").symlink_to("loop")
    refusal(capsys, other, tmp_path / "loop")
    os.mkfifo(session / "pipe")
    assert "pipe is a pipe" in refusal(capsys, other, session)
    (session / "pipe").unlink()
    (session / "A-seed0/filmstrip.png").unlink(missing_ok=True)
    (session / "A-seed0/filmstrip.png").symlink_to("/etc/passwd")
    assert "filmstrip.png is a symbolic link" in refusal(capsys, other, session)
    (session / "A-seed0/filmstrip.png").unlink()
    (session / "session.json").write_text("{")
    assert "session.json: not the JSON" in refusal(capsys, other, session)


def recorded_counts(session: Path, counts: tuple[int, ...]) -> None:
    """Write other class counts of the corpus into the sealed record of a session."""
    path = session / "session.json"
    record = read_json(path, SessionRecord)
    corpus: CorpusRecord = dataclasses.replace(record.corpus, class_counts=counts)
    path.write_bytes(to_json(sealed(dataclasses.replace(record, corpus=corpus))))


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, -1])
def test_sealed_counts_without_class_weights_are_refused(
    runs: Path, session: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    recorded_counts(session, (count,) * 12)
    said = refusal(capsys, runs / "o/latest", session)
    assert f"{session} cannot be compared: class counts are [{count}.0, " in said
    assert "expected one finite number >= 0 for each class, at least one > 0" in said


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(1,), (2**62,) * 12, (1,) * 63], ids=lambda counts: str(len(counts)))
def test_other_sealed_counts_change_nothing_that_is_shown(
    runs: Path, session: Path, capsys: pytest.CaptureFixture[str], counts: tuple[int, ...]
) -> None:
    page, shown = session.with_name("page.html"), []
    for change in (lambda: None, lambda: recorded_counts(session, counts)):
        change()
        assert main(["compare", str(runs / "o/latest"), str(session), f"--html={page}"]) == 0
        shown.append((capsys.readouterr().out, page.read_text()))
    assert shown[0] == shown[1]


def recorded_numbers(session: Path, **numbers: float) -> None:
    """Write other metrics into the sealed results of A, with the opposite sign for the second seed."""
    for seed, sign in enumerate((1, -1)):
        path = session / f"A-seed{seed}/result.json"
        found = read_json(path, RunResult)
        assert found.metrics is not None
        metrics = dataclasses.replace(found.metrics, **{k: sign * value for k, value in numbers.items()})
        path.write_bytes(to_json(sealed(dataclasses.replace(found, metrics=metrics))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"object_iou": 7.0}, "object_iou of A-seed0 is 7; expected 0 to 1"),
        ({"pixel_accuracy": -1e308}, "pixel_accuracy of A-seed0 is -1e+308; expected 0 to 1"),
        ({"kl": 1.7e308}, "too large for a float"),  # the deviation over both seeds
        ({"kl": -1.7e308}, "too large for a float"),
    ],
    ids=str,
)
def test_a_sealed_result_with_impossible_numbers_is_refused(
    runs: Path, session: Path, capsys: pytest.CaptureFixture[str], numbers: dict[str, float], reason: str
) -> None:
    recorded_numbers(session, **numbers)
    said = refusal(capsys, runs / "o/latest", session)
    assert f"{session} cannot be compared: " in said
    assert reason in said


@pytest.mark.slow
def test_a_sealed_result_with_a_huge_number_is_shown(
    runs: Path, session: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded_numbers(session, kl=1e150)
    page, table = session.with_name("page.html"), session.with_name("table.csv")
    files = (f"--html={page}", f"--csv={table}")
    assert main(["compare", str(runs / "o/latest"), str(session), *files]) == 0
    for text in (capsys.readouterr().out, page.read_text()):
        assert "0 ± 2e+150" in text  # the deviation of ±1e150 nats in bits
    rows = [*csv.DictReader(table.read_text().splitlines())]
    assert {"1e+150", "-1e+150"} <= {row["kl"] for row in rows}
