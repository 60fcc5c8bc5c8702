"""The handwritten training step of `BetaVAE`, for processors that multiply in bfloat16.

Autograd computes the same gradient, but its step takes 10 % longer. The handwritten step stores all weights
in one vector and all gradients in another, so rounding, clipping and the update are one call each. Each
weight is stored in the memory order in which its layer reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bvae.beta_vae import BetaVAE, sample_posterior
from bvae.losses import BetaVAELoss, LossTerms
from bvae.training.cpu_layers import LAYERS, Form, Layer, Place, WeightedLayer
from bvae.training.optimization import Adam

_has_any_global_hook: Callable[[], bool] = torch_module._has_any_global_hook
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def unsupported(model: nn.Module, example: Tensor | None = None) -> str | None:
    """Return the reason why `HandwrittenStep` cannot train a model, or None if it can.

    The step does not call the model. It has its own implementation of the modules in encoder and decoder, so
    these must have supported types, attributes, methods and parameters, and no hooks.

    Args:
        model: any model.
        example: grids `[B, H, W]` to test whether `encode` and `decode` do nothing but apply encoder and
            decoder; None skips the test.
    """
    if type(model) is not BetaVAE:
        return f"the model is a {type(model).__name__} and not a BetaVAE"
    if _has_any_global_hook():
        return "hooks are registered for all modules"
    for name, module in model.named_modules():
        name = name or "the model"
        if any(getattr(module, hooks, None) for hooks in _HOOKS):
            return f"{name} has a hook"
        if own := [key for key in vars(module) if callable(getattr(type(module), key, None))]:
            return f"{name} has its own method {own[0]}"
    for chain in ("encoder", "decoder"):
        if type(found := getattr(model, chain, None)) is not nn.Sequential:
            return f"{chain} is a {type(found).__name__} and not a Sequential"
    encoder, decoder = leaves(model, "encoder"), leaves(model, "decoder")
    return (
        _unsupported_sequence(encoder, takes="maps", gives="vectors")
        or _unsupported_sequence(decoder, takes="vectors", gives="maps")
        or _unsupported_parameters(model, encoder | decoder)
        or (None if example is None else _unsupported_methods(model, example))
    )


@torch.no_grad()
def _unsupported_methods(model: BetaVAE, grids: Tensor) -> str | None:
    with torch.random.fork_rng(devices=[]):  # methods that were changed may draw random numbers
        posterior = model.encoder(F.embedding(grids.long(), model.one_hot_rows).permute(0, 3, 1, 2))
        if not _is_equal(torch.cat(model.encode(grids), 1), posterior):
            return "encode does more than apply the encoder"
        mean = posterior.chunk(2, 1)[0]
        is_same = _is_equal(model.decode(mean), model.decoder(mean.clone()))
        return None if is_same else "decode does more than apply the decoder"


def _is_equal(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results are equal up to rounding, relative to the largest value."""
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    return found.shape == expected.shape and torch.allclose(
        found, expected, atol=1e-5 * scale, equal_nan=True
    )


def _unsupported_sequence(modules: Mapping[str, nn.Module], *, takes: Form, gives: Form) -> str | None:
    """Return the reason why a sequence of modules is not supported, or None if it is supported."""
    form = takes
    for name, module in modules.items():
        described = f"{name} ({type(module).__name__})"
        layer = LAYERS.get(type(module))
        if layer is None:
            return f"{described} has no handwritten layer"
        if reason := layer.unsupported(module):
            return f"{described}: {reason}"
        if layer.takes not in (None, form):
            return f"{described} is applied to {form}"
        form = layer.gives or form
    return None if form == gives else f"the sequence {[*modules]} returns {form} and not {gives}"


