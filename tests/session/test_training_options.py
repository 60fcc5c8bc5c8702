"""A session with a schedule of β, free bits and few checkpoints, and its size on disk."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from lab import TINY, SessionHere, comparison, evidence, newest

from bvae.__main__ import main
from bvae.session_files import disk_usage


@pytest.mark.unit
def test_disk_usage_counts_a_file_with_two_names_once(tmp_path: Path) -> None:
    checkpoints = tmp_path / "B-seed0/checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "session.json").write_bytes(bytes(7))
    (checkpoints / "epoch_001.safetensors").write_bytes(bytes(1000))
    os.link(checkpoints / "epoch_001.safetensors", checkpoints / "best.safetensors")
    (checkpoints / "epoch_002.safetensors").write_bytes(bytes(200))
    (checkpoints / "reconstructions_epoch_001.png").write_bytes(bytes(30))
    assert disk_usage(tmp_path) == (1237, 1200)


@pytest.mark.slow
def test_warm_up_free_bits_and_kept_checkpoints_take_effect(lab: Path, session_here: SessionHere) -> None:
    settings = ("--beta-schedule", "linear", "--beta-warmup", "2", "--free-bits", "0.05")
    kept = ("--keep-checkpoints", "last")
    _, said = session_here(*TINY, "--loss-options", "B", *settings, *kept, "--html=report.html")
    run = newest(lab) / "B-seed0"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["beta"] for record in records] == pytest.approx([0.004 * 2 / 6, 0.004 * 5 / 6])
    for record in records:
        for losses in (record["train"], record["validation"]):
            assert losses["loss"] == pytest.approx(losses["reconstruction"] + 0.004 * losses["kl"], rel=1e-5)
    assert (
        "β rises from 0 over 2 epochs and the first 0.05 nats of KL in each latent dimension have no cost"
        in said
    )
    assert {path.stem for path in run.glob("checkpoints/*.safetensors")} == {"epoch_002", "best"}
    assert (run / "checkpoints/reconstructions_epoch_001.png").exists()
    captions = re.findall(r"(Epoch \d) \(select", (lab / "report.html").read_text())
    assert captions == ["Epoch 1", "Epoch 2"]
    size, of_checkpoints = disk_usage(newest(lab))
    line = rf"Session: .* \({size / 1e6:,.1f} MB, of which {of_checkpoints / 1e6:,.1f} MB are checkpoints\)"
    assert re.search(line, said)


SETTINGS = """
[B-2]
base = "B"
[B-2.training]
latent_dim = 2
epochs = 3
beta = 0.01
"""


@pytest.mark.slow
def test_two_settings_in_one_session_are_compared_resumed_and_reported(
    lab: Path, session_here: SessionHere
) -> None:
    (lab / "settings.toml").write_text(SETTINGS)
    asked = ("--loss-options-file=settings.toml", "--loss-options", "B,B-2")
    status, said = session_here(*TINY, *asked, "--html=report.html")
    assert status == 1, said
    session, difference = (
        newest(lab),
        "latent_dim 2 instead of 32, epochs 3 instead of 2, beta 0.01 instead of",
    )
    epochs = {}
    for run, trained in (("B-seed0", (32, 2, 0.004)), ("B-2-seed0", (2, 3, 0.01))):
        training = json.loads((session / run / "config.json").read_text())["training"]
        assert (training["latent_dim"], training["epochs"], training["beta"]) == trained
        records = [json.loads(line) for line in (session / run / "metrics.jsonl").read_text().splitlines()]
        epochs[run] = len(records)
        assert len(records[-1]["validation"]["kl_per_dim"]) == trained[0]
        assert records[-1]["beta"] == trained[2]
    assert epochs == {"B-seed0": 2, "B-2-seed0": 3}
    assert {"PCA, 2 components", "PCA, 32 components"} < comparison(lab)["corpus"]["references"].keys()
    page = (lab / "report.html").read_text()
    for text in (said, page, (session / "comparison/comparison.md").read_text().replace("\\", "")):
        assert f"B-2: {difference}" in text
    assert "after 2 to 3 epochs" in page
    assert "KL per grid and object IoU, means over runs: B " in page

    before = evidence(session)
    (session / "B-2-seed0/result.json").unlink()
    (session / "comparison/tradeoff.png").unlink()
    status, said = session_here("--resume=latest")
    assert status == 1, said
    assert evidence(session) == before
    (lab / "settings.toml").write_text(SETTINGS.replace("2\n", "4\n"))
    status, said = session_here("--resume=latest", *asked)
    assert status == 4
    assert "options.1.training.latent_dim was 2 and is 4" in said
    assert main(["report", str(session)]) == 0
    assert f"B-2: {difference}" in (session / "report.html").read_text()
