"""Training steps of `BetaVAE` with every gradient written out, for processors that multiply in bfloat16.

Autograd finds the same gradient of the same function, and takes a tenth longer: a step is so short that
its bookkeeping counts. Here all weights are one vector, which is rounded, clipped and moved at once; they lie
in it as the layers read them, and gradients are written to where the optimizer reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvae.beta_vae import BetaVAE, GridModel, sample_posterior
from bvae.config import DEFAULT_MODEL, TrainingConfig
from bvae.losses import BetaVAELoss, LossTerms
from bvae.optimizer import Adam
from bvae.resampling import Doubling, Halving, convolve, patches
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
    """Updates of a `BetaVAE` on the CPU.

    Args:
        model: the module to train.
        loss: what to minimize, as its mean over a batch.
        max_norm: the gradient's 2-norm is clipped to this.
        dtype: what the layers compute in; weights, loss and optimizer stay in the type of the model.
    """

    def __init__(
        self, model: BetaVAE, loss: BetaVAELoss, *, max_norm: float, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._model, self._loss, self._dtype = model, loss, dtype
        self._one_hot = model.one_hot.to(dtype)
        self._state = Adam(dict(model.named_parameters()), max_norm=max_norm).tensors()
        self._lie = _as_layers_read(model)
        self._rooms = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in model.parameters()]
        self._weights, self._gradient = torch.zeros(2, sum(self._rooms), dtype=model.one_hot.dtype)
        self._weights.grad = self._gradient
        self._adam = Adam({"all": self._weights}, max_norm=max_norm)
        self._rounded, self._rounded_gradient = torch.zeros(2, sum(self._rooms), dtype=dtype)
        self._encoder, self._decoder = self._layers("encoder"), self._layers("decoder")
        self._encoder[0].of_input = False

    @torch.no_grad()
    def gradient(self, target: Tensor, noise: torch.Generator) -> tuple[LossTerms, Tensor]:
        exact = self._weights.dtype
        self._rounded.copy_(self._weights)
        one_hot = F.embedding(target.long(), self._one_hot).permute(0, 3, 1, 2)
        mean, log_variance = _forward(self._encoder, one_hot).to(exact).chunk(2, dim=1)
        latent = sample_posterior(mean, log_variance, noise)
        logits = _forward(self._decoder, latent.to(self._dtype))
        logits = logits.to(exact, memory_format=torch.contiguous_format)
        terms, by = self._loss.with_gradient(logits, mean, log_variance, target)
        by_logits = by.logits.to(self._dtype).contiguous(memory_format=torch.channels_last)
        by_latent = _backward(self._decoder, by_logits).to(exact)
        # What was sampled, mean + exp(log variance / 2)·noise, by the log variance is half of its last term.
        by_log_variance = by.log_variance + by_latent * (0.5 * (latent - mean))
        _backward(self._encoder, torch.cat([by.mean + by_latent, by_log_variance], 1).to(self._dtype))
        self._gradient.copy_(self._rounded_gradient)
        return terms, self._adam.clip()

    def step(self, learning_rate: float) -> None:
        self._adam.step(learning_rate)

    def tensors(self) -> dict[str, Tensor]:
        return self._state

    @torch.no_grad()
    def load(self) -> None:
        for here, there in self._pairs():
            here.copy_(there)

    @torch.no_grad()
    def store(self) -> None:
        for here, there in self._pairs():
            there.copy_(here)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights and optimizer state, each tensor as it is here and as others see it."""
        mine, weights = self._adam.tensors(), self._parts(self._weights)
        moments = {key: self._parts(mine[f"all.{key}"]) for key in ("exp_avg", "exp_avg_sq")}
        for name, parameter in self._model.named_parameters():
            yield mine["all.step"], self._state[f"{name}.step"]
            theirs = {key: self._state[f"{name}.{key}"] for key in moments}
            for here, there in (
                (weights[name], parameter.detach()),
                *((moments[key][name], theirs[key]) for key in moments),
            ):
                there = self._lie[name](there)
                yield here.view(there.shape), there

    def _parts(self, vector: Tensor) -> dict[str, Tensor]:
        """The part of a vector that is each parameter's, flat."""
        rooms = zip(self._model.named_parameters(), torch.split(vector, self._rooms), strict=True)
        return {name: room[: parameter.numel()] for (name, parameter), room in rooms}

    def _layers(self, chain: str) -> list[Any]:
        weights, gradients = self._parts(self._rounded), self._parts(self._rounded_gradient)
        layers = []
        for name, module in self._model.get_submodule(chain).named_children():
            own = [f"{chain}.{name}.{key}" for key, _ in module.named_parameters()]
            layers.append(_LAYERS[type(module)](module, *map(weights.get, own), *map(gradients.get, own)))
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


