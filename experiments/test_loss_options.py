"""The packaged experiment: train each loss option with each seed, draw pictures, judge, and gate.

pytest experiments/ --html=report.html
"""

from bvae.experiments.test_loss_options import *  # noqa: F403
