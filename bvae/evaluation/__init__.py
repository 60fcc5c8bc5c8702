"""Metrics of cells, classes and objects, controls that do not see the grid, and references."""

from bvae.evaluation.measure import Evaluator, evaluate

__all__ = ["Evaluator", "evaluate"]