def _unsupported_parameters(model: BetaVAE, modules: dict[str, nn.Module]) -> str | None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    expected = {
        f"{name}.{key}": shape
        for name, module in modules.items()
        for key, shape in LAYERS[type(module)].shapes(module).items()
    }
    if not expected:
        return "there is no parameter"
    for name in expected | parameters:
        if name not in parameters:
            return f"{name} is not a parameter"
        parameter, dtype = parameters[name], model.one_hot_rows.dtype
        if name not in expected or tuple(parameter.shape) != expected[name]:
            return (
                f"{name} is a parameter of shape {[*parameter.shape]}; expected {expected.get(name, 'none')}"
            )
        if not parameter.requires_grad:
            return f"{name} is frozen"
        if parameter.dtype != dtype or dtype not in (torch.float32, torch.float64):
            return f"{name} is {parameter.dtype} and the encoding {dtype}; expected fp32 or fp64 for both"
        if parameter.device.type != "cpu" or parameter.layout != torch.strided:
            return f"{name} is {parameter.layout} on {parameter.device}"
        if type(parameter) is not nn.Parameter or any(getattr(parameter, h, None) for h in _TENSOR_HOOKS):
            return f"{name} has a hook or is of a custom type"
    storages = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
    return None if len(storages) == len(parameters) else "parameters share memory"


def leaves(model: nn.Module, chain: str) -> dict[str, nn.Module]:
    """Return the modules of a sequence by name. Nested sequences are replaced by their modules."""
    named = model.get_submodule(chain).named_modules(prefix=chain, remove_duplicate=False)
    return {name: module for name, module in named if type(module) is not nn.Sequential}


ALIGNMENT = 32
"""Alignment of each parameter in the vector, in elements (64 bytes in bfloat16)."""


