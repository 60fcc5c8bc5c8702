"""Metrics of cells, classes and objects, for a model, for its controls and for the references."""

from bvae.evaluation.measure import Evaluator, evaluate

__all__ = ["Evaluator", "evaluate"]
