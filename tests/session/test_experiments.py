"""The main command as users run it: pytest, on a tiny corpus."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from lab import (
    THREE_SEEDS,
    TINY,
    SessionHere,
    Uninterrupted,
    comparison,
    evidence,
    hashes,
    newest,
    run_pytest,
    running,
    sabotage,
    squares,
)

from bvae import session_files
from bvae.config import RunConfig
from bvae.records import ControlledMetrics, Evaluation, ReconstructionMetrics
from bvae.session.folder import read_result
from bvae.storage import read_json

pytestmark = pytest.mark.slow


def test_a_session_leaves_every_documented_file(lab: Path) -> None:
    done = run_pytest("experiments/", *TINY, "-n0", "--html=report.html")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    session = newest(lab)
    for option in "ABC":
        run = session / f"{option}-seed0"
        checkpoints = {path.name for path in (run / "checkpoints").iterdir()}
        names = ("epoch_001", "epoch_002", "best")
        assert checkpoints >= {f"{name}.safetensors" for name in names}
        assert checkpoints >= {f"reconstructions_{name}.png" for name in names}
        assert (run / "filmstrip.png").exists()
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [epoch["epoch"] for epoch in epochs] == [1, 2]
        assert epochs[-1]["validation"] == json.loads((run / "result.json").read_text())["metrics"]
        assert json.loads((run / "config.json").read_text())["option"]["name"] == option
    assert {path.name for path in (session / "comparison").iterdir()} == {
        *("comparison.json", "comparison.md", "curves.png", "examples.png", "reconstructions.png"),
        *("verdicts.png", "tradeoff.png"),
        *("why_A.png", "why_B.png", "why_C.png"),
    }
    for path in filter(Path.is_file, session.rglob("*")):
        name = re.sub(r"\d{3}", "001", path.name).replace("_best", "_epoch_001").replace("why_C", "why_A")
        assert name.replace("why_B", "why_A") in str(session_files.__doc__), path
    record = json.loads((session / "session.json").read_text())
    assert record["corpus"]["fingerprint"] == comparison(lab)["corpus"]["fingerprint"]
    assert record["versions"].keys() >= {"bvae", "torch", "numpy", "python"}
    ours = {"corpus.npz", "experiments", "pytest.ini", "report.html", "runs"}
    caches = {"__pycache__", ".pytest_cache", ".hypothesis"}
    assert {path.name for path in lab.iterdir()} - caches == ours


def strictly(text: str) -> Any:
    """Parse JSON. Fail on NaN, which the parser of Python accepts."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_every_record_of_a_run_has_all_metrics_and_controls(lab: Path, session_here: SessionHere) -> None:
    session_here(*TINY, "--loss-options", "A", "--junitxml=junit.xml")
    run = newest(lab) / "A-seed0"
    epochs = [strictly(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    single, controlled, whole = (
        {field.name for field in dataclasses.fields(kind)}
        for kind in (ReconstructionMetrics, ControlledMetrics, Evaluation)
    )
    for found in (epochs[0]["validation"], strictly((run / "result.json").read_text())["metrics"]):
        assert found.keys() == whole
        assert found["shuffled"].keys() == single
        assert found["extent"].keys() == controlled
        assert len(found["class_recall"]) == len(found["extent"]["shuffled"]["class_recall"]) == 10
    corpus = comparison(lab)["corpus"]
    assert corpus["controls"] == {"extent": epochs[0]["validation"]["extent"]}
    names = {"background only", "nearest training grid", "nearest training grid, weighted", "PCA"}
    assert corpus["references"].keys() == names
    assert all(scored.keys() == controlled for scored in corpus["references"].values())
    cases = ElementTree.parse(lab / "junit.xml").iter("testcase")
    (case,) = (case for case in cases if "A-seed0" in case.get("name", ""))
    properties = {each.get("name"): each.get("value") for each in case.iter("property")}
    result = read_result(run, read_json(run / "config.json", RunConfig))
    assert result is not None
    assert properties == {name: str(value) for name, value in result.properties().items()}
    assert properties.keys() >= {"object_iou", "extent_object_iou", "shuffled_class_recall_9"}


def test_results_are_identical_in_one_process_and_with_workers(
    lab: Path, uninterrupted: Uninterrupted
) -> None:
    run_pytest("experiments/", *THREE_SEEDS, "-n2")
    assert evidence(newest(lab)) == uninterrupted(*THREE_SEEDS)
    assert len(set(hashes(newest(lab)).values())) == 3


def test_the_controller_of_workers_imports_neither_pytorch_nor_matplotlib(lab: Path) -> None:
    (lab / "conftest.py").write_text(
        "import os, pathlib, sys\n"
        "def pytest_unconfigure():\n"
        "    where = os.environ.get('PYTEST_XDIST_WORKER', 'controller')\n"
        "    pathlib.Path(f'imported-{where}').write_text('\\n'.join(sys.modules))\n"
    )
    done = run_pytest("experiments/", *TINY, "-n2", "--html=report.html", cwd=lab)
    assert "Session:" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert "The gate failed: no candidate is healthy" in done.stdout
    assert comparison(lab)["options"].keys() == {"A", "B", "C"}
    slow = {"torch", "matplotlib"}
    assert not slow & set((lab / "imported-controller").read_text().splitlines())
    assert slow <= set((lab / "imported-gw0").read_text().splitlines())


def test_an_option_is_explained_before_the_next_option_is_complete(lab: Path) -> None:
    sabotage(lab, slow=1.0)
    with running(lab, *TINY, "-n3", "--loss-options", "A,C", "--seeds", "2") as process:
        assert process.wait(timeout=120) == 1
    session = newest(lab)
    explained = (session / "comparison/why_A.png").stat().st_mtime_ns
    assert explained < max((session / f"C-seed{n}/result.json").stat().st_mtime_ns for n in range(2))
    assert (session / "comparison/why_C.png").exists()


def test_runs_go_in_order_and_the_gate_last(lab: Path, session_here: SessionHere) -> None:
    status, said = session_here(*TINY, "-v", "-p", "no:randomly")
    assert status == 1
    assert "The gate failed: no candidate is healthy" in said
    assert comparison(lab)["options"].keys() == {"A", "B", "C"}
    ids = [line.split("::")[1].split()[0] for line in said.splitlines() if "::test_" in line and "%" in line]
    assert ids == [*(f"test_loss_option[{o}-seed0]" for o in "ABC"), "test_stable_option_exists"]


@pytest.mark.parametrize(
    "how",
    [("-n2", "--dist", "worksteal"), ("-n2", "-k", "B-seed or stable")],
    ids=" ".join,
)
def test_the_gate_judges_any_assignment_of_runs_to_workers(lab: Path, how: tuple[str, ...]) -> None:
    done = run_pytest("experiments/", *TINY, *how)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_stable_option_exists" in done.stdout
    assert "The gate failed: no candidate is healthy" in done.stdout
    asked = {"B"} if "-k" in how else {"A", "B", "C"}
    assert comparison(lab)["options"].keys() == asked


def test_a_gate_alone_has_no_run_to_judge(session_here: SessionHere) -> None:
    status, said = session_here(*TINY, "-k", "stable")
    assert status == 1
    assert "no run of a candidate was selected" in said


def test_without_the_gate_the_comparison_is_written_and_the_output_says_so(
    lab: Path, session_here: SessionHere
) -> None:
    status, said = session_here(*TINY, "-k", "A-seed or B-seed")
    assert status == 0, said
    assert "The gate was not run" in said
    assert comparison(lab)["options"].keys() == {"A", "B"}


def test_nothing_selected_leaves_no_session(lab: Path, session_here: SessionHere) -> None:
    assert run_pytest("experiments/", *TINY, "-n2", "-k", "nothing").returncode == 5
    assert list((lab / "runs").iterdir()) == []
    for selected, expected in ((("-k", "nothing"), 5), (("--collect-only", "-q"), 0)):
        status, said = session_here(*TINY, *selected)
        assert status == expected, said
        assert list((lab / "runs").iterdir()) == []


def test_runxfail_makes_every_option_a_hard_assertion(session_here: SessionHere) -> None:
    brief = (*TINY, "--loss-options", "A,B", "--accuracy-band", "0.9999:1")
    assert "2 xfailed" in session_here(*brief)[1]
    assert "3 failed" in session_here(*brief, "--runxfail")[1]


CRASH = """
import os, signal
import bvae.trainer as trainer

step = trainer.Trainer._step

def dies(self, rows):
    if self.config.name == "{run}":
        {how}
    return step(self, rows)

trainer.Trainer._step = dies
"""


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        ("raise RuntimeError('made to fail')", ("-n0",)),
        ("os.kill(os.getpid(), signal.SIGKILL)", ("-n2",)),
        ("os.kill(os.getpid(), signal.SIGKILL)", ("-n1",)),
    ],
    ids=["error -n0", "killed worker -n2", "killed worker -n1"],
)
def test_a_crashed_run_is_reported_and_not_trained_again(
    lab: Path, how: str, arguments: tuple[str, ...]
) -> None:
    (lab / "conftest.py").write_text(CRASH.format(run="B-seed0", how=how))
    done = run_pytest("experiments/", *TINY, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    b = comparison(lab)["options"]["B"]
    assert b["verdict"] == "incomplete"
    assert b["runs"][0]["metrics"] is None
    assert "B-seed0 was begun by this command and ended without a result" in done.stdout
    assert not (newest(lab) / "B-seed0/result.json").exists()
    assert (newest(lab) / "C-seed0/result.json").exists()


def test_if_no_worker_is_left_the_controller_compares_the_existing_results(lab: Path) -> None:
    (lab / "conftest.py").write_text(CRASH.format(run="B-seed0", how="os.kill(os.getpid(), signal.SIGKILL)"))
    done = run_pytest("experiments/", *TINY, "-n1", "--max-worker-restart=0")
    assert done.returncode not in (0, 5)
    assert "The gate was not run" in done.stdout
    assert comparison(lab)["options"]["B"]["verdict"] == "incomplete"
    assert comparison(lab)["gate"]["passed"] is False


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return f"--corpus={path.name}"


LEARNING = (
    *("--epochs", "5", "--checkpoint-every", "4", "--learning-rate", "0.003", "--beta", "0.0002"),
    *("--accuracy-band", "0.3:1"),
)
"""Settings with which A and C learn the squares: IoU ≥ 0.9 for five of five seeds, in fp32 and bf16."""


def test_the_gate_passes_when_c_alone_is_healthy(lab: Path, session_here: SessionHere) -> None:
    corpus = save(lab / "squares.npz", **squares())
    status, said = session_here(*TINY, corpus, *LEARNING, "--loss-options", "C")
    assert comparison(lab)["options"]["C"]["verdict"] == "healthy", said
    assert comparison(lab)["gate"] == {"candidates": ["C"], "passed": True, "passed_by": ["C"]}
    assert status == 0


def test_the_gate_fails_when_only_a_passes(lab: Path, session_here: SessionHere) -> None:
    corpus = save(lab / "squares.npz", **squares())
    status, said = session_here(*TINY, corpus, *LEARNING, "--loss-options", "A")
    assert comparison(lab)["options"]["A"]["verdict"] == "healthy", said
    assert "no run of a candidate was selected" in said
    assert status == 1


def test_a_collapsed_model_in_the_band_fails_the_gate(lab: Path, session_here: SessionHere) -> None:
    """75 % of the cells are background, the others are noise. A few steps teach only the background."""
    rng = np.random.default_rng(1)
    noise = rng.integers(1, 10, (560, 8, 8)) * (rng.random((560, 8, 8)) > 0.75)
    corpus = save(lab / "noise.npz", train=noise[:480], val=noise[480:])
    status, _ = session_here(*TINY, corpus, "--loss-options", "B", "--accuracy-band", "0.7:0.8")
    b = comparison(lab)["options"]["B"]
    assert b["pixel_accuracy"]["mean"] == pytest.approx(0.75, abs=0.03)
    assert b["verdict"] == "mode_collapse"
    assert status == 1


def test_predicting_by_position_alone_fails_the_gate(lab: Path, session_here: SessionHere) -> None:
    """All grids have objects in the same places, so predictions are accurate without the input."""
    rng = np.random.default_rng(2)
    grids = np.zeros((400, 8, 8), int)
    grids[:, :4] = 3
    noise = rng.random(grids.shape) < 0.25
    grids[noise] = rng.integers(0, 10, noise.sum())
    corpus = save(lab / "prior.npz", train=grids[:320], val=grids[320:])
    status, said = session_here(
        *(*TINY, corpus, "--loss-options", "B", "--epochs", "15"),
        *("--learning-rate", "0.003", "--beta", "1", "--accuracy-band", "0.6:0.9"),
    )
    b = comparison(lab)["options"]["B"]
    assert 0.6 <= b["pixel_accuracy"]["mean"] <= 0.9, said
    assert b["verdict"] == "posterior_collapse"
    assert status == 1


def test_a_diverged_run_fails_the_gate_and_the_other_runs_continue(
    lab: Path, session_here: SessionHere
) -> None:
    status, _ = session_here(*TINY, "--learning-rate", "1e5", "--epochs", "3")
    options = comparison(lab)["options"]
    assert options["B"]["verdict"] == "diverged"
    assert options.keys() == {"A", "B", "C"}
    assert status == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--corpus=missing.npz"], "missing.npz"),
        (["--corpus=missing.npz", "-n0"], "missing.npz"),
        (["--corpus=corpus.txt"], "corpus.txt"),
        (["--corpus=objects.npz"], "pickle"),
        (["--corpus=floats.npy"], "float"),
        (["--corpus=range.npy"], "[5, 1, 2] is 11; cells are the classes 0–9; if there are more classes"),
        (["--corpus=range.npy", "--padding-value=-1"], "[5, 1, 2] is 11; cells are the classes 0–9, or -1"),
        (["--classes", "65"], "--classes is 65; expected a whole number of at least 2 and at most 64"),
        (["--classes", "many"], "--classes is 'many'; expected a whole number, or auto"),
        (
            ["--classes", "9"],
            "is 9; cells are the classes 0–8; if there are more classes, add --classes",
        ),
        (["--epochs", "0"], "--epochs is 0; expected a whole number of at least 1"),
        (["--beta", "nan"], "--beta is nan; expected a finite number of at least 0"),
        (["--accuracy-band", "0.8:0.7"], "--accuracy-band is 0.8:0.7; expected LO:HI"),
        (["--loss-options", "A,Z"], "--loss-options names 'Z'; expected names among A,B,C"),
        (["--device", "cuda:9"], "--device is 'cuda:9'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_sentence_and_exit_code_4(
    lab: Path, arguments: list[str], complaint: str
) -> None:
    (lab / "corpus.txt").write_text("no array")
    np.savez(lab / "objects.npz", train=np.array([{"a": 1}], dtype=object))
    np.save(lab / "floats.npy", np.zeros((9, 8, 8)))
    grids = np.zeros((9, 8, 8), int)
    grids[5, 1, 2] = 11
    np.save(lab / "range.npy", grids)
    done = run_pytest("experiments/", *TINY, "-n2", *arguments)
    assert done.returncode == 4, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("ERROR: ")
    assert complaint in errors[0]
    assert not (lab / "runs").exists()


def test_training_on_grids_of_several_sizes_resumes_with_identical_results(
    lab: Path, session_here: SessionHere
) -> None:
    with np.load(lab / "corpus.npz") as file:
        grids = np.concatenate([file["train"], file["val"]])
    for grid, height in zip(grids, np.random.default_rng(0).integers(4, 9, len(grids)), strict=True):
        grid[height:] = -1
    corpus = save(lab / "padded.npz", train=grids[:48], val=grids[48:])
    settings = (*TINY, corpus, "--padding-value=-1", "--loss-options", "B")
    status, said = session_here(*settings)
    assert status == 1, said
    assert "Grids differ in size; cells outside a grid are ignored." in said
    session = newest(lab)
    record = json.loads((session / "session.json").read_text())
    assert record["config"]["padding_value"] == -1
    assert record["corpus"]["has_outside"]
    assert json.loads((session / "B-seed0/config.json").read_text())["padding_value"] == -1
    metrics = comparison(lab)["options"]["B"]["runs"][0]["metrics"]
    cells = grids[48:][grids[48:] >= 0]
    assert metrics["background_rate"] == pytest.approx((cells == 0).mean())
    assert sum(map(sum, metrics["confusion"])) == len(cells)
    whole = evidence(session)
    (session / "B-seed0/result.json").unlink()
    for path in (session / "B-seed0/checkpoints").iterdir():
        if "epoch_001" not in path.name:
            path.unlink()
    status, said = session_here("--resume=latest")
    assert status == 1, said
    assert evidence(session) == whole


def test_a_folder_of_tasks_is_trained_and_resumed_at_its_detected_size(
    lab: Path, session_here: SessionHere
) -> None:
    rng, folder = np.random.default_rng(0), lab / "tasks"
    folder.mkdir()
    for task in range(40):
        pairs = [{"input": rng.integers(0, 10, (7, 5)).tolist()} for _ in range(6)]
        (folder / f"{task:08x}.json").write_text(json.dumps({"train": pairs, "test": []}))
    arguments = ("--epochs", "1", "--seeds", "1", "--batch-size", "8", "--loss-options", "B")
    status, said = session_here("--corpus=tasks", *arguments)
    assert status == 1, said
    recorded = json.loads((newest(lab) / "session.json").read_text())
    assert recorded["config"]["grid_size"] == 7
    assert recorded["corpus"]["train"] + recorded["corpus"]["val"] == 40 * 6
    before = evidence(newest(lab))
    for asked, expected in (("auto", 1), ("7", 1), ("8", 4)):
        status, said = session_here("--resume=runs/latest", "--grid-size", asked)
        assert status == expected, said
    assert "grid_size was 7 and is 8" in said
    assert evidence(newest(lab)) == before


@pytest.fixture
def hostile(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a corpus, a conftest.py that leaves a trace if it is used, and a pytest.ini."""
    folder = tmp_path_factory.mktemp("downloads")
    shutil.copy(lab / "corpus.npz", folder)
    (folder / "conftest.py").write_text(f"open({str(folder / 'used')!r}, 'w')\n")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    yield folder
    assert not (folder / "used").exists()


def test_a_pytest_configuration_next_to_a_corpus_is_not_used(lab: Path, hostile: Path) -> None:
    done = run_pytest("experiments/", *TINY, f"--corpus={hostile / 'corpus.npz'}", "-n0")
    assert done.returncode in (0, 1)
    assert f"configfile: {hostile}" not in done.stdout
    assert comparison(lab)["options"].keys() == {"A", "B", "C"}


@pytest.mark.parametrize("place", ["after the tests", "before the tests", "before the tests, configured"])
@pytest.mark.parametrize("option", ["--corpus", "--run-dir"])
def test_a_path_after_a_space_is_refused_with_the_correct_form(
    lab: Path, hostile: Path, option: str, place: str
) -> None:
    path = str(hostile / "corpus.npz" if option == "--corpus" else hostile)
    arguments = ["experiments/", option, path]
    if place == "before the tests, configured":
        # pytest then reads the pytest.ini of the hostile folder, which does not load bvae; `-p` does.
        arguments = ["-p", "bvae.plugin", option, path, "experiments/"]
    elif place == "before the tests":
        (hostile / "pytest.ini").unlink()
        arguments = [option, path, "experiments/"]
    done = run_pytest(*arguments)
    assert done.returncode == 4
    assert f"{option}={path}" in done.stderr


def test_the_gate_waits_for_the_process_that_trains_a_run(lab: Path) -> None:
    """While a slow worker holds the lock of a run, the gate in another worker waits and trains nothing."""
    (lab / "conftest.py").write_text(CRASH.format(run="B-seed0", how="import time; time.sleep(0.5)"))
    done = run_pytest("experiments/", *TINY, "-n2", "--maxschedchunk=1")
    assert done.returncode in (0, 1), done.stdout
    assert comparison(lab)["options"]["B"]["verdict"] != "incomplete"
    assert len((newest(lab) / "B-seed0/metrics.jsonl").read_text().splitlines()) == 2
