# moved; to be removed
from bvae.visualization.why_chart import plot_why

__all__ = ["plot_why"]
