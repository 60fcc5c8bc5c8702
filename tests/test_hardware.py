from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bvae.engine import describe_gpu, resolve_gpu_precision
from bvae.hardware import describe_hardware, resolve_precision

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
