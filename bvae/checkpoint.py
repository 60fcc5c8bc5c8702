"""Stands for `bvae.training.checkpoint`."""

# moved; to be removed
import sys

from bvae.training import checkpoint
from bvae.training.checkpoint import CheckpointError as CheckpointError
from bvae.training.checkpoint import check_tensors as check_tensors
from bvae.training.checkpoint import load_checkpoint as load_checkpoint
from bvae.training.checkpoint import save_checkpoint as save_checkpoint

sys.modules[__name__] = checkpoint  # so that patches of its attributes reach it
