"""The packaged experiment, and the example project that `bvae init` writes."""

EXAMPLE = {
    "test_losses.py": '''"""The packaged experiment, and one more gate."""

import pytest
from bvae.experiments.test_loss_options import *  # noqa: F403


@pytest.mark.gate
def test_objects_are_found(laboratory):
    """At least one option finds more than half of the objects."""
    options = laboratory.compare().options
    recalls = {name: option.object_recall.mean or 0.0 for name, option in options.items()}
    assert max(recalls.values()) > 0.5, recalls
''',
    "pytest.ini": """\
[pytest]
# -p loads the plugin. -n auto spreads the runs over all cores.
addopts = -p bvae.plugin -n auto --maxschedchunk=1 --self-contained-html
""",
    "options.toml": """\
# Loss options to compare besides A, B and C: pytest --loss-options-file=options.toml
# docs/loss-options.md describes every key.

[D]
gamma = 2.0                  # exponent of the focal loss; 0 is the cross-entropy
class_weights = "power"      # or none, sqrt_inverse, inverse, effective, or a list of ten numbers
exponent = 0.4               # weights are proportional to the cell counts to the power of -0.4
candidate = true             # whether the option can pass the gate
role = "milder than B"
""",
}
"""Text of each file of the example project, by file name."""
