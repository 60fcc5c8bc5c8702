"""Settings of PyTorch for training: the same seed gives the same bits, and freed memory is kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

deterministic: Any = torch.utils.deterministic
"""The module without its annotations, which lack `fill_uninitialized_memory`."""


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels and, on the CPU, one thread; restore the previous settings afterwards.

    Sums over a varying number of threads round differently; and two processes with two threads each on two
    cores are ten times slower than with one, since the threads of one spin while those of the other work.
    On CUDA, CUBLAS_WORKSPACE_CONFIG is set if it is not, and stays set.
    """
    # torch.use_deterministic_algorithms would also tell the compiler, and take a second to import it.
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    fill = deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    # Deterministic mode would fill each new tensor, in case that it is read before it is written.
    deterministic.fill_uninitialized_memory = False
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
    """Make the C library keep freed blocks of up to 31 MiB for reuse.

    Otherwise the activations of each step would be mapped, filled with zeros page by page, and unmapped
    again. glibc keeps blocks up to the size of the largest one freed so far, so freeing one is enough.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
