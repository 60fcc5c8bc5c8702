"""Moved to bvae.judging.baseline."""  # moved; to be removed

from bvae.judging.baseline import *  # noqa: F403
