"""Command lines, names and sessions that cannot be used give one sentence and have no other effect."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence_factory import result
from lab import TINY, SessionHere

from bvae.__main__ import main
from bvae.experiment import Experiment
from bvae.judging.baseline import BASELINE_FILE
from bvae.judging.comparison import compare
from bvae.options import OPTIONS, parse_experiment
from bvae.session import SessionRecord
from bvae.storage import read_json, sealed, to_json

Refuse = Callable[..., str]

slow = pytest.mark.slow


@pytest.fixture
def refusal(session_here: SessionHere) -> Refuse:
    """Return a function that runs pytest, which must exit with code 4, and returns its one-line error."""

    def refuse(*arguments: str) -> str:
        status, said = session_here(*arguments)
        assert status == pytest.ExitCode.USAGE_ERROR, said
        lines = [line for line in said.split("\n") if line]
        assert len(lines) == 1, said
        assert lines[0].startswith("ERROR: ")
        return lines[0]

    return refuse


@pytest.fixture
def begun(lab: Path) -> Path:
    """A session whose process ended before its first run began."""
    given = dict.fromkeys((option.key for option in OPTIONS), None)
    values = {"corpus": "corpus.npz", "grid_size": "8", "epochs": "2", "seeds": "1", "precision": "fp32"}
    experiment = Experiment.prepare(parse_experiment(given | values), lab / "runs", TINY)
    experiment.open_session()
    experiment.session.point_latest()
    return experiment.session.path


@slow
@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--epochs=3", "--epochs 3 needs --extend"),
        ("--beta=0.5", "training.beta was 0.004 and is 0.5"),
        ("--corpus=other.npz", "corpus was 'corpus.npz' and is 'other.npz'"),
        ("--grid-size=12", "grid_size was 8 and is 12"),
        ("--padding-value=-1", "padding_value was None and is -1"),
        ("--precision=bf16", "training.precision was 'fp32' and is 'bf16'"),
        ("--fail-on-regression", "--fail-on-regression has nothing to compare with; add --baseline=PATH"),
        ("--loss-options=A,B", "the session also has the option C; expected all of A,B,C"),
    ],
)
def test_a_session_is_not_resumed_with_another_setting(
    lab: Path, begun: Path, refusal: Refuse, argument: str, complaint: str
) -> None:
    shutil.copy(lab / "corpus.npz", lab / "other.npz")
    assert complaint in refusal("--resume=latest", argument)


@slow
def test_a_session_is_not_resumed_on_a_changed_corpus(lab: Path, begun: Path, refusal: Refuse) -> None:
    record = read_json(begun / "session.json", SessionRecord)
    baseline = compare(record.corpus, record.config, {"B": {0: result("B", 0)}})
    (begun / BASELINE_FILE).write_bytes(to_json(baseline))
    np.savez(lab / "corpus.npz", train=np.random.default_rng(1).integers(0, 10, (9, 8, 8)))
    assert "used: the session has other settings: corpus fingerprint was" in refusal("--resume=latest")


@slow
@pytest.mark.parametrize("package", ["torch", "numpy", "bvae"])
def test_a_session_is_not_resumed_with_another_version(begun: Path, refusal: Refuse, package: str) -> None:
    record = read_json(begun / "session.json", SessionRecord)
    other = dataclasses.replace(record, versions={**record.versions, package: "0.0"})
    (begun / "session.json").write_bytes(to_json(sealed(other)))
    assert f"version of {package} was '0.0'" in refusal("--resume=latest")


@slow
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\0\xff", b"[" * 100_000, b'{"schema": 2, "config": null}'], ids=repr
)
def test_a_damaged_session_is_refused_by_name(begun: Path, refusal: Refuse, content: bytes) -> None:
    (begun / "session.json").write_bytes(content)
    assert "session.json" in refusal("--resume=latest")


@slow
def test_a_session_of_another_version_is_refused_by_its_schema(begun: Path, refusal: Refuse) -> None:
    record = json.loads((begun / "session.json").read_text())
    record["schema"] = 1
    del record["corpus"]["has_outside"]  # not present in the first version
    (begun / "session.json").write_text(json.dumps(record))
    said = refusal("--resume=latest")
    assert said.endswith(
        "session.json: written by another version of bvae (schema 1, expected 3); run it again"
    )


@slow
@pytest.mark.parametrize("resumed", ["latest", "missing", "corpus.npz", "empty", "", "a\nb\x1b[31m\u202e"])
def test_a_folder_that_is_not_a_session_is_refused(
    lab: Path, refusal: Refuse, resumed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (lab / "empty").mkdir()
    expected = " has no session.json; expected the folder of a session, such as runs/latest"
    assert refusal(f"--resume={resumed}").endswith(expected)
    assert main(["report", resumed]) == 4
    assert capsys.readouterr().err.endswith(f"{expected}\n")
    assert not (lab / "runs").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        *((key, "0", "of at least 1") for key in ("epochs", "seeds", "batch_size", "latent_dim")),
        *((key, "-3", "of at least 1") for key in ("epochs", "seeds", "batch_size", "checkpoint_every")),
        ("checkpoint_every_steps", "-1", "of at least 0"),
        *(("padding_value", text, "a whole number") for text in ("", "none", "1.5", "-", "\u202e-1")),
        *((key, "1.5", "a whole number") for key in ("epochs", "seeds", "grid_size", "latent_dim")),
        *(("epochs", text, "a whole number") for text in ("", "nan", "1e3", "0x10", "9" * 5000, "\x1b[31m3")),
        *(("beta", text, "a finite number of at least 0") for text in ("nan", "inf", "-inf", "-1", "1e400")),
        *(("learning_rate", text, "a finite number above 0") for text in ("nan", "inf", "0", "-1", "1e-400")),
        *((key, "much", "a number") for key in ("beta", "learning_rate")),
        *(("accuracy_band", text, "LO:HI") for text in ("0.8:0.7", "0.7:0.7", "-0.1:1", "0.5:1.1", "nan:1")),
        *(("accuracy_band", text, "LO:HI") for text in ("0.7", "a:b", "0.1:0.2:0.3", ":", "", "0,7:0,8")),
        *(("loss_options", text, "expected names among") for text in ("", ",", "A,", "Z", "a", "A;B")),
        *(("loss_options", text, "expected names among") for text in ("<script>", "\u202eA", "\x1b[31mA")),
        ("loss_options", "A,B,A", "each option once"),
        *((key, "1000000000", "at most") for key in ("seeds", "latent_dim", "batch_size")),
        *((key, "1000000000000", "at most") for key in ("epochs", "checkpoint_every")),
        ("checkpoint_every_steps", str(10**30), "at most"),
        *(("precision", text, "one of auto, fp32, bf16") for text in ("", "fp16", "FP32")),
    ],
)
def test_an_invalid_value_is_refused_in_one_printable_sentence(key: str, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^--{key.replace('_', '-')} ") as refused:
        parse_experiment({key: text})
    assert expected in str(refused.value)
    assert str(refused.value).isprintable()


@slow
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--grid-size=65"], "grid size 65 is not supported; expected --grid-size from 1 to 64, or auto"),
        (["--grid-size=-4"], "grid size -4 is not supported"),
        (["--grid-size=16", "--corpus=atomic:9"], "expected atomic:N with N from 20"),
        (["--grid-size=16", "--corpus=atomic:999999999999"], "expected atomic:N with N from 20"),
        (["--corpus="], "is neither a built-in corpus"),
        (["--padding-value=0"], "padding value 0 is a class; expected an integer other than 0–9"),
        (["--padding-value=9"], "padding value 9 is a class; expected an integer other than 0–9"),
        *(
            ([f"--corpus={corpus}", "--padding-value=-1"], f"is for files only, and {corpus} is built in")
            for corpus in ("objects", "objects:60", "arc", "atomic")
        ),
        (["--seeds=1000000000"], "--seeds is 1000000000; expected a whole number of at least 1 and at most"),
        (["--latent-dim=1000000000"], "--latent-dim is 1000000000; expected"),
        (["--device=cuda:99"], "--device is 'cuda:99'"),
        (["--device=tpu"], "--device is 'tpu'"),
        (["--device=\u202ecpu\x1b[31m"], r"--device is '\u202ecpu\x1b[31m'"),
        (["--run-dir=corpus.npz"], "session folder corpus.npz/"),
        (["--run-dir=corpus.npz/a\nb\x1b[31m\u202e"], r"corpus.npz/a\nb\x1b[31m\u202e/"),
        (["--corpus=a\nb\x1b[31m\u202e.npz"], r"'a\nb\x1b[31m\u202e.npz' is neither"),
        (["--model=a\nb\x1b[31m\u202e:c"], r"model 'a\nb\x1b[31m\u202e:c' cannot be imported"),
        (["--model=verbose:fails"], r"model 'verbose:fails' failed on two grids: RuntimeError: a\nb\x1b[31m"),
        (["--baseline=a\nb\x1b[31m\u202e"], r"--baseline=a\nb\x1b[31m\u202e cannot be used"),
        (["--loss-options-file=a\nb\x1b[31m\u202e"], r"a\nb\x1b[31m\u202e: is not a file"),
        (["--loss-options=<script>\n\u202e"], r"--loss-options names '<script>"),
    ],
    ids=lambda value: ascii(value[-1]) if isinstance(value, list) else "",
)
def test_impossible_settings_are_refused_in_one_line_before_training(
    lab: Path, refusal: Refuse, arguments: list[str], complaint: str
) -> None:
    (lab / "verbose.py").write_text("def fails(**_):\n    raise RuntimeError('a\\nb\\x1b[31m')\n")
    said = refusal(*TINY, *arguments)
    assert complaint in said
    assert said.isprintable()
    assert not (lab / "runs").exists()


MARKUP = "<script>alert(1)<img src=x onerror=alert(1)>"
HOSTILE = f"{MARKUP} \"'`|$x^2$%s{{}}\n# a\r\x1b[31m\u202e\u2028é日"


class Elements(HTMLParser):
    """Collects the elements of a page and of its pytest-html data, each with its attribute names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attributes)))
        for name, value in attributes:
            if name == "data-jsonblob":
                self._feed_strings(json.loads(value or ""))

    def _feed_strings(self, data: Any) -> None:
        if isinstance(data, str):
            self.found += Elements(data).found
        elif isinstance(data, dict | list):
            for item in data.values() if isinstance(data, dict) else data:
                self._feed_strings(item)


@slow
def test_names_change_only_the_text_of_a_report(lab: Path, session_here: SessionHere) -> None:
    pages, lines = [], []
    for name, folder in (("plain.npz", "plain"), (f"{HOSTILE}.npz", f"{HOSTILE}</script>")):
        shutil.copy(lab / "corpus.npz", lab / name)
        settings = (*TINY, f"--corpus={name}", f"--run-dir={folder}", "--loss-options", "A,B")
        status, said = session_here(*settings, "--html=report.html")
        assert status == pytest.ExitCode.TESTS_FAILED, said
        assert all(line.isprintable() for line in said.split("\n"))
        session = (lab / folder / "latest").resolve()
        assert not json.loads((session / "A-seed0/result.json").read_text())["failed_pictures"]
        markdown = (session / "comparison/comparison.md").read_text()
        assert MARKUP not in markdown
        for text in (markdown, (lab / "report.html").read_text()):
            assert not {"\x1b", "\r", "\u202e", "\u2028"} & set(text)
        pages.append(Elements((lab / "report.html").read_text()).found)
        lines.append(len(markdown.splitlines()))
    assert pages[0] == pages[1]
    assert lines[0] == lines[1]
