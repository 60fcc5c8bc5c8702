"""Training on a Ray cluster, each run as a task. Ray is optional, so only `bvae.engine` imports this module.

Workers on the controller's node train in the session folder. Other workers need no access to it: each trains
in a temporary folder of its node, and sends the files to an actor on the controller's node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bvae import EngineError, EvidenceWarning
from bvae.config import RunConfig
from bvae.corpus import Corpus
from bvae.hardware import describe_hardware, find_versions, usable_cores
from bvae.records import CheckpointSaved, Event, RunResult
from bvae.session.continuation import other_versions
from bvae.session.folder import RunCrashError, Session, read_result
from bvae.session.run import ATTEMPTS, RunFolders, RunScheduler, train_run
from bvae.session_files import LOCK, RESULT, run_files
from bvae.storage import StorageError, lock_file, make_folder, printable

RUN_MEMORY = 2**30
"""Bytes that Ray reserves for each run."""
STORE_MEMORY = 128 * 2**20
"""Bytes of the object store of a local cluster, in addition to the corpus."""
SEND_SECONDS, LOOK_SECONDS, HEAD_SECONDS = 1.0, 1.0, 10.0
"""Seconds between sends; between looks at a run; until a silent head counts as lost."""
PROBE_SECONDS, CANCEL_SECONDS = 60.0, 5.0
"""Seconds to wait for the versions of all nodes, and to cancel runs."""


class RunFolderCopy:
    """The temporary folder of a run on another node; listens to the trainer and sends the files that changed.

    Each checkpoint is sent at once, with all files that changed; other files at most once a second.
    Training goes on while the actor writes them. The next send waits until the actor is done.
    """

    def __init__(self, run: str, directory: Path, folders: Any) -> None:
        self.run, self.directory, self._folders = run, directory, folders
        self._worker = ray.get_runtime_context().get_worker_id()
        self.asked = folders.begin.remote(run, self._worker)
        for name in answer(self.asked):
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(answer(folders.read.remote(run, name)))
        self._sent, self._sent_at = run_files(directory), time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved) or time.monotonic() - self._sent_at >= SEND_SECONDS:
            self.send()

    def send(self) -> None:
        """Send the changed files, `result.json` last. Raises the error of the request before."""
        found = run_files(self.directory)
        changed: dict[tuple[int, ...], list[str]] = {}
        for name in sorted(found, key=lambda name: (name == RESULT, name)):
            if self._sent.get(name) != found[name]:
                changed.setdefault(found[name], []).append(name)  # names of one file, which is sent once
        files = [(names, (self.directory / names[0]).read_bytes()) for names in changed.values()]
        gone = [*(self._sent.keys() - found.keys())]
        answer(self.asked)
        self.asked = self._folders.write.remote(self.run, self._worker, files, gone)
        self._sent, self._sent_at = found, time.monotonic()


def answer(asked: Any) -> Any:
    """Wait for an object of Ray, and return it. The task keeps its CPU; `ray.get` would release it."""
    return asked.future().result()


def train_on_worker(
    run: RunConfig, shared: tuple[Corpus, Session, str], folders: Any
) -> tuple[RunResult, list[str]]:
    """Train a run in this worker; return its result, and warnings.

    `shared` has the corpus, the session, and the id of the controller's node. `folders` is the actor.

    Raises:
        RunCrashError: if the worker has other versions than the controller, the run was begun too often, or a
            file is too large to be sent.
        StorageError: if a file cannot be written.
    """
    corpus, session, home = shared
    record, directory, listeners = session.record, session.path / run.name, []
    torch.set_num_threads(1)
    if wrong := other_versions(find_versions(), record.versions):
        raise RunCrashError(f"{run.name} was refused by node {socket.gethostname()}, which has {wrong}")
    said = []
    if (processor := describe_hardware()["processor"]) != record.hardware["processor"]:
        said.append(f"{run.name} was trained on another processor ({processor}), so its bits may differ")
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as held:
        warnings.simplefilter("always", EvidenceWarning)
        if (here := ray.get_runtime_context()).get_node_id() == home:
            make_folder(directory)
            held.enter_context(lock_file(directory / LOCK))
            answer(folders.begin.remote(run.name, here.get_worker_id()))
        else:
            prefix = f"bvae-{record.seal[:8]}-"
            directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
            listeners = [RunFolderCopy(run.name, directory, folders)]
        result = train_run(run, corpus, directory, record.config.band, listeners)
        for copy in listeners:
            copy.send()
            answer(copy.asked)
    return result, said + [str(each.message) for each in caught if issubclass(each.category, EvidenceWarning)]


class RayScheduler(RunScheduler):
    """Trains the runs of a session on a Ray cluster; all incomplete runs are submitted at once.

    If a worker or its node dies, another worker begins the run again, from the files in the session folder.

    Args:
        session, corpus, runs: as in `RunScheduler`.
        address: the address of a cluster to join; empty to start one on this machine.
        gpus: the share of a GPU that each run takes.

    Raises:
        EngineError: if there is no such cluster, or as `check_nodes`.
    """

    def __init__(
        self, session: Session, corpus: Corpus, runs: Sequence[RunConfig], *, address: str, gpus: float
    ) -> None:
        super().__init__(session, corpus, runs)
        connect(address, STORE_MEMORY + 2 * (len(corpus.train) + len(corpus.val)) * corpus.grid_size**2)
        context = ray.get_runtime_context()
        self._head, self._silent_since, self._lost = context.gcs_address, math.inf, False
        try:
            check_nodes({"CPU": 1, "memory": RUN_MEMORY, "GPU": gpus}, session.record.versions)
        except EngineError:
            ray.shutdown()
            raise
        here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
        actor = ray.remote(RunFolders).options(num_cpus=0, max_task_retries=-1, scheduling_strategy=here)
        whole = dataclasses.replace(corpus, train=corpus.train[:], val=corpus.val[:])  # no memory map
        train = ray.remote(train_on_worker).options(
            num_cpus=1, memory=RUN_MEMORY, num_gpus=gpus, max_retries=ATTEMPTS - 1
        )
        shared = ray.put((whole, session, here.node_id))
        self._submit = partial(train.remote, shared=shared, folders=actor.remote(session))
        complete = (read_result(session.path / run.name, run) is not None for run in runs)
        self._tasks = {
            run.name: None if done else self._submit(run) for run, done in zip(runs, complete, strict=True)
        }

    def obtain(self, run: RunConfig) -> RunResult:
        """Wait for a run, and return its result. Raises as `_wait_for` and `_result_of`."""
        if run.name not in self._tasks:
            self._tasks[run.name] = self._submit(run)
        if (task := self._tasks[run.name]) is not None:
            self._wait_for(task)
            self._tasks[run.name] = None
            return self._result_of(run, task)
        if (result := read_result(self.session.path / run.name, run)) is None:
            raise RunCrashError(f"{run.name} was begun by this command and ended without a result")
        return result

    def close(self) -> None:
        """Cancel the incomplete runs and leave the cluster. A cluster that this process started then ends."""
        unfinished = [task for task in self._tasks.values() if task is not None]
        if unfinished and not self._lost:
            for task in unfinished:
                ray.cancel(task)
            ray.wait(unfinished, num_returns=len(unfinished), timeout=CANCEL_SECONDS)
        ray.shutdown()

    def _wait_for(self, task: Any) -> None:
        """Wait for a task. Raises EngineError if the head is silent too long, even if the task has ended."""
        ended: list[Any] = []
        while not ended:
            now = time.monotonic()
            self._silent_since = math.inf if answers(self._head) else min(self._silent_since, now)
            if now - self._silent_since > HEAD_SECONDS:
                self._lost = True
                raise EngineError(f"the head of the Ray cluster, {self._head}, does not answer any more")
            ended, _ = ray.wait([task], timeout=LOOK_SECONDS)

    def _result_of(self, run: RunConfig, task: Any) -> RunResult:
        """Return the result of a run, whose files are written by now, and repeat its warnings.

        Raises:
            RunCrashError: if its workers died, or refused it.
            StorageError: if a file could not be written.
            EngineError: if the actor died.
            RayTaskError: if training raised another error; it shows the traceback.
        """
        try:
            result: RunResult
            result, said = ray.get(task)
            for text in said:
                warnings.warn(text, EvidenceWarning, stacklevel=4)
            return result
        except RayTaskError as error:
            cause: Any = error
            while isinstance(cause, RayTaskError):  # the error of the task may contain that of the actor
                cause = cause.cause
            if isinstance(cause, RunCrashError | StorageError):
                raise cause from None
            if isinstance(cause, ActorDiedError):
                self._lost = True
                raise EngineError("the process that writes the session folder died") from None
            raise
        except RayError as error:
            reason = printable(str(error).partition("\n")[0])
            raise RunCrashError(
                f"{run.name} ended without a result, after at most {ATTEMPTS} attempts: {reason}"
            ) from error


def connect(address: str, store_memory: int) -> None:
    """Join a cluster, or start one on this machine. `store_memory` is the size of its object store in bytes.

    Signal handlers of this process stay as they are.

    Raises:
        EngineError: if that is not possible.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started: dict[str, Any] = {
        "address": "local",  # also if the machine has a running cluster
        "num_cpus": usable_cores(),
        "object_store_memory": store_memory,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",  # so that Ray listens only on this machine
    }
    if ":" in address and not answers(address):  # Ray itself would try for minutes
        raise EngineError(f"the Ray cluster {address} could not be joined: it does not answer")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings(action="ignore"):
            settings = {"address": address} if address else started
            ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = printable(str(error).partition("\n")[0])
        what = f"the Ray cluster {address} could not be joined" if address else "Ray could not be started"
        raise EngineError(f"{what}: {reason}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def check_nodes(needs: Mapping[str, float], versions: Mapping[str, str]) -> None:
    """Check the nodes that have the resources that a run needs.

    Nodes that die or do not answer are ignored, because runs also survive the death of their node.

    Raises:
        EngineError: if there is no such node, or if one has other versions, or lacks bvae.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    able = [node for node in alive if all(node["Resources"].get(each, 0) >= needs[each] for each in needs)]
    if not able:
        shown = {**needs, "memory": f"{needs['memory'] / 2**30:g} GiB of"}
        what = ", ".join(f"{shown[name]} {name}" for name, need in needs.items() if need)
        raise EngineError(f"none of the {len(alive)} nodes of the Ray cluster has what a run needs: {what}")
    probe = ray.remote(lambda: find_versions())  # Ray sends its code, so that an older bvae can answer
    probes = {}
    for node in able:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked = probe.options(num_cpus=0, scheduling_strategy=there).remote()
        probes[asked] = f"node {node['NodeManagerHostname']} of the Ray cluster"
    ended, _ = ray.wait([*probes], num_returns=len(probes), timeout=PROBE_SECONDS)
    for asked in ended:
        try:
            wrong = other_versions(ray.get(asked), versions)
        except RayTaskError as error:
            reason = printable(str(error).splitlines()[-1])
            raise EngineError(f"{probes[asked]} cannot tell its versions: {reason}") from None
        except RayError:
            continue  # the node died
        if wrong:
            raise EngineError(
                f"{probes[asked]} has {wrong}; all nodes need the versions that pytest uses here"
            )


def answers(address: str) -> bool:
    """Return whether a process listens at an address, given as HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LOOK_SECONDS).close()
    except (OSError, OverflowError, UnicodeError):  # the last two: of an impossible port or name
        return False
    return True
