"""Sessions on a Ray cluster end with the same bits as in one process, even if a node dies."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import RESUMABLE, TINY, Uninterrupted, evidence, newest, run_pytest, running, wait_for

from bvae import EngineError
from bvae.corpus import load_corpus
from bvae.engine import find_scheduler
from bvae.hardware import find_versions
from bvae.options import parse_experiment
from bvae.session import Session
from bvae.session.folder import RunCrashError
from bvae.session.run import RunFolders

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[ray]'"
)
MANY_RUNS = (*TINY, "--epochs", "1", "--seeds", "8", "--checkpoint-every-steps", "2")
"""Options for 24 runs of three steps, each with a checkpoint after two steps."""
FIRST_SEEDS = (*MANY_RUNS, "--seeds", "2")
CHECKPOINT = "checkpoints/*.safetensors"
STORE = 100 * 2**20
LOST = {"num_failures": 3, "req_failure_prob": 50, "resp_failure_prob": 50}
FAULTY = {"RAY_testing_rpc_failure": json.dumps({"CoreWorkerService.grpc_client.PushTask": LOST})}
"""Environment of a node: the first three requests of each worker, or the answers to them, are lost."""
PATIENCE = 600
"""Seconds to wait for an event on a busy machine. An idle machine needs a tenth."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of three nodes with one core each, two of them behind a faulty network.

    The controller is on the head's node.
    """
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    sizes = {"object_store_memory": STORE, "include_dashboard": False}
    quickly = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    found = Cluster(True, head_node_args={"num_cpus": 1, "_system_config": quickly, **sizes})
    for _ in range(2):
        found.add_node(num_cpus=1, wait=False, env_vars=FAULTY, **sizes)
    yield found
    found.shutdown()


def temporary_folders(session: Path) -> list[Path]:
    seal = json.loads((session / "session.json").read_text())["seal"]
    return [*Path(tempfile.gettempdir()).glob(f"bvae-{seal[:8]}-*")]


def count(lab: Path, pattern: str) -> int:
    return len([*lab.glob(f"runs/[0-9]*/*-seed*/{pattern}")])  # without `runs/latest`, a link


def raylet(node: Any) -> int:
    """Return the process id of a node."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def kill_unfinished_on_the_head(lab: Path, head: Any) -> bool:
    """Kill the worker of the head if it has a checkpoint and no result in the session folder."""
    locked = [path.parent for path in lab.glob("runs/[0-9]*/*-seed*/.lock")]
    half = [run for run in locked if [*run.glob(CHECKPOINT)] and not (run / "result.json").exists()]
    for path in Path("/proc").glob("[0-9]*/stat") if half else ():
        with contextlib.suppress(OSError):  # the process has ended
            name, _, fields = path.read_text().partition("(")[2].rpartition(")")
            if name.startswith("ray::train") and int(fields.split()[1]) == raylet(head):
                os.kill(int(path.parent.name), signal.SIGKILL)
                return True
    return False


@needs_ray
@pytest.mark.slow
def test_killing_a_worker_and_a_node_and_adding_a_node_change_no_bit(
    lab: Path, cluster: Any, uninterrupted: Uninterrupted
) -> None:
    with running(lab, *MANY_RUNS, "--engine", f"ray:{cluster.address}") as session:
        wait_for(lambda: kill_unfinished_on_the_head(lab, cluster.head_node), PATIENCE)
        wait_for(lambda: count(lab, "result.json") >= 4, PATIENCE)
        victim = min(cluster.worker_nodes, key=lambda node: node.unique_id)
        begun = count(lab, CHECKPOINT)
        wait_for(lambda: count(lab, CHECKPOINT) > begun, PATIENCE)  # a run is in training
        os.kill(raylet(victim), signal.SIGKILL)
        cluster.add_node(num_cpus=1, wait=False, env_vars=FAULTY, object_store_memory=STORE)
        assert session.wait(PATIENCE) == 1, (lab / "output.txt").read_text()
    assert "24 xfailed" in (lab / "output.txt").read_text()
    assert 0 < count(lab, ".lock") < 24  # some runs were trained in the session folder, others elsewhere
    found, expected = evidence(newest(lab)), uninterrupted(*FIRST_SEEDS)
    runs = {name: bits for name, bits in expected.items() if "-seed" in name}
    assert runs.items() <= found.items()
    assert len({name.split("/")[0] for name in found if "-seed" in name}) == 24


