"""Handwritten forward and backward passes of the layers that `HandwrittenStep` supports.

Maps are `[B, C, H, W]`, with channels last in memory, like the weights of convolutions. Vectors are `[B, N]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvae.beta_vae import Downsample, Upsample, patches

MINUS_INFINITY = -128
"""Minus infinity in bfloat16, with its bits read as an integer."""

Form = Literal["maps", "vectors"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Position of a module in its sequence.

    Attributes:
        before, after: the previous and next module other than ReLU; None at the ends.
        channels: number of channels of the last maps before the module.
        is_first: whether the input of the module is data, which need no gradient.
    """

    before: nn.Module | None = None
    after: nn.Module | None = None
    channels: int = 1
    is_first: bool = False


class Layer:
    """Forward and backward pass of a module. Both may overwrite their argument.

    Attributes:
        accepts: required values of the module's attributes, by name.
        takes: form of the input; None for any form.
        gives: form of the output; None if it is the form of the input.
    """

    accepts: ClassVar[Mapping[str, object]] = {}
    takes: ClassVar[Form | None] = None
    gives: ClassVar[Form | None] = None

    def __init__(self, module: Any, place: Place) -> None:
        """Read the attributes of the module. A `WeightedLayer` also takes four flat tensors."""

    @classmethod
    def unsupported(cls, module: Any) -> str | None:
        """Return a description of the first attribute that is not supported, or None."""
        for name, value in cls.accepts.items():
            if (found := getattr(module, name, None)) != value:
                return f"{name} is {found!r} and not {value!r}"
        return None

    @staticmethod
    def shapes(module: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all parameters that the module must have, by name."""
        return {}

    def forward(self, batch: Tensor) -> Tensor:
        raise NotImplementedError

    def backward(self, gradient: Tensor) -> Tensor:
        """Turn the gradient with respect to the last output of `forward` into that of its input."""
        raise NotImplementedError


class WeightedLayer(Layer):
    """A layer with a weight and a bias. `backward` also writes the gradients with respect to both.

    Args:
        module, place: as for any layer.
        weight, bias: flat tensors, in the memory order of `as_read`.
        weight_gradient, bias_gradient: flat tensors, in the same order, to which `backward` writes.
    """

    def __init__(
        self,
        module: Any,
        place: Place,
        weight: Tensor,
        bias: Tensor,
        weight_gradient: Tensor,
        bias_gradient: Tensor,
    ) -> None:
        shape = self.as_read(module.weight).shape
        self.weight, self.weight_gradient = weight.view(shape), weight_gradient.view(shape)
        self.bias, self.bias_gradient = bias, bias_gradient
        self.given: Tensor

    def as_read(self, parameter: Tensor) -> Tensor:
        """Return a view of a weight, bias or their gradient, in the memory order in which the layer reads."""
        return parameter.permute(0, 2, 3, 1) if parameter.ndim == 4 else parameter


class Linear(WeightedLayer):
    """A linear layer.

    Next to `Flatten` or `Unflatten`, the weight is stored in the order of channels-last maps. `Flatten`
    and `Unflatten` then return views and need not copy the maps.
    """

    takes = gives = "vectors"

    def __init__(self, module: nn.Linear, place: Place, *tensors: Tensor) -> None:
        self._channels_in = place.channels if isinstance(place.before, nn.Flatten) else 1
        after = place.after
        self._channels_out = int(after.unflattened_size[0]) if isinstance(after, nn.Unflatten) else 1
        super().__init__(module, place, *tensors)
        self.weight, self.weight_gradient = (
            matrix.view(module.weight.shape) for matrix in (self.weight, self.weight_gradient)
        )

    @staticmethod
    def shapes(module: nn.Linear) -> dict[str, tuple[int, ...]]:
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}

    def as_read(self, parameter: Tensor) -> Tensor:
        if parameter.ndim == 2:
            parameter = torch.unflatten(parameter, 1, (self._channels_in, -1)).transpose(1, 2)
        return torch.unflatten(parameter, 0, (self._channels_out, -1)).transpose(0, 1)

    def forward(self, batch: Tensor) -> Tensor:
        self.given = batch
        return torch.addmm(self.bias, batch, self.weight.t())

    def backward(self, gradient: Tensor) -> Tensor:
        torch.mm(gradient.t(), self.given, out=self.weight_gradient)
        torch.sum(gradient, 0, out=self.bias_gradient)
        return gradient @ self.weight


class Convolution(WeightedLayer):
    """A 3×3 convolution of stride 1 and padding 1. Its input needs no gradient if it is data."""

    accepts: ClassVar[Mapping[str, object]] = {
        **{"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "padding_mode": "zeros"},
        **{"dilation": (1, 1), "groups": 1, "transposed": False, "output_padding": (0, 0)},
    }
    takes = gives = "maps"

    def __init__(self, module: nn.Conv2d, place: Place, *tensors: Tensor) -> None:
        super().__init__(module, place, *tensors)
        self.weight, self.weight_gradient = (
            kernels.permute(0, 3, 1, 2) for kernels in (self.weight, self.weight_gradient)
        )
        self._is_first = place.is_first

    @staticmethod
    def shapes(module: nn.Conv2d) -> dict[str, tuple[int, ...]]:
        weight = (module.out_channels, module.in_channels, *module.kernel_size)
        return {"weight": weight, "bias": (module.out_channels,)}

    def forward(self, batch: Tensor) -> Tensor:
        self.given = batch
        return F.conv2d(batch, self.weight, self.bias, padding=1)

    def backward(self, gradient: Tensor) -> Tensor:
        self.weight_gradient.copy_(_weight_gradient(gradient, self.given, self.weight))
        torch.sum(_cells(gradient), 0, out=self.bias_gradient)
        found: Tensor = _convolution_backward(gradient, self.given, self.weight, not self._is_first, False)[0]
        return found


class Resampling(WeightedLayer):
    """Base of `Downsampling` and `Upsampling`. The weight gradient is a single matrix product, for speed.

    The weight is `[C_small, C_large, k, k]`: channels of the smaller maps, channels of the larger maps.
    """

    takes = gives = "maps"

    def __init__(self, module: Downsample | Upsample, place: Place, *tensors: Tensor) -> None:
        super().__init__(module, place, *tensors)
        self._matrix, self._matrix_gradient = (
            kernels.flatten(1) for kernels in (self.weight, self.weight_gradient)
        )
        self.weight = self.weight.permute(0, 3, 1, 2)

    def _write_gradients(self, small: Tensor, large: Tensor, gradient: Tensor) -> Tensor:
        """Write the gradients with respect to weight and bias. Return the patches of the large maps."""
        covered = patches(large, self.weight.shape[-1])
        torch.mm(_cells(small).t(), covered, out=self._matrix_gradient)
        torch.sum(_cells(gradient), 0, out=self.bias_gradient)
        return covered


class Downsampling(Resampling):
    """The handwritten `Downsample`."""

    accepts: ClassVar[Mapping[str, object]] = {**Convolution.accepts, "stride": (2, 2)}
    shapes = Convolution.shapes

    def forward(self, batch: Tensor) -> Tensor:
        self.given = batch
        return F.conv2d(batch, self.weight, self.bias, stride=2, padding=1)

    def backward(self, gradient: Tensor) -> Tensor:
        self._write_gradients(gradient, self.given, gradient)
        odd = [1 - size % 2 for size in self.given.shape[2:]]
        return F.conv_transpose2d(gradient, self.weight, stride=2, padding=1, output_padding=odd)


class Upsampling(Resampling):
    """The handwritten `Upsample`."""

    accepts: ClassVar[Mapping[str, object]] = {
        **Downsampling.accepts,
        **{"kernel_size": (4, 4), "transposed": True},
    }

    @staticmethod
    def shapes(module: Upsample) -> dict[str, tuple[int, ...]]:
        weight = (module.in_channels, module.out_channels, *module.kernel_size)
        return {"weight": weight, "bias": (module.out_channels,)}

    def forward(self, batch: Tensor) -> Tensor:
        self.given = batch
        return F.conv_transpose2d(batch, self.weight, self.bias, stride=2, padding=1)

    def backward(self, gradient: Tensor) -> Tensor:
        batch, channels, height, width = self.given.shape
        covered = self._write_gradients(self.given, gradient, gradient)
        return (covered @ self._matrix.t()).view(batch, height, width, channels).permute(0, 3, 1, 2)


class ReLU(Layer):
    """ReLU, in place. It compares bfloat16 as integers, because PyTorch would convert to float32 first.

    The bits of negative numbers, read as int16, are from −32768 (−0) to −128 (−∞), so these numbers become 0.
    The bits of NaN are larger, so NaN is kept.
    """

    def __init__(self, module: nn.ReLU, place: Place) -> None:
        self.returned: Tensor

    def forward(self, batch: Tensor) -> Tensor:
        self.returned = batch
        torch.threshold_(_comparable(batch), MINUS_INFINITY if batch.dtype == torch.bfloat16 else 0, 0)
        return batch

    def backward(self, gradient: Tensor) -> Tensor:
        own, returned = _comparable(gradient), _comparable(self.returned)
        torch.ops.aten.threshold_backward.grad_input(own, returned, 0, grad_input=own)
        return gradient


class Flatten(Layer):
    """Flatten maps. Before a linear layer, the output is a view, in the memory order of the maps."""

    accepts: ClassVar[Mapping[str, object]] = {"start_dim": 1, "end_dim": -1}
    takes, gives = "maps", "vectors"

    def __init__(self, module: nn.Flatten, place: Place) -> None:
        self._in_order_of_memory = isinstance(place.after, nn.Linear)
        self._shape: torch.Size

    def forward(self, batch: Tensor) -> Tensor:
        ordered = batch.permute(0, 2, 3, 1) if self._in_order_of_memory else batch
        self._shape = ordered.shape
        return ordered.flatten(1)

    def backward(self, gradient: Tensor) -> Tensor:
        maps = gradient.view(self._shape)
        return maps.permute(0, 3, 1, 2) if self._in_order_of_memory else _channels_last(maps)


class Unflatten(Layer):
    """The inverse of `Flatten`. After a linear layer, the output is a view in the same memory order."""

    accepts: ClassVar[Mapping[str, object]] = {"dim": 1}
    takes, gives = "vectors", "maps"

    @classmethod
    def unsupported(cls, module: nn.Unflatten) -> str | None:
        size = module.unflattened_size
        if not isinstance(size, tuple) or len(size) != 3 or not all(type(n) is int and n > 0 for n in size):
            return f"unflattened_size is {size!r} and not channels, height and width"
        return super().unsupported(module)

    def __init__(self, module: nn.Unflatten, place: Place) -> None:
        self._in_order_of_memory = isinstance(place.before, nn.Linear)
        channels, height, width = module.unflattened_size
        self._shape = (height, width, channels) if self._in_order_of_memory else (channels, height, width)

    def forward(self, batch: Tensor) -> Tensor:
        maps = batch.view(len(batch), *self._shape)
        return maps.permute(0, 3, 1, 2) if self._in_order_of_memory else _channels_last(maps)

    def backward(self, gradient: Tensor) -> Tensor:
        return (gradient.permute(0, 2, 3, 1) if self._in_order_of_memory else gradient).flatten(1)


LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    nn.Conv2d: Convolution,
    Downsample: Downsampling,
    Upsample: Upsampling,
    nn.ReLU: ReLU,
    nn.Flatten: Flatten,
    nn.Unflatten: Unflatten,
}


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _cells(maps: Tensor) -> Tensor:
    """Reshape maps `[B, C, H, W]` to `[B·H·W, C]`."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _comparable(batch: Tensor) -> Tensor:
    """View bfloat16 as int16, which is faster to compare."""
    return batch.view(torch.int16) if batch.dtype == torch.bfloat16 else batch


def _weight_gradient(gradient: Tensor, given: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient with respect to the weight of a 3×3 convolution."""
    if weight.shape[0] < weight.shape[1]:  # exchanging input and output makes it 1.5 times as fast
        return _weight_gradient(given, gradient, weight.transpose(0, 1)).transpose(0, 1).flip(2, 3)
    found: Tensor = _convolution_backward(gradient, given, weight, False, True)[1]
    return found


def _convolution_backward(
    gradient: Tensor, given: Tensor, weight: Tensor, of_given: bool, of_weight: bool
) -> tuple[Any, Any]:
    """Return the gradients with respect to input and weight of a 3×3 convolution, None if not requested."""
    found = torch.ops.aten.convolution_backward(
        *(gradient, given, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        [of_given, of_weight, False],
    )
    return found[0], found[1]
