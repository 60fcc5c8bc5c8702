"""Checkpoints: safetensors files. From the newest ones of a run, training continues bit for bit.

A checkpoint is data: nothing in it is executed or unpickled. A SHA-256 of the whole file, in which the
checksum itself counts as zeros, detects truncation and flipped bits before any content is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bvae import EvidenceWarning
from bvae.storage import atomic_write, from_json, printable, to_json

OPTIMIZER = "optimizer."
"""Prefix of the names of the tensors that only training needs: two thirds of a checkpoint."""

WITH_OPTIMIZER = 2
"""Number of the newest checkpoints of a run that hold optimizer state: training can continue from these."""

MAX_BYTES = 4 * 2**30
_KEY = "bvae"
_OPENING = f'{{"__metadata__":{{"{_KEY}":"'.encode()
_NO_CHECKSUM = "0" * 64
_CHECKSUM = re.compile(rb'^\{\\"checksum\\":\\"([0-9a-f]{64})\\"')

CONTENT_ERRORS = (
    *(safetensors.SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(AssertionError, AttributeError),
)
"""Exceptions that parsers raise for content of another format."""

State = TypeVar("State")


class CheckpointError(ValueError):
    """A checkpoint is damaged or of another run. The message is one line with the file and the fault."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class StrippedError(CheckpointError):
    """A checkpoint holds no optimizer state, so training cannot continue from it."""


@dataclasses.dataclass(frozen=True)
class Checkpoint(Generic[State]):
    """Tensors by name, and everything else as one dataclass that is stored as JSON."""

    tensors: Mapping[str, Tensor]
    state: State


def encode_checkpoint(checkpoint: Checkpoint[State]) -> bytes:
    """Return the bytes of a safetensors file, always the same for the same checkpoint."""
    # One metadata key only: with more, the format does not define their order.
    state = json.loads(to_json(checkpoint.state))
    metadata = json.dumps({"checksum": _NO_CHECKSUM, "state": state}, separators=(",", ":"))
    # Copies, since tensors that share memory, such as tied weights, are stored under each of their names.
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.tensors.items()
    }
    data = safetensors.torch.save(tensors, metadata={_KEY: metadata})
    checksum = hashlib.sha256(data).hexdigest().encode()
    return data.replace(_NO_CHECKSUM.encode(), checksum, 1)


def save_checkpoint(checkpoint: Checkpoint[State], path: Path, *others: Path) -> None:
    """Write a checkpoint to each path, completely or not at all. Raises StorageError."""
    atomic_write(path, encode_checkpoint(checkpoint), *others)


def load_checkpoint(path: Path, kind: type[State]) -> Checkpoint[State]:
    """Read a checkpoint with a state of type `kind`.

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
        raise CheckpointError(f"{path} has a valid checksum but no checkpoint in it: {error}") from error
    return Checkpoint(tensors, state)


def strip_older(saved: Sequence[Path], kind: type[State], stripped: set[Path]) -> None:
    """Remove the optimizer state from all checkpoints of a run but the newest two.

    A damaged checkpoint is left as it is, with a warning.

    Args:
        saved: checkpoints with a state of type `kind`, newest first.
        stripped: those that were stripped or found damaged before; the others are read, and added.

    Raises:
        StorageError: if a file cannot be written.
    """
    for path in saved[WITH_OPTIMIZER:]:
        if path in stripped:
            continue
        names = [other for other in saved if other.samefile(path)]  # `best` may be another name of an epoch
        if names[0] in saved[:WITH_OPTIMIZER]:
            continue
        stripped.update(names)
        try:
            found = load_checkpoint(path, kind)
        except CheckpointError as error:
            warnings.warn(f"{error}; it is left as it is", EvidenceWarning, stacklevel=2)
            continue
        kept = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(OPTIMIZER)}
        if len(kept) < len(found.tensors):
            save_checkpoint(Checkpoint(kept, found.state), *names)


def _read(path: Path) -> bytes:
    """Return the bytes of a file; only the first ones if it does not start like a checkpoint."""
    if path.exists() and not path.is_file():  # reading a pipe would block
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
        raise CheckpointError(f"{path} is not a complete checkpoint (a safetensors file written by bvae)")
    start = 8 + len(_OPENING) + found.start(1)
    digest = hashlib.sha256(data[:start])
    digest.update(_NO_CHECKSUM.encode())
    digest.update(memoryview(data)[start + 64 :])
    if digest.hexdigest().encode() != found.group(1):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    try:
        metadata: dict[str, object] = json.loads(json.loads(header)["__metadata__"][_KEY])
    except CONTENT_ERRORS as error:
        raise CheckpointError(f"{path} has a valid checksum but a broken header: {error}") from error
    return metadata


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless names, shapes and types are those expected."""
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise CheckpointError(
            f"{path} lacks the tensors {sorted(missing)[:3]} and has unexpected ones {sorted(extra)[:3]}"
        )
    for name, tensor in tensors.items():
        like = expected[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}; "
                f"expected {like.dtype} {list(like.shape)}"
            )
