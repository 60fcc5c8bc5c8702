"""Convolutions of stride 2 that halve maps, and transposed ones that double them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Halving(nn.Conv2d):
    """A 3×3 convolution of stride 2: `[B, C, H, W]` to `[B, C', H/2, W/2]`, H and W even."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return _resample(maps, self, up=False)


class Doubling(nn.ConvTranspose2d):
    """A 4×4 transposed convolution of stride 2: `[B, C, H, W]` to `[B, C', 2H, 2W]`."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 4, stride=2, padding=1)

    def forward(self, maps: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _resample(maps, self, up=True)


def _resample(maps: Tensor, layer: Halving | Doubling, *, up: bool) -> Tensor:
    maps, bias = maps.contiguous(memory_format=torch.channels_last), layer.bias
    assert bias is not None
    if not torch.is_grad_enabled():
        return convolve(maps, layer.weight, up, bias)
    # Inside the convolution, the gradient of the bias would take as long as that of the weight on a CPU.
    convolved = convolve(maps, layer.weight, up)
    return convolved + bias.to(convolved.dtype)[:, None, None]


def convolve(maps: Tensor, weight: Tensor, up: bool, bias: Tensor | None = None) -> Tensor:
    """A convolution of stride 2 and padding 1, or its adjoint, with a weight `[small, large, k, k]`.

    Large are the maps before the one and after the other, small those of half their height and width.
    """
    if up:
        odd = weight.shape[-1] % 2
        return F.conv_transpose2d(maps, weight, bias, stride=2, padding=1, output_padding=odd)
    return F.conv2d(maps, weight, bias, stride=2, padding=1)


def patches(maps: Tensor, size: int) -> Tensor:
    """What a kernel of stride 2 and padding 1 sees of channels-last maps: `[B·H/2·W/2, size·size·C]`."""
    batch, channels, height, width = maps.shape
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, cell, _ = padded.stride()
    # A row of a kernel's cells, channel after channel, lies in one piece.
    seen = padded.as_strided(
        (batch, height // 2, width // 2, size, size * channels), (image, 2 * row, 2 * cell, row, 1)
    )
    return seen.reshape(-1, size * size * channels)
