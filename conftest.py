"""What every test of the repository shares. The laboratory itself is a plugin: see `bvae/plugin.py`."""

from __future__ import annotations

import gc

gc.disable()  # until the session starts: what an import makes stays, and looking through it takes time

import torch  # noqa: E402

pytest_plugins = ["pytester"]

# Before the first operator: workers with a thread for each core would spin on each other.
torch.set_num_threads(1)


def pytest_sessionstart() -> None:
    gc.enable()
