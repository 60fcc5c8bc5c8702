"""What every test of the repository shares. The laboratory itself is a plugin: see `bvae/plugin.py`."""

from __future__ import annotations

import torch
from hypothesis import settings

pytest_plugins = ["pytester"]

# Before the first operator: workers with a thread for each core would spin on each other.
torch.set_num_threads(1)

# Timing varies on shared machines; examples that fail are printed with the code that reproduces them.
settings.register_profile("bvae", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("bvae")