@needs_ray
@pytest.mark.slow
def test_a_local_cluster_is_a_new_one_and_changes_no_bit(
    lab: Path, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of another cluster, which does not answer
    done = run_pytest("experiments/", *FIRST_SEEDS, "--engine=ray:local", cwd=lab, timeout=PATIENCE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert count(lab, ".lock") == 6  # all runs were trained in the session folder
    assert evidence(newest(lab)) == uninterrupted(*FIRST_SEEDS)


@needs_ray
@pytest.mark.slow
def test_a_run_that_waits_for_its_files_keeps_its_core(cluster: Any) -> None:
    import ray

    from bvae.session.ray_engine import answer, connect

    class Folders:
        waiting = 0

        async def write(self) -> None:
            self.waiting += 1
            await asyncio.sleep(5)

        async def count(self) -> int:
            return self.waiting

    def run(folders: Any) -> None:
        answer(folders.write.remote())

    connect(cluster.address, STORE)
    try:
        folders = ray.remote(Folders).options(num_cpus=0, max_task_retries=-1).remote()
        task = ray.remote(run).options(num_cpus=1).remote(folders)
        wait_for(lambda: ray.get(folders.count.remote()) == 1, PATIENCE)
        time.sleep(2)  # the nodes report their resources once a second
        assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"] - 1
        ray.get(task)
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_the_network_of_the_cluster_is_faulty(cluster: Any) -> None:
    import ray
    from ray.exceptions import ActorUnavailableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from bvae.session.ray_engine import connect

    class Actor:
        def answer(self) -> None: ...

    connect(cluster.address, STORE)
    try:
        here = ray.get_runtime_context().get_node_id()
        other = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)
        actor, ask = (
            ray.remote(what).options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            )
            for what, node in ((Actor, here), (lambda actor: ray.get(actor.answer.remote()), other))
        )
        with pytest.raises(ActorUnavailableError):
            ray.get(ask.remote(actor.remote()))
    finally:
        ray.shutdown()


LONGER_RUNS = (*RESUMABLE, "--epochs", "12", "--checkpoint-every-steps", "0")


@needs_ray
@pytest.mark.long
@pytest.mark.slow
def test_an_interrupted_ray_session_resumes_from_its_checkpoints(
    lab: Path, cluster: Any, uninterrupted: Uninterrupted
) -> None:
    engine = ("--engine", f"ray:{cluster.address}")
    with running(lab, *LONGER_RUNS, *engine) as session:
        wait_for(lambda: count(lab, CHECKPOINT) >= 2, PATIENCE)
        session.send_signal(signal.SIGTERM)
        assert session.wait(PATIENCE) == 2, (lab / "output.txt").read_text()
    said = (lab / "output.txt").read_text()
    assert f"Interrupted. Resume with: pytest experiments/ {' '.join(engine)} --resume=" in said
    assert count(lab, "result.json") == 0
    assert temporary_folders(newest(lab)) == []
    done = run_pytest("experiments/", "--resume=runs/latest", *engine, cwd=lab, timeout=PATIENCE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert evidence(newest(lab)) == uninterrupted(*LONGER_RUNS)


@needs_ray
@pytest.mark.slow
def test_a_node_that_dies_while_it_is_asked_is_ignored(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from bvae.session.ray_engine import check_nodes, connect

    needs = {"CPU": 1, "memory": 2**30, "GPU": 0.0}
    connect(cluster.address, STORE)
    try:
        dead = {**(nodes := ray.nodes())[0], "NodeID": "ab" * 28, "Alive": True}
        monkeypatch.setattr(ray, "nodes", lambda: [dead, *nodes])
        check_nodes(needs, find_versions())
        with pytest.raises(EngineError, match=r"has bvae .* instead of 0, torch .*; all nodes need"):
            check_nodes(needs, {"bvae": "0"})
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("bvae/__init__.py", "raise ImportError('broken')", "cannot tell its versions: ImportError: broken"),
        ("numpy-1.0.dist-info/METADATA", "Name: numpy\nVersion: 1.0\n", "has numpy 1.0 instead of "),
    ],
)
def test_a_node_with_other_packages_is_refused_before_the_session(
    lab: Path, cluster: Any, tmp_path: Path, file: str, content: str, sentence: str
) -> None:
    packages = tmp_path / "packages"
    (packages / file).parent.mkdir(parents=True)
    (packages / file).write_text(content)
    other = cluster.add_node(num_cpus=1, object_store_memory=STORE, env_vars={"PYTHONPATH": str(packages)})
    try:
        engine = f"--engine=ray:{cluster.address}"
        done = run_pytest("experiments/", *TINY, engine, cwd=lab, timeout=PATIENCE)
    finally:
        cluster.remove_node(other)
    assert done.returncode == 4, done.stdout + done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not [*lab.glob("runs/*")]


