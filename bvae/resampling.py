"""Convolutions that halve maps and transposed convolutions that double them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Downsample(nn.Conv2d):
    """A 3×3 convolution of stride 2: `[B, C, H, W]` to `[B, C', H/2, W/2]`, sizes rounded up."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return _resample(F.conv2d, maps, self)


class Upsample(nn.ConvTranspose2d):
    """A 4×4 transposed convolution of stride 2: `[B, C, H, W]` to `[B, C', 2H, 2W]`."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 4, stride=2, padding=1)

    def forward(self, maps: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _resample(F.conv_transpose2d, maps, self)


class Crop(nn.Module):
    """Keep the first `size` rows and columns of maps: `[B, C, H, W]` to `[B, C, size, size]`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        return maps[:, :, : self.size, : self.size]


def _resample(convolution: Callable[..., Tensor], maps: Tensor, layer: Downsample | Upsample) -> Tensor:
    maps, bias = maps.contiguous(memory_format=torch.channels_last), layer.bias
    if bias is None or not torch.is_grad_enabled():
        return convolution(maps, layer.weight, bias, stride=2, padding=1)
    # Inside the convolution, the gradient of the bias would take as long as that of the weight on a CPU.
    convolved = convolution(maps, layer.weight, stride=2, padding=1)
    return convolved + bias.to(convolved.dtype)[:, None, None]


def patches(maps: Tensor, size: int) -> Tensor:
    """Return what each position of a size×size kernel of stride 2 and padding 1 covers, as rows of a matrix.

    Args:
        maps: `[B, C, H, W]`.
        size: height and width of the kernel, 3 or 4.

    Returns: `[B·H'·W', size·size·C]`, where H' and W' are the sizes after the convolution.
    """
    batch, channels, height, width = maps.shape
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    image, row, cell, _ = padded.stride()
    # A row of a kernel's cells, channel after channel, is contiguous.
    positions = ((height + 2 - size) // 2 + 1, (width + 2 - size) // 2 + 1)
    covered = padded.as_strided(
        (batch, *positions, size, size * channels), (image, 2 * row, 2 * cell, row, 1)
    )
    return covered.reshape(-1, size * size * channels)
