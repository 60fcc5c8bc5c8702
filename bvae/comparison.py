"""Moved to bvae.judging.comparison."""  # moved; to be removed

from bvae.judging.comparison import *  # noqa: F403
