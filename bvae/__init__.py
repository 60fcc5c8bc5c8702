"""A laboratory that compares losses of β-VAEs, which reconstruct categorical grids.

corpus/       grids to train on         losses, beta_vae   the loss and the model
training/     one training step         trainer            the training loop
evaluation/   metrics and controls      judging/           comparison of options, baselines
session/      session folders, workers  visualization/     pictures and charts
report/       text, Markdown and HTML   notebook           runs and comparisons in Python

ARCHITECTURE.md describes the structure. `import bvae` imports none of these modules. Most are imported when
`bvae.open_run` or `bvae.compare` is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bvae.notebook import compare, open_run

__all__ = ["EngineError", "EvidenceWarning", "compare", "open_run"]
__version__ = "0.9.4"


class EvidenceWarning(UserWarning):
    """A file is missing or damaged, and bvae goes on without it; or the system gives a weaker guarantee.

    Examples of weaker guarantees are a folder that cannot be flushed, and a file system without locks.
    """


class EngineError(RuntimeError):
    """The machines or processes that train the runs are not available, or were lost."""


def __getattr__(name: str) -> Any:
    if name in ("compare", "open_run"):
        return getattr(importlib.import_module("bvae.notebook"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
