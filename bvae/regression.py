"""Moved to bvae.judging.regression."""  # moved; to be removed

from bvae.judging.regression import *  # noqa: F403
