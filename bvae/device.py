"""Where a model is trained, in which precision, and so that the same seed gives the same bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from bvae.config import Precision


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
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
