"""An experiment in shards. Every run is in one shard, and merged shards equal the undivided session."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz_session_files import SETTINGS
from hypothesis import given
from hypothesis import strategies as st
from lab import THREE_SEEDS, SessionHere, Uninterrupted, evidence, furnish, newest

from bvae.__main__ import main
from bvae.experiment import Experiment
from bvae.options import parse_experiment
from bvae.records import EpochEnded, Event, RunResult
from bvae.session import SessionRecord
from bvae.session.continuation import shard_of
from bvae.session.listeners import MetricsLog
from bvae.storage import is_sealed, read_json, sealed, to_json

slow = pytest.mark.slow


@pytest.mark.unit
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_every_run_is_in_exactly_one_shard(options: int, seeds: int, data: st.DataObject) -> None:
    runs = [(option, seed) for option in range(options) for seed in range(seeds)]
    count = data.draw(st.integers(1, len(runs)))
    shards = [shard_of(runs, f"{place}/{count}") for place in range(1, count + 1)]
    assert sorted(run for shard in shards for run in shard) == runs
    assert {len(shard) for shard in shards} <= {len(runs) // count, -(-len(runs) // count)}


@pytest.mark.unit
@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/7", "1", "", "-1/2", "1/2/3", "a/b", "1/2\n", "١/٢"])
def test_a_wrong_shard_is_refused_with_the_limits(shard: str) -> None:
    with pytest.raises(ValueError, match="expected I/N with I from 1 to N, and N at most 6, the number of"):
        shard_of(range(6), shard)


@pytest.mark.unit
@pytest.mark.parametrize("count", ["0", "-1", "2.0", "many", "3"])
def test_a_wrong_number_of_shards_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "--loss-options=A,B", "--seeds=1", "--", count]) == 4
    expected = f"N is {count!r}; expected a whole number from 1 to 2, the number of runs"
    assert capsys.readouterr().err == f"ERROR: {expected}\n"


@pytest.mark.unit
def test_the_commands_carry_every_option_quoted_for_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my options.toml").write_text("[D]\ngamma = 1.0\nclass_weights = 'none'\n")
    options = ["--corpus=a $b.npz", "--padding-value=-1", "--loss-options-file=my options.toml"]
    assert main(["shards", "2", *options, "--seeds", "5", "--run-dir=my runs", "--engine", "ray:local"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    given = {*options, "--seeds=5", "--engine=ray:local"}
    for place, command in enumerate(commands, 1):
        own = [f"--shard={place}/2", f"--run-dir=my runs/shard-{place}"]
        assert command[:4] == ["pytest", "experiments/", *own]
        assert {*command[4:]} == given
    assert len(commands) == 2
    assert main(["shards", "10"]) == 4
    assert "from 1 to 9, the number of runs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["shards", "--help"])
    assert "--shard=$SLURM_ARRAY_TASK_ID/4" in capsys.readouterr().out


@slow
def test_merged_shards_equal_the_undivided_session(
    lab: Path,
    session_here: SessionHere,
    uninterrupted: Uninterrupted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(log: MetricsLog, event: Event) -> None:
        if isinstance(event, EpochEnded) and len(event.history) == 2:
            raise KeyboardInterrupt

    assert main(["shards", "3", *THREE_SEEDS]) == 0
    first, *others = [shlex.split(line)[2:] for line in capsys.readouterr().out.splitlines()]
    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "__call__", interrupt)
        status, said = session_here(*first, no_reraise_ctrlc=True)
    assert status == 2, said
    assert re.search(r"Resume with: pytest experiments/ --shard=1/3 --resume=\S+/runs/shard-1/", said)
    assert main(["merge", "runs/shard-1/latest"]) == 4
    assert "no shard has a finished run" in capsys.readouterr().err
    for arguments in (["--shard=1/3", "--resume=runs/shard-1/latest"], *others):
        status, said = session_here(*arguments)
        assert status == 0, said
        assert "2 deselected" in said  # the gates
    folders = [lab / f"runs/shard-{place}/latest" for place in (1, 2, 3)]
    runs = [sorted(path.name for path in folder.glob("*-seed*")) for folder in folders]
    assert runs == [["A-seed0"], ["A-seed1"], ["A-seed2"]]

    capsys.readouterr()
    assert main(["merge", *map(str, folders)]) == 0
    said = capsys.readouterr().out
    assert f"Session: {newest(lab)} (" in said
    assert "hardware of the shards differs" not in said
    merged = evidence(newest(lab))
    del merged["report.html"]
    assert merged == uninterrupted(*THREE_SEEDS)
    for folder in folders:
        for result in folder.glob("*-seed*/result.json"):
            assert (newest(lab) / result.parent.name / "result.json").read_bytes() == result.read_bytes()

    assert main(["merge", *map(str, folders[:2])]) == 1
    hint = f"Missing: A-seed2. Train them with: pytest experiments/ --resume={newest(lab)}"
    assert hint in capsys.readouterr().out
    status, said = session_here("--resume=runs/latest")
    assert status == 1, said
    assert evidence(newest(lab)).items() >= uninterrupted(*THREE_SEEDS).items()


# ---- folders that are not trusted

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two shards of one experiment, each with one run."""
    folder = furnish(tmp_path_factory.mktemp("shards"))
    for place in (0, 1):
        config = parse_experiment(SETTINGS | {"corpus": str(folder / "corpus.npz"), "epochs": "1"})
        experiment = Experiment.prepare(config, folder / "runs", [])
        experiment.open_session()
        experiment.obtain((config.options[place], 0))
        experiment.close_session(interrupted=False)
        experiment.session.path.rename(folder / f"shard-{place}")
    shutil.rmtree(folder / "runs")
    return folder


