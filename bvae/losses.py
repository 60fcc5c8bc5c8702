"""The loss of a β-VAE of categorical grids: a weighted focal reconstruction term and a KL divergence."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bvae.config import OUTSIDE

SOFTPLUS_IS_LINEAR = 40.0
"""Above this value of m, log(1 + exp(m)) rounds to m, even in float64."""


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float,
    weight: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Return the focal loss `w[y]·(1 − p_y)^γ·(−log p_y)` in nats.

    The mean is the sum over cells divided by the number of cells, not by the sum of their weights. Positions
    where the target is `bvae.corpus.OUTSIDE` have no loss and no gradient, and are not cells. The loss can be
    differentiated once, with respect to the logits only.

    With the margin m = log Σ_{c≠y} exp z_c − z_y, the probability of the target is p_y = σ(−m), so the loss
    is `w·σ(m)^γ·softplus(m)`. This form is accurate if p_y is close to 1. Its gradient is finite for every
    γ ≥ 0. For γ < 1, the gradient of (1 − p)^γ alone would be infinite at p = 1.

    Logits that are not finite are treated as in `torch.nn.functional.cross_entropy`: −inf is a probability
    of 0, and the loss of a cell with NaN or +inf is NaN. The mean over no cells is NaN, with gradient 0.

    Args:
        logits: `[B, C, H, W]`, 2 ≤ C ≤ 255, any floating type. The loss is computed in float32 or wider,
            even under autocast.
        target: `[B, H, W]`, class indices of any integer type, or OUTSIDE.
        gamma: focusing exponent, finite, γ ≥ 0; 0 is the cross-entropy.
        weight: `[C]`, class weights; None weights all classes equally.
        reduction: "mean" over all cells of the batch, or "none" for `[B, H, W]`, which is 0 outside a grid.

    Raises:
        ValueError: if an argument has another type or shape, a target is not a class, γ is negative or not
            finite, the weight requires a gradient, or the reduction is unknown.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, eq. 5.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'none'")
    loss, _ = _focal_loss(logits, target, gamma, weight)
    if reduction == "none":
        return loss
    cells = cell_count(target)
    return (loss.sum() / cells.clamp(min=1)).where(cells > 0, torch.nan)


def cell_count(target: Tensor) -> Tensor:
    """Return the number of cells in grids `[B, H, W]`, without OUTSIDE, as a tensor `[]`."""
    return (target != OUTSIDE).sum()


def _focal_loss(logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the focal loss per cell, and whether the target has the largest logit; both `[B, H, W]`.

    Raises ValueError as `focal_loss` does.
    """
    logits = _checked(logits, target, gamma, weight)
    found: tuple[Tensor, Tensor] = _FocalLoss.apply(logits, target, weight, gamma)  # type: ignore[no-untyped-call]
    return found


def _checked(logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None) -> Tensor:
    """Check the arguments as `focal_loss` says, and return the logits in float32 or wider."""
    for name, given in (("logits", logits), ("target", target), ("weight", weight)):
        if not isinstance(given, Tensor) and (name, given) != ("weight", None):
            raise ValueError(f"{name} is a {type(given).__name__}; expected a tensor")
    if not logits.is_floating_point() or target.is_floating_point() or target.is_complex():
        raise ValueError(
            f"logits are {logits.dtype} and target {target.dtype}; expected a floating type, and class "
            "indices of an integer type (probabilities are not supported)"
        )
    classes = logits.shape[1] if logits.ndim == 4 else 0
    if target.shape != (logits.shape[0], *logits.shape[2:]) or not 2 <= classes <= OUTSIDE:
        raise ValueError(
            f"logits are {list(logits.shape)} and target {list(target.shape)}; "
            f"expected [B, C, H, W] with C from 2 to {OUTSIDE}, and [B, H, W]"
        )
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; expected a finite number of at least 0")
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(f"weight is {list(weight.shape)}; expected one for each class: [{classes}]")
    if weight is not None and weight.requires_grad:
        raise ValueError("weight requires a gradient, which this loss does not compute; pass weight.detach()")
    return _wide(logits)


