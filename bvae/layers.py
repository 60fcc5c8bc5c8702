"""The layers of `BetaVAE` with their gradients written out: forward, and backward without autograd.

Maps are `[B, C, H, W]` and lie channels last, as do the weights of convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvae.resampling import Doubling, Halving, convolve, patches

MINUS_INFINITY = -128
"""Its bits in bfloat16, as an integer."""


class Layer(Protocol):
    """A function of a batch, which may overwrite what it is given."""

    def forward(self, maps: Tensor) -> Tensor: ...

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient by what `forward` was last given, of that by what it returned."""


def forward(layers: Sequence[Layer], maps: Tensor) -> Tensor:
    """What layers, one after the other, make of a batch."""
    for layer in layers:
        maps = layer.forward(maps)
    return maps


def backward(layers: Sequence[Layer], gradient: Tensor) -> Tensor:
    """The gradient by the batch, of that by what `forward` made of it."""
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
    """3×3 of stride 1, padded by 1. Of data `backward` returns nothing, as nobody asks for that gradient."""

    def __init__(
        self,
        module: nn.Conv2d,
        weight: Tensor,
        bias: Tensor,
        by_weight: Tensor,
        by_bias: Tensor,
        *,
        of_data: bool = False,
    ) -> None:
        self.weight, self.by_weight = (_channels_last(module, flat) for flat in (weight, by_weight))
        self.bias, self.by_bias = bias, by_bias
        self.given: Tensor
        self.of_data = of_data

    def forward(self, maps: Tensor) -> Tensor:
        self.given = maps
        return F.conv2d(maps, self.weight, self.bias, padding=1)

    def backward(self, gradient: Tensor) -> Tensor:
        self.by_weight.copy_(_by_weight(gradient, self.given, self.weight))
        torch.sum(_cells(gradient), 0, out=self.by_bias)
        by_maps: Tensor = _convolve_back(gradient, self.given, self.weight, not self.of_data, False)[0]
        return by_maps


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
    """In bfloat16 by comparing bits as integers: PyTorch widens these numbers to compare them.

    As integers, bits of numbers below zero are at most those of minus infinity; of NaN they are above.
    """

    def __init__(self, module: nn.ReLU) -> None:
        self.found: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        self.found = maps
        torch.threshold_(_comparable(maps), MINUS_INFINITY if maps.dtype == torch.bfloat16 else 0, 0)
        return maps

    def backward(self, gradient: Tensor) -> Tensor:
        own, found = _comparable(gradient), _comparable(self.found)
        torch.ops.aten.threshold_backward.grad_input(own, found, 0, grad_input=own)
        return gradient


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


_LAYERS: dict[type[nn.Module], Callable[..., Layer]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Convolution,
    Halving: _Resampling,
    Doubling: _Resampling,
    nn.ReLU: _ReLU,
    nn.Flatten: _Flatten,
    nn.Unflatten: _Unflatten,
}


def layer_of(module: nn.Module, *tensors: Tensor | None, of_data: bool = False) -> Layer:
    """The layer that does what a module of `BetaVAE` does.

    Its tensors are flat and in the order in which they are read: weight, bias, and where to write the
    gradient of each; modules without weights have none. `of_data` is for the first convolution.
    """
    return _LAYERS[type(module)](module, *tensors, **({"of_data": True} if of_data else {}))


def _channels_last(module: nn.Conv2d | Halving | Doubling, flat: Tensor) -> Tensor:
    """The weight of a convolution whose numbers lie channels last."""
    small, large, height, width = module.weight.shape
    return flat.view(small, height, width, large).permute(0, 3, 1, 2)


def _by_weight(gradient: Tensor, given: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a 3×3 convolution by its weight."""
    if weight.shape[0] < weight.shape[1]:  # found half as fast again as that of the convolution turned round
        return _by_weight(given, gradient, weight.transpose(0, 1)).transpose(0, 1).flip(2, 3)
    found: Tensor = _convolve_back(gradient, given, weight, False, True)[1]
    return found


def _convolve_back(
    gradient: Tensor, given: Tensor, weight: Tensor, by_given: bool, by_weight: bool
) -> tuple[Any, Any]:
    """The gradients of a 3×3 convolution by what it was given and by its weight, or None where not asked."""
    found = torch.ops.aten.convolution_backward(
        *(gradient, given, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        [by_given, by_weight, False],
    )
    return found[0], found[1]


def _cells(maps: Tensor) -> Tensor:
    """Maps `[B, C, H, W]` that lie channels last, as `[B·H·W, C]`."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _comparable(maps: Tensor) -> Tensor:
    """The same memory, of a type whose numbers are compared as they lie: of bfloat16 its bits."""
    return maps.view(torch.int16) if maps.dtype == torch.bfloat16 else maps
