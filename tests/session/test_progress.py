from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvae import session_files
from bvae.config import LOSS_OPTIONS, ExperimentConfig, TrainingConfig
from bvae.records import Stepped
from bvae.session.listeners import ProgressNote
from bvae.session.progress import MOST_LINES, Note, ProgressDisplay, describe_progress
from bvae.storage import read_json, to_json

pytestmark = pytest.mark.unit


def note(step: int = 50, steps: int = 100) -> Note:
    return Note(step=step, steps=steps, epoch=3, epochs=5, images_per_second=2000.0)


def test_the_progress_line_shows_runs_speed_and_time_left() -> None:
    line = describe_progress({"A-seed0": note(), "C-seed0": note()}, 1, 3, 2 / 3, 30.0)
    assert line == (
        "1 of 3 runs done; A-seed0 epoch 3/5 (50%), C-seed0 epoch 3/5 (50%), 4,000 images/s, about 15 s left"
    )


def test_a_run_that_may_end_on_a_plateau_shows_no_time_left(tmp_path: Path) -> None:
    listener = ProgressNote(tmp_path, TrainingConfig(epochs=50, until_plateau=3))
    for step in (1, 20):
        listener(Stepped(step=step, steps=20, epoch=2, grids=64))
    notes = {"A-seed0": read_json(tmp_path / ".progress", Note)}
    line = describe_progress(notes, 1, 3, 0.5, 30.0)
    assert line.startswith("1 of 3 runs done; A-seed0 epoch 2 of at most 50, ")
    assert "left" not in line


@given(st.integers(0, 3), st.integers(0, 6), st.floats(0, 1), st.floats(0, 1e5))
def test_every_state_gives_a_progress_line(
    training: int, finished: int, share: float, elapsed: float
) -> None:
    runs = training + finished + 1
    line = describe_progress({f"A-seed{i}": note() for i in range(training)}, finished, runs, share, elapsed)
    assert line.startswith(f"{finished} of {runs} runs done")
    assert "\n" not in line


def test_the_progress_line_names_four_of_many_runs_in_training() -> None:
    line = describe_progress({f"A-seed{i}": note() for i in range(64)}, 0, 1000, 0.03, 30.0)
    assert line.count("epoch") == 4
    assert "A-seed3 epoch 3/5 (50%), 60 more, 128,000 images/s" in line


def test_many_runs_are_shown_in_about_a_hundred_bounded_lines(tmp_path: Path) -> None:
    names = [f"B{number}" for number in range(5)]
    options = tuple(dataclasses.replace(LOSS_OPTIONS["B"], name=name) for name in names)
    runs = [
        ExperimentConfig(options=options).run(option, seed, "f") for option in options for seed in range(60)
    ]
    shown: list[str] = []
    display = ProgressDisplay(tmp_path, runs, shown.append, live=False)
    for run in runs:
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "result.json").touch()
        display.show()
    assert 50 < len(shown) <= MOST_LINES + 1
    assert max(map(len, shown)) < 200
    assert shown[-1] == "300 of 300 runs done\n"


def test_the_note_of_a_run_has_its_last_step(tmp_path: Path) -> None:
    listener = ProgressNote(tmp_path, TrainingConfig(epochs=2))
    for step in range(1, 21):
        listener(Stepped(step=step, steps=20, epoch=1 + step // 11, grids=64))
    assert read_json(tmp_path / ".progress", Note).step == 20


def test_a_note_that_cannot_replace_the_last_one_stays_as_a_listed_file(tmp_path: Path) -> None:
    (tmp_path / ".progress").mkdir()
    listener = ProgressNote(tmp_path, TrainingConfig(epochs=1))
    for step in (1, 2):
        listener(Stepped(step=step, steps=2, epoch=1, grids=64))
    (left,) = session_files.leftovers(tmp_path)
    assert f" {left.name} " in str(session_files.__doc__)


@pytest.mark.parametrize("live", [True, False])
def test_the_display_shows_notes_and_ends_when_all_runs_are_done(tmp_path: Path, live: bool) -> None:
    experiment = ExperimentConfig(seeds=1)
    runs = [experiment.run(option, 0, "f") for option in experiment.options]
    shown: list[str] = []
    display = ProgressDisplay(tmp_path, runs, shown.append, live=live)
    (tmp_path / "A-seed0").mkdir()
    (tmp_path / "A-seed0/.progress").write_bytes(to_json(note()))
    display.show()
    assert "0 of 3 runs done; A-seed0 epoch 3/5 (50%)" in shown[-1]
    assert shown[-1].startswith("\r") == live
    assert shown[-1].endswith("\n") != live
    for run in runs:
        (tmp_path / run.name).mkdir(exist_ok=True)
        (tmp_path / run.name / "result.json").touch()
    display.start()
    display.join(timeout=10)
    assert not display.is_alive()
    assert shown[-1] == "\r\x1b[K" if live else shown[-1].endswith("\n")
