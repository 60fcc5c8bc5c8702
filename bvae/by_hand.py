"""Training steps of `BetaVAE` with every gradient written out, for processors that multiply in bfloat16.

Autograd finds the same gradient of the same function, and takes a tenth longer: a step is so short that
its bookkeeping counts. Here all weights are one vector, which is rounded, clipped and moved at once; they lie
in it as the layers read them, and gradients are written to where the optimizer reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvae.beta_vae import BetaVAE, GridModel, sample_posterior
from bvae.config import DEFAULT_MODEL, TrainingConfig
from bvae.layers import Layer, backward, forward, layer_of
from bvae.losses import BetaVAELoss, LossTerms
from bvae.optimizer import Adam
from bvae.updates import ByAutograd, Updates

ALIGNMENT = 32
"""Each parameter begins at a multiple of so many numbers, which are 64 bytes of bfloat16."""


def updates_of(model: GridModel, loss: BetaVAELoss, training: TrainingConfig) -> Updates:
    """By hand for our own model in bfloat16 on a CPU, where that is faster; by autograd for any other."""
    max_norm, bf16 = training.max_gradient_norm, training.precision == "bf16"
    if training.model == DEFAULT_MODEL and bf16 and torch.device(training.device).type == "cpu":
        assert isinstance(model, BetaVAE)
        return ByHand(model, loss, max_norm=max_norm)
    return ByAutograd(model, loss, max_norm=max_norm, bf16=bf16)


class ByHand(Updates):
    """Updates of all parameters of a `BetaVAE` on the CPU; hooks of its modules are not called.

    Args:
        model: the module to train.
        loss: what to minimize, as its mean over a batch.
        max_norm: the gradient's 2-norm is clipped to this.
        dtype: what the layers compute in; weights, loss and optimizer stay in the type of the model.

    `gradient` raises ValueError where a parameter was frozen.
    """

    def __init__(
        self, model: BetaVAE, loss: BetaVAELoss, *, max_norm: float, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._model, self._loss, self._dtype = model, loss, dtype
        self._one_hot_rows = model.one_hot_rows.to(dtype)
        self._state = Adam(dict(model.named_parameters()), max_norm=max_norm).tensors()
        self._lie = _as_layers_read(model)
        self._rooms = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in model.parameters()]
        self._weights, self._gradient = torch.zeros(2, sum(self._rooms), dtype=model.one_hot_rows.dtype)
        self._weights.grad = self._gradient
        self._adam = Adam({"all": self._weights}, max_norm=max_norm)
        self._rounded, self._rounded_gradient = torch.zeros(2, sum(self._rooms), dtype=dtype)
        self._encoder, self._decoder = self._layers("encoder"), self._layers("decoder")
        self._is_stored = True

    @torch.no_grad()
    def gradient(self, target: Tensor, noise: torch.Generator) -> tuple[LossTerms, Tensor]:
        exact = self._weights.dtype
        if self._is_stored:
            self._load()
        self._rounded.copy_(self._weights)
        one_hot = F.embedding(target.long(), self._one_hot_rows).permute(0, 3, 1, 2)
        mean, log_variance = forward(self._encoder, one_hot).to(exact).chunk(2, dim=1)
        latent = sample_posterior(mean, log_variance, noise)
        logits = forward(self._decoder, latent.to(self._dtype))
        logits = logits.to(exact, memory_format=torch.contiguous_format)
        terms, by = self._loss.with_gradient(logits, mean, log_variance, target)
        by_logits = by.logits.to(self._dtype).contiguous(memory_format=torch.channels_last)
        by_latent = backward(self._decoder, by_logits).to(exact)
        # What was sampled, mean + exp(log variance / 2)·noise, by the log variance is half of its last term.
        by_log_variance = by.log_variance + by_latent * (0.5 * (latent - mean))
        backward(self._encoder, torch.cat([by.mean + by_latent, by_log_variance], 1).to(self._dtype))
        self._gradient.copy_(self._rounded_gradient)
        return terms, self._adam.clip()

    def step(self, learning_rate: float) -> None:
        self._adam.step(learning_rate)

    def tensors(self) -> dict[str, Tensor]:
        return self._state

    @torch.no_grad()
    def store(self) -> None:
        if not self._is_stored:
            for here, there in self._pairs():
                there.copy_(here)
        self._is_stored = True

    def _load(self) -> None:
        if not all(parameter.requires_grad for parameter in self._model.parameters()):
            raise ValueError("a parameter is frozen, and bfloat16 on a CPU trains all; use --precision=fp32")
        for here, there in self._pairs():
            here.copy_(there)
        self._is_stored = False

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights and optimizer state, each tensor as it is here and as others see it."""
        mine, theirs = self._adam.tensors(), dict(self._model.named_parameters()) | self._state
        yield from ((mine["all.step"], theirs[f"{name}.step"]) for name in self._lie)
        for suffix in ("", ".exp_avg", ".exp_avg_sq"):
            vector = mine[f"all{suffix}"] if suffix else self._weights
            for name, part in self._parts(vector).items():
                there = self._lie[name](theirs[name + suffix])
                yield part.view(there.shape), there

    def _parts(self, vector: Tensor) -> dict[str, Tensor]:
        """The part of a vector that is each parameter's, flat."""
        rooms = zip(self._model.named_parameters(), torch.split(vector, self._rooms), strict=True)
        return {name: room[: parameter.numel()] for (name, parameter), room in rooms}

    def _layers(self, chain: str) -> list[Layer]:
        weights, gradients = self._parts(self._rounded), self._parts(self._rounded_gradient)
        layers: list[Layer] = []
        for name, module in self._model.get_submodule(chain).named_children():
            own = [f"{chain}.{name}.{key}" for key, _ in module.named_parameters()]
            tensors = [*map(weights.get, own), *map(gradients.get, own)]
            of_data = chain == "encoder" and not layers
            layers.append(layer_of(module, *tensors, of_data=of_data))
        return layers


def _as_layers_read(model: BetaVAE) -> dict[str, Callable[[Tensor], Tensor]]:
    """For each parameter, by name, a view of it in the order in which its numbers lie here.

    Maps lie channels last, and so do weights of convolutions. The two linear layers beside maps read or write
    them as they lie.
    """
    (maps,) = (module.unflattened_size for module in model.decoder if isinstance(module, nn.Unflatten))
    after_maps = min(i for i, module in enumerate(model.encoder) if isinstance(module, nn.Linear))
    before_maps = max(i for i, module in enumerate(model.decoder) if isinstance(module, nn.Linear))

    def as_it_is(tensor: Tensor) -> Tensor:
        return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor

    return {name: as_it_is for name, _ in model.named_parameters()} | {
        f"encoder.{after_maps}.weight": lambda weight: weight.unflatten(1, maps).permute(0, 2, 3, 1),
        f"decoder.{before_maps}.weight": lambda weight: weight.unflatten(0, maps).permute(1, 2, 0, 3),
        f"decoder.{before_maps}.bias": lambda bias: bias.unflatten(0, maps).permute(1, 2, 0),
    }
