"""Models of users. Each differs from the built-in model in its state, its random numbers or its output.

Each class is a factory, such as `own_models:TiedWeights`.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvae.beta_vae import one_hot


class Plain(nn.Module):
    """Two linear layers on each side of the latent."""

    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__()
        self.shape, cells = (10, grid_size, grid_size), 10 * grid_size * grid_size
        self.inward, self.to_posterior = nn.Linear(cells, 12), nn.Linear(12, 2 * latent_dim)
        self.outward, self.to_logits = nn.Linear(latent_dim, 12), nn.Linear(12, cells)

    def hidden(self, grids: Tensor) -> Tensor:
        return self.inward(one_hot(grids).flatten(1)).relu()

    def encode(self, grids: Tensor) -> Any:
        return self.to_posterior(self.hidden(grids)).chunk(2, dim=1)

    def decode(self, latent: Tensor) -> Any:
        return self.to_logits(self.outward(latent).relu()).unflatten(1, self.shape)


class TiedWeights(Plain):
    """The decoder uses the transposed weights of the encoder."""

    def decode(self, latent: Tensor) -> Any:
        hidden = F.linear(latent, self.to_posterior.weight[: latent.shape[1]].t()).relu()
        return F.linear(hidden, self.inward.weight.t()).unflatten(1, self.shape)


class TiedParameter(Plain):
    """One parameter under two names."""

    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.to_logits.bias = nn.Parameter(torch.zeros(self.to_logits.out_features))
        self.shift = self.to_logits.bias

    def hidden(self, grids: Tensor) -> Tensor:
        return self.inward(one_hot(grids).flatten(1) + self.shift).relu()


class SharedModule(Plain):
    """One module, with buffers, in two places."""

    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.norm = nn.BatchNorm1d(12)
        self.also = nn.Sequential(self.norm)

    def hidden(self, grids: Tensor) -> Tensor:
        return self.also(self.norm(super().hidden(grids)))


class ParametersOfOneTensor(Plain):
    """Two parameters that are views of one tensor."""

    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        both = torch.randn(24)
        self.inward.bias, self.outward.bias = nn.Parameter(both[:12]), nn.Parameter(both[6:18])


class ViewOfParameter(Plain):
    """A buffer that is a view of a parameter, and changes with the parameter."""

    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.register_buffer("part", self.inward.weight.detach()[:, :12].t())

    def hidden(self, grids: Tensor) -> Tensor:
        return super().hidden(grids) @ self.part


class Lists(Plain):
    """Returns lists instead of tuples."""

    def encode(self, grids: Tensor) -> Any:
        return [*super().encode(grids)]


class WritesInputs(Plain):
    """Writes into the grids and latents that it is given."""

    def encode(self, grids: Tensor) -> Any:
        return super().encode(grids.add_(3).remainder_(10))

    def decode(self, latent: Tensor) -> Any:
        return super().decode(latent.mul_(0.5))


class CopiesInputs(WritesInputs):
    """Computes the same as `WritesInputs`, but writes into copies."""

    def encode(self, grids: Tensor) -> Any:
        return super().encode(grids.clone())

    def decode(self, latent: Tensor) -> Any:
        return super().decode(latent.clone())


class NormalizesBatches(Plain):
    """Keeps running statistics, one of them an integer."""

    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.norm = nn.BatchNorm1d(12)

    def hidden(self, grids: Tensor) -> Tensor:
        return self.norm(super().hidden(grids))


class Unregistered(Plain):
    """Has random tensors that no checkpoint holds: a plain attribute and a buffer that is not persistent."""

    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.mixing = torch.randn(12, 12)
        self.register_buffer("shift", torch.rand(12), persistent=False)

    def hidden(self, grids: Tensor) -> Tensor:
        return super().hidden(grids) @ self.mixing + self.shift


class Dropout(Plain):
    def hidden(self, grids: Tensor) -> Tensor:
        return F.dropout(super().hidden(grids), 0.3, self.training)


class DrawsWithTorch(Plain):
    """Draws random numbers in training."""

    def hidden(self, grids: Tensor) -> Tensor:
        return super().hidden(grids) + torch.rand(12) * self.training


class DrawsWithNumPy(Plain):
    def hidden(self, grids: Tensor) -> Tensor:
        return super().hidden(grids) * float(np.random.rand() if self.training else 1)


class DrawsWithPython(Plain):
    def hidden(self, grids: Tensor) -> Tensor:
        return super().hidden(grids) * (random.random() if self.training else 1)


class StartsWithNumPy(Plain):
    """Draws its initial weights with NumPy and Python."""

    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        with torch.no_grad():
            self.inward.bias.copy_(torch.from_numpy(np.random.normal(0, 0.1, 12)))
            self.outward.bias.fill_(random.random())


SUPPORTED = (
    *(Plain, TiedWeights, TiedParameter, SharedModule, ParametersOfOneTensor, ViewOfParameter, Lists),
    *(WritesInputs, NormalizesBatches, Unregistered, Dropout, DrawsWithTorch, DrawsWithNumPy),
    *(DrawsWithPython, StartsWithNumPy),
)


class ExpandedBuffer(Plain):
    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.register_buffer("shift", torch.ones(1).expand(12))


class ExtraState(Plain):
    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"steps": 3}


class Lazy(Plain):
    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.inward = nn.LazyLinear(12)


class EncodesDictionary(Plain):
    def encode(self, grids: Tensor) -> Any:
        return dict(zip(("mean", "log_variance"), super().encode(grids), strict=True))


class EncodesThree(Plain):
    def encode(self, grids: Tensor) -> Any:
        return (*super().encode(grids), torch.zeros(1))


class DecodesList(Plain):
    def decode(self, latent: Tensor) -> Any:
        return [super().decode(latent)]


class DecodesDictionary(Plain):
    def decode(self, latent: Tensor) -> Any:
        return {"logits": super().decode(latent)}


class OwnGenerator(Plain):
    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.generator = torch.Generator().manual_seed(0)

    def hidden(self, grids: Tensor) -> Tensor:
        return super().hidden(grids) + torch.rand(12, generator=self.generator) * self.training


class Counts(Plain):
    """Counts its training steps in an attribute."""

    steps = 0

    def hidden(self, grids: Tensor) -> Tensor:
        self.steps += self.training
        return super().hidden(grids) / self.steps if self.training else super().hidden(grids)


class CountsEvaluations(Plain):
    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.register_buffer("seen", torch.zeros(()))

    def encode(self, grids: Tensor) -> Any:
        self.seen += not self.training
        return super().encode(grids)


class Grows(Plain):
    """Adds a layer in its first training step."""

    def hidden(self, grids: Tensor) -> Tensor:
        if self.training and not hasattr(self, "late"):
            self.late = nn.Linear(12, 12)
        return super().hidden(grids)


class Frozen(Plain):
    def __init__(self, grid_size: int, latent_dim: int) -> None:
        super().__init__(grid_size, latent_dim)
        self.requires_grad_(False)


REFUSED = {
    ExpandedBuffer: "shift is an expanded tensor, whose elements share memory.*Tensor.clone",
    ExtraState: r"the model has extra state \(get_extra_state\).*expected all state in buffers",
    Lazy: r"inward\.weight is lazy.*expected a module with its sizes given",
    EncodesDictionary: "encode returns a dict; expected a tuple of two tensors",
    EncodesThree: "encode returns a tuple of 3; expected a tuple of two tensors",
    DecodesList: "decode returns a list of 1; expected a tensor",
    DecodesDictionary: "decode returns a dict; expected a tensor",
    OwnGenerator: "ends with a different .* when it continues from a checkpoint.*the global generators",
    Counts: "ends with a different .* when it continues from a checkpoint.*to be in parameters or buffers",
    CountsEvaluations: "changes seen in evaluation mode; expected no change",
    Grows: r"failed in two steps of training.*unexpected ones \['model\.late\.bias'",
    Frozen: "failed in two steps of training.*depends on a parameter that requires a gradient",
}
"""Models that are refused, each with a pattern for the message."""
