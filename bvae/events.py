"""What a trainer announces, for whoever listens: progress, logs and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bvae.records import EpochRecord

if TYPE_CHECKING:
    from bvae.beta_vae import GridModel


@dataclasses.dataclass(frozen=True)
class Stepped:
    """Announced after each step: `step` of `steps` in `epoch` (from 1), on so many `images`."""

    step: int
    steps: int
    epoch: int
    images: int


@dataclasses.dataclass(frozen=True)
class EpochEnded:
    """Announced when an epoch has been trained and evaluated, before its checkpoint is saved."""

    history: Sequence[EpochRecord]


@dataclasses.dataclass(frozen=True)
class CheckpointSaved:
    """Announced when the same checkpoint has been written to each of `paths`, after `step` steps."""

    paths: tuple[Path, ...]
    epoch: int
    step: int
    model: GridModel


Event = Stepped | EpochEnded | CheckpointSaved
Listener = Callable[[Event], None]
