"""What every test of the repository shares. The laboratory itself is a plugin: see `bvae/plugin.py`."""

pytest_plugins = ["pytester"]
