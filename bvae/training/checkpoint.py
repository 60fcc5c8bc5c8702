"""Checkpoints: safetensors files. Training continues with the same bits from one of the newest two.

Nothing in a checkpoint is executed or unpickled. It contains a SHA-256 checksum of the whole file, which is
checked before any content is used. When the checksum is computed, its own digits are replaced by zeros.
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
"""Prefix of the names of optimizer tensors. They take two thirds of a checkpoint."""

WITH_OPTIMIZER = 2
"""Number of the newest checkpoints of a run that keep their optimizer state."""

MAX_BYTES = 4 * 2**30
_KEY = "bvae"
_OPENING = f'{{"__metadata__":{{"{_KEY}":"'.encode()
_NO_CHECKSUM = "0" * 64
_CHECKSUM = re.compile(rb'^\{\\"checksum\\":\\"([0-9a-f]{64})\\"')

CONTENT_ERRORS = (
    *(safetensors.SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(AssertionError, AttributeError),
)
"""Exceptions that parsers raise for content that is not a checkpoint."""

State = TypeVar("State")


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message is one line with the file and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class StrippedError(CheckpointError):
    """A checkpoint has no optimizer state, so training cannot continue from it."""


@dataclasses.dataclass(frozen=True)
class Checkpoint(Generic[State]):
    """Tensors by name, and all other state as a dataclass, which is stored as JSON."""

    tensors: Mapping[str, Tensor]
    state: State


def encode_checkpoint(checkpoint: Checkpoint[State]) -> bytes:
    """Return the bytes of a safetensors file. Equal checkpoints have equal bytes."""
    # The metadata have a single key, because the format does not define an order of keys.
    state = json.loads(to_json(checkpoint.state))
    metadata = json.dumps({"checksum": _NO_CHECKSUM, "state": state}, separators=(",", ":"))
    # Copies, because safetensors refuses tensors that share memory, such as tied weights.
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.tensors.items()
    }
    data = safetensors.torch.save(tensors, metadata={_KEY: metadata})
    checksum = hashlib.sha256(data).hexdigest().encode()
    return data.replace(_NO_CHECKSUM.encode(), checksum, 1)


def save_checkpoint(checkpoint: Checkpoint[State], path: Path, *others: Path) -> None:
    """Write a checkpoint atomically to each path. Raises StorageError."""
    atomic_write(path, encode_checkpoint(checkpoint), *others)


def load_checkpoint(path: Path, kind: type[State]) -> Checkpoint[State]:
    """Read a checkpoint with a state of type `kind`.

    Raises:
        CheckpointError: if the file is missing, too large, truncated, altered, or not a checkpoint.
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
    """Remove the optimizer state from the checkpoints of a run, except the newest two.

    A damaged checkpoint causes a warning and is not changed.

    Args:
        saved: paths of checkpoints, newest first.
        kind: type of their state.
        stripped: paths that earlier calls processed and this call skips. This call adds its own.

    Raises:
        StorageError: if a file cannot be written.
    """
    for path in saved[WITH_OPTIMIZER:]:
        if path in stripped:
            continue
        names = [other for other in saved if other.samefile(path)]  # `best` may be a hard link to an epoch
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
    """Return the bytes of a file, or only its first bytes if they are not those of a checkpoint."""
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
    """Raise CheckpointError if names, shapes or types of tensors differ from the expected tensors."""
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