@pytest.fixture
def shards(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the two shards, in the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_the_corpus_shards_are_merged_but_not_compared(
    trained: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = (trained / "corpus.npz").rename(trained / "hidden.npz")
    try:
        assert main(["merge", "shard-0", "shard-1"]) == 4
    finally:
        hidden.rename(trained / "corpus.npz")
    merged, said = newest(shards), capsys.readouterr()
    assert f"Merged into {merged}. Comparing its runs." in said.out
    assert "cannot be used: " in said.err
    assert len([*merged.glob("*-seed*/result.json")]) == 2
    assert not (merged / "comparison").exists()


def reseal(path: Path, kind: type[Any], **changes: Any) -> None:
    path.write_bytes(to_json(sealed(dataclasses.replace(read_json(path, kind), **changes))))


def record_with(**changes: Any) -> Change:
    def change(shard: Path) -> None:
        record = read_json(shard / "session.json", SessionRecord)
        made = {name: make(record) for name, make in changes.items()}
        reseal(shard / "session.json", SessionRecord, **made)

    return change


def copy_of_the_other_with(**changes: Any) -> Change:
    def change(shard: Path) -> None:
        shutil.copytree(shard.with_name("shard-0") / "A-seed0", shard / "A-seed0")
        reseal(shard / "A-seed0/result.json", RunResult, **changes)

    return change


def other_corpus(shard: Path) -> None:
    shutil.rmtree(shard / "B-seed0")
    record_with(corpus=lambda record: dataclasses.replace(record.corpus, fingerprint="0" * 64))(shard)


def edit_verdict(shard: Path) -> None:
    result = shard / "B-seed0/result.json"
    result.write_text(re.sub(r'"verdict": "\w+"', '"verdict": "healthy"', result.read_text()))


def edit_session(shard: Path) -> None:
    record = json.loads((shard / "session.json").read_text())
    (shard / "session.json").write_text(json.dumps(record | {"commit": "0"}))


REFUSED: list[tuple[Change, str]] = [
    (shutil.rmtree, "shard-1 has no session.json; expected the folder of a session"),
    (edit_session, "cannot be merged: .*session.json is not what bvae wrote: its seal does not match"),
    (edit_verdict, "cannot be merged: B-seed0: result.json is not what bvae wrote: its seal does not match"),
    (lambda shard: (shard / "B-seed0/metrics.jsonl").write_text(""), "B-seed0: metrics.jsonl has changed"),
    (lambda shard: (shard / "B-seed0/x.png").symlink_to("/etc/passwd"), "x.png is a symbolic link"),
    (
        record_with(config=lambda record: dataclasses.replace(record.config, seeds=2)),
        "shard-0 and .*shard-1 are not shards of one experiment: seeds is 1 and 2$",
    ),
    (other_corpus, r"not shards of one experiment: corpus fingerprint is '\w+' and '0{64}'$"),
    (
        record_with(versions=lambda record: {**record.versions, "torch": "1.0\x1b"}),
        r"version of torch is '[^']+' and '1.0\\+x1b'$",
    ),
    (copy_of_the_other_with(reason="luck"), "shard-0 and .*shard-1 have different results of A-seed0; leave"),
]


@slow
@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_a_shard_that_cannot_be_merged_is_refused_with_one_sentence(
    shards: Path, capsys: pytest.CaptureFixture[str], change: Change, sentence: str
) -> None:
    change(shards / "shard-1")
    assert main(["merge", "shard-0", "shard-1"]) == 4
    said = capsys.readouterr().err
    assert re.search(sentence, said.strip())
    assert said.startswith("ERROR: ")
    assert said.count("\n") == 1
    assert not (shards / "runs").exists()


@slow
def test_merging_accepts_other_hardware_and_leaves_out_foreign_files(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = shards / "shard-0", shards / "shard-1"
    copy_of_the_other_with(seconds=9.0)(second)
    record_with(hardware=lambda record: {**record.hardware, "processor": "another"})(second)
    (first / "A-seed0/notes.txt").write_text("mine")
    (first / "A-seed0/checkpoints/own.safetensors.sh").write_text("mine")
    before = evidence(shards)
    assert main(["merge", "shard-0", "shard-1"]) == 0
    assert re.search(
        r"hardware of the shards differs \(processor: .*, another\), so results may not",
        capsys.readouterr().out,
    )
    merged = newest(shards)
    record = read_json(merged / "session.json", SessionRecord)
    assert is_sealed(record)
    assert str(record.hardware["processor"]).endswith(", another")
    assert {name: digest for name, digest in evidence(shards).items() if "runs/" not in name} == before
    copied = {name.partition("/")[2] for name in evidence(merged) if name.startswith("A-seed0/")}
    assert copied == {
        *("config.json", "metrics.jsonl", "result.json", "filmstrip.png"),
        *(f"checkpoints/{name}.safetensors" for name in ("best", "epoch_001")),
        *(f"checkpoints/reconstructions_{name}.png" for name in ("best", "epoch_001")),
    }
