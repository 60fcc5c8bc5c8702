"""What all tests of the repository share. pytest.ini loads the plugin that runs experiments."""

pytest_plugins = ["pytester"]