class _Layer(Protocol):
    """A function of a batch, which may overwrite what it is given."""

    def forward(self, maps: Tensor) -> Tensor: ...

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient by what `forward` was last given, of that by what it returned."""


def _forward(layers: Sequence[_Layer], maps: Tensor) -> Tensor:
    for layer in layers:
        maps = layer.forward(maps)
    return maps


def _backward(layers: Sequence[_Layer], gradient: Tensor) -> Tensor:
    for layer in reversed(layers):
        gradient = layer.backward(gradient)
    return gradient


class _Linear:
    """Its `backward`, as that of all layers with weights, also writes to `by_weight` and `by_bias`."""

    def __init__(
        self, module: nn.Linear, weight: Tensor, bias: Tensor, by_weight: Tensor, by_bias: Tensor
    ) -> None:
        self.weight, self.by_weight = (flat.view(module.weight.shape) for flat in (weight, by_weight))
        self.bias, self.by_bias = bias, by_bias
        self.given: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        self.given = maps
        return torch.addmm(self.bias, maps, self.weight.t())

    def backward(self, gradient: Tensor) -> Tensor:
        torch.mm(gradient.t(), self.given, out=self.by_weight)
        torch.sum(gradient, 0, out=self.by_bias)
        return gradient @ self.weight


class _Convolution:
    """3×3 of stride 1; `of_input` is whether the gradient by its input is asked for."""

    def __init__(
        self, module: nn.Conv2d, weight: Tensor, bias: Tensor, by_weight: Tensor, by_bias: Tensor
    ) -> None:
        self.weight, self.by_weight = (_channels_last(module, flat) for flat in (weight, by_weight))
        self.bias, self.by_bias = bias, by_bias
        self.given: Tensor
        self.of_input = True

    def forward(self, maps: Tensor) -> Tensor:
        self.given = maps
        return F.conv2d(maps, self.weight, self.bias, padding=1)

    def backward(self, gradient: Tensor) -> Tensor:
        by_maps, by_weight, _ = torch.ops.aten.convolution_backward(
            *(gradient, self.given, self.weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
            [self.of_input, True, False],
        )
        self.by_weight.copy_(by_weight)
        torch.sum(_cells(gradient), 0, out=self.by_bias)
        return by_maps  # type: ignore[no-any-return]


class _Resampling:
    """`Halving` or `Doubling`. The gradient by the weight is found fastest as one product of matrices."""

    def __init__(
        self, module: Halving | Doubling, weight: Tensor, bias: Tensor, by_weight: Tensor, by_bias: Tensor
    ) -> None:
        self.up = isinstance(module, Doubling)
        self.weight, self.bias, self.by_bias = _channels_last(module, weight), bias, by_bias
        self.matrix, self.by_matrix = (flat.view(len(self.weight), -1) for flat in (weight, by_weight))
        self.given: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        self.given = maps
        return convolve(maps, self.weight, self.up, self.bias)

    def backward(self, gradient: Tensor) -> Tensor:
        large, small = (gradient, self.given) if self.up else (self.given, gradient)
        seen = patches(large, self.weight.shape[-1])
        torch.mm(_cells(small).t(), seen, out=self.by_matrix)
        torch.sum(_cells(gradient), 0, out=self.by_bias)
        if not self.up:
            return convolve(gradient, self.weight, True)
        batch, channels, height, width = small.shape
        return (seen @ self.matrix.t()).view(batch, height, width, channels).permute(0, 3, 1, 2)


class _ReLU:
    def __init__(self, module: nn.ReLU) -> None:
        self.found: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        self.found = maps.relu_()
        return self.found

    def backward(self, gradient: Tensor) -> Tensor:
        by_maps: Tensor = torch.ops.aten.threshold_backward(gradient, self.found, 0)
        return by_maps


class _Flatten:
    """Of maps as they lie, so nothing is moved."""

    def __init__(self, module: nn.Flatten) -> None:
        self.shape: torch.Size

    def forward(self, maps: Tensor) -> Tensor:
        lying = maps.permute(0, 2, 3, 1)
        self.shape = lying.shape
        return lying.flatten(1)

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient.view(self.shape).permute(0, 3, 1, 2)


class _Unflatten:
    """The other way round."""

    def __init__(self, module: nn.Unflatten) -> None:
        self.channels, self.height, self.width = module.unflattened_size

    def forward(self, maps: Tensor) -> Tensor:
        return maps.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient.permute(0, 2, 3, 1).flatten(1)


_LAYERS: dict[type[nn.Module], Callable[..., _Layer]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Convolution,
    Halving: _Resampling,
    Doubling: _Resampling,
    nn.ReLU: _ReLU,
    nn.Flatten: _Flatten,
    nn.Unflatten: _Unflatten,
}


def _channels_last(module: nn.Conv2d | Halving | Doubling, flat: Tensor) -> Tensor:
    """The weight of a convolution whose numbers lie channels last."""
    small, large, height, width = module.weight.shape
    return flat.view(small, height, width, large).permute(0, 3, 1, 2)


def _cells(maps: Tensor) -> Tensor:
    """Maps `[B, C, H, W]` that lie channels last, as `[B·H·W, C]`."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
