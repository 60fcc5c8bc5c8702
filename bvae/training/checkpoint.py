"""Checkpoints: safetensors files that carry all that training needs to go on, bit for bit.

A checkpoint is data. Nothing in it is ever executed or unpickled; one SHA-256 over the whole file, with the
place of the checksum itself zeroed, finds truncation and any flipped bit before anything is believed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from bvae.config import from_json, to_json
from bvae.files import printable, write_whole

MAX_BYTES = 4 * 2**30
_KEY = "bvae"
_OPENING = f'{{"__metadata__":{{"{_KEY}":"'.encode()
_NO_CHECKSUM = "0" * 64
_CHECKSUM = re.compile(rb'^\{\\"checksum\\":\\"([0-9a-f]{64})\\"')

CONTENT_ERRORS = (
    *(safetensors.SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(AssertionError, AttributeError),
)
"""What parsers raise for content that is not what they expect."""

State = TypeVar("State")


class CheckpointError(ValueError):
    """A checkpoint is damaged or does not belong here; one line that names the file and what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclasses.dataclass(frozen=True)
class Checkpoint(Generic[State]):
    """Tensors by name, and everything else as one dataclass that goes to and from JSON."""

    tensors: Mapping[str, Tensor]
    state: State


def encode_checkpoint(checkpoint: Checkpoint[State]) -> bytes:
    """The bytes of a safetensors file; the same checkpoint always gives the same bytes."""
    # One metadata key only: with more, the format leaves their order open.
    state = json.loads(to_json(checkpoint.state))
    metadata = json.dumps({"checksum": _NO_CHECKSUM, "state": state}, separators=(",", ":"))
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    data = safetensors.torch.save(tensors, metadata={_KEY: metadata})
    checksum = hashlib.sha256(data).hexdigest().encode()
    return data.replace(_NO_CHECKSUM.encode(), checksum, 1)


def save_checkpoint(checkpoint: Checkpoint[State], path: Path, *others: Path) -> None:
    """Write a checkpoint to a path, whole or not at all, the others as further names. Raises StorageError."""
    write_whole(path, encode_checkpoint(checkpoint), *others)


def load_checkpoint(path: Path, kind: type[State]) -> Checkpoint[State]:
    """Read a checkpoint whose state is a `kind`.

    Raises:
        CheckpointError: for a file that is missing, too large, truncated, altered, or of another format.
    """
    try:
        data = _read(path)
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror or error}") from error
    metadata = _verified_metadata(path, data)
    try:
        tensors = safetensors.torch.load(data)
        state = from_json(json.dumps(metadata["state"]), kind)
    except CONTENT_ERRORS as error:
        raise CheckpointError(f"{path} has a sound checksum but no checkpoint in it: {error}") from error
    return Checkpoint(tensors, state)


def _read(path: Path) -> bytes:
    """The bytes of a file that begins as a checkpoint does; of another no more than its beginning is read."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path} is not a file; expected a checkpoint of bvae")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes; a checkpoint has at most {MAX_BYTES}")
        start = file.read(8 + len(_OPENING))
        return start + file.read() if start.endswith(_OPENING) else start


def _verified_metadata(path: Path, data: bytes) -> dict[str, object]:
    header_size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + header_size]
    found = _CHECKSUM.match(header[len(_OPENING) :]) if header.startswith(_OPENING) else None
    if len(header) < header_size or found is None:
        raise CheckpointError(f"{path} is not a whole checkpoint of bvae (a safetensors file of its own)")
    start = 8 + len(_OPENING) + found.start(1)
    digest = hashlib.sha256(data[:start])
    digest.update(_NO_CHECKSUM.encode())
    digest.update(memoryview(data)[start + 64 :])
    if digest.hexdigest().encode() != found.group(1):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    try:
        metadata: dict[str, object] = json.loads(json.loads(header)["__metadata__"][_KEY])
    except CONTENT_ERRORS as error:
        raise CheckpointError(f"{path} has a sound checksum but a broken header: {error}") from error
    return metadata


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless names, shapes and types are those expected."""
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise CheckpointError(
            f"{path} lacks the tensors {sorted(missing)[:3]} and has {sorted(extra)[:3]} in excess"
        )
    for name, tensor in tensors.items():
        like = expected[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}; "
                f"expected {like.dtype} {list(like.shape)}"
            )
