"""A laboratory for the loss of a β-VAE that reconstructs categorical grids.

corpus/       grids to train on         losses, beta_vae   the loss and the model
training/     one training step         trainer            the training loop
evaluation/   metrics and controls      judging/           comparison of options, baselines
session/      session folders, workers  visualization/     pictures and charts
report/       text, Markdown and HTML

ARCHITECTURE.md describes the structure. Importing this package imports none of these modules.
"""

__version__ = "0.7.0"


class EvidenceWarning(UserWarning):
    """A part of the evidence is missing or damaged, such as a checkpoint or a picture; training continues."""
