# moved; to be removed
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bvae.visualization import canvas
from bvae.visualization.canvas import save_png

__all__ = ["pixel_figure", "save_png"]


def pixel_figure(width: int, height: int) -> tuple[Figure, Axes]:
    """Return a figure and invisible axes that fill it; coordinates are pixels from the top left corner."""
    drawn = canvas.pixel_figure(width, height)
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    return drawn, axes
