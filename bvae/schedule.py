"""Stands for `bvae.training.schedule`."""

# moved; to be removed
import sys

from bvae.training import schedule
from bvae.training.schedule import BLOCK_CELLS as BLOCK_CELLS
from bvae.training.schedule import WINDOW_CELLS as WINDOW_CELLS
from bvae.training.schedule import epoch_order as epoch_order
from bvae.training.schedule import window_edges as window_edges

sys.modules[__name__] = schedule  # so that patches of its attributes reach it
