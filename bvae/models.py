"""Models by name, created or loaded from a checkpoint, and the check of a custom model.

A model is an `nn.Module` with these methods. In evaluation, they draw no random numbers, and each result
depends on one grid or latent alone:

    encode(grids [B, H, W]) -> posterior mean and log variance, each [B, Z]
    decode(latent [B, Z])   -> logits [B, C, H, W]

The name of a model is `package.module:factory`. The factory creates the model from the keywords `grid_size`,
`latent_dim` and `classes`. If the factory does not take `classes`, its models have ten classes.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bvae import EvidenceWarning
from bvae.beta_vae import GridModel, PosteriorMean
from bvae.config import DEFAULT_CLASSES, DEFAULT_MODEL, OUTSIDE, RunConfig
from bvae.evaluation.measure import evaluating, seeded
from bvae.losses import BetaVAELoss
from bvae.records import Progress
from bvae.session_files import checkpoints
from bvae.storage import printable
from bvae.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_tensors,
    encode_checkpoint,
    load_checkpoint,
)
from bvae.training.step import AutogradStep, reproducible, restore_tensors, training_state

CPU = torch.device("cpu")
ROUNDING = 1e-3
"""Tolerance for the results of a method in batches of two sizes, relative to 1 or the largest number."""
USER_ERRORS = (Exception, SystemExit)
"""What the module, the factory or a method of a model may raise."""
RETURNED = {
    "encode": ("a tuple of two tensors: posterior mean and log variance", ("posterior mean", "log variance")),
    "decode": ("a tensor: the logits", ("logits",)),
}
"""What the methods of a model return: a description, and the name of each tensor."""


class ModelError(ValueError):
    """A model cannot be used. The message is one sentence with the name of the model."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def build_model(name: str, *, grid_size: int, latent_dim: int, classes: int = DEFAULT_CLASSES) -> GridModel:
    """Create a model by its name `package.module:factory`. The module may be in the current folder.

    Raises:
        ModelError: if the factory does not exist, does not take the number of classes, or does not return an
            `nn.Module` with the two methods.
    """
    module_name, colon, factory_name = name.partition(":")
    if not (module_name and colon and factory_name):
        raise ModelError(f"model is {name!r}; expected package.module:factory, such as {DEFAULT_MODEL}")
    here = str(Path.cwd())
    if name != DEFAULT_MODEL and here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory: Callable[..., object] = getattr(importlib.import_module(module_name), factory_name)
    except USER_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"model {name!r} cannot be imported from {here}: {reason}") from error
    keywords = {"grid_size": grid_size, "latent_dim": latent_dim}
    if _takes_classes(factory):
        keywords["classes"] = classes
    elif classes != DEFAULT_CLASSES:
        raise ModelError(
            f"model {name!r} has {DEFAULT_CLASSES} classes, not {classes}, because its factory does not "
            "take classes; expected a factory with the parameters grid_size, latent_dim and classes"
        )
    model = factory(**keywords)
    lacking = [method for method in RETURNED if not hasattr(model, method)]
    if not isinstance(model, nn.Module) or lacking:
        found = f"{type(model).__name__}{' without ' if lacking else ''}{' and '.join(lacking)}"
        raise ModelError(f"model {name!r} returns a {found}; expected an nn.Module with encode and decode")
    return cast(GridModel, model)


def _takes_classes(factory: Callable[..., object]) -> bool:
    try:
        inspect.signature(factory).bind_partial(classes=DEFAULT_CLASSES)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False
    return True


def check_model(
    name: str,
    *,
    grid_size: int,
    latent_dim: int,
    classes: int = DEFAULT_CLASSES,
    has_outside: bool = False,
) -> None:
    """Check that a model can be trained, evaluated and continued from a checkpoint.

    The methods are called with two grids, and the model is trained for two steps.

    Args:
        has_outside: whether the corpus has positions outside a grid; one of the two grids then has them too.
        name, grid_size, latent_dim, classes: as for `build_model`.

    Raises:
        ModelError: if the check fails; the message says what the model did.
    """
    build = partial(build_model, name, grid_size=grid_size, latent_dim=latent_dim, classes=classes)
    grids = torch.zeros(2, grid_size, grid_size, dtype=torch.uint8)
    grids[1] = 1
    grids[1, :, grid_size // 2 :] = OUTSIDE if has_outside else 1

    def check_results(model: GridModel) -> None:
        latent = _results(name, model, "encode", grids, latent_dim)[0].clone()
        latent[-1] += 1
        _results(name, model, "decode", latent, classes, grid_size, grid_size)

    try:
        with seeded(0, CPU):
            model = build()
        _check_tensors_of(name, model)
        check_results(model)
        check_results(_check_resumption(name, build, grids))
    except ModelError:
        raise
    except USER_ERRORS as error:
        advice = f" ({OUTSIDE} marks cells outside a grid; see bvae.beta_vae.one_hot)" if has_outside else ""
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"model {name!r} failed on two grids{advice}: {reason}") from error


