"""What training leaves behind: one record an epoch, how far it came, and where it broke off."""

from __future__ import annotations

import dataclasses

from bvae.config import RunConfig
from bvae.metrics import Evaluation


@dataclasses.dataclass(frozen=True)
class TrainingMeans:
    """Means over the batches of an epoch while the model was learning, decoded from posterior samples.

    Accuracy is that of `bvae.losses.LossTerms`, for which a tie of logits is wrong.
    """

    loss: float
    reconstruction: float
    kl: float
    pixel_accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of `metrics.jsonl`: losses in nats, learning rate of the last step, wall time in seconds."""

    epoch: int
    step: int
    learning_rate: float
    seconds: float
    train: TrainingMeans
    validation: Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """Where a loss or gradient norm stopped being finite; the terms as text, since JSON has no NaN."""

    epoch: int
    step: int
    batch: tuple[int, ...]
    terms: dict[str, str]


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How far training has come: what a checkpoint holds beside tensors."""

    config: RunConfig
    step: int = 0
    noise_state: bytes = b""
    epoch_sums: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    epoch_seconds: float = 0.0
    history: list[EpochRecord] = dataclasses.field(default_factory=list)
