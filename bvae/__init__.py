"""A laboratory for the loss of a β-VAE that reconstructs categorical grids.

corpus/       grids to train on         losses, beta_vae   the loss and the model
training/     one training step         trainer            the training loop
evaluation/   metrics and controls      judging/           comparison of options, baselines
session/      session folders, workers  visualization/     pictures and charts
report/       text, Markdown and HTML  notebook           runs and comparisons in Python

ARCHITECTURE.md describes the structure. Importing this package imports none of these modules; the first use
of `bvae.open_run` or `bvae.compare` does.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bvae.notebook import compare, open_run

__all__ = ["EngineError", "EvidenceWarning", "compare", "open_run"]
__version__ = "0.9.1"


class EvidenceWarning(UserWarning):
    """A part of the evidence is missing or damaged, such as a checkpoint or a picture; training continues."""


class EngineError(RuntimeError):
    """No run can be trained, because the machines for training are not, or no longer, available."""


def __getattr__(name: str) -> Any:
    if name in ("compare", "open_run"):
        return getattr(importlib.import_module("bvae.notebook"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