def _results(name: str, model: GridModel, method: str, argument: Tensor, *shape: int) -> Sequence[Tensor]:
    """Return the tensors that a method returns in evaluation for two grids or latents.

    Raises ModelError if their kind or shape is wrong, if a second call with other random numbers returns
    others, or if the results for the first grid or latent depend on the second.
    """

    def call(argument: Tensor, seed: int) -> Sequence[Tensor]:
        with evaluating(model), seeded(seed, CPU), torch.no_grad():
            found = _returned(name, method, getattr(model, method)(argument.clone()))
        for what, tensor in zip(RETURNED[method][1], found, strict=True):
            if tensor.shape != (expected := (len(argument), *shape)):
                raise ModelError(
                    f"model {name!r}: {method} returns {what} {list(tensor.shape)}; expected {list(expected)}"
                )
        return found

    results = call(argument, 0), call(argument, 1), call(argument[:1], 0)
    for what, both, again, alone in zip(RETURNED[method][1], *results, strict=True):
        if not torch.allclose(both, again, 0, 0, equal_nan=True):
            raise ModelError(
                f"model {name!r}: {method} does not return the same {what} when it is called again in "
                "evaluation mode; expected that random numbers are used only in training mode"
            )
        tolerance = ROUNDING * alone.nan_to_num(posinf=0, neginf=0).abs().max().clamp(min=1).item()
        if not torch.allclose(both[:1], alone, 0, tolerance, equal_nan=True):
            raise ModelError(
                f"model {name!r}: {method} does not return the same {what} when the rest of the batch "
                "changes; expected that each result depends on one grid or latent alone in evaluation mode"
            )
    return results[0]


def _returned(name: str, method: str, found: object) -> Sequence[Tensor]:
    """Return the result of a method as tensors. Raises ModelError if it is something else."""
    expected, tensors_of = RETURNED[method]
    tensors: Any = found if len(tensors_of) > 1 else (found,)
    is_sequence = isinstance(tensors, tuple | list) and len(tensors) == len(tensors_of)
    if is_sequence and all(isinstance(tensor, Tensor) for tensor in tensors):
        return tuple(tensors)
    size = f" of {len(found)}" if isinstance(found, tuple | list) else ""
    raise ModelError(f"model {name!r}: {method} returns a {type(found).__name__}{size}; expected {expected}")


def _check_tensors_of(name: str, model: GridModel) -> None:
    """Raise ModelError if a checkpoint cannot store all parameters, buffers and other state of a model."""
    for part, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ModelError(
                f"model {name!r}: {part or 'the model'} has extra state (get_extra_state), which a "
                "checkpoint does not store; expected all state in buffers, see register_buffer"
            )
    for key, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"model {name!r}: {key} is lazy, so its size is unknown before the first grid; expected a "
                "module with its sizes given, such as Linear instead of LazyLinear"
            )
        if any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise ModelError(
                f"model {name!r}: {key} is an expanded tensor, whose elements share memory, so a checkpoint "
                "cannot be read into it; expected a copy, see Tensor.clone"
            )


