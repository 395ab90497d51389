"""The one way this project runs shards of work on Ray: connect, check resources, map shards over a pool of actors.

A stage describes its work as small JSON specifications (a part to read, a range of queries), a worker class turns one
specification into one stored part and returns its receipt. Ray Data schedules, spreads, retries and replaces actors;
the driver only ever sees specifications and receipts, so its memory does not grow with the corpus.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.data

from raydistill import errors
from raydistill.config import RayConfig, WorkerConfig
from raydistill.errors import RaydistillError, ResourceError

ShardWorker = Callable[[dict[str, Any]], dict[str, Any]]

# One compute thread a reserved CPU, and idle OpenMP threads that sleep: spinning threads of neighbours cost 5x.
_QUIET_ENV = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


def connect(config: RayConfig) -> None:
    """Join the cluster the configuration names, or start a local one; a no-op when this process is connected."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The train controller sleeps this long around each report; its default of 2 s dominates short epochs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    env_vars = {**_QUIET_ENV, **config.env_vars}
    address = config.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": env_vars},
        "log_to_driver": False,
        "logging_level": logging.WARNING,
    }
    if address:
        ray.init(address=address, **options)
    else:
        # Local only: without this Ray binds its ports to every interface of the machine.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Ray Data's own restarting actors make the core write a warning a pool, as an error, to the terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # "local" and not None: None would join whatever `ray start` left on this machine, running or dead.
        ray.init(address="local", num_cpus=config.local_cpus, include_dashboard=False, **options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def require_resources(workers: WorkerConfig, stage: str) -> None:
    """Raise ResourceError when the cluster can never hold the actors; Ray itself would wait for ever without a word."""
    total = ray.cluster_resources()
    for resource, wanted in (("CPU", workers.actors * workers.cpus), ("GPU", workers.actors * workers.gpus)):
        if wanted > total.get(resource, 0.0) + 1e-9:
            raise ResourceError(
                f"{stage}.workers asks for {workers.actors} actors, together {wanted:g} {resource}, but the cluster has "
                f"{total.get(resource, 0.0):g}; lower {stage}.workers.actors or .{resource.lower()}s, or add nodes"
            )


class _ShardActor:
    """The actor of a pool: builds its worker once, then turns specifications into receipts."""

    def __init__(self, worker: type, arguments: Mapping[str, Any], threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
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


def map_shards(
    specs: Sequence[Mapping[str, Any]],
    worker: type,
    arguments: Mapping[str, Any],
    workers: WorkerConfig,
    stage: str,
) -> Iterator[dict[str, Any]]:
    """Run every specification through `worker(**arguments)(spec)` on a pool of actors; yield receipts as they come.

    Args:
        specs: JSON-able, one a shard.
        worker: class whose instances take a specification and return a JSON-able receipt. Must be idempotent: a shard
            whose actor or node dies runs again elsewhere.
        arguments: constructor arguments, picklable.
        workers: size of the pool and resources of an actor.
        stage: name of the configuration section, for messages.

    Raises:
        ResourceError: the cluster can never hold the pool.
        RaydistillError: whatever the worker raised, as it raised it.
    """
    if not specs:
        return
    pool = workers.model_copy(update={"actors": min(workers.actors, len(specs))})
    require_resources(pool, stage)
    rows = [{"spec": json.dumps(spec)} for spec in specs]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ShardActor,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        fn_constructor_kwargs={"worker": worker, "arguments": dict(arguments), "threads": max(1, int(pool.cpus))},
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    for row in dataset.iter_rows():
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise getattr(errors, answer["error"], RaydistillError)(answer["message"])
        yield answer["receipt"]
