"""What every test of the repository shares. The laboratory itself is a plugin: see `bvae/plugin.py`."""

from __future__ import annotations

import gc

gc.disable()  # until the session starts: what an import makes stays, and looking through it takes time

pytest_plugins = ["pytester"]


def pytest_sessionstart() -> None:
    gc.enable()
