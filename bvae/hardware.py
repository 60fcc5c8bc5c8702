"""What this machine computes with, found without PyTorch, which takes a second to import."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bvae.config import Precision

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Processors that have one of these multiply matrices faster in bf16."""


def resolve_precision(precision: Precision) -> Precision:
    """Return what `auto` means on this processor: bf16 where it multiplies in bf16, fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if BF16_FLAGS & _processor()[1] else "fp32"


def describe_hardware() -> dict[str, str | int]:
    """Return machine, system, processor and cores by name."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor()[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }


def _processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name, and its flags where the system is Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()  # ARM's has no name there
    return name, frozenset(facts.get("flags", "").split())
