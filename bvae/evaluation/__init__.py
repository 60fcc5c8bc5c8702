"""Metrics of a model: of cells, classes and objects, for the model, its controls and references."""

from bvae.evaluation.measure import Evaluator, evaluate

__all__ = ["Evaluator", "evaluate"]
