"""A session with a schedule of β, free bits and few checkpoints, and its size on disk."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from lab import TINY, SessionHere, newest

from bvae.session_files import disk_usage


@pytest.mark.unit
def test_the_size_of_a_session_counts_a_file_of_two_names_once(tmp_path: Path) -> None:
    checkpoints = tmp_path / "B-seed0/checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "session.json").write_bytes(bytes(7))
    (checkpoints / "epoch_001.safetensors").write_bytes(bytes(1000))
    os.link(checkpoints / "epoch_001.safetensors", checkpoints / "best.safetensors")
    (checkpoints / "epoch_002.safetensors").write_bytes(bytes(200))
    (checkpoints / "reconstructions_epoch_001.png").write_bytes(bytes(30))
    assert disk_usage(tmp_path) == (1237, 1200)


@pytest.mark.slow
def test_a_session_with_a_warm_up_of_beta_free_bits_and_few_checkpoints(
    lab: Path, session_here: SessionHere
) -> None:
    settings = ("--beta-schedule", "linear", "--beta-warmup", "2", "--free-bits", "0.05")
    kept = ("--keep-checkpoints", "last")
    _, said = session_here(*TINY, "--loss-options", "B", *settings, *kept, "--html=report.html")
    run = newest(lab) / "B-seed0"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["beta"] for record in records] == pytest.approx([0.004 * 2 / 6, 0.004 * 5 / 6])
    for record in records:
        for losses in (record["train"], record["validation"]):
            assert losses["loss"] == pytest.approx(losses["reconstruction"] + 0.004 * losses["kl"], rel=1e-5)
    assert "β rises from 0 over 2 epochs and 0.05 nats per latent dimension are free" in said
    assert {path.stem for path in run.glob("checkpoints/*.safetensors")} == {"epoch_002", "best"}
    assert (run / "checkpoints/reconstructions_epoch_001.png").exists()
    captions = re.findall(r"(Epoch \d) \(select", (lab / "report.html").read_text())
    assert captions == ["Epoch 1", "Epoch 2"]
    size, of_checkpoints = disk_usage(newest(lab))
    line = rf"Session: .* \({size / 1e6:,.1f} MB, of which {of_checkpoints / 1e6:,.1f} MB are checkpoints\)"
    assert re.search(line, said)
