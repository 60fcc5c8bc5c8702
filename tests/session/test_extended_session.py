"""A session that is resumed with more seeds, more options, more epochs, or another accuracy band."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evidence_factory import history
from hypothesis import given
from hypothesis import strategies as st
from lab import TINY, SessionHere, comparison, evidence, furnish, newest, running, sabotage

from bvae.__main__ import main
from bvae.config import LOSS_OPTIONS, ExperimentConfig, RunConfig, TrainingConfig
from bvae.corpus import Corpus, load_corpus
from bvae.records import Progress, RunResult
from bvae.session import SessionRecord
from bvae.session.continuation import extended
from bvae.session_files import checkpoints, digests
from bvae.storage import is_sealed, read_json, sealed, to_json
from bvae.trainer import Trainer
from bvae.training.checkpoint import CheckpointError, load_checkpoint
from bvae.training.optimization import learning_rate

slow = pytest.mark.slow

ONE = (*TINY, "--loss-options", "A")
"""Options for one run of two epochs of three steps."""

LONGER = ("--resume=runs/latest", "--epochs", "4", "--extend")


def stamps(session: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of every file of every run."""
    return {
        str(path.relative_to(session)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(session.glob("*-seed*/**/*"))
        if path.is_file() and not path.name.startswith(".")
    }


def epochs_of(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines())


def stage(epochs: int, *before: int) -> RunConfig:
    """Return the configuration of a run that was extended at each number of epochs in `before`."""
    training = TrainingConfig(epochs=epochs, extended_from=before)
    return ExperimentConfig(training=training).run(LOSS_OPTIONS["B"], 0, "0" * 64)


# ---- settings


@pytest.mark.unit
@given(st.sets(st.integers(1, 20), min_size=1), st.sets(st.integers(1, 20), min_size=1))
def test_a_run_continues_those_that_trained_the_same_epochs_so_far(one: set[int], other: set[int]) -> None:
    own, its = sorted(one), sorted(other)
    continues = stage(own[-1], *own[:-1]).continues(stage(its[-1], *its[:-1]))
    assert continues == (own[: len(its)] == its)


@pytest.mark.unit
def test_a_run_continues_no_run_of_another_setting() -> None:
    run, other = stage(4, 2), stage(2)
    assert run.continues(other)
    assert not run.continues(dataclasses.replace(other, seed=1))
    slower = dataclasses.replace(other.training, learning_rate=1e-4)
    assert not run.continues(dataclasses.replace(other, training=slower))


@pytest.mark.unit
def test_new_options_come_last_so_that_options_keep_their_colours() -> None:
    then = ExperimentConfig(options=(LOSS_OPTIONS["C"], LOSS_OPTIONS["A"]))
    now, changes = extended(then, ExperimentConfig(), more_epochs=False)
    assert [option.name for option in now.options] == ["C", "A", "B"]
    assert changes == ("options C,A → C,A,B",)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seeds": 2}, "--seeds is 2; the session has 3"),
        ({"options": (LOSS_OPTIONS["B"],)}, "the session also has the option A; expected all of A,B,C"),
        ({"training": TrainingConfig(epochs=4)}, "--epochs is 4; the session has 5"),
        (
            {"training": TrainingConfig(epochs=9)},
            "--epochs 9 needs --extend, and may change results: schedules of learning rate",
        ),
    ],
)
def test_a_session_keeps_seeds_and_options_and_more_epochs_need_extend(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        extended(ExperimentConfig(), ExperimentConfig(**change), more_epochs=False)


# ---- sessions


@slow
def test_more_seeds_and_options_are_trained_and_the_finished_runs_stay(
    lab: Path, session_here: SessionHere
) -> None:
    (lab / "options.toml").write_text('[D]\ngamma = 1.0\nclass_weights = "none"\n')
    session_here(*ONE)
    session = newest(lab)
    first, old = stamps(session), (session / "session.json").read_bytes()
    status, said = session_here("--resume=runs/latest", "--seeds", "2", "--html=report.html")
    assert status == 1, said
    names = ("--loss-options-file=options.toml", "--loss-options=A,D", "--seeds=2")
    status, said = session_here("--resume=runs/latest", *names, "--html=report.html")
    assert status == 1, said
    assert newest(lab) == session
    assert stamps(session).items() >= first.items()
    assert {path.parent.name for path in session.glob("*/result.json")} == {
        *("A-seed0", "A-seed1", "D-seed0", "D-seed1")
    }
    assert (session / "session-1.json").read_bytes() == old
    for name in ("session.json", "session-1.json", "session-2.json"):
        assert is_sealed(read_json(session / name, SessionRecord))
    for text in (said, (lab / "report.html").read_text()):
        assert "seeds 1 → 2" in text
        assert "options A → A,D" in text
    assert list(comparison(lab)["options"]) == ["A", "D"]


@slow
def test_a_run_of_bvae_train_is_extended_by_bvae_train(
    lab: Path, session_here: SessionHere, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [word for word in TINY if word not in ("--seeds", "1")]
    assert main(["train", *alone, "--option", "A", "--seed", "1"]) == 0
    assert main(["train", "--resume=runs/latest", "--seeds", "3"]) == 0
    assert {path.parent.name for path in newest(lab).glob("*/result.json")} == {"A-seed1", "A-seed2"}
    assert main(["train", *LONGER]) == 0
    assert {epochs_of(run) for run in newest(lab).glob("A-*")} == {4}
    capsys.readouterr()
    assert main(["train", *alone, "--seeds", "3"]) == 4
    assert "--seeds extends a session; expected --resume=DIR" in capsys.readouterr().err
    assert main(["train", "--extend", "--epochs", "9"]) == 4
    assert "--extend trains a session to more epochs; expected also --resume" in capsys.readouterr().err


def give_evidence_of_a_good_model(run: Path) -> None:
    """Give a complete run the metrics of a model that learned the objects, with accuracy 0.76."""
    records = history(2.0, 1.0)
    (run / "metrics.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(records))
    result = read_json(run / "result.json", RunResult)
    result = dataclasses.replace(result, metrics=records[-1].validation, digests=digests(run))
    (run / "result.json").write_bytes(to_json(sealed(result)))


@slow
@pytest.mark.parametrize("command", ["report", "pytest"])
def test_another_band_judges_runs_again_without_training(
    lab: Path, session_here: SessionHere, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    session_here(*ONE)
    session = newest(lab)
    path = session / "A-seed0/result.json"
    give_evidence_of_a_good_model(path.parent)
    first, before = stamps(session), read_json(path, RunResult)
    for band, verdict in (("0.1:0.2", "above_band"), ("0.75:0.8", "healthy")):
        if command == "report":
            assert main(["report", str(session), f"--accuracy-band={band}"]) == 0
            said = capsys.readouterr().out
        else:
            _, said = session_here("--resume=runs/latest", f"--accuracy-band={band}")
        assert f"→ {band} (arguments: " in said
        judged = read_json(path, RunResult)
        assert is_sealed(judged)
        assert judged.verdict == verdict == comparison(lab)["options"]["A"]["verdict"]
        assert f"the band {band}" in judged.reason
        changed = {"verdict": before.verdict, "reason": before.reason, "seal": before.seal}
        assert dataclasses.replace(judged, **changed) == before
    now = stamps(session)
    assert {name for name in now if now[name] != first[name]} == {"A-seed0/result.json"}
    assert len([*session.glob("session-?.json")]) == 2


@slow
@pytest.mark.parametrize(("name", "moment"), [("A-seed0/result.json", "half")])
def test_after_a_kill_while_judging_again_the_next_report_judges(
    lab: Path, session_here: SessionHere, name: str, moment: str
) -> None:
    session_here(*ONE)
    session = newest(lab)
    give_evidence_of_a_good_model(session / "A-seed0")
    sabotage(lab, kill=[name, moment])
    with running(lab, "--resume=runs/latest", "--accuracy-band=0.1:0.2", "-n0") as process:
        assert process.wait(timeout=60) == -signal.SIGKILL
    status = main(["report", str(session)])
    band = read_json(session / "session.json", SessionRecord).config.band
    judged = read_json(session / "A-seed0/result.json", RunResult)
    assert status == 0
    assert (judged.verdict == "above_band") == (band.hi == 0.2)
    assert comparison(lab)["options"]["A"]["runs"][0]["verdict"] == judged.verdict


# ---- more epochs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(str(furnish(tmp_path_factory.mktemp("lab")) / "corpus.npz"), 8)


def trained(corpus: Corpus, folder: Path, *stages: int, restore: str = "", **settings: Any) -> dict[str, Any]:
    """Train a run whose stages end at these numbers of epochs; return its records and weights."""
    *before, epochs = stages
    training = TrainingConfig(
        epochs=epochs, extended_from=tuple(before), batch_size=16, precision="fp32", **settings
    )
    config = ExperimentConfig(corpus=corpus.spec, grid_size=8, training=training)
    trainer = Trainer(config.run(LOSS_OPTIONS["B"], 0, corpus.fingerprint), corpus, folder)
    if restore:
        trainer.restore(folder / f"checkpoints/{restore}.safetensors")
    records = [dataclasses.replace(record, seconds=0.0) for record in trainer.fit()]
    weights = {name: tensor.numpy().tobytes() for name, tensor in trainer.model.state_dict().items()}
    return {"records": records, **weights}


@slow
@pytest.mark.parametrize("settings", [{}, {"beta_schedule": "cyclical"}], ids=["constant", "cyclical"])
def test_a_run_extended_at_any_checkpoint_ends_with_the_same_bits(
    corpus: Corpus, tmp_path: Path, settings: dict[str, Any]
) -> None:
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    whole = trained(corpus, tmp_path / "whole", 2, 3, 5, **settings)
    shorter = trained(corpus, tmp_path, 2, **settings)
    assert whole["records"][:2] == shorter["records"]
    for record, total in zip(whole["records"], (6, 6, 9, 15, 15), strict=True):
        assert record.learning_rate == learning_rate(record.step - 1, total=total, warmup=50, peak=1e-3)
    trained(corpus, tmp_path, 2, 3, restore="epoch_001", **settings)
    assert trained(corpus, tmp_path, 2, 3, 5, restore="epoch_003", **settings) == whole
    trained(corpus, tmp_path / "again", 2, **settings)
    assert trained(corpus, tmp_path / "again", 2, 3, 5, restore="epoch_001", **settings) == whole
    with pytest.raises(CheckpointError, match="its configuration differs"):
        trained(corpus, tmp_path, 2, 5, restore="epoch_003", **settings)


@slow
def test_more_epochs_need_extend_and_can_be_added_twice(lab: Path, session_here: SessionHere) -> None:
    session_here(*ONE)
    session = newest(lab)
    run, first = session / "A-seed0", stamps(session)
    status, said = session_here("--resume=runs/latest", "--epochs=4")
    assert status == 4
    assert "--epochs 4 needs --extend, and may change results: schedules of learning rate" in said
    for needed in (("--resume=runs/latest",), ("--epochs=4",)):
        status, said = session_here("--extend", *needed)
        assert status == 4
        assert "--extend trains a session to more epochs; expected also --resume=DIR and --epochs N" in said
    assert stamps(session) == first
    for epochs, before in ((4, [2]), (5, [2, 4])):
        longer = ("--resume=runs/latest", f"--epochs={epochs}", "--extend", "--html=report.html")
        status, said = session_here(*longer)
        assert status == 1, said
        assert "EvidenceWarning" not in said
        assert epochs_of(run) == epochs
        for stored in (
            json.loads((run / "config.json").read_text())["training"],
            json.loads((session / "session.json").read_text())["config"]["training"],
            comparison(lab)["training"],
            load_checkpoint(checkpoints(run)[0], Progress).state.config.training.__dict__,
        ):
            assert (stored["epochs"], list(stored["extended_from"])) == (epochs, before)
        for text in (said, (lab / "report.html").read_text()):
            assert f"epochs {before[-1]} → {epochs}" in text
            assert f"results may differ from {epochs} epochs trained at once" in text
    assert len([*session.glob("session-?.json")]) == 2
    picture = "A-seed0/checkpoints/reconstructions_epoch_001.png"
    assert stamps(session)[picture] == first[picture]
    done = stamps(session)
    assert session_here(*longer)[0] == 1
    assert stamps(session) == done
    status, said = session_here("--resume=runs/latest", "--epochs=3")
    assert (status, "--epochs is 3" in said) == (4, True)


@slow
def test_an_extension_killed_during_a_write_resumes_with_identical_results(
    lab: Path, session_here: SessionHere
) -> None:
    session_here(*ONE)
    session, straight = newest(lab), lab / "straight"
    shutil.copytree(session, straight)
    status, said = session_here(f"--resume={straight}", *LONGER[1:])
    assert status == 1, said
    killed = {
        "A-seed0/config.json": "half",
        "A-seed0/result.json": "before",
    }
    for number, (name, moment) in enumerate(killed.items()):
        sabotage(lab, kill=[name, moment])
        with running(lab, *(LONGER[:1] if number else LONGER), "-n0") as process:
            assert process.wait(timeout=60) == -signal.SIGKILL, (lab / "output.txt").read_text()
    sabotage(lab)
    status, said = session_here(*LONGER[:1])
    assert status == 1, said
    assert "EvidenceWarning" not in said
    assert evidence(session) == evidence(straight)
