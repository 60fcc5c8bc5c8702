"""Metrics of cells, classes and objects, and of controls that do not see the grid."""

from bvae.evaluation.measure import Evaluator, evaluate

__all__ = ["Evaluator", "evaluate"]
