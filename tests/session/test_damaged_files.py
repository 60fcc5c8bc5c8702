"""Damaged or forged files never execute code, and disk errors never lose a valid result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import RESUMABLE, SessionHere, Uninterrupted, evidence, furnish, newest, running

from bvae import EvidenceWarning
from bvae.config import RunConfig
from bvae.corpus import Corpus, load_corpus
from bvae.experiment import Experiment
from bvae.models import load_model
from bvae.options import parse_experiment
from bvae.records import Progress
from bvae.trainer import Trainer
from bvae.training.checkpoint import MAX_BYTES, CheckpointError, load_checkpoint

pytestmark = pytest.mark.slow

SETTINGS = {
    **{"grid_size": "8", "epochs": "2", "seeds": "1", "batch_size": "16", "precision": "fp32"},
    **{"loss_options": "A,B", "checkpoint_every_steps": "2"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """A session whose runs are complete. Tests must not change it."""
    given = SETTINGS | {"corpus": str(folder / "corpus.npz")}
    laboratory = Experiment.prepare(parse_experiment(given), folder / "runs", [])
    laboratory.open_session()
    for option in laboratory.config.options:
        laboratory.obtain((option, 0))
    return laboratory.session.path


@pytest.fixture(scope="module")
def run(finished: Path) -> RunConfig:
    return load_model(finished / "A-seed0/checkpoints/best.safetensors")[1]


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(str(folder / "corpus.npz"), 8)


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Path:
    """A copy of the last checkpoint of a real run, which tests may damage."""
    return Path(shutil.copy(finished / "A-seed0/checkpoints/epoch_002.safetensors", tmp_path))


def test_every_flipped_bit_of_a_real_checkpoint_is_detected(checkpoint: Path) -> None:
    rng, size = random.Random(0), checkpoint.stat().st_size
    header = int.from_bytes(checkpoint.read_bytes()[:8], "little")
    places = [rng.randrange(size) for _ in range(250)] + [rng.randrange(header) for _ in range(250)]
    with checkpoint.open("r+b", buffering=0) as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            for content in (byte ^ 1 << rng.randrange(8), byte):
                file.seek(place)
                file.write(bytes([content]))
                if content != byte:
                    with pytest.raises(CheckpointError, match=r"epoch_002\.safetensors"):
                        load_checkpoint(checkpoint, Progress)
    assert load_checkpoint(checkpoint, Progress).state.step == 6


def test_every_truncation_of_a_real_checkpoint_is_detected(checkpoint: Path) -> None:
    rng, size = random.Random(1), checkpoint.stat().st_size
    places = sorted(rng.randrange(size) for _ in range(97))
    for place in [size - 1, *reversed(places), 8, 7, 0]:
        with checkpoint.open("r+b") as file:
            file.truncate(place)
        with pytest.raises(CheckpointError, match=r"epoch_002\.safetensors"):
            load_checkpoint(checkpoint, Progress)


def parse(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return header, metadata and tensor bytes of a checkpoint."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header, json.loads(header.pop("__metadata__")["bvae"]), data[end:]


def forge(path: Path, header: dict[str, Any], metadata: str, data: bytes) -> None:
    """Write a checkpoint with any content and a valid checksum."""
    zeros = '{"checksum":"' + "0" * 64 + '",' + metadata[1:]
    text = json.dumps({"__metadata__": {"bvae": zeros}} | header, separators=(",", ":")).encode()
    whole = len(text).to_bytes(8, "little") + text + data
    path.write_bytes(whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1))


WEIGHT = "model.encoder.0.weight"


def test_rewriting_a_checkpoint_with_a_new_checksum_keeps_its_content(
    checkpoint: Path, run: RunConfig, corpus: Corpus
) -> None:
    header, metadata, data = parse(checkpoint)
    del metadata["checksum"]
    forge(checkpoint, header, json.dumps(metadata), data)
    trainer = Trainer(run, corpus, checkpoint.parent)
    trainer.restore(checkpoint)
    assert trainer.progress.step == 6


def test_the_optimizer_of_a_checkpoint_has_the_step_of_the_checkpoint(checkpoint: Path) -> None:
    tensors = load_checkpoint(checkpoint, Progress).tensors
    counts = [tensor.item() for name, tensor in tensors.items() if name.endswith(".step")]
    assert set(counts) == {6}
    assert len(counts) == sum(name.startswith("model.") for name in tensors)


ODD = [
    None,
    -1,
    0,
    1,
    2**31,
    2**62,
    2**63,
    2**64,
    10**400,
    0.5,
    "",
    "F64",
    "F8_E8M0",
    "I8",
    "x",
    [],
    {},
    True,
]
ODD += [[0, 2**40], [2**62, 2**62], [0, 2**63], [-1, 4], [[]], "\ud800", "9" * 5000]


def mutate(value: Any, rng: random.Random) -> Any:
    """Draw a copy of JSON with one odd value, one key removed, or one key added."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(ODD)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    changed = value.copy()
    match rng.random():
        case chance if chance < 0.1:
            del changed[key]
        case chance if chance < 0.2 and isinstance(value, dict):
            changed[f"{key}x"] = value[key]
        case _:
            changed[key] = mutate(value[key], rng)
    return changed


