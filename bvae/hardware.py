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
        "cores": usable_cores(),
    }


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its container.

    A quota of one and a half cores counts as two.

    Args:
        cgroup: the folder where a container finds its own control group, of version 2 or 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = map(int, " ".join((cgroup / name).read_text() for name in names).split())
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
        if quota > 0 and period > 0:  # version 1 says -1 where there is no quota
            cores = min(cores, -(-quota // period))
    return cores


def _processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name, and its flags where the system is Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()  # ARM's has no name there
    return name, frozenset(facts.get("flags", "").split())
