"""Where a model is trained, in which precision, and so that the same seed gives the same bits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

from bvae.config import Precision

deterministic: Any = torch.utils.deterministic
"""Its annotations lack what is used of it."""


def resolve_precision(precision: Precision, device: str) -> Precision:
    """What `auto` means on a device: bf16 where it multiplies in bf16, fp32 elsewhere.

    Raises:
        ValueError: for a device that is not there.
    """
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device is {device!r}; expected cpu, cuda or cuda:INDEX") from None
    gpus = torch.cuda.device_count()
    if kind.type not in ("cpu", "cuda") or (kind.type == "cuda" and (kind.index or 0) >= gpus):
        raise ValueError(
            f"--device is {device!r}; expected cpu, or one of the {gpus} CUDA devices found here"
        )
    if precision != "auto":
        return precision
    if kind.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


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
