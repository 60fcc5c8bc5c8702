"""Pictures of grids, and charts of runs, drawn with matplotlib.

- `reconstructions`: reconstructions of a model, of several options, or of several checkpoints.
- `latents`: traversals of latent dimensions, samples from the prior, object IoU against KL.
- `grid_image`: a matrix of grids with labels and captions, as one image.
- `charts`: curves of runs and options by epoch.
- `why_chart`: prediction thresholds, gradient shares and confusion of an option; verdicts by epoch.
- `canvas`: figures measured in pixels; style, text and PNG files.
"""

from bvae.visualization.latents import plot_samples, plot_traversals
from bvae.visualization.reconstructions import (
    plot_comparison,
    plot_examples,
    plot_filmstrip,
    plot_reconstructions,
)

__all__ = [
    "plot_comparison",
    "plot_examples",
    "plot_filmstrip",
    "plot_reconstructions",
    "plot_samples",
    "plot_traversals",
]