def _check_resumption(name: str, build: Callable[[], GridModel], grids: Tensor) -> GridModel:
    """Check that training from a checkpoint is bit-identical, and that evaluation does not change a model.

    The model is trained for two steps. A second model loads the checkpoint after the first step and repeats
    the second step. Returns the trained model. Raises ModelError.
    """
    loss = BetaVAELoss(gamma=2.0, weight=None, beta=1e-3)

    def begin() -> tuple[GridModel, AutogradStep]:
        with seeded(0, CPU):
            model = build()
        return model, AutogradStep(model, loss, max_norm=1.0, bf16=False)

    def advance(model: GridModel, updates: AutogradStep, seed: int) -> dict[str, Tensor]:
        model.train()
        with seeded(seed, CPU):
            updates.forward_backward(grids, torch.Generator().manual_seed(seed))
        updates.step(1e-3)
        return stored(model, updates)

    def stored(model: GridModel, updates: AutogradStep) -> dict[str, Tensor]:
        return safetensors.torch.load(encode_checkpoint(Checkpoint(training_state(model, updates), None)))

    try:
        with reproducible(CPU):
            trained = begin()
            saved = advance(*trained, 1)
            with evaluating(trained[0]), torch.inference_mode():
                PosteriorMean(trained[0])(grids.clone())
            evaluated, straight = stored(*trained), advance(*trained, 2)
            resumed = begin()
            own = training_state(*resumed)
            check_tensors(Path("the checkpoint after a step"), saved, own)
            restore_tensors(own, saved)
            repeated = advance(*resumed, 2)
    except USER_ERRORS as error:
        raise ModelError(
            f"model {name!r} failed in two steps of training with a checkpoint between them: "
            f"{type(error).__name__}: {error}"
        ) from error
    if changed := _differing(saved, evaluated):
        raise ModelError(f"model {name!r} changes {changed} in evaluation mode; expected no change")
    if changed := _differing(straight, repeated):
        raise ModelError(
            f"model {name!r} ends with a different {changed} when it continues from a checkpoint; expected "
            "all state that changes to be in parameters or buffers, and all random numbers to come from the "
            "global generators of torch, numpy and random"
        )
    return trained[0]


def _differing(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that differs between two states, or None."""
    for key, tensor in some.items():
        if not torch.equal(*(t.flatten().view(torch.uint8) for t in (tensor, others[key]))):
            return key.removeprefix("model.")
    return None


def initial_model(config: RunConfig) -> GridModel:
    """Return the untrained model of a run. It depends only on the model's name, sizes, seed and device."""
    training = config.training
    with seeded(config.seed, torch.device(training.device)):
        return build_model(
            training.model,
            grid_size=config.grid_size,
            latent_dim=training.latent_dim,
            classes=config.classes,
        )


def load_model(checkpoint: Path, model_name: str = DEFAULT_MODEL) -> tuple[GridModel, RunConfig]:
    """Return the model of a checkpoint, in evaluation mode, and the configuration of its run.

    Only `model_name` is imported. The name in the checkpoint is only compared with it, because a file must
    not choose which code runs.

    Raises:
        CheckpointError: if the checkpoint is damaged, or its model is not `model_name`.
        ModelError: if the factory of the model cannot be used.
    """
    loaded = load_checkpoint(checkpoint, Progress)
    config = loaded.state.config
    if config.training.model != model_name:
        raise CheckpointError(
            f"{checkpoint} is of the model {config.training.model!r}, not {model_name!r}; "
            "if you trust this name, give it as --model (in Python as model=)"
        )
    model = initial_model(config)  # also recreates state that is not in the checkpoint
    prefix = "model."
    weights = {name.removeprefix(prefix): t for name, t in loaded.tensors.items() if name.startswith(prefix)}
    check_tensors(checkpoint, weights, model.state_dict())
    model.load_state_dict(weights)
    return model.eval(), config


def reconstruct(model: GridModel, grids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return reconstructions `[B, H, W]` of grids `[B, H, W]` in evaluation mode, from posterior means."""
    return _classes(_evaluated(model, PosteriorMean(model), grids).logits)


def encode(model: GridModel, grids: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return posterior means and log variances, each `[B, Z]`, of grids `[B, H, W]` in evaluation mode."""
    mean, log_variance = (part.float().cpu().numpy() for part in _evaluated(model, model.encode, grids))
    return mean, log_variance


def decode(model: GridModel, latents: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return the most probable classes `[B, H, W]` of latents `[B, Z]` in evaluation mode."""
    return _classes(_evaluated(model, model.decode, latents.astype(np.float32)))


def _evaluated(model: GridModel, method: Callable[[Tensor], Any], values: NDArray[Any]) -> Any:
    """Call a method of the model in evaluation mode. It gets a copy of the values and may modify it."""
    with evaluating(model), torch.inference_mode():
        return method(torch.tensor(values, device=next(model.parameters()).device))


def _classes(logits: Tensor) -> NDArray[np.uint8]:
    return np.asarray(logits.argmax(1).byte().cpu())


def newest_model(directory: Path, run: RunConfig) -> GridModel | None:
    """Return the model of the newest valid checkpoint of a run, or None if no checkpoint is valid."""
    for path in checkpoints(directory):
        try:
            model, config = load_model(path, run.training.model)
            if not run.continues(config):
                raise CheckpointError(f"{path} is of another run: its configuration differs")
            return model
        except CheckpointError as error:
            warnings.warn(f"{error}; it is not shown", EvidenceWarning, stacklevel=2)
    return None
