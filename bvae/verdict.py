"""The verdict on a run, under the name that others import; see `bvae.judging.verdict`."""

from bvae.judging.verdict import *  # noqa: F403