@needs_ray
@pytest.mark.long
@pytest.mark.slow
def test_a_lost_head_ends_the_session_with_one_sentence(lab: Path, cluster: Any) -> None:
    """The cluster is of no use after this test, so it is the last one that needs it."""
    with running(lab, *MANY_RUNS, "--seeds", "99", "--engine", f"ray:{cluster.address}") as session:
        wait_for(lambda: count(lab, CHECKPOINT) >= 2, PATIENCE)
        os.kill(cluster.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        assert session.wait(PATIENCE) == 1, (lab / "output.txt").read_text()
    said = (lab / "output.txt").read_text()
    assert len(re.findall("the head of the Ray cluster, .*, does not answer any more", said)) >= 1
    assert f"Resume with: pytest experiments/ --engine ray:{cluster.address} --resume=" in said
    assert "Traceback" not in said


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ("slurm", "0.1", "cpu"),
            "--engine is 'slurm'; expected xdist, ray:local, ray:auto or ray:HOST:PORT",
        ),
        (("ray:ray://host:1", "0.1", "cpu"), "--engine is .*; expected xdist"),
        (
            ("ray:local", "0.1", "cpu", 2),
            "without workers of pytest-xdist, but -n asks for 2; leave out -n",
        ),
        (("ray:local", "0.1", "cuda:1"), "expected cpu or cuda, as Ray chooses the GPU"),
        (("ray:local", "2", "cuda"), "--gpus-per-run is '2'; expected a number above 0 and at most 1"),
        (("ray:local", "nan", "cuda"), "--gpus-per-run is 'nan'; expected"),
    ],
)
def test_a_wrong_engine_is_refused_in_one_sentence(
    given: tuple[Any, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=sentence):
        find_scheduler(*given)


@pytest.mark.unit
def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed; run pip install 'bvae\[ray\]'"):
        find_scheduler("ray:local", "0.1", "cpu")


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--engine=ray:127.0.0.1:1",), "the Ray cluster 127.0.0.1:1 could not be joined"),
        (("--engine=ray:127.0.0.1:99999",), "could not be joined: it does not answer"),
        (("--engine=ray:a..b:1",), "could not be joined: it does not answer"),
        (("--engine=ray:local", "-n2"), "but -n asks for 2"),
    ],
)
def test_a_session_that_cannot_use_ray_ends_with_exit_code_4(
    lab: Path, options: tuple[str, ...], sentence: str
) -> None:
    done = run_pytest("experiments/", *TINY, *options, cwd=lab, timeout=PATIENCE)
    assert done.returncode == 4, done.stdout + done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert sentence in error
    assert not [*lab.glob("runs/*")]