def _check_classes(index: Tensor, classes: int) -> None:
    """Raise ValueError unless all indices are classes."""
    for found in map(int, index.aminmax()) if index.numel() else ():
        if not 0 <= found < classes:
            raise ValueError(
                f"target holds {found}; expected classes from 0 to {classes - 1}, or {OUTSIDE} for "
                "cells that do not count"
            )


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or wider."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class _Focal(NamedTuple):
    """Loss per cell, whether the target has the largest logit, and two factors of the gradient."""

    loss: Tensor
    hit: Tensor
    direction: Tensor
    slope: Tensor


def _focal(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, *, wait: bool = True
) -> _Focal:
    """Return the focal loss per cell `[B, H, W]`, whether the target has the largest logit, and the gradient.

    The gradient is the product of slope and direction. The slope `[B, 1, H, W]` is d(s^γ·l)/dm =
    s^γ·(γ·(1 − s)·l + s), times the class weight, where s = σ(m) and l = softplus(m). The direction
    `[B, C, H, W]` is dm/dz: −1 for the target class, and the softmax over the other classes for each of them.
    Outside a grid, loss, slope and hit are 0, and the logits are not used.

    If `wait` is false, no value is read from the device. The target is then not checked, and the correction
    for infinite logits is always applied. It changes nothing if all logits are finite.

    Raises ValueError for a target that is neither a class nor OUTSIDE.
    """
    outside = (target == OUTSIDE).unsqueeze(1)
    # Contiguous, because softmax, amax and scatter over classes are then faster than in channels-last memory.
    logits = logits.contiguous().masked_fill(outside, 0.0)
    index = target.unsqueeze(1).long().masked_fill(outside, 0)
    if wait:
        _check_classes(index, logits.shape[1])
    others = logits.scatter(1, index, -torch.inf)
    share = others.softmax(1)
    own, largest = logits.gather(1, index), others.amax(1, keepdim=True)
    margin = _margin(own, largest, share)
    if not (wait and margin.sum().isfinite()):
        # If all other logits are −inf, their softmax is 0/0. A target logit of +inf must give a loss of NaN.
        share = share.masked_fill(largest.isneginf(), 1.0)
        own = own.masked_fill(own.isposinf(), torch.nan)
        margin = _margin(own, largest, share)
    miss, nats = margin.sigmoid(), F.softplus(margin, threshold=SOFTPLUS_IS_LINEAR)
    focus = miss**gamma
    if weight is not None:
        focus = focus * weight.to(logits).take(index)
    focus = focus.masked_fill(outside, 0.0)
    # Clamped, because 0·inf would be NaN: if l is infinite, 1 − s is 0.
    slope = focus * (gamma * (1 - miss) * nats.clamp(max=torch.finfo(nats.dtype).max) + miss)
    hit = ((own > largest) & ~outside).squeeze(1)
    return _Focal((focus * nats).squeeze(1), hit, share.scatter_(1, index, -1.0), slope)


def _margin(own: Tensor, largest: Tensor, share: Tensor) -> Tensor:
    """Return the margin m from the target's logit `own` and the other logits: their maximum and softmax."""
    # logsumexp = maximum − log(softmax of the maximum). This softmax is at least 1/C, so its log is accurate.
    return largest - share.amax(1, keepdim=True).log() - own


class _FocalLoss(torch.autograd.Function):
    """Autograd function of `_focal`."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float
    ) -> tuple[Tensor, Tensor]:
        found = _focal(logits, target, weight, gamma)
        ctx.save_for_backward(found.direction, found.slope)
        ctx.mark_non_differentiable(found.hit)
        return found.loss, found.hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        direction, slope = ctx.saved_tensors
        return direction * (slope * gradient.unsqueeze(1)), None, None, None


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of N(mean, exp(log_variance)) from N(0, 1) per dimension, in nats.

    Args:
        mean, log_variance: `[B, Z]`.

    Returns: `[B, Z]`, in float32 or wider.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, appendix B.
    """
    mean, log_variance = _wide(mean), _wide(log_variance)
    # expm1 keeps the digits of exp(v) − 1 − v near v = 0, the value of a collapsed posterior.
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


