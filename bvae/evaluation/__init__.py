"""What a model has learned: metrics of cells, classes and objects, beside controls that see nothing."""

from bvae.evaluation.measure import Evaluator, evaluate

__all__ = ["Evaluator", "evaluate"]
