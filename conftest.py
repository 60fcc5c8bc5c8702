"""Loads `pytester`, with which tests run pytest; pytest.ini loads `bvae.plugin`."""

pytest_plugins = ["pytester"]
