"""Benchmarks: the speed of bvae and of other trainers, and the measurements in the documentation."""
