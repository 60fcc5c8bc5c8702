"""What all tests of the repository share. Experiments are run by a plugin: see `bvae/plugin.py`."""

pytest_plugins = ["pytester"]
