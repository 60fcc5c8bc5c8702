"""Properties and matrix speed of this machine, the operations of a step, and lines of progress."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import PlainVAE

CORES = 2
"""Number of cores used for training and for matrix products."""

MATRIX = 2048
"""Rows and columns of the multiplied matrices, which are too large for the caches of a core."""


def describe() -> dict[str, object]:
    """Return the number of cores, the instruction sets, and the versions of PyTorch and Python."""
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


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def flops_of_a_step() -> float:
    """Return the floating-point operations of a training step per image.

    Matrix products and convolutions of the plain model are counted, forward and backward. A multiply-add
    counts as two operations.
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
    """Return the floating-point operations per second of the fastest matrix product on two cores."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # its threads end with the process
        return pool.apply(_multiply, (CORES, dtype, seconds))
