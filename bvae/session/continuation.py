"""Resuming a session, possibly with more runs, more epochs or another accuracy band; merging shards.

`refuse_changes` refuses to resume a session with other settings, unless they extend it. A shard
is a session that trains a part of the runs. `merge_shards` makes one session of several shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bvae.config import ExperimentConfig, RunConfig
from bvae.corpus import Corpus
from bvae.hardware import find_versions
from bvae.records import RunResult
from bvae.session.folder import (
    Extension,
    Session,
    SessionRecord,
    comparison_folder,
    read_history,
    verified_result,
)
from bvae.session_files import RESULT, SESSION, earlier_record, run_file_limit
from bvae.storage import (
    atomic_write,
    by_field,
    differences,
    make_folder,
    printable,
    read_bounded,
    read_json,
    refuse_foreign_entries,
    remove,
    sealed,
    to_json,
)
from bvae.verdict import judge_run

T = TypeVar("T")

DECISIVE_PACKAGES = ("bvae", "torch", "numpy")
"""Packages whose versions can change the result of a run."""


def extended(
    then: ExperimentConfig, asked: ExperimentConfig, *, more_epochs: bool
) -> tuple[ExperimentConfig, tuple[str, ...]]:
    """Return the settings of the resumed session, and a text for each setting that changes.

    This checks only options, seeds and epochs. `refuse_changes` checks all others except the band.

    Args:
        then: the settings of the session.
        asked: the requested settings.
        more_epochs: whether `--extend` allows more epochs.

    Raises:
        ValueError: if an option is missing, there are fewer seeds or epochs, or more epochs are not allowed.
    """
    named = {option.name: option for option in asked.options}
    first = [option.name for option in then.options]
    if missing := [name for name in first if name not in named]:
        raise ValueError(f"the session also has the option {missing[0]}; expected all of {','.join(first)}")
    if asked.seeds < then.seeds:
        raise ValueError(
            f"--seeds is {asked.seeds}; the session has {then.seeds}, expected at least {then.seeds}"
        )
    options = (*(named.pop(name) for name in first), *named.values())
    was, training = then.training, asked.training
    if training.epochs < was.epochs:
        raise ValueError(
            f"--epochs is {training.epochs}; the session has {was.epochs}, expected at least {was.epochs}"
        )
    if training.epochs > was.epochs:
        if not more_epochs:
            raise ValueError(
                f"--epochs {training.epochs} needs --extend, and may change results: schedules of learning "
                f"rate and β may depend on the number of epochs, so an extended run may differ from a run "
                f"with {training.epochs} epochs from the start"
            )
        training = dataclasses.replace(training, extended_from=was.stages)
    now = dataclasses.replace(asked, options=options, training=training)
    changes = {
        "seeds": (then.seeds, now.seeds),
        "options": (",".join(first), ",".join(option.name for option in options)),
        "accuracy band": (then.band, now.band),
        "epochs": (was.epochs, training.epochs),
    }
    words = (f"{name} {old} → {new}" for name, (old, new) in changes.items() if old != new)
    return now, tuple(words)


def refuse_changes(session: SessionRecord, config: ExperimentConfig, corpus: Corpus) -> None:
    """Raise ValueError if settings, corpus or versions are not those of the session."""
    then = session.config
    training = dataclasses.replace(
        config.training, epochs=then.training.epochs, extended_from=then.training.extended_from
    )
    options = config.options[: len(then.options)]
    same = dataclasses.replace(config, options=options, seeds=then.seeds, band=then.band, training=training)
    ours = _decisive(same, find_versions(), corpus.fingerprint)
    theirs = _decisive(then, session.versions, session.corpus.fingerprint)
    if changes := differences(ours, theirs):
        raise ValueError(
            f"the session has other settings: {'; '.join(changes)}; undo them, or start a new session"
        )


def _decisive(config: ExperimentConfig, versions: Mapping[str, str], fingerprint: str) -> dict[str, Any]:
    """Return by name what must not change within a session: settings, versions and corpus."""
    packages = {f"version of {name}": versions.get(name) for name in DECISIVE_PACKAGES}
    return dataclasses.asdict(config) | packages | {"corpus fingerprint": fingerprint}


def other_versions(found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """Return which decisive packages have other versions than expected; empty if there are none."""
    pairs = ((name, found.get(name), expected.get(name)) for name in DECISIVE_PACKAGES)
    return ", ".join(f"{name} {ours} instead of {theirs}" for name, ours, theirs in pairs if ours != theirs)


def go_on(
    session: Session, config: ExperimentConfig, command: Sequence[str], changes: tuple[str, ...]
) -> Session:
    """Change the settings of a session, remove `comparison.json`, and return the session.

    This process must hold the session. The change takes effect when `session.json` is replaced. Runs with
    fewer epochs are then incomplete, and continue from their checkpoints. If this process is killed, the next
    process that resumes the session does the rest.

    Raises:
        ValueError: if another process changed the session after it was opened.
        StorageError: if a file cannot be written.
    """
    record = read_json(session.path / SESSION, SessionRecord)
    if record.seal != session.record.seal:
        raise ValueError("another process has changed the session; repeat the command")
    (comparison_folder(session) / "comparison.json").unlink(missing_ok=True)
    if changes:
        extension = Extension(
            when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=tuple(command),
            changes=changes,
        )
        extensions = (*record.extensions, extension)
        atomic_write(session.path / earlier_record(len(extensions)), to_json(record))
        new = sealed(dataclasses.replace(record, config=config, extensions=extensions))
        atomic_write(session.path / SESSION, to_json(new))
        session = Session.open(session.path, session.invocation)
    if session.record.extensions:
        _judge_again(session)
    return session


def _judge_again(session: Session) -> None:
    """Judge the complete runs by the accuracy band of the session, and write the results that change.

    Remove the results of runs that have fewer epochs than the session.
    """
    for run in session.runs:
        directory = session.path / run.name
        try:
            if (result := verified_result(directory, run)) is None:
                remove(directory / RESULT)  # if there is a result, it is of fewer epochs
                continue
            band = session.record.config.band
            verdict = judge_run(read_history(directory), result.divergence, band)
        except ValueError:
            continue  # the code that uses the result reports the error
        judged = dataclasses.replace(result, verdict=verdict.name, reason=verdict.reason)
        if judged != result:
            atomic_write(directory / RESULT, to_json(sealed(judged)))


def shard_of(runs: Sequence[T], shard: str) -> Sequence[T]:
    """Return the runs of a shard `I/N`: every N-th run, starting with run I. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    place, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= place <= count <= len(runs):
        raise ValueError(
            f"--shard is {shard!r}; expected I/N with I from 1 to N, and N at most {len(runs)}, the number "
            "of runs"
        )
    return runs[place - 1 :: count]


