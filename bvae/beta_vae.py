"""The model: a convolutional β-VAE of categorical grids, and the class weights of its loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvae import config
from bvae.config import DEFAULT_CLASSES, OUTSIDE, LossOption

Counts = config.Counts | Tensor
"""`[C]`, number of cells of each class in the training split."""


def class_weights(
    counts: Counts, method: str, *, exponent: float | None = None, beta: float | None = None
) -> Tensor:
    """Return class weights by a method, scaled to a mean of 1 over the training cells.

    With a mean of 1, the loss has the same scale under every method, so one β and one clipping norm suit all
    methods. A class that never occurs gets the weight of the rarest class that occurs.

    Args:
        counts: `[C]`, number of cells of each class in the training split. Only their ratios matter, except
            for `effective`.
        method: `none` (all 1), `inverse` (w ∝ 1/n), `sqrt_inverse` (w ∝ 1/√n), `power`
            (w ∝ (1/n)^exponent) or `effective` (w ∝ (1 − β)/(1 − βⁿ)).
        exponent: for `power`, at least 0.
        beta: for `effective`, in [0, 1): 0 gives `none`, and β → 1 approaches `inverse`.

    Returns: `[C]`, float32, positive, on the CPU.

    Raises:
        ValueError: if counts are not one-dimensional, not finite, negative or all zero, if the method is
            unknown, or if a parameter is missing, out of bounds or for another method.

    Source of `effective`: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, eq. 2.
    """
    return torch.from_numpy(config.weights_by_method(_array(counts), method, exponent=exponent, beta=beta))


def option_weights(option: LossOption, counts: Counts) -> Tensor:
    """Return the class weights `[C]` of a loss option, scaled to a mean of 1 over the training cells.

    Explicit weights also apply to classes that never occur. Raises ValueError as `class_weights` does.
    """
    return torch.from_numpy(config.weights_of_option(option, _array(counts)))


def _array(counts: Counts) -> config.Counts:
    return counts.detach().to("cpu", torch.float64).numpy() if isinstance(counts, Tensor) else counts


def one_hot(grids: Tensor, classes: int = DEFAULT_CLASSES) -> Tensor:
    """Return the one-hot encoding `[B, C, H, W]` of class indices `[B, H, W]`, float32, zeros outside a grid.

    Raises:
        IndexError: for a value that is neither a class nor `bvae.corpus.OUTSIDE`.
    """
    if not ((grids < classes) | (grids == OUTSIDE)).all() or (grids < 0).any():
        raise IndexError(f"grids hold values other than the classes 0–{classes - 1} and {OUTSIDE}")
    return _encode(grids, _one_hot_rows(classes).to(grids.device))


def _one_hot_rows(classes: int) -> Tensor:
    """Return the encoding `[256, C]` of uint8 values: OUTSIDE becomes zeros, other non-classes become NaN."""
    rows = torch.eye(OUTSIDE + 1, classes)
    rows[classes:OUTSIDE] = torch.nan
    return rows


def _encode(grids: Tensor, rows: Tensor) -> Tensor:
    return F.embedding(grids.long(), rows).permute(0, 3, 1, 2)  # channels last in memory


class Output(NamedTuple):
    """Output of the model: logits `[B, C, H, W]`, posterior mean and log variance `[B, Z]`."""

    logits: Tensor
    mean: Tensor
    log_variance: Tensor


class GridModel(nn.Module):
    """Interface of a model for training and evaluation. A model needs the methods that `bvae.models` lists,
    and may have another base class."""

    def encode(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        """Return posterior mean and log variance, each `[B, Z]`, of class indices `[B, H, W]`.

        Positions outside a grid hold `bvae.corpus.OUTSIDE`; `one_hot` encodes them as zeros.
        """
        raise NotImplementedError

    def decode(self, latent: Tensor) -> Tensor:
        """Return the logits `[B, C, H, W]` of latents `[B, Z]`."""
        raise NotImplementedError


class PosteriorMean(nn.Module):
    """A model as evaluation uses it: each grid is reconstructed from its posterior mean."""

    def __init__(self, model: GridModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, grids: Tensor) -> Output:
        """Reconstruct grids `[B, H, W]`. The model may modify its inputs."""
        mean, log_variance = self.model.encode(grids.clone())
        return Output(self.model.decode(mean.clone()), mean, log_variance)


@torch.no_grad()
def initialize(layers: nn.Sequential) -> None:
    """Draw new weights for all layers but the last, and set all biases to 0.

    Weights are normal with variance 2 / (number of inputs per output), so that activations keep their scale
    through ReLU. With PyTorch's default initialization, each layer shrinks activations to less than half.
    In the first epoch, all grids then have nearly the same reconstruction.

    Source: He et al., Delving Deep into Rectifiers, 2015, eq. 10.
    """
    weighted = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    for layer in weighted:
        if layer is not weighted[-1]:
            inputs = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                inputs = layer.weight[:, 0].numel() // math.prod(layer.stride)
            layer.weight.normal_(0.0, math.sqrt(2 / inputs))
        if layer.bias is not None:
            layer.bias.zero_()


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
    # On a CPU, the bias gradient of a convolution with bias takes as long as its weight gradient.
    convolved = convolution(maps, layer.weight, stride=2, padding=1)
    return convolved + bias.to(convolved.dtype)[:, None, None]


def patches(maps: Tensor, size: int) -> Tensor:
    """Return the patches that a size×size kernel of stride 2 and padding 1 covers, as rows of a matrix.

    Args:
        maps: `[B, C, H, W]`.
        size: height and width of the kernel, 3 or 4.

    Returns: `[B·H'·W', size·size·C]`, where H' and W' are height and width after the convolution.
    """
    batch, channels, height, width = maps.shape
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    image, row, cell, _ = padded.stride()
    # Each row of a patch, with all its channels, is contiguous in memory.
    positions = ((height + 2 - size) // 2 + 1, (width + 2 - size) // 2 + 1)
    covered = padded.as_strided(
        (batch, *positions, size, size * channels), (image, 2 * row, 2 * cell, row, 1)
    )
    return covered.reshape(-1, size * size * channels)


class BetaVAE(GridModel):
    """A convolutional β-VAE of square grids.

    The encoder applies 3×3 convolutions with 32, 64 (stride 2) and 128 (stride 2) channels to one-hot cells.
    Two linear layers follow: one with 128 units, and one for posterior mean and log variance. The decoder is
    the reverse, with 4×4 transposed convolutions of stride 2, and returns logits. Convolutions of stride 2
    round sizes up, so the output is cropped if the grid size is not a multiple of 4.

    Layers, `encode` and `decode` may be changed. The handwritten bfloat16 step for CPUs supports only some
    layers; other models are trained by autograd, see `bvae.training.cpu_bf16`.

    Args:
        grid_size: height and width of the grids.
        latent_dim: number of latent dimensions Z.
        classes: number of categories C.

    Raises:
        ValueError: for a grid size below 1.

    Source: Kingma and Welling 2014; Higgins et al. 2017.
    """

    one_hot_rows: Tensor

    def __init__(self, *, grid_size: int = 16, latent_dim: int = 32, classes: int = DEFAULT_CLASSES) -> None:
        super().__init__()
        if grid_size < 1:
            raise ValueError(f"grid_size is {grid_size}; expected a whole number of at least 1")
        self.latent_dim = latent_dim
        self.register_buffer("one_hot_rows", _one_hot_rows(classes), persistent=False)
        quarter = math.ceil(grid_size / 4)
        features = 128 * quarter * quarter
        self.encoder = nn.Sequential(
            nn.Conv2d(classes, 32, 3, padding=1),
            nn.ReLU(),
            Downsample(32, 64),
            nn.ReLU(),
            Downsample(64, 128),
            nn.Flatten(),
            nn.ReLU(),  # after Flatten, so that gradient and input of this ReLU have one memory order
            nn.Linear(features, 128),
            nn.ReLU(),
            nn.Linear(128, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 128),
            nn.ReLU(),
            nn.Linear(128, features),
            nn.ReLU(),
            nn.Unflatten(1, (128, quarter, quarter)),
            Upsample(128, 64),
            nn.ReLU(),
            Upsample(64, 32),
            nn.ReLU(),
            nn.Conv2d(32, classes, 3, padding=1),
            *([Crop(grid_size)] if grid_size % 4 else []),
        )
        initialize(self.encoder)
        initialize(self.decoder)

    def encode(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        """Return posterior mean and log variance, each `[B, Z]`, of class indices or OUTSIDE, `[B, H, W]`."""
        mean, log_variance = self.encoder(_encode(grids, self.one_hot_rows)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Return the logits `[B, C, H, W]` of latents `[B, Z]`."""
        logits: Tensor = self.decoder(latent)
        return logits

    def forward(self, grids: Tensor, generator: torch.Generator | None = None) -> Output:
        """Reconstruct grids `[B, H, W]`, in training from a posterior sample, in evaluation from the mean."""
        mean, log_variance = self.encode(grids)
        latent = sample_posterior(mean, log_variance, generator) if self.training else mean
        return Output(self.decode(latent), mean, log_variance)


def sample_posterior(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return a sample `[B, Z]` of N(mean, exp(log_variance)), differentiable in both arguments."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + torch.exp(0.5 * log_variance) * noise
