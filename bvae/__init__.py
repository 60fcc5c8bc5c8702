"""A laboratory for the loss of a β-VAE that reconstructs categorical grids.

corpus/          grids to train on               losses, beta_vae   what is trained
training/        one step of it; `trainer` loops   evaluation/        what is measured
judging/         what is said of it                visualization/     what is seen of it
session/         where it is kept and trained      report/            where it is read

ARCHITECTURE.md tells more. Importing this package imports none of them.
"""

__version__ = "0.7.0"


class EvidenceWarning(UserWarning):
    """Something was lost on the way, such as a damaged checkpoint or a picture, and training went on."""
