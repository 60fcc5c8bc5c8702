"""Command lines, names and sessions that cannot be used as given end in one sentence, and do no harm."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from lab import TINY

from bvae.laboratory import Laboratory
from bvae.options import FLAGS, parse_experiment

Refuse = Callable[..., str]


@pytest.fixture
def refusal(lab: Path, pytester: pytest.Pytester) -> Iterator[Refuse]:
    """What pytest says in one line, within this process, when it ends with exit code 4."""
    handler = signal.getsignal(signal.SIGTERM)

    def refuse(*arguments: str) -> str:
        done = pytester.runpytest_inprocess("experiments/", "-n0", *arguments)
        assert done.ret == pytest.ExitCode.USAGE_ERROR, done.stdout.str()
        lines = [line for line in done.stderr.lines if line]
        assert len(lines) == 1, done.stderr.str()
        assert lines[0].startswith("ERROR: ")
        return lines[0]

    yield refuse
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def begun(lab: Path) -> Path:
    """A session in which a run is about to begin, and whose process is gone."""
    given = dict.fromkeys((flag.key for flag in FLAGS), None)
    values = {"corpus": "corpus.npz", "grid_size": "8", "epochs": "2", "seeds": "1", "batch_size": "16"}
    laboratory = Laboratory.prepare(parse_experiment(given | values), lab / "runs", TINY)
    laboratory.open_session()
    laboratory.session.point_latest()
    return laboratory.session.path


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--epochs=3", "training.epochs was 2 and is 3"),
        ("--beta=0.5", "training.beta was 0.012 and is 0.5"),
        ("--corpus=other.npz", "corpus was 'corpus.npz' and is 'other.npz'"),
        ("--grid-size=12", "grid_size was 8 and is 12"),
        ("--precision=fp32", "training.precision was 'bf16' and is 'fp32'"),
        ("--loss-options=A,B", "options.2.name was 'C' and is None"),
    ],
)
def test_a_session_is_not_resumed_with_another_setting(
    lab: Path, begun: Path, refusal: Refuse, argument: str, complaint: str
) -> None:
    shutil.copy(lab / "corpus.npz", lab / "other.npz")
    assert complaint in refusal("--resume=latest", argument)


def test_a_session_is_not_resumed_on_a_changed_corpus(lab: Path, begun: Path, refusal: Refuse) -> None:
    np.savez(lab / "corpus.npz", train=np.eye(8, dtype=int)[None].repeat(9, 0))
    assert "corpus fingerprint was" in refusal("--resume=latest")


@pytest.mark.parametrize("package", ["torch", "numpy", "bvae"])
def test_a_session_is_not_resumed_with_another_version(begun: Path, refusal: Refuse, package: str) -> None:
    record = json.loads((begun / "session.json").read_text())
    record["versions"][package] = "0.0"
    (begun / "session.json").write_text(json.dumps(record))
    assert f"version of {package} was '0.0'" in refusal("--resume=latest")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\0\xff", b"[" * 100_000, b'{"schema": 1, "config": null}'], ids=repr
)
def test_a_damaged_session_is_refused_by_name(begun: Path, refusal: Refuse, content: bytes) -> None:
    (begun / "session.json").write_bytes(content)
    assert "session.json" in refusal("--resume=latest")


@pytest.mark.parametrize("resumed", ["latest", "missing", "corpus.npz", "empty", "", "a\nb\x1b[31m\u202e"])
def test_what_is_no_session_is_refused(lab: Path, refusal: Refuse, resumed: str) -> None:
    (lab / "empty").mkdir()
    assert "is not possible" in refusal(f"--resume={resumed}")
    assert not (lab / "runs").exists()
