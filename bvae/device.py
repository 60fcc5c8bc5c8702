"""Stands for `bvae.training.determinism`."""

# moved; to be removed
from bvae.training.determinism import keep_freed_memory as keep_freed_memory
from bvae.training.determinism import reproducible as reproducible
