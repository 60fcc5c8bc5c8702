"""Mutate one file of a finished session at a time. Reading returns the original or an error.

With --resume, each mutated session is also trained to its end and must have the original weights and metrics.
Exits with 1 if an exception escapes, a case takes more than 10 s, or other content is accepted.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from lab import furnish

from bvae import EvidenceWarning
from bvae.experiment import Experiment, SetupError
from bvae.models import newest_model
from bvae.options import parse_experiment
from bvae.records import EpochRecord, Progress, RunResult
from bvae.report.html import read_png
from bvae.session import Session, SessionRecord
from bvae.session.folder import found_outcomes, read_history, read_marker
from bvae.session.progress import Note
from bvae.session_files import BEGUN, PROGRESS, checkpoints
from bvae.storage import StorageError, read_json
from bvae.training.checkpoint import CheckpointError, load_checkpoint

MAX_SECONDS = 10.0
SETTINGS = {
    **{"grid_size": "8", "epochs": "2", "seeds": "1", "batch_size": "16", "precision": "fp32"},
    **{"loss_options": "A,B", "latent_dim": "2"},
}
FOREIGN = (
    *(b"{}", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"\0" * 99, b"[" * 100_000, b'{"a":' * 100_000),
    *(
        b'{"schema": 1}',
        b'{"schema": 2, "seal": "0"}',
        b"1e999",
        b"9" * 5000,
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
    ),
)


def finished_session(folder: Path) -> Path:
    """Train two tiny runs and compare them. Add a baseline, so that all files that resuming reads exist."""
    given = SETTINGS | {"corpus": str(furnish(folder) / "corpus.npz")}
    experiment = Experiment.prepare(parse_experiment(given), folder / "runs", ["experiments/"])
    experiment.open_session()
    for option in experiment.config.options:
        experiment.obtain((option, 0))
    experiment.close_session(interrupted=False)
    session = experiment.session.path
    shutil.copy(session / "comparison/comparison.json", session / "baseline.json")
    return session


@dataclasses.dataclass(frozen=True)
class Content:
    """The content of a session: its record, and the results, histories, checkpoints and pictures of its runs.

    Attributes:
        weights: the tensors of the newest checkpoint of each run, as the bytes of a safetensors file.
    """

    record: SessionRecord
    results: dict[str, RunResult]
    histories: dict[str, list[EpochRecord]]
    checkpoints: frozenset[bytes]
    pictures: frozenset[bytes]
    weights: dict[str, bytes]

    @classmethod
    def of(cls, path: Path) -> Content:
        """Return the content of a sound session."""
        session = Session.open(path, "here")
        outcomes = {
            f"{option}-seed{seed}": result
            for option, results in found_outcomes(session).items()
            for seed, result in results.items()
            if isinstance(result, RunResult)
        }
        files = [file for name in outcomes for file in checkpoints(path / name)]
        return cls(
            record=session.record,
            results=outcomes,
            histories={name: read_history(path / name) for name in outcomes},
            checkpoints=frozenset(file.read_bytes() for file in files),
            pictures=frozenset(file.read_bytes() for file in path.rglob("*.png")),
            weights={name: newest_weights(path / name) for name in outcomes},
        )

    def check(self, path: Path, changed: Path, *, resume: bool = False) -> str:
        """Read a session with one changed file; return the first complaint, or an empty string.

        Args:
            resume: whether to train incomplete runs, as `--resume` does.

        Raises:
            AssertionError: if other content is accepted.
        """
        try:
            experiment = Experiment.resume({}, path.parent, [], str(path))
        except SetupError as error:
            return one_sentence(error)
        try:
            complaint = self._check_runs(experiment, changed)
            blocked = self._check_resumed(experiment) if resume else ""
            return complaint or blocked
        finally:
            experiment._lock.release()

    def _check_runs(self, experiment: Experiment, changed: Path) -> str:
        session = experiment.session
        assert session.record == self.record, "another record is believed"
        outcomes, complaints = found_outcomes(session), []
        for run in experiment.runs:
            directory, result = session.path / run.name, outcomes[run.option.name][run.seed]
            if isinstance(result, str):
                complaints.append(one_sentence(result))
            else:
                assert result == self.results[run.name], "another result is believed"
            if directory in changed.parents:
                complaints += self._check_files(directory, run)
            try:
                same = read_history(directory) == self.histories[run.name]
                assert same or isinstance(result, str), "a result without its metrics is believed"
            except ValueError as error:
                complaints.append(one_sentence(error))
            read_marker(directory / BEGUN)
        if changed.suffix == ".png" and (png := read_png(changed)) is None:
            complaints.append(f"{changed} is not shown")
        elif changed.suffix == ".png":
            assert png in self.pictures, "another picture is shown"
        return next(filter(None, complaints), "")

    def _check_resumed(self, experiment: Experiment) -> str:
        """Obtain all runs and compare their weights and metrics with those of the sound session."""
        for run in experiment.runs:
            try:
                metrics = experiment.obtain((run.option, run.seed)).metrics
            except StorageError as error:
                return one_sentence(error)
            assert metrics == self.results[run.name].metrics, f"{run.name} ends with other metrics"
            weights = newest_weights(experiment.session.path / run.name)
            assert weights == self.weights[run.name], f"{run.name} ends with other weights"
        return ""

    def _check_files(self, directory: Path, run: object) -> list[str]:
        complaints, foreign = [], False
        for file in checkpoints(directory):
            try:
                loaded = load_checkpoint(file, Progress)
                assert file.read_bytes() in self.checkpoints, "another checkpoint is believed"
                foreign |= loaded.state.config != run
            except CheckpointError as error:
                complaints.append(one_sentence(error))
        if foreign:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert newest_model(directory, run) is not None
            complaints += [one_sentence(warning.message) for warning in caught]
        try:
            read_json(directory / PROGRESS, Note)
        except (FileNotFoundError, ValueError) as error:
            complaints.append(one_sentence(error))
        return complaints


def newest_weights(directory: Path) -> bytes:
    """Return the tensors of the newest checkpoint of a run, without its state, which contains times."""
    newest, *_ = checkpoints(directory)
    return safetensors.torch.save(dict(load_checkpoint(newest, Progress).tensors))


def one_sentence(error: object) -> str:
    """Return a message, which must be one printable line."""
    message = str(error)
    assert message.isprintable(), f"not printable: {message!r}"
    assert 0 < len(message) < 1500, f"not one sentence: {message[:200]!r}, {len(message)} characters"
    return message


def flip_bits(rng: random.Random, path: Path, _: list[Path]) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(rng: random.Random, path: Path, _: list[Path]) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size or 1))


def empty(rng: random.Random, path: Path, _: list[Path]) -> None:
    path.write_bytes(b"")


def remove(rng: random.Random, path: Path, _: list[Path]) -> None:
    path.unlink()


def swap(rng: random.Random, path: Path, files: list[Path]) -> None:
    """Replace the content of a file by the content of another file, usually of the same kind."""
    alike = [file for file in files if file.suffix == path.suffix and file != path]
    source = rng.choice(alike if alike and rng.random() < 0.8 else files)
    path.write_bytes(source.read_bytes())


def make_folder(rng: random.Random, path: Path, _: list[Path]) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(rng: random.Random, path: Path, _: list[Path]) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(rng: random.Random, path: Path, files: list[Path]) -> None:
    """Replace a file by a link to another file, a file of the system, a device, itself or nothing."""
    target = rng.choice((rng.choice(files), Path("/etc/hostname"), Path("/dev/zero"), path, Path("nowhere")))
    path.unlink()
    path.symlink_to(target)


def write_foreign(rng: random.Random, path: Path, _: list[Path]) -> None:
    path.write_bytes(rng.choice(FOREIGN))


def stretch(rng: random.Random, path: Path, _: list[Path]) -> None:
    """Extend a file to 3 GB, without using the disk. Extend a checkpoint, which may be large, by one byte."""
    os.truncate(path, 3 * 10**9 if path.suffix != ".safetensors" else path.stat().st_size + 1)


MUTATIONS: tuple[Callable[[random.Random, Path, list[Path]], None], ...] = (
    *(flip_bits, flip_bits, truncate, empty, remove, swap, make_folder, make_pipe, make_link),
    *(write_foreign, stretch),
)


class Mutant:
    """A session in which one file at a time is mutated and then restored."""

    def __init__(self, session: Path) -> None:
        self.session, self.content = session, Content.of(session)
        self.sound = {path: path.read_bytes() for path in sorted(session.rglob("*")) if path.is_file()}

    def check(self, seed: str, number: int, *, resume: bool = False) -> tuple[Path, str, str]:
        """Mutate one file, and read or resume the session. Return file, mutation and complaint."""
        rng, files = random.Random(f"{seed}-{number}"), [*self.sound]
        path, mutate = files[number % len(files)], rng.choice(MUTATIONS)
        mutate(rng, path, files)
        try:
            return path, mutate.__name__, self.content.check(self.session, path, resume=resume)
        except Exception as error:
            raise AssertionError(f"case {number}: {mutate.__name__} of {path}: {error!r}") from error
        finally:
            self._restore()

    def _restore(self) -> None:
        shutil.rmtree(self.session)
        for path, data in self.sound.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2_000, help="mutations to try (default: %(default)s)")
    parser.add_argument("--seed", default="0", help="seed of the mutations (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="also train each mutated session to its end")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", EvidenceWarning)
    started, complaints, slowest = time.monotonic(), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        mutant = Mutant(finished_session(Path(folder)))
        for number in range(arguments.cases):
            before = time.monotonic()
            try:
                complaints += bool(mutant.check(arguments.seed, number, resume=arguments.resume)[2])
            except AssertionError as failure:
                print(f"FAILED {failure}")
                return 1
            slowest = max(slowest, time.monotonic() - before)
            if slowest > MAX_SECONDS:
                print(f"FAILED case {number} took {slowest:.1f} s")
                return 1
    seconds = time.monotonic() - started
    print(f"{arguments.cases:,} mutations of {len(mutant.sound)} files in {seconds:.0f} s: ", end="")
    print(f"{complaints:,} found, the others left all content as it was; slowest {slowest:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