class LossTerms(NamedTuple):
    """The loss, its two terms and the accuracy: one per grid, `[B]`, or means over a batch, `[]`.

    The loss and its terms are in nats: total = reconstruction + β·kl. `accuracy` is the fraction of cells
    whose class has the largest logit; tied logits count as wrong. The means of `reconstruction` and
    `accuracy` are over all cells of the batch, the mean of `kl` is over grids.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    accuracy: Tensor


class Gradient(NamedTuple):
    """Gradients with respect to logits `[B, C, H, W]`, posterior mean and log variance, each `[B, Z]`."""

    logits: Tensor
    mean: Tensor
    log_variance: Tensor


class BetaVAELoss:
    """The loss of a grid: mean focal loss of its cells + β·(KL divergence summed over latent dimensions).

    Args:
        gamma, weight: see `focal_loss`.
        beta: the full β.
        free_bits: λ ≥ 0 in nats. Training minimizes Σ max(λ, KL) instead of Σ KL, where KL is the divergence
            of a latent dimension, averaged over the batch. If KL is below λ, the gradient is 0.

    Source: Higgins et al., β-VAE, 2017, eq. 4, with the focal loss as reconstruction term; free bits from
    Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016, eq. 15.
    """

    def __init__(self, *, gamma: float, weight: Tensor | None, beta: float, free_bits: float = 0.0) -> None:
        self.gamma, self.weight, self.beta, self.free_bits = gamma, weight, beta, free_bits

    def __call__(self, logits: Tensor, mean: Tensor, log_variance: Tensor, target: Tensor) -> LossTerms:
        """Return each grid's terms from logits `[B, C, H, W]`, posterior `[B, Z]` and target `[B, H, W]`."""
        loss, hit = _focal_loss(logits, target, self.gamma, self.weight)
        cells = (target != OUTSIDE).flatten(1).sum(1)
        reconstruction = loss.flatten(1).sum(1) / cells
        kl = kl_divergence(mean, log_variance).sum(1)
        accuracy = hit.flatten(1).float().sum(1) / cells
        return LossTerms(reconstruction + self.beta * kl, reconstruction, kl, accuracy)

    @torch.no_grad()
    def with_gradient(
        self,
        logits: Tensor,
        mean: Tensor,
        log_variance: Tensor,
        target: Tensor,
        *,
        beta: float | None = None,
        wait: bool = True,
    ) -> tuple[LossTerms, Gradient]:
        """Return the terms of a batch and the gradient of the loss that a step minimizes; float32 or wider.

        A step minimizes the total with the step's `beta` (None for the full β) and with free bits. The terms
        have the full β and no free bits, so that they can be compared between steps and with validation.
        If `wait` is false, the host does not wait for the device, and values of the target are not checked.

        Raises ValueError as `focal_loss` does, and for a posterior that is not `[B, Z]`.
        """
        if mean.ndim != 2 or mean.shape != log_variance.shape or len(mean) != len(target):
            raise ValueError(
                f"posterior mean is {list(mean.shape)} and log variance {list(log_variance.shape)}; "
                f"expected [{len(target)}, Z] for both"
            )
        mean, log_variance = _wide(mean), _wide(log_variance)
        logits = _checked(logits, target, self.gamma, self.weight)
        found = _focal(logits, target, self.weight, self.gamma, wait=wait)
        cells = cell_count(target)
        of_latents = kl_divergence(mean, log_variance)
        reconstruction, kl = found.loss.sum() / cells, of_latents.sum() / len(mean)
        terms = LossTerms(
            reconstruction + self.beta * kl, reconstruction, kl, found.hit.float().sum() / cells
        )
        by_kl: float | Tensor = (self.beta if beta is None else beta) / len(mean)
        if self.free_bits:
            by_kl = by_kl * (of_latents.mean(0) > self.free_bits).to(mean)
        return terms, Gradient(
            found.direction * (found.slope / cells.clamp(min=1)),
            mean * by_kl,
            torch.expm1(log_variance) * (0.5 * by_kl),
        )
