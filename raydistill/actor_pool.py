"""The one way this project runs shards of work on Ray: connect, check resources, map shards over a pool of actors.

A stage describes its work as small JSON specifications (a part to read, a range of queries), a worker class turns one
specification into one stored part and returns its receipt. Ray Data schedules, spreads, retries and replaces actors;
the driver only ever sees specifications and receipts, so its memory does not grow with the corpus.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import ray
import ray.data
from ray._private import auto_init_hook
from ray.data.block import BlockAccessor
from ray.exceptions import RayActorError
from ray.util.annotations import RayDeprecationWarning
from ray.util.metrics import Counter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydistill import errors
from raydistill.config import RayConfig, WorkerConfig
from raydistill.errors import RaydistillError, ResourceError, first_line
from raydistill.storage.lease import lease_variables

_MOST_CRASHES = 4
"""Deaths of an actor (out of memory, a crash, a lost node) after which a stage gives up."""

_SECONDS_FOR_A_HEAD = 5.0
"""How long a cluster's head may take to accept a connection: it may have been started a moment ago."""

_PLANNING = Lock()

ShardWorker = Callable[[dict[str, Any]], dict[str, Any]]

# One compute thread a reserved CPU, and idle OpenMP threads that sleep: spinning threads of neighbours cost 5x.
_QUIET_ENV = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


def connect(config: RayConfig) -> None:
    """Join the cluster the configuration names, or start a local one; a no-op when this process is connected.

    Raises ResourceError when no cluster answers there.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The train controller sleeps this long around each report; its default of 2 s dominates short epochs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    env_vars = {**_QUIET_ENV, **lease_variables(), **config.env_vars}
    address = config.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address:
        try:
            _knock(address)
            ray.init(address=address, runtime_env={"env_vars": env_vars}, **options)
        except (OSError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise ResourceError(
                f"no Ray cluster could be joined at {address} ({reason}); start one (`ray start --head`), correct "
                "ray.address or RAY_ADDRESS, or leave both out for a cluster of this process's own"
            ) from error
    else:
        # Local only: without this Ray binds its ports to every interface of the machine.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Ray Data's own restarting actors make the core write a warning a pool, as an error, to the terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # "local" and not None: None would join whatever `ray start` left on this machine, running or dead.
        # A cluster of our own hands its environment on. A runtime environment would start two interpreters a worker, each
        # of which imports Ray.
        with _variables(env_vars):
            ray.init(address="local", num_cpus=config.local_cpus, include_dashboard=False, **options)
    # A thread that an interrupt left running would otherwise join any other cluster of the machine once this one is left.
    auto_init_hook.enable_auto_connect = False
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Have environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _knock(address: str) -> None:
    """Raise OSError when nobody accepts connections at HOST:PORT; Ray itself would try for minutes, without a word.

    Other forms (auto, a local cluster's) are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    deadline = time.monotonic() + _SECONDS_FOR_A_HEAD
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_FOR_A_HEAD).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def require_shared_root(root: str) -> None:
    """Raise ResourceError when a root in the local file system is not the same folder on every node of the cluster."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if root.startswith("s3://") or len(nodes) < 2:
        return
    marker = Path(root.removeprefix("file://")) / f".nodes-{uuid.uuid4().hex}"
    marker.touch()
    try:
        sees = ray.remote(num_cpus=0)(_exists)
        answers = {
            node["NodeManagerAddress"]: sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(marker))
            for node in nodes
        }
        blind = [address for address, answer in answers.items() if not ray.get(answer)]
    finally:
        marker.unlink()
    if blind:
        raise ResourceError(
            f"root {root} is a local folder that the node {blind[0]} does not share; use s3:// or a file system that all "
            f"{len(nodes)} nodes mount at this path"
        )


def _exists(path: str) -> bool:
    return os.path.exists(path)


def require_resources(workers: WorkerConfig, stage: str) -> None:
    """Raise ResourceError when the cluster can never hold the actors, or of a pool with a range the fewest of them; Ray
    itself would wait for ever without a word."""
    nodes = nodes_resources()
    actors = workers.fewest_actors
    for number, (resource, each) in enumerate((("CPU", workers.cpus), ("GPU", workers.gpus))):
        total, largest = (kind(node[number] for node in nodes) for kind in (sum, max))
        wanted = actors * each
        if each > largest + 1e-9 and wanted <= total + 1e-9:
            raise ResourceError(
                f"{stage}.workers asks for {each:g} {resource} for one actor, but no node has more than "
                f"{largest:g}; lower {stage}.workers.{resource.lower()}s"
            )
        if wanted > total + 1e-9:
            raise ResourceError(
                f"{stage}.workers asks for {actors} actors, together {wanted:g} {resource}, but the cluster has "
                f"{total:g}; lower {stage}.workers.actors or .{resource.lower()}s, or add nodes"
            )
    room = sum(places_on(cpus, gpus, workers) for cpus, gpus in nodes)
    if actors > room:
        raise ResourceError(
            f"{stage}.workers asks for {actors} actors of {workers.cpus:g} CPU and {workers.gpus:g} GPU, but node by node "
            f"(and GPU by GPU) the cluster has room for {room}; lower {stage}.workers.actors, or what each reserves"
        )


def nodes_resources() -> list[tuple[float, float]]:
    """Return the CPUs and GPUs of each node of the connected cluster; [] when none is connected."""
    if not ray.is_initialized():
        return []
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive]


def places_on(cpus: float, gpus: float, workers: WorkerConfig) -> int:
    """Return how many of the actors a node with so much free holds; a fraction of a GPU is one of a single GPU."""
    places = int(cpus / workers.cpus + 1e-9)
    if workers.gpus >= 1:
        places = min(places, int(gpus / workers.gpus + 1e-9))
    elif workers.gpus > 0:
        # What is left of a GPU that others share counts too, as if it were on one: at worst an actor waits.
        whole = int(gpus + 1e-9)
        share = workers.gpus
        places = min(places, whole * int(1 / share + 1e-9) + int((gpus - whole) / share + 1e-9))
    return places


@cache
def _stage_counts() -> Counter:
    return Counter("raydistill_stage_counts", "What the parts of a stage counted.", tag_keys=("stage", "count"))


def count(stage: str, counters: Mapping[str, float]) -> None:
    """Add to the metric raydistill_stage_counts, which every node exports for Prometheus, by stage and name of the count.

    The driver does it: its actors may be gone before their metrics are collected. Without a cluster nothing is done.
    """
    if ray.is_initialized():
        for name, value in counters.items():
            if value > 0:
                _stage_counts().inc(value, tags={"stage": stage, "count": name})


class _ShardActor:
    """The actor of a pool: builds its worker once, then turns specifications into receipts."""

    def __init__(self, worker: type, arguments: Mapping[str, Any], threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if ray.get_gpu_ids():
            # The GPU computes: the reserved CPUs are there to tokenise for it.
            os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(threads)}
        self._build = lambda: worker(**arguments)
        self._work: ShardWorker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"answer": [json.dumps(self._answer(json.loads(spec))) for spec in batch["spec"]]}

    def _answer(self, spec: dict[str, Any]) -> dict[str, Any]:
        # An error of ours travels as data: Ray Data would bury its sentence under two layers of its own exceptions,
        # and an error in an actor's constructor would not arrive at all. So the worker is built here, at the first shard.
        try:
            if self._work is None:
                self._work = self._build()
            return {"receipt": self._work(spec)}
        except RaydistillError as error:
            return {"error": type(error).__name__, "message": str(error)}


def _rows(dataset: Any, stage: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a running pool; an actor that died for good ends in a sentence."""
    try:
        # Not iter_rows: between shards it waits in a way that an interrupt of a thread cannot end (see `side_by_side`).
        for bundle in dataset.iter_internal_ref_bundles():
            for entry in bundle.blocks:
                yield from BlockAccessor.for_block(ray.get(entry.ref)).iter_rows(public_row_format=True)
    except RayActorError as error:
        reason = " ".join(str(error).split())[:300]
        raise ResourceError(
            f"a worker of stage {stage} died {_MOST_CRASHES + 1} times; most often its node is out of memory: make its "
            f"shards smaller, or raise {stage}.workers.cpus so that fewer share a node. What is done is kept. Ray: {reason}"
        ) from None


