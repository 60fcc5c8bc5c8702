"""Metrics of cells, classes and objects, controls that see no objects, and references."""

from bvae.evaluation.measure import Evaluator, evaluate

__all__ = ["Evaluator", "evaluate"]
