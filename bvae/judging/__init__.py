"""From what was measured to what is said of it: verdicts, the comparison of options, baselines. No torch."""
