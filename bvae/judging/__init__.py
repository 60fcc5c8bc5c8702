"""Comparisons, baselines and explanations, computed from the records of runs without PyTorch."""
