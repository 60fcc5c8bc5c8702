from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from bvae.config import ExperimentConfig, TrainingConfig
from bvae.storage import StorageError, atomic_write, differences, from_json, to_json

pytestmark = pytest.mark.unit


def test_further_names_are_links_to_the_new_file(tmp_path: Path) -> None:
    first, *others = paths = [tmp_path / name for name in ("epoch", "best", "last")]
    atomic_write(others[0], b"from before")
    for data in (b"old", b"new", b"new"):
        atomic_write(first, data, *others)
        assert [path.read_bytes() for path in paths] == [data] * 3
        assert first.stat().st_nlink == 3
        assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_rewriting_a_file_does_not_change_its_other_name(tmp_path: Path) -> None:
    epoch, best = tmp_path / "epoch", tmp_path / "best"
    atomic_write(epoch, b"one", best)
    atomic_write(epoch, b"two")
    assert (epoch.read_bytes(), best.read_bytes()) == (b"two", b"one")


def test_without_hard_links_further_names_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    epoch, best = tmp_path / "epoch", tmp_path / "best"
    atomic_write(epoch, b"one", best)
    assert (epoch.read_bytes(), best.read_bytes()) == (b"one", b"one")
    assert epoch.stat().st_nlink == 1
    assert sorted(tmp_path.iterdir()) == [best, epoch]


def test_a_further_name_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    best = tmp_path / "best"
    best.mkdir()
    with pytest.raises(StorageError, match=f"{best} could not be written"):
        atomic_write(tmp_path / "epoch", b"one", best)
    assert sorted(tmp_path.iterdir()) == [best, tmp_path / "epoch"]


@pytest.mark.parametrize("kind", [ExperimentConfig, TrainingConfig])
def test_a_field_missing_in_older_json_has_its_default(kind: type) -> None:
    for field in dataclasses.fields(kind):
        older = json.loads(to_json(kind()))
        del older[field.name]
        assert differences(kind(), from_json(json.dumps(older), kind)) == []
    assert differences(ExperimentConfig(classes=3), ExperimentConfig()) == ["classes was 10 and is 3"]