def test_a_forged_checkpoint_is_loaded_or_refused_by_name(
    checkpoint: Path, run: RunConfig, corpus: Corpus
) -> None:
    header, metadata, data = parse(checkpoint)
    del metadata["checksum"]
    trainer, complaints = Trainer(run, corpus, checkpoint.parent), []
    for seed in range(150):
        rng = random.Random(seed)
        forged_header = mutate(header, rng) if seed % 2 else header
        forged_metadata = metadata if seed % 2 else mutate(metadata, rng)
        if not isinstance(forged_header, dict) or not isinstance(forged_metadata, dict):
            continue
        forge(checkpoint, forged_header, json.dumps(forged_metadata), data)
        try:
            trainer.restore(checkpoint)
        except CheckpointError as error:
            complaints.append(str(error))
    assert len(complaints) > 100
    assert all(checkpoint.name in complaint for complaint in complaints)


def stretch(path: Path, size: int) -> None:
    """Make a file larger without using space on the disk."""
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.mark.parametrize(
    "lie",
    [
        lambda path: stretch(path, 5 * 2**30),
        lambda path: (path.write_bytes(b""), stretch(path, MAX_BYTES)),
        lambda path: path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:]),
        lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["5 GB", "4 GB of zeros", "huge header", "hugest header", "a pipe"],
)
def test_false_sizes_are_refused_quickly_and_with_little_memory(
    checkpoint: Path, lie: Callable[[Path], object]
) -> None:
    lie(checkpoint)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=r"epoch_002\.safetensors"):
        load_checkpoint(checkpoint, Progress)
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def forge_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        header, metadata, data = parse(path)
        del metadata["checksum"]
        change(header)
        forge(path, header, json.dumps(metadata), data)

    return damage


DAMAGES = {
    "flipped bit": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Payload(path.with_name("executed")))),
    "torch archive": lambda path: torch.save({"a": Payload(path.with_name("executed"))}, path),
    "of another run": lambda path: shutil.copy(str(path).replace("A-seed0", "B-seed0"), path),
    "another shape": forge_header(lambda header: header[WEIGHT]["shape"].reverse()),
    "another type": forge_header(lambda header: header[WEIGHT].update(dtype="I32")),
    "another name": forge_header(lambda header: header.update(other=header.pop(WEIGHT))),
    "overlapping": forge_header(lambda header: header.update(other=header[WEIGHT])),
}


EVERY = ("flipped bit", "of another run", "another shape")
CASES = [(damage, "epoch_002.safetensors") for damage in DAMAGES] + [(damage, "*") for damage in EVERY]


@pytest.mark.parametrize(("damage", "pattern"), CASES, ids=map(" in ".join, CASES))
def test_a_damaged_checkpoint_is_skipped_and_results_are_identical(
    finished: Path, tmp_path: Path, damage: str, pattern: str
) -> None:
    session = shutil.copytree(finished, tmp_path / "session")
    (session / "A-seed0/result.json").unlink()
    damaged = [path for path in (session / "A-seed0/checkpoints").glob(pattern) if path.suffix != ".png"]
    for path in damaged:
        DAMAGES[damage](path)
    laboratory = Experiment.resume({}, tmp_path, [], str(session))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        laboratory.obtain((laboratory.config.options[0], 0))
    complaints = [str(warning.message) for warning in caught if warning.category is EvidenceWarning]
    assert len(complaints) == len(damaged) + (pattern == "*")
    assert any("the run starts again from the beginning" in each for each in complaints) == (pattern == "*")
    for path in damaged:
        assert any(f"/{path.name}" in complaint for complaint in complaints)
    assert evidence(session) == evidence(finished)  # no payload created a file either


