from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvae import plugin
from bvae.engine import describe_gpu, resolve_gpu_precision
from bvae.hardware import describe_hardware, resolve_precision, usable_cores

pytestmark = pytest.mark.unit

CAPABILITIES = torch.cpu.get_capabilities()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo, which only Linux has")
def test_automatic_precision_is_bf16_if_the_processor_has_it() -> None:
    has_bf16 = CAPABILITIES.get("avx512_bf16") or CAPABILITIES.get("amx_bf16")
    assert resolve_precision("auto") == ("bf16" if has_bf16 else "fp32")


def test_without_a_description_of_the_processor_training_is_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, *_: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert resolve_precision("auto") == "fp32"
    assert describe_hardware()["processor"]


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("flags : sse avx512_bf16", "bf16"),
        ("flags\t: amx_bf16", "bf16"),
        ("flags : avx512f", "fp32"),
        ("", "fp32"),
    ],
)
def test_bf16_is_chosen_by_the_flags_of_a_processor(
    monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: f"processor : 0\n{flags}\n\nprocessor : 1\n{flags}\n")
    assert resolve_precision("auto") == precision
    assert describe_hardware()["processor"]  # not empty even if the system does not name the processor


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_explicit_precision_is_kept(precision: Any) -> None:
    assert resolve_precision(precision) == precision


@pytest.mark.parametrize("device", ["quantum", "meta", "cpu:0", f"cuda:{torch.cuda.device_count()}", ""])
def test_a_device_that_does_not_exist_is_refused_in_one_sentence(device: str) -> None:
    with pytest.raises(ValueError, match=r"--device is .*; expected cpu") as caught:
        resolve_gpu_precision("auto", device)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_named() -> None:
    assert describe_gpu("cuda")["gpu"] == torch.cuda.get_device_name("cuda")


def cgroup(folder: Path, files: dict[str, str]) -> Path:
    """Write files that a container has in `/sys/fs/cgroup`; return their folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def version_1(quota: object, period: object) -> dict[str, str]:
    return {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        (version_1(-1, 100000), 8),
        (version_1(300000, 100000), 3),
        (version_1(25000, 50000), 1),
        ({"cpu.max": "max 100000\n", **version_1(300000, 100000)}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 8),
        (version_1(300000, 0), 8),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(
    eight_cores: None, tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(cgroup(tmp_path, files)) == cores


@given(*[st.text(max_size=30) | st.integers().map(str) | st.just("9" * 4000)] * 3)
def test_any_control_group_gives_at_least_one_core_and_no_extra_core(
    pair: str, quota: str, period: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {"cpu.max": f"{pair} {period}", **version_1(quota, period)}
        cores = usable_cores(cgroup(Path(folder), files))
    assert 1 <= cores <= usable_cores(Path(folder))


@pytest.mark.parametrize(("cores", "workers"), [(2, 2), (8, 6)])
def test_there_is_a_worker_per_usable_core_but_at_most_one_per_run(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config, cores: int, workers: int
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    monkeypatch.setattr(plugin, "runs_experiments", lambda _: True)
    monkeypatch.setattr(plugin, "asked_experiment", lambda _: SimpleNamespace(options="ABC", seeds=2))
    monkeypatch.setattr(plugin, "usable_cores", lambda: cores)
    assert plugin.pytest_xdist_auto_num_workers(pytestconfig) == workers
