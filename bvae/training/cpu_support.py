"""Which models `HandwrittenStep` supports, and the layers that it reads from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bvae.beta_vae import BetaVAE
from bvae.training.cpu_layers import LAYERS, Form, Layer, Place

_has_any_global_hook: Callable[[], bool] = torch_module._has_any_global_hook
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def unsupported(model: nn.Module, example: Tensor | None = None) -> str | None:
    """Say in words why `HandwrittenStep` cannot train a model; None where it can.

    The step computes what a `BetaVAE` does from the modules of its encoder and decoder, and never calls the
    model. So their types, attributes, methods and parameters must be those it knows, without hooks.

    Args:
        model: any model.
        example: grids `[B, H, W]`. With them it is tried out whether `encode` and `decode` still do nothing
            but apply the modules.
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
            return f"{name} has a method {own[0]} of its own"
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
    with torch.random.fork_rng(devices=[]):  # nothing here draws numbers, but methods that were changed may
        posterior = model.encoder(F.embedding(grids.long(), model.one_hot_rows).permute(0, 3, 1, 2))
        if not _is_equal(torch.cat(model.encode(grids), 1), posterior):
            return "encode does more than to apply the encoder"
        mean = posterior.chunk(2, 1)[0]
        is_same = _is_equal(model.decode(mean), model.decoder(mean.clone()))
        return None if is_same else "decode does more than to apply the decoder"


def _is_equal(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, equal_nan=True)


def _unsupported_sequence(modules: Mapping[str, nn.Module], *, takes: Form, gives: Form) -> str | None:
    """Check modules, by name and in the order in which they are applied, and the forms of their batches."""
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
            return f"{name} is no parameter"
        parameter, dtype = parameters[name], model.one_hot_rows.dtype
        if name not in expected or tuple(parameter.shape) != expected[name]:
            return f"{name} is a parameter of shape {[*parameter.shape]}; expected {expected.get(name)}"
        if not parameter.requires_grad:
            return f"{name} is frozen"
        if parameter.dtype != dtype or dtype not in (torch.float32, torch.float64):
            return f"{name} is {parameter.dtype} and the one-hot encoding {dtype}"
        if parameter.device.type != "cpu" or parameter.layout != torch.strided:
            return f"{name} is {parameter.layout} on {parameter.device}"
        if type(parameter) is not nn.Parameter or any(getattr(parameter, h, None) for h in _TENSOR_HOOKS):
            return f"{name} has a hook or is of a type of its own"
    storages = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
    return None if len(storages) == len(parameters) else "parameters share memory"


def leaves(model: nn.Module, chain: str) -> dict[str, nn.Module]:
    """Return the modules of a sequence by name, those of nested sequences in its place."""
    named = model.get_submodule(chain).named_modules(prefix=chain, remove_duplicate=False)
    return {name: module for name, module in named if type(module) is not nn.Sequential}


def build_layers(
    modules: Iterable[tuple[nn.Module, Sequence[Tensor]]], *, channels: int = 1, of_data: bool = False
) -> list[Layer]:
    """Return the handwritten layers of a supported sequence.

    Args:
        modules: each with its four flat tensors, see `WeightedLayer`, or with none.
        channels: of the maps that the sequence is given.
        of_data: whether nobody needs the gradient w.r.t. what the sequence is given.
    """
    layers: list[Layer] = []
    modules = [*modules]
    others = [None if isinstance(module, nn.ReLU) else module for module, _ in modules]
    for i, (module, tensors) in enumerate(modules):
        place = Place(
            before=next(filter(None, reversed(others[:i])), None),
            after=next(filter(None, others[i + 1 :]), None),
            channels=channels,
            is_first=of_data and i == 0,
        )
        layers.append(LAYERS[type(module)](module, place, *tensors))
        if isinstance(module, nn.Unflatten):
            channels = int(module.unflattened_size[0])
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            channels = module.out_channels
    return layers
