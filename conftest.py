"""What every test of the repository shares. The laboratory itself is a plugin: see `bvae/plugin.py`."""

from __future__ import annotations

import torch

pytest_plugins = ["pytester"]

# Before the first operator: workers with a thread for each core would spin on each other.
torch.set_num_threads(1)
