"""The comparison of options, baselines and explanations, computed from records without PyTorch."""
