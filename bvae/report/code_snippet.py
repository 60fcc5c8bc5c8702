"""A loss option as Python code that can be copied and run."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from bvae.class_weights import weights_of_option
from bvae.config import ExperimentConfig, LossOption


def code_snippet(experiment: ExperimentConfig, option: LossOption, counts: Sequence[int]) -> str:
    """Return code that defines the loss of an option on an experiment's corpus, and how it is trained.

    Args:
        counts: `[C]`, cells of each class in the training split; a comment shows the weights they give.
    """
    fields = dataclasses.fields(experiment.training)
    settings = ", ".join(f"{field.name}={getattr(experiment.training, field.name)!r}" for field in fields)
    lines = textwrap.wrap(f"{settings},", 84, break_long_words=False, break_on_hyphens=False)
    training = textwrap.indent("\n".join(lines), "    ")
    numbers = ", ".join(f"{weight:.4g}" for weight in weights_of_option(option, counts).tolist())
    source, weight = _weight(option)
    corpus = f"{experiment.corpus!r}, grid_size={experiment.grid_size}"
    if experiment.padding_value is not None:
        corpus += f", padding_value={experiment.padding_value}"
    return f"""\
from bvae.beta_vae import {source}
from bvae.config import {"LossOption, " if source == "option_weights" else ""}TrainingConfig
from bvae.corpus import load_corpus
from bvae.losses import focal_loss

training = TrainingConfig(
{training}
)
counts = load_corpus({corpus}).class_counts
weight = {weight}
# = [{numbers}]


def reconstruction_loss(logits, target):
    \"\"\"Nats per cell of logits [B, 10, H, W] and classes [B, H, W]; training.beta · KL is added.\"\"\"
    return focal_loss(logits, target, gamma={option.gamma!r}, weight=weight)
"""


def _weight(option: LossOption) -> tuple[str, str]:
    """The name of the function that returns an option's class weights, and the call."""
    if option.exponent is None and option.beta is None and isinstance(option.class_weights, str):
        return "class_weights", f"class_weights(counts, {option.class_weights!r})"
    return "option_weights", f"option_weights({option!r}, counts)"