@needs_ray
@pytest.mark.slow
def test_a_cluster_without_what_a_run_needs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from bvae.session.ray_engine import check_nodes

    usable, lost = ({"CPU": 2.0, "memory": 2.0**33, "GPU": share} for share in (0.0, 1.0))
    nodes = [{"Alive": True, "Resources": usable}, {"Alive": False, "Resources": lost}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(EngineError, match=r"none of the 1 nodes .* needs: 1 CPU, 1 GiB of memory, 0\.5 GPU"):
        check_nodes({"CPU": 1, "memory": 2**30, "GPU": 0.5}, {})


@pytest.fixture
def folders(lab: Path) -> RunFolders:
    """The `RunFolders` of a new session."""
    corpus = load_corpus(str(lab / "corpus.npz"), 8)
    config = parse_experiment({"corpus": corpus.spec, "grid_size": "8", "seeds": "1", "precision": "fp32"})
    return RunFolders(Session.create(lab / "runs", config, corpus, ()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("A-seed0", "../session.json"),
        ("A-seed0", "checkpoints/../../session.json"),
        ("A-seed0", "/etc/passwd"),
        ("A-seed0", ".begun"),
        ("A-seed0", "result.json\n"),
        ("A-seed0", "checkpoints/other.safetensors"),
        ("A-seed1", "result.json"),
        ("../A-seed0", "result.json"),
    ],
)
def test_a_worker_writes_only_files_of_runs(folders: RunFolders, run: str, name: str) -> None:
    assert folders.begin("A-seed0", "worker") == []
    files = evidence(folders.session.path)
    with pytest.raises(ValueError, match="is not"):
        folders.write(run, "worker", [([name], b"")])
    with pytest.raises(ValueError, match="is not"):
        folders.write(run, "worker", [], [name])
    assert evidence(folders.session.path) == files


@pytest.mark.slow
def test_only_the_newest_of_four_workers_writes_and_its_files_are_bounded(
    folders: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for worker in "123344":  # a request may come twice
        folders.begin("A-seed0", worker)
    folders.begin("A-seed0", "3")
    with pytest.raises(ValueError, match="3 is not the newest worker of A-seed0; its files are refused"):
        folders.write("A-seed0", "3", [(["config.json"], b"old")])
    two = ["checkpoints/best.safetensors", "checkpoints/epoch_001.safetensors"]
    folders.write("A-seed0", "4", [(two, b"new")])
    assert folders.begin("A-seed0", "4") == two
    assert [folders.read("A-seed0", name) for name in two] == [b"new", b"new"]
    monkeypatch.setattr("bvae.session.run.MAX_SENT", 2)
    with pytest.raises(RunCrashError, match="has 3 bytes; expected at most 2 from another node: train on"):
        folders.write("A-seed0", "4", [(two, b"new")])
    with pytest.raises(ValueError, match="3 is not the newest worker"):
        folders.write("A-seed0", "3", [], two)
    for _ in "12":
        folders.write("A-seed0", "4", [], two[:1])
        assert [(folders.session.path / "A-seed0" / name).exists() for name in two] == [False, True]
    with pytest.raises(RunCrashError, match="A-seed0 was begun 4 times, and each time its worker died"):
        folders.begin("A-seed0", "5")


@needs_ray
@pytest.mark.slow
def test_a_worker_with_other_versions_refuses_a_run(
    lab: Path, folders: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bvae.session import ray_engine

    monkeypatch.setattr(ray_engine, "find_versions", lambda: {**find_versions(), "torch": "0"})
    session, corpus = folders.session, load_corpus(str(lab / "corpus.npz"), 8)
    with pytest.raises(RunCrashError, match=r"A-seed0 was refused by node .*, which has torch 0 instead of "):
        ray_engine.train_on_worker(session.runs[0], (corpus, session, "home"), None)
    assert not (session.path / "A-seed0").exists()
