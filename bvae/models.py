"""Which model a run trains: ours, or anyone's with the same three methods; new, or from a checkpoint.

A model is an `nn.Module` with

    encode(grids [B, H, W]) -> posterior mean and log variance, each [B, Z]
    decode(latent [B, Z])   -> logits [B, C, H, W] (in evaluation, each of its latent alone)
    forward(grids)          -> logits, posterior mean, log variance (in evaluation, logits of the mean)

made by a factory, named `package.module:factory`, from the keywords `grid_size` and `latent_dim`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bvae import EvidenceWarning
from bvae.beta_vae import GridModel
from bvae.config import DEFAULT_CLASSES, DEFAULT_MODEL, OUTSIDE, RunConfig
from bvae.records import Progress
from bvae.session_files import checkpoints
from bvae.training.checkpoint import CheckpointError, check_tensors, load_checkpoint

ROUNDING = 1e-3
"""By so much of the largest logit may logits differ where grids are decoded in other batches."""


class ModelError(ValueError):
    """A model cannot be used; one sentence that names it."""


def build_model(name: str, *, grid_size: int, latent_dim: int) -> GridModel:
    """A new model of the factory `package.module:factory`, found as Python would find it from here.

    Raises:
        ModelError: where there is no such factory, or what it makes is no model of such grids.
    """
    module_name, colon, factory_name = name.partition(":")
    if not (module_name and colon and factory_name):
        raise ModelError(f"model is {name!r}; expected package.module:factory, such as {DEFAULT_MODEL}")
    here = str(Path.cwd())
    if name != DEFAULT_MODEL and here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory: Callable[..., object] = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"model {name!r} cannot be imported from {here}: {error}") from error
    model = factory(grid_size=grid_size, latent_dim=latent_dim)
    lacking = [method for method in ("encode", "decode", "forward") if not hasattr(model, method)]
    if not isinstance(model, nn.Module) or lacking:
        raise ModelError(
            f"model {name!r} makes a {type(model).__name__}; "
            "expected an nn.Module with encode, decode and forward"
        )
    return cast(GridModel, model)


def check_model(name: str, *, grid_size: int, latent_dim: int, has_outside: bool = False) -> None:
    """Try a model on two grids, with cells outside where the corpus has such.

    Raises:
        ModelError: that says which method did what instead.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = build_model(name, grid_size=grid_size, latent_dim=latent_dim).eval()
            grids = torch.zeros(2, grid_size, grid_size, dtype=torch.uint8)
            if has_outside:
                grids[1, :, grid_size // 2 :] = OUTSIDE
            mean, log_variance = model.encode(grids)
            latent = mean.clone()
            latent[-1] += 1
            logits, alone, forwarded = model.decode(latent), model.decode(latent[:1]), model(grids)[0]
    except ModelError:
        raise
    except Exception as error:  # the factory and the methods are somebody else's code
        advice = (
            f" ({OUTSIDE} marks what is outside a grid; see bvae.beta_vae.one_hot)" if has_outside else ""
        )
        raise ModelError(
            f"model {name!r} failed on two grids{advice}: {type(error).__name__}: {error}"
        ) from error
    expected = {
        "the posterior mean of encode": (mean, (2, latent_dim)),
        "the log variance of encode": (log_variance, (2, latent_dim)),
        "the logits of decode": (logits, (2, DEFAULT_CLASSES, grid_size, grid_size)),
        "the logits of decode (of one latent)": (alone, (1, DEFAULT_CLASSES, grid_size, grid_size)),
        "the first of forward": (forwarded, (2, DEFAULT_CLASSES, grid_size, grid_size)),
    }
    for what, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ModelError(f"model {name!r}: {what} is {list(tensor.shape)}; expected {list(shape)}")
    if (logits[:1] - alone).abs().max() > ROUNDING * max(1.0, alone.abs().max().item()):
        raise ModelError(
            f"model {name!r}: decode makes something else of a latent where another is beside it; expected "
            "each decoded alone in evaluation, since the shuffled control counts on it"
        )


def initial_model(config: RunConfig) -> GridModel:
    """The untrained model of a run: the same for every loss option with the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(
            config.training.model, grid_size=config.grid_size, latent_dim=config.training.latent_dim
        )


def load_model(checkpoint: Path, model_name: str = DEFAULT_MODEL) -> tuple[GridModel, RunConfig]:
    """The model in a checkpoint, in evaluation mode, and the run it is of.

    A checkpoint only names its model; what is imported is what the caller names, since a file is data.

    Raises:
        CheckpointError: for a damaged checkpoint, and one of another model than `model_name`.
    """
    loaded = load_checkpoint(checkpoint, Progress)
    config = loaded.state.config
    if config.training.model != model_name:
        raise CheckpointError(
            f"{checkpoint} is of the model {config.training.model!r}; expected {model_name!r}"
        )
    model = build_model(model_name, grid_size=config.grid_size, latent_dim=config.training.latent_dim)
    prefix = "model."
    weights = {name.removeprefix(prefix): t for name, t in loaded.tensors.items() if name.startswith(prefix)}
    check_tensors(checkpoint, weights, model.state_dict())
    model.load_state_dict(weights)
    return model.eval(), config


def reconstruct(model: GridModel, grids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a model in evaluation mode makes of grids `[B, H, W]`, decoded from the posterior mean."""
    target = torch.from_numpy(grids).to(next(model.parameters()).device)
    with torch.inference_mode():
        predicted: NDArray[np.uint8] = model(target)[0].argmax(1).byte().cpu().numpy()
    return predicted


def newest_model(directory: Path, run: RunConfig) -> GridModel | None:
    """The model of the newest sound checkpoint of a run in its directory, None where there is none."""
    for path in checkpoints(directory):
        try:
            model, config = load_model(path, run.training.model)
            if config != run:
                raise CheckpointError(f"{path} is of another run: its configuration differs")
            return model
        except CheckpointError as error:
            warnings.warn(f"{error}; an older checkpoint is shown", EvidenceWarning, stacklevel=2)
    return None
