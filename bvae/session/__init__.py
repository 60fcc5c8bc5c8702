"""Sessions: one folder for each invocation, the runs in it, and the processes that train them.

folder       the session folder, its record, and what a run leaves in it
run          where runs are trained, and in what order; one run: read its result, wait for it, or train it
ray_engine   runs as tasks on a Ray cluster
progress     progress of runs in other processes

This module decides how a session goes on, perhaps with more runs, more epochs or another accuracy band.
`bvae.session_files` lists every file and marker of a session folder, and who writes it.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from bvae.config import ExperimentConfig, RunConfig
from bvae.corpus import Corpus
from bvae.hardware import find_versions
from bvae.session.folder import (
    Extension,
    Session,
    SessionRecord,
    comparison_folder,
    read_history,
    verified_result,
)
from bvae.session_files import RESULT, SESSION, earlier_record
from bvae.storage import atomic_write, differences, read_json, remove, sealed, to_json
from bvae.verdict import judge_run

__all__ = ["Session", "SessionRecord"]

DECISIVE_PACKAGES = ("bvae", "torch", "numpy")
"""Packages whose versions can change a result."""


def extended(
    then: ExperimentConfig, asked: ExperimentConfig, *, more_epochs: bool
) -> tuple[ExperimentConfig, tuple[str, ...]]:
    """Return the settings with which a session goes on, and what they extend, in words.

    Other differences remain in the settings, see `refuse_changes`.

    Args:
        then: the settings of the session.
        asked: those to go on with.
        more_epochs: whether more epochs were allowed by `--extend`.

    Raises:
        ValueError: if there are fewer seeds, options or epochs, or more epochs are not allowed.
    """
    named = {option.name: option for option in asked.options}
    first = [option.name for option in then.options]
    if missing := [name for name in first if name not in named]:
        raise ValueError(f"the session also has the option {missing[0]}; expected all of {','.join(first)}")
    if asked.seeds < then.seeds:
        raise ValueError(f"--seeds is {asked.seeds}; the session has {then.seeds}, expected as many or more")
    options = (*(named.pop(name) for name in first), *named.values())
    was, training = then.training, asked.training
    if training.epochs < was.epochs:
        raise ValueError(
            f"--epochs is {training.epochs}; the session has {was.epochs}, expected as many or more"
        )
    if training.epochs > was.epochs:
        if not more_epochs:
            raise ValueError(
                f"--epochs {training.epochs} needs --extend: the learning rate, and β in some schedules, "
                f"depend on the number of epochs, so the {was.epochs} epochs of the session are not the "
                f"first {was.epochs} of {training.epochs}; the results of runs that are extended differ"
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
    """Raise ValueError if settings, corpus or versions differ from those of a session's runs."""
    then, versions = session.config, find_versions()
    training = dataclasses.replace(
        config.training, epochs=then.training.epochs, extended_from=then.training.extended_from
    )
    options = config.options[: len(then.options)]
    same = dataclasses.replace(config, options=options, seeds=then.seeds, band=then.band, training=training)
    ours = {f"version of {name}": versions[name] for name in DECISIVE_PACKAGES}
    theirs = {f"version of {name}": session.versions.get(name) for name in DECISIVE_PACKAGES}
    ours["corpus fingerprint"], theirs["corpus fingerprint"] = corpus.fingerprint, session.corpus.fingerprint
    if changes := [*differences(same, then), *differences(ours, theirs)]:
        raise ValueError(
            f"the result would not be the same: {'; '.join(changes)}; undo this, or start a new session"
        )


def go_on(
    session: Session, config: ExperimentConfig, command: Sequence[str], changes: tuple[str, ...]
) -> Session:
    """Return a session that this process holds, with its settings changed; mark its comparison incomplete.

    The new `session.json` makes the change: runs of fewer epochs are then incomplete, and are trained on from
    their checkpoints. If this process is killed later, the next one that goes on repeats what is missing.

    Raises:
        ValueError: if another process changed the session since it was opened.
        StorageError: if a file cannot be written.
    """
    record = read_json(session.path / SESSION, SessionRecord)
    if record.seal != session.record.seal:
        raise ValueError("another process has changed the session meanwhile; repeat the command")
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


def runs_of(session: Session) -> list[RunConfig]:
    """Return all runs of a session: every option with every seed."""
    config = session.record.config
    return [session.run_config(option, seed) for option in config.options for seed in range(config.seeds)]


def _judge_again(session: Session) -> None:
    """Judge the complete runs of a session by its present band, and seal the verdicts that change.

    The results of runs that are to be trained on are removed.
    """
    for run in runs_of(session):
        directory = session.path / run.name
        try:
            if (result := verified_result(directory, run)) is None:
                remove(directory / RESULT)  # of fewer epochs, if there is one
                continue
            band = session.record.config.band
            verdict = judge_run(read_history(directory), result.divergence, band)
        except ValueError:
            continue  # whoever uses the result reports it
        judged = dataclasses.replace(result, verdict=verdict.name, reason=verdict.reason)
        if judged != result:
            atomic_write(directory / RESULT, to_json(sealed(judged)))
