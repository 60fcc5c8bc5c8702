"""What this machine computes with. PyTorch knows it too, but takes a second to import."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bvae.config import Precision

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Processors that have one of these multiply matrices faster in bf16."""


def resolve_precision(precision: Precision, device: str) -> Precision:
    """What `auto` means on a device: bf16 where it multiplies in bf16, fp32 elsewhere.

    Raises:
        ValueError: for a device that is not there.
    """
    if device == "cpu":
        if precision != "auto":
            return precision
        return "bf16" if BF16_FLAGS & _processor()[1] else "fp32"
    return _resolve_precision_of_gpu(precision, device)


def _resolve_precision_of_gpu(precision: Precision, device: str) -> Precision:
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device is {device!r}; expected cpu, cuda or cuda:INDEX") from None
    gpus = torch.cuda.device_count()
    if kind.type != "cuda" or (kind.index or 0) >= gpus:
        raise ValueError(
            f"--device is {device!r}; expected cpu, or one of the {gpus} CUDA devices found here"
        )
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_bf16_supported() else "fp32"


def describe_hardware(device: str) -> dict[str, str | int]:
    """Machine, system, processor and cores by name, and the GPU where the device is one."""
    facts: dict[str, str | int] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor()[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }
    if device != "cpu":
        import torch

        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> tuple[str, frozenset[str]]:
    """The processor's name and flags, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import torch

        capabilities = torch.cpu.get_capabilities()
        name = str(capabilities.get("cpu_name", platform.processor()))
        return name, frozenset(flag for flag, has in capabilities.items() if has is True)
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()  # ARM's has no name there
    return name, frozenset(facts.get("flags", "").split())
