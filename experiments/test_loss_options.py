"""The main job: train each loss option with each seed, look, judge, and gate.

pytest experiments/ --html=report.html
"""

from bvae.experiments.test_loss_options import *  # noqa: F403
