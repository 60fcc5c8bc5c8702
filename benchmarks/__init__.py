"""Benchmarks: the speed of bvae compared with other trainers, and the measurements in the documentation."""
