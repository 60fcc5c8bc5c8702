from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lab import ROOT, TINY, run_pytest

from benchmarks.__main__ import PEERS, main, make_job
from benchmarks.contenders import Contender
from benchmarks.parts import measure
from benchmarks.peers import PlainLoss, PlainVAE
from benchmarks.stopwatch import WATCHED
from bvae.beta_vae import BetaVAE
from bvae.losses import BetaVAELoss


@pytest.fixture(scope="module")
def grids() -> torch.Tensor:
    return torch.randint(0, 10, (5, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.unit
def test_peers_train_the_same_model_as_bvae(grids: torch.Tensor) -> None:
    ours, theirs = BetaVAE(), PlainVAE()
    theirs.load_state_dict(ours.state_dict())
    mean, log_variance = ours.encode(grids)
    torch.manual_seed(0)
    latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    torch.manual_seed(0)
    torch.testing.assert_close(theirs(grids), (ours.decode(latent), mean, log_variance))


@pytest.mark.unit
@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_peers_train_with_the_same_loss_as_bvae(grids: torch.Tensor, option: str) -> None:
    job = make_job("atomic:100", option, epochs=1)
    logits, mean, log_variance = torch.randn(5, 10, 16, 16), torch.randn(5, 16), torch.randn(5, 16)
    ours = BetaVAELoss(gamma=job.gamma, weight=torch.tensor(job.weight), beta=job.beta)
    found = PlainLoss(job)(logits, mean, log_variance, grids)
    torch.testing.assert_close(found, ours(logits, mean, log_variance, grids).total.mean())


def run(module: str, *settings: str) -> str:
    """Run a benchmark; return its output."""
    command = [sys.executable, "-m", module, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("tuned", [False, True], ids=["default", "tuned"])
@pytest.mark.parametrize("name", [name for name in PEERS if name != "plain loop"])
def test_every_peer_trains_epoch_by_epoch(name: str, tuned: bool) -> None:
    if importlib.util.find_spec(name.lower()) is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[bench]'")
    job = dataclasses.replace(make_job("atomic:500", "B", epochs=2), tuned=tuned)
    with Contender(name, PEERS[name], job, processes=1, threads=1) as contender:
        rates = [contender.epoch(last=False), contender.epoch(last=True)]
    assert min(rates) > 0


@pytest.mark.slow
def test_the_benchmark_reports_the_speedup_of_bvae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--only=training", "--peers=plain loop", "--repeats=1", "--corpus=atomic:500")
    monkeypatch.setattr("sys.argv", ["benchmarks", *settings, f"--output={tmp_path}"])
    monkeypatch.setattr("benchmarks.__main__.SPREADS", ((1, 1),))
    main()
    assert capsys.readouterr().out.count("as fast as the fastest peer in one process: ") == 2
    rates = json.loads((tmp_path / "benchmark.json").read_text())["images_a_second"]
    assert len(rates) == 4
    assert all(rate > 0 for repeats in rates.values() for rate in repeats)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_part_of_a_run_is_timed() -> None:
    said: list[str] = []
    measured = measure(1, said.append, experiments=0)
    assert len(measured) == 7
    assert all(len(seconds) == 1 for seconds in measured.values())
    assert all(seconds > 0 for name, (seconds,) in measured.items() if name != "import bvae, beyond torch")
    assert said


@pytest.mark.slow
def test_the_stopwatch_measures_the_time_outside_training(lab: Path) -> None:
    settings = ("experiments/", *TINY, "-n1", "-p", "benchmarks.stopwatch", f"--html={lab / 'report.html'}")
    done = run_pytest(*settings, env={**os.environ, "BVAE_STOPWATCH": str(lab), "PYTHONPATH": str(ROOT)})
    assert done.returncode in (0, 1), done.stdout + done.stderr
    spent = [json.loads(file.read_text()) for file in lab.glob("*.json")]
    assert len(spent) == 2  # the controller and a worker
    assert all(sum(each[name] for each in spent) > 0 for name in WATCHED)


@pytest.mark.unit
@pytest.mark.parametrize("place", [place for places in WATCHED.values() for place in places])
def test_every_function_that_the_stopwatch_watches_exists(place: str) -> None:
    module, _, path = place.partition(":")
    assert callable(operator.attrgetter(path)(importlib.import_module(module)))


@pytest.mark.unit
def test_the_stopwatch_imports_neither_pytorch_nor_matplotlib() -> None:
    code = "import sys; from benchmarks.stopwatch import *; pytest_sessionstart(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "benchmarks.stopwatch" in done.stdout.split()
    assert not {"torch", "matplotlib"} & set(done.stdout.split())


@pytest.mark.slow
def test_the_shuffling_benchmark_compares_three_shuffles(tmp_path: Path) -> None:
    output = tmp_path / "shuffling.json"
    run("benchmarks.shuffling", "--grids=3500", "--epochs=1", "--seeds=1", f"--output={output}")
    found = json.loads(output.read_text())
    assert set(found) == {"full", "blocks", "coarse"}
    assert all(0 < each["pixel_accuracy"] < 1 for runs in found.values() for each in runs)