def damaged_result(finished: Path, tmp_path: Path, change: Callable[[bytes], bytes], warning: str) -> None:
    """Change a result and resume its session. Afterwards the original result must be there again."""
    session = shutil.copytree(finished, tmp_path / "session")
    result = session / "A-seed0/result.json"
    result.write_bytes(change(result.read_bytes()))
    laboratory = Experiment.resume({}, tmp_path, [], str(session))
    with pytest.warns(EvidenceWarning, match=rf"A-seed0/result\.json.*{warning}; the run is trained again"):
        laboratory.obtain((laboratory.config.options[0], 0))
    assert evidence(session) == evidence(finished)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"schema": 2, "verdict": "fine"}'])
def test_a_damaged_result_is_made_again(finished: Path, tmp_path: Path, content: bytes) -> None:
    damaged_result(finished, tmp_path, lambda _: content, "")


def test_a_result_of_another_version_is_made_again(finished: Path, tmp_path: Path) -> None:
    def first_version(result: bytes) -> bytes:
        return re.sub(rb'"schema": \d+', b'"schema": 1', result)

    damaged_result(finished, tmp_path, first_version, r"another version of bvae \(schema 1, expected \d+\).*")


def test_the_payload_creates_a_file_when_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


class Disk:
    """A small disk mounted at `runs/`, which can be filled completely and made read-only."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def fill(self) -> None:
        with (self.place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        (self.place / "filler").unlink()

    def close(self) -> None:
        """Mount a read-only view over the disk. With open files, the disk itself cannot become read-only."""
        subprocess.run(["mount", "--bind", self.place, self.place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", self.place], check=True)

    def open(self) -> None:
        subprocess.run(["umount", "--lazy", self.place], check=True)


@pytest.fixture
def disk(lab: Path) -> Iterator[Disk]:
    place = lab / "runs"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    yield Disk(place)
    while place.is_mount():
        subprocess.run(["umount", "--lazy", place], check=True)


FAULTS = {
    "full": (Disk.fill, Disk.make_room, "No space left on device"),
    "read-only": (Disk.close, Disk.open, "Read-only file system"),
    "deleted run": (
        lambda disk: shutil.rmtree(disk.place / "latest/A-seed0"),
        lambda disk: None,
        "No such file or directory",
    ),
}


@pytest.mark.parametrize("step", [2, 5])
@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_disk_error_a_session_resumes_with_identical_results(
    lab: Path,
    disk: Disk,
    session_here: SessionHere,
    uninterrupted: Uninterrupted,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    step: int,
) -> None:
    refuse, mend, cause = FAULTS[fault]
    train_step = Trainer._step

    def step_with_fault(trainer: Trainer, rows: Any) -> Any:
        if (trainer.config.name, trainer.progress.step + 1) == ("A-seed0", step):
            refuse(disk)
        return train_step(trainer, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step_with_fault)
        status, said = session_here(*RESUMABLE)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert re.search(rf"/A-seed0/\S+ could not be (written|made): {cause}", said), said
    assert "INTERNALERROR" not in said
    if fault != "deleted run":
        assert f"Resume with: pytest experiments/ --resume={newest(lab)}" in said
    for path in newest(lab).rglob("*.safetensors"):
        assert load_checkpoint(path, Progress).state.step > 0
    mend(disk)
    status, said = session_here("--resume=latest")
    assert status == pytest.ExitCode.TESTS_FAILED, said
    assert "could not be" not in said
    assert evidence(newest(lab)) == uninterrupted(*RESUMABLE)


@pytest.mark.parametrize("arguments", [RESUMABLE, ("--resume=latest",)], ids=["new", "resumed"])
def test_a_disk_error_at_the_start_is_a_usage_error(
    finished: Path, disk: Disk, session_here: SessionHere, arguments: tuple[str, ...]
) -> None:
    shutil.copytree(finished, disk.place / "session")
    (disk.place / "latest").symlink_to("session")
    disk.close()
    status, said = session_here(*arguments)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "Read-only file system" in said
    disk.open()


def test_a_file_size_limit_is_reported_and_the_session_resumes_without_it(
    lab: Path, uninterrupted: Uninterrupted
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))

    with running(lab, *RESUMABLE, "-n2", preexec_fn=limit) as process:
        assert process.wait(timeout=120) == pytest.ExitCode.TESTS_FAILED
    said = (lab / "output.txt").read_text()
    assert re.search(r"/A-seed0/checkpoints/\S+ could not be written: File too large", said)
    with running(lab, "--resume=latest", "-n0") as process:
        assert process.wait(timeout=120) == pytest.ExitCode.TESTS_FAILED
    assert evidence(newest(lab)) == uninterrupted(*RESUMABLE)
