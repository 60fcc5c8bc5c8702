"""What this machine can do, and what a training step asks of it."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import PlainVAE

CORES = 2
"""Contenders train on so many, and matrices are multiplied on so many, whatever the machine has."""

MATRIX = 2048
"""Rows and columns of the matrices that are multiplied: they fit in the caches of no core."""


def describe() -> dict[str, object]:
    """The processor, what it calls its matrix instructions, and PyTorch."""
    capabilities = torch.cpu.get_capabilities()
    instructions = [
        name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)
    ]
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "architecture": platform.machine(),
        "instructions": instructions,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def flops_of_a_step() -> float:
    """Floating point operations of the matrix products and convolutions of a training step, an image.

    Counted, forward and backward, on the plain model; an addition and a multiplication are two.
    """
    counter = FlopCounterMode(display=False)
    model = PlainVAE()
    with counter:
        logits, mean, log_variance = model(torch.zeros(1, 16, 16, dtype=torch.uint8))
        (logits.sum() + mean.sum() + log_variance.sum()).backward()
    return float(counter.get_total_flops())


def _multiply(threads: int, dtype: torch.dtype, seconds: float) -> float:
    torch.set_num_threads(threads)
    left, right = torch.randn(2, MATRIX, MATRIX).to(dtype)
    out = left @ right
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        started = time.perf_counter()
        torch.matmul(left, right, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX**3 / best


def matmul_rate(dtype: torch.dtype, *, seconds: float = 2.0) -> float:
    """The fastest product of two square matrices on two cores: floating point operations a second."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # whose threads go when it ends
        return pool.apply(_multiply, (CORES, dtype, seconds))
