"""How a model is moved along the gradient of its loss."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bvae.beta_vae import GridModel, sample_posterior
from bvae.losses import BetaVAELoss, LossTerms
from bvae.optimizer import Adam


class Updates(Protocol):
    """What training asks for. From `gradient` to the next `store`, model and `tensors` may be out of date."""

    def gradient(self, target: Tensor, noise: torch.Generator) -> tuple[LossTerms, Tensor]:
        """The mean loss of grids `[B, H, W]`, and the 2-norm of its gradient before that was clipped."""

    def step(self, learning_rate: float) -> None:
        """Move the weights by the last gradient."""

    def store(self) -> None:
        """Bring the model and `tensors` to where training stands."""

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by name: the tensors themselves, to copy into."""


class ByAutograd(Updates):
    """Updates of any model, on any device.

    Args:
        model: the module to train, where it is to be trained.
        loss: what to minimize, as its mean over a batch.
        max_norm: the gradient's 2-norm is clipped to this.
        bf16: whether to run the model under autocast to bfloat16.

    `gradient` raises ValueError where nothing that the model returns depends on what is trained.
    """

    def __init__(self, model: GridModel, loss: BetaVAELoss, *, max_norm: float, bf16: bool) -> None:
        self._model, self._loss, self._bf16 = model, loss, bf16
        self._parameters = dict(model.named_parameters())
        self._adam = Adam(self._parameters, max_norm=max_norm)

    def gradient(self, target: Tensor, noise: torch.Generator) -> tuple[LossTerms, Tensor]:
        for parameter in self._parameters.values():
            parameter.grad = None
        with torch.autocast(target.device.type, torch.bfloat16, enabled=self._bf16):
            mean, log_variance = self._model.encode(target)
            logits = self._model.decode(sample_posterior(mean, log_variance, noise))
        outputs = (logits, mean, log_variance)
        terms, gradient = self._loss.with_gradient(*outputs, target)
        learned = [(of, by) for of, by in zip(outputs, gradient, strict=True) if of.requires_grad]
        if not learned:
            raise ValueError("nothing that the model returns depends on a parameter that is trained")
        torch.autograd.backward([of for of, _ in learned], [by.to(of.dtype) for of, by in learned])
        return terms, self._adam.clip()

    def step(self, learning_rate: float) -> None:
        self._adam.step(learning_rate)

    def store(self) -> None:
        """Nothing: weights and state are where others see them."""

    def tensors(self) -> dict[str, Tensor]:
        return self._adam.tensors()
