"""Class weights of the loss from class counts, as NumPy arrays; `bvae.beta_vae` returns them as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from bvae.config import ClassWeights, LossOption, check_weight_parameters

WEIGHT_EXPONENTS = {"none": 0.0, "sqrt_inverse": 0.5, "inverse": 1.0}
"""The weight of class c is proportional to n_c to minus this exponent."""

WEIGHT_METHODS = get_args(ClassWeights)

Counts = Sequence[float] | NDArray[np.number[Any]]
"""`[C]`, how often each class occurs in the training split."""


@np.errstate(over="ignore", divide="ignore")  # infinite weights are clipped at the end
def weights_by_method(
    counts: Counts, method: str, *, exponent: float | None = None, beta: float | None = None
) -> NDArray[np.float32]:
    """Return the class weights, see `bvae.beta_vae.class_weights`."""
    if method not in WEIGHT_METHODS:
        raise ValueError(f"class weight method is {method!r}; expected one of {', '.join(WEIGHT_METHODS)}")
    check_weight_parameters(method, exponent, beta)
    n = _checked(counts)
    rarest = n[n > 0].min()
    if beta is not None:
        # Near β = 1, βⁿ is nearly 1, and the difference 1 − βⁿ would lose its digits.
        effective_number = -np.expm1(n.clip(min=rarest) * np.log(beta))
        return _scaled(1 / effective_number, n)
    power = WEIGHT_EXPONENTS.get(method, exponent)
    assert power is not None
    return _scaled((n.clip(min=rarest) / rarest) ** -power, n)


@np.errstate(over="ignore", divide="ignore")
def weights_of_option(option: LossOption, counts: Counts) -> NDArray[np.float32]:
    """Return the class weights `[C]` of a loss option; explicit weights are scaled to the same mean of 1.

    Explicit weights also apply to classes that never occur. Raises ValueError like
    `weights_by_method`, and if the number of explicit weights is not the number of classes.
    """
    if isinstance(option.class_weights, tuple):
        if len(option.class_weights) != len(counts):
            raise ValueError(
                f"option {option.name} has {len(option.class_weights)} class weights; expected {len(counts)}"
            )
        return _scaled(np.array(option.class_weights), _checked(counts))
    return weights_by_method(counts, option.class_weights, exponent=option.exponent, beta=option.beta)


@np.errstate(over="ignore")
def weight_ratio(weights: NDArray[np.float32]) -> float:
    """Return the largest weight divided by the smallest, at most the largest float32."""
    return float(min(weights.max() / weights.min(), np.finfo(np.float32).max))


def _checked(counts: Counts) -> NDArray[np.float64]:
    n = np.asarray(counts, np.float64)
    if n.ndim != 1 or not np.isfinite(n).all() or (n < 0).any() or not (n > 0).any():
        raise ValueError(
            f"class counts are {n.tolist()}; expected one finite number >= 0 for each class, at least one > 0"
        )
    return n


def _scaled(weight: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scale weights `[C]` to a mean of 1 over cells with class counts `n`; positive and finite in float32."""
    present, float32 = n > 0, np.finfo(np.float32)
    weight = weight / weight[present].max()
    mean = (n[present] / n.sum() * weight[present]).sum()
    scaled: NDArray[np.float64] = (weight / mean).clip(float32.tiny, float32.max)
    return scaled.astype(np.float32)
