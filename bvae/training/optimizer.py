"""Adam with clipped gradients, through the function that `torch.optim.Adam` calls."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Adam with the 2-norm of the gradient clipped.

    Results are bit for bit those of `torch.optim.Adam(fused=True)`. That class imports a compiler, which
    takes a second in every process; the function that it calls does not.

    Args:
        parameters: the tensors to train by name, on the device where they are trained.
        max_norm: gradients of a larger 2-norm are scaled down to this norm.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015; clipping as in Pascanu et al., On
    the difficulty of training recurrent neural networks, 2013.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, max_norm: float) -> None:
        self._max_norm, self._parameters = max_norm, parameters
        self._state = {
            name: {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
            for name, parameter in self._parameters.items()
        }

    def clip(self) -> Tensor:
        """Clip the gradient, and return its 2-norm before clipping."""
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if norm > self._max_norm:  # otherwise, no pass over the gradients is needed
            nn.utils.clip_grads_with_norm_(self._parameters.values(), self._max_norm, norm)
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update all parameters that have a gradient."""
        moved = {name: p for name, p in self._parameters.items() if p.grad is not None}
        adam(
            [*moved.values()],
            [parameter.grad for parameter in moved.values() if parameter.grad is not None],
            [self._state[name]["exp_avg"] for name in moved],
            [self._state[name]["exp_avg_sq"] for name in moved],
            [],
            [self._state[name]["step"] for name in moved],
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
        """Return the state by name, such as `encoder.0.weight.exp_avg`. Writing to it changes the state."""
        return {f"{name}.{key}": t for name, state in self._state.items() for key, t in state.items()}
