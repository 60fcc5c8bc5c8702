"""How PyTorch is to compute: so that the same seed gives the same bits, and without returning memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

deterministic: Any = torch.utils.deterministic
"""Its annotations lack what is used of it."""


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels and, on the CPU, one compute thread; the previous settings come back after.

    Sums over a varying number of threads round differently; and two processes with two threads each on two
    cores are ten times slower than with one, since the threads of one spin while those of the other work.
    On CUDA an environment variable that cuBLAS asks for is set and stays.
    """
    # torch.use_deterministic_algorithms would also tell the compiler, and take a second to import it.
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    fill = deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    deterministic.fill_uninitialized_memory = (
        False  # at every new tensor, for those who read what they never wrote
    )
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = fill


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 31 MiB for reuse, and not return each to the system.

    glibc raises that limit to the largest block freed so far. Below it, the activations of each step would be
    mapped, filled with zeros page by page, and unmapped again.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