class HandwrittenStep:
    """A `TrainStep` of a `BetaVAE` on the CPU, with handwritten layers.

    Args:
        model: the module to train. It may be changed after `sync_model`, but names and shapes of its
            parameters must stay the same.
        loss: the loss to minimize.
        max_norm: gradients of a larger 2-norm are scaled down to this norm.
        dtype: type in which layers compute. Weights, loss and optimizer have the type of the model.

    Raises:
        ValueError: if the model is not supported, see `unsupported`. After a change of the model,
            `forward_backward` may also raise it.
    """

    def __init__(
        self, model: BetaVAE, loss: BetaVAELoss, *, max_norm: float, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        _check(model)
        self._model, self._loss, self._dtype = model, loss, dtype
        self._shapes = _shapes(model)
        self._state = Adam(dict(model.named_parameters()), max_norm=max_norm).tensors()
        self._rooms = [-(-shape.numel() // ALIGNMENT) * ALIGNMENT for shape in self._shapes.values()]
        self._weights, self._gradient = torch.zeros(2, sum(self._rooms), dtype=model.one_hot_rows.dtype)
        self._weights.grad = self._gradient
        self._adam = Adam({"all": self._weights}, max_norm=max_norm)
        self._rounded, self._rounded_gradient = torch.zeros(2, sum(self._rooms), dtype=dtype)
        self._encoder: list[Layer] = []
        self._decoder: list[Layer] = []
        self._as_read: dict[str, Callable[[Tensor], Tensor]] = {}
        self._is_synced = True

    @torch.no_grad()
    def forward_backward(
        self, target: Tensor, noise: torch.Generator, beta: float | None = None
    ) -> tuple[LossTerms, Tensor]:
        exact = self._weights.dtype
        if self._is_synced:
            self._load(target[:2])
        self._rounded.copy_(self._weights)
        one_hot = F.embedding(target.long(), self._one_hot_rows).permute(0, 3, 1, 2)
        mean, log_variance = forward(self._encoder, one_hot).to(exact).chunk(2, dim=1)
        latent = sample_posterior(mean, log_variance, noise)
        logits = forward(self._decoder, latent.to(self._dtype, copy=True))
        logits = logits.to(exact, memory_format=torch.contiguous_format)
        terms, gradient = self._loss.with_gradient(logits, mean, log_variance, target, beta=beta)
        of_logits = gradient.logits.to(self._dtype).contiguous(memory_format=torch.channels_last)
        of_latent = backward(self._decoder, of_logits).to(exact)
        # latent = mean + exp(log variance / 2)·noise, so d latent / d log variance = (latent − mean) / 2.
        of_log_variance = gradient.log_variance + of_latent * (0.5 * (latent - mean))
        of_posterior = torch.cat([gradient.mean + of_latent, of_log_variance], 1)
        backward(self._encoder, of_posterior.to(self._dtype))
        self._gradient.copy_(self._rounded_gradient)
        return terms, self._adam.clip()

    def step(self, learning_rate: float) -> None:
        self._adam.step(learning_rate)

    def tensors(self) -> dict[str, Tensor]:
        return self._state

    @torch.no_grad()
    def sync_model(self) -> None:
        if not self._is_synced:
            for here, there in self._pairs():
                there.copy_(here)
        self._is_synced = True

    def _load(self, example: Tensor) -> None:
        """Read the current layers, weights and optimizer state of the model."""
        _check(self._model, example)
        if _shapes(self._model) != self._shapes or self._model.one_hot_rows.dtype != self._weights.dtype:
            raise ValueError("parameters of the model were added, removed, or changed in shape or type")
        self._one_hot_rows = self._model.one_hot_rows.to(self._dtype)
        self._encoder = self._layers("encoder", channels=self._one_hot_rows.shape[1])
        self._decoder = self._layers("decoder")
        for here, there in self._pairs():
            here.copy_(there)
        self._is_synced = False

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield two views of each weight and optimizer tensor: the copy of this step, and the original."""
        mine, theirs = self._adam.tensors(), dict(self._model.named_parameters()) | self._state
        yield from ((mine["all.step"], theirs[f"{name}.step"]) for name in self._shapes)
        for suffix in ("", ".exp_avg", ".exp_avg_sq"):
            vector = mine[f"all{suffix}"] if suffix else self._weights
            for name, part in self._parts(vector).items():
                there = self._as_read[name](theirs[name + suffix])
                yield part.view(there.shape), there

    def _parts(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the part of a vector for each parameter, by name."""
        rooms = zip(self._shapes.items(), torch.split(vector, self._rooms), strict=True)
        return {name: room[: shape.numel()] for (name, shape), room in rooms}

    def _layers(self, chain: str, channels: int = 1) -> list[Layer]:
        """Return the layers of encoder or decoder. Input maps have this number of channels."""
        weights, gradients = self._parts(self._rounded), self._parts(self._rounded_gradient)
        modules = leaves(self._model, chain)
        others = [None if isinstance(module, nn.ReLU) else module for module in modules.values()]
        layers: list[Layer] = []
        for i, (name, module) in enumerate(modules.items()):
            kind = LAYERS[type(module)]
            place = Place(
                before=next(filter(None, reversed(others[:i])), None),
                after=next(filter(None, others[i + 1 :]), None),
                channels=channels,
                is_first=chain == "encoder" and i == 0,
            )
            keys = [f"{name}.{key}" for key in kind.shapes(module)]
            layer = kind(module, place, *(vector[key] for vector in (weights, gradients) for key in keys))
            layers.append(layer)
            if isinstance(layer, WeightedLayer):
                self._as_read |= dict.fromkeys(keys, layer.as_read)
            if isinstance(module, nn.Unflatten):
                channels = int(module.unflattened_size[0])
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                channels = module.out_channels
        return layers


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _check(model: BetaVAE, example: Tensor | None = None) -> None:
    if reason := unsupported(model, example):
        raise ValueError(f"the handwritten step does not support the model: {reason}; use --precision=fp32")


def forward(layers: Sequence[Layer], batch: Tensor) -> Tensor:
    """Apply layers to a batch, one after another."""
    for layer in layers:
        batch = layer.forward(batch)
    return batch


def backward(layers: Sequence[Layer], gradient: Tensor) -> Tensor:
    """Turn the gradient with respect to the last output of `forward` into that of its input."""
    for layer in reversed(layers):
        gradient = layer.backward(gradient)
    return gradient
