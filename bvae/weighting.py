"""Moved."""  # moved; to be removed

from bvae.class_weights import *  # noqa: F403
