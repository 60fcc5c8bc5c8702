# moved; to be removed
"""`bvae.visualization.checkpoint_pictures` under its old name, with the pictures of a session."""

import sys

from bvae.visualization import checkpoint_pictures
from bvae.visualization.checkpoint_pictures import CheckpointPictures as Gallery
from bvae.visualization.session_pictures import (
    draw_curves,
    draw_examples,
    draw_reconstructions,
    draw_run_curves,
    draw_why,
)

__all__ = [
    "Gallery",
    "draw_curves",
    "draw_examples",
    "draw_reconstructions",
    "draw_run_curves",
    "draw_why",
]

for _name in __all__:
    setattr(checkpoint_pictures, _name, globals()[_name])
# One module under both names, so that what replaces its functions in tests takes effect.
sys.modules[__name__] = checkpoint_pictures
