from __future__ import annotations

import dataclasses
import os
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvae.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_tensors,
    encode_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.unit


@dataclasses.dataclass(frozen=True)
class State:
    step: int
    loss: float
    noise: bytes


CHECKPOINT = Checkpoint(
    {"model.weight": torch.arange(60.0).reshape(4, 15), "optimizer.step": torch.tensor(7.0)},
    State(step=3, loss=0.1, noise=bytes(range(256))),
)


@given(st.integers(0, 2**31), st.floats(allow_nan=False, allow_infinity=False), st.binary(max_size=99))
def test_a_checkpoint_is_loaded_bit_for_bit(step: int, loss: float, noise: bytes) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.tensor([-0.0, torch.nan])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.safetensors")
        save_checkpoint(Checkpoint(tensors, State(step, loss, noise)), path)
        loaded = load_checkpoint(path, State)
    assert loaded.state == State(step, loss, noise)
    for name, tensor in tensors.items():
        assert torch.equal(loaded.tensors[name].view(torch.int32), tensor.view(torch.int32))


def test_the_same_checkpoint_gives_the_same_bytes() -> None:
    assert encode_checkpoint(CHECKPOINT) == encode_checkpoint(CHECKPOINT)


def test_a_flipped_bit_anywhere_is_detected(tmp_path: Path) -> None:
    data = encode_checkpoint(CHECKPOINT)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:  # changed in place: rewriting it may flush it to disk
        for place, byte in enumerate(data):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
                    load_checkpoint(path, State)
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert load_checkpoint(path, State).state == CHECKPOINT.state


def test_truncation_and_extension_anywhere_are_detected(tmp_path: Path) -> None:
    data = encode_checkpoint(CHECKPOINT)
    path = tmp_path / "checkpoint.safetensors"
    for extended in (data + b"\0", data + data):
        path.write_bytes(extended)
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
            load_checkpoint(path, State)
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
            load_checkpoint(path, State)


def test_a_file_that_is_not_a_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "noise").write_bytes(random.Random(0).randbytes(4096))
    torch.save({"a": torch.zeros(3)}, tmp_path / "archive")
    for name in ("missing", "directory", "noise", "archive"):
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name, State)


def test_a_state_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(Checkpoint({}, {"something": "else"}), path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in it.*step"):
        load_checkpoint(path, State)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"w": torch.zeros(2, 3), "extra": torch.zeros(1)},
        {"w": torch.zeros(3, 2)},
        {"w": torch.zeros(2, 3, dtype=torch.float64)},
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        check_tensors(Path("a.safetensors"), tensors, {"w": torch.zeros(2, 3)})
