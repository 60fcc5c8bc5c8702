"""Moved."""  # moved; to be removed

from bvae.judging.explanation import *  # noqa: F403
from bvae.judging.explanation import Diagnosis

Why = Diagnosis