def merge_shards(
    folders: Sequence[str], run_dir: Path, command: Sequence[str]
) -> tuple[Session, list[RunConfig], dict[str, str]]:
    """Make a new session with the finished runs of shards, without changing the shards.

    Returns:
        The session, the runs that no shard has finished, and the hardware that differs between shards.

    Raises:
        ValueError: if a folder cannot be used, if shards belong to different experiments, or if two shards
            have different results of the same run; the message is one sentence.
        StorageError: if a file cannot be written.
    """
    shards = [_read_shard(folder) for folder in folders]
    (first, _), found = shards[0], dict[str, tuple[Path, RunResult]]()
    for session, results in shards:
        _refuse_strangers(first, session)
        for name, result in results.items():
            path, known = found.setdefault(name, (session.path, result))
            if _timeless(known) != _timeless(result):
                both = f"{printable(str(path))} and {printable(str(session.path))}"
                raise ValueError(f"{both} have different results of {name}; leave out one of the folders")
    if not found:
        raise ValueError("no shard has a finished run; expected at least one")
    hardware = {
        name: [value for value in dict.fromkeys(values) if value is not None]
        for name, values in by_field(*(session.record.hardware for session, _ in shards)).items()
    }
    differing = {name: ", ".join(map(str, values)) for name, values in hardware.items() if len(values) > 1}
    record = dataclasses.replace(
        first.record,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=tuple(command),
        hardware={name: value for name, (value, *_) in hardware.items()} | differing,
        extensions=(),
    )
    merged = Session.make(run_dir, record)
    for name, (path, _) in found.items():
        _copy_run(path / name, merged.path / name)
    merged.point_latest()
    return merged, [run for run in merged.runs if run.name not in found], differing


@contextlib.contextmanager
def reading(folder: str, purpose: str, expected: str) -> Iterator[None]:
    """While a session folder is read, convert each error into a ValueError of one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{printable(folder)} has no {SESSION}; expected {expected}") from None
    except (OSError, ValueError, ArithmeticError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ValueError(f"{printable(folder)} cannot be {purpose}: {printable(str(error))}") from error


def _read_shard(folder: str) -> tuple[Session, dict[str, RunResult]]:
    """Return the session in a folder, and its verified results by run name. Raises ValueError."""
    with reading(folder, "merged", "the folder of a session, such as runs/shard-1/latest"):
        session = Session.open(Path(folder).resolve(), invocation="")
        refuse_foreign_entries(session.path)
        results = {run.name: verified_result(session.path / run.name, run) for run in session.runs}
    return session, {name: result for name, result in results.items() if result is not None}


def _refuse_strangers(first: Session, other: Session) -> None:
    """Raise ValueError if two sessions belong to different experiments."""
    records = (first.record, other.record)
    known = (_decisive(each.config, each.versions, each.corpus.fingerprint) for each in records)
    changes = [f"{name} is {a!r} and {b!r}" for name, (a, b) in by_field(*known).items() if a != b]
    if changes:
        both = f"{printable(str(first.path))} and {printable(str(other.path))}"
        raise ValueError(f"{both} are not shards of one experiment: {'; '.join(changes)}")


def _timeless(result: RunResult) -> RunResult:
    """Return a result without the fields that may differ when the same run is trained twice."""
    return dataclasses.replace(result, seconds=0.0, failed_pictures=(), digests={}, seal="")


def _copy_run(source: Path, target: Path) -> None:
    """Copy the files of a complete run, `result.json` last. Raises ValueError or StorageError."""
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    make_folder(target)
    for name in sorted(filter(run_file_limit, names), key=lambda name: name == RESULT):
        make_folder((target / name).parent)
        atomic_write(target / name, read_bounded(source / name, run_file_limit(name)))
