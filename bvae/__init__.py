"""A laboratory for the loss of a β-VAE that reconstructs categorical grids.

The modules read in one direction: corpus → model and loss → trainer → metrics → verdict → comparison →
report. Importing this package imports none of them, so that what needs no torch waits for no torch.
"""

__version__ = "0.6.0"


class EvidenceWarning(UserWarning):
    """Something was lost on the way, such as a damaged checkpoint or a picture, and training went on."""