def map_shards(
    specs: Sequence[Mapping[str, Any]],
    worker: type,
    arguments: Mapping[str, Any],
    workers: WorkerConfig,
    stage: str,
) -> Generator[dict[str, Any]]:
    """Run every specification through `worker(**arguments)(spec)` on a pool of actors; yield receipts as they come.

    Args:
        specs: JSON-able, one a shard.
        worker: class whose instances take a specification and return a JSON-able receipt. Must be idempotent: a shard
            whose actor or node dies runs again elsewhere.
        arguments: constructor arguments, picklable.
        workers: size of the pool, or its range (Ray Data adds actors while shards queue), and resources of an actor.
        stage: name of the configuration section, for messages and metrics: a receipt's "counters" are added to `count`.

    Raises:
        ResourceError: the cluster can never hold the pool.
        RaydistillError: whatever the worker raised, as it raised it.
    """
    if not specs:
        return
    pool = workers.model_copy(update={"actors": min(workers.actors, len(specs))})
    require_resources(pool, stage)
    rows = [{"spec": json.dumps(spec)} for spec in specs]
    # Filters of warnings are the process's, and pools may start in several threads (see `side_by_side`).
    with _PLANNING, warnings.catch_warnings():
        # Ray 2.60 wants named parameters, but has none yet for restarts (pyproject.toml keeps Ray below 2.64).
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _ShardActor,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=pool.fewest_actors, max_size=pool.actors),
            fn_constructor_kwargs={"worker": worker, "arguments": dict(arguments), "threads": max(1, int(pool.cpus))},
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            # Ray Data would restart an actor that its shard kills for ever.
            max_restarts=_MOST_CRASHES,
            max_task_retries=_MOST_CRASHES,
        )
    for row in _rows(dataset, stage):
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise getattr(errors, answer["error"], RaydistillError)(answer["message"])
        count(stage, answer["receipt"].get("counters") or {})
        yield answer["receipt"]
