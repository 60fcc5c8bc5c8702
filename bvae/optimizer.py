"""Adam over all parameters of a model at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class FlatAdam:
    """Adam on one vector that all parameters of a model are views of.

    One clipping, one check and one update then do for all parameters, in place of one for each.

    Args:
        model: its parameters are moved into the vector; they must not be replaced or moved afterwards.
        max_norm: the gradient's 2-norm is clipped to this.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015; clipping as in Pascanu et al., On
    the difficulty of training recurrent neural networks, 2013.
    """

    def __init__(self, model: nn.Module, *, max_norm: float) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._max_norm = max_norm
        self._flat = torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, piece in zip(self._parameters, torch.split(self._flat, sizes), strict=True):
            parameter.data = piece.view_as(parameter)
        self._gradient = torch.zeros_like(self._flat)
        self._mean, self._square = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._steps = torch.zeros((), device=self._flat.device)

    def backward(self, loss: Tensor) -> Tensor:
        """Find the gradient of a loss; its 2-norm before it is clipped."""
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        gradient = torch.cat([part.reshape(-1) for part in gradients])
        norm: Tensor = torch.linalg.vector_norm(gradient)
        self._gradient = gradient.mul_((self._max_norm / norm).clamp_(max=1.0))
        return norm

    def step(self, learning_rate: float) -> None:
        """Move the parameters along the gradient found last."""
        # The function, as the class torch.optim.Adam takes a second to import what it does not need here.
        adam(
            [self._flat],
            [self._gradient],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=learning_rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name: the tensors themselves, so that one can copy into them."""
        return {"step": self._steps, "exp_avg": self._mean, "exp_avg_sq": self._square}
