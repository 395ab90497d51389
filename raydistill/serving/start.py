"""Starting and ending the service: what must hold before, the deployments, and what is left after.

A local cluster ends with this process. In a cluster that was there before, Ray Serve keeps the service running until it is
ended here or replaced by one of the same name.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import yaml
from ray import serve
from ray.serve.exceptions import RayServeException

from raydistill.actor_pool import connect, require_resources, require_shared_root
from raydistill.config import CommandLineValue, ServeConfig, WorkerConfig
from raydistill.config_loading import apply_override, load_config, validated
from raydistill.errors import ConfigError, ResourceError
from raydistill.index.fan_out_actors import end_named
from raydistill.index.publish import IndexVersion, current_version
from raydistill.serving.client import SearchClient, ServiceError
from raydistill.serving.student import configured_vocabulary_size
from raydistill.storage.hashing import canonical_json

if TYPE_CHECKING:
    from raydistill.serving.inspection import InspectedRun

logger = logging.getLogger("raydistill")
_LOOK_SECONDS = 2.0
_LISTEN_SECONDS = 60.0


def serve_config(root: str, index: str, student: str, overrides: Sequence[str]) -> ServeConfig:
    """Return the configuration of a command line. Raises ConfigError with a sentence for every mistake."""
    if Path(student).expanduser().is_dir():
        student = str(Path(student).expanduser().resolve())
    tree: dict[str, Any] = {
        "root": CommandLineValue(root),
        "index": CommandLineValue(index),
        "student": CommandLineValue(student),
    }
    for override in overrides:
        apply_override(tree, override)
    return validated(ServeConfig, tree, None, "serve")


def settings_text(config: ServeConfig, version: IndexVersion) -> str:
    """Return what would be served and how, for a dry run."""
    size = sum(segment.size for segment in version.segments)
    served = (
        f"index    {version.uri}: {version.passages:,} passages in {len(version.segments)} segments, {size:,} bytes\n"
        f"student  {config.student}\n"
    )
    return served + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()


def check(config: ServeConfig) -> IndexVersion:
    """Return the version that would be served first. Raises when index or student are missing; starts nothing."""
    version = current_version(config.root, config.index)
    _check_student(config.student, version, "student")
    if config.rerank is not None:
        from raydistill.reranking.cross_encoder import check_cross_encoder

        check_cross_encoder(config.rerank, "rerank")
    for name, source in config.inspect.students.items() if config.inspect is not None else ():
        _check_student(source, version, f"inspect.students.{name}")
    if config.inspect is not None and config.inspect.run is not None:
        load_config(config.inspect.run)
    return version


def run(config: ServeConfig, inspected: InspectedRun | None = None) -> None:
    """Start the service and keep it until this process is interrupted; see `running`."""
    check(config)
    connect(config.ray)
    # After Ray, which sets a handler of its own: what stops a job or a container ends the service as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running(config, inspected) as address:
        logger.info("serving index %s at %s (stop with Ctrl-C)", config.index, address)
        while serve.status().applications[config.name].status not in ("DEPLOY_FAILED", "NOT_STARTED"):
            time.sleep(_LOOK_SECONDS)
        raise ResourceError(f"the service {config.name} failed; see the logs of Ray Serve")


@contextlib.contextmanager
def running(config: ServeConfig, inspected: InspectedRun | None = None) -> Iterator[str]:
    """Start the service in the cluster that this process is connected to; yield its address, and end it after.

    Args:
        inspected: the run that `inspect.run` names, for the service's page; None shows none.

    Raises:
        ConfigError: there is no student, or it does not belong to the index.
        ResourceError: the cluster can never hold the service.
        StorageError: the index is missing or damaged.
    """
    try:
        yield start(config, inspected)
    finally:
        end(config)


def start(config: ServeConfig, inspected: InspectedRun | None = None) -> str:
    """Start the service, wait until it answers, and return its address; see `running`."""
    check(config)
    require_shared_root(config.root)
    _check_resources(config)
    from raydistill.serving.service import Reranker, SearchService

    held = hashlib.sha256(canonical_json([config.root, config.index, config.fan_out.model_dump(mode="json")]).encode())
    prefix = _actor_prefix(config)
    fan_out_name = f"{prefix}{held.hexdigest()[:8]}"
    serve.start(
        http_options={"host": config.http.host, "port": config.http.port, "request_timeout_s": config.http.timeout_s}
    )
    deployment = serve.deployment(SearchService).options(
        num_replicas=config.replicas.workers.actors,
        max_ongoing_requests=8 * config.replicas.batch,
        ray_actor_options=_reserved(config.replicas.workers),
    )
    reranker = None
    if config.rerank is not None:
        reranker = (
            serve.deployment(Reranker)
            .options(num_replicas=config.rerank.workers.actors, ray_actor_options=_reserved(config.rerank.workers))
            .bind(config.rerank)
        )
    try:
        serve.run(deployment.bind(config, fan_out_name, reranker, inspected), name=config.name, route_prefix="/")
    except RuntimeError as error:
        raise ResourceError(f"the service {config.name} could not start: {_reason(config) or error}") from None
    # Actors of a service of this name that ran before with other settings.
    end_named(prefix, kept=fan_out_name)
    return _address(config)


def end(config: ServeConfig) -> None:
    """End the service and its actors, and Ray Serve where nothing else runs on it."""
    with contextlib.suppress(RayServeException):  # there is no Ray Serve when it could not be started
        serve.delete(config.name)
        if not serve.status().applications:
            serve.shutdown()
    end_named(_actor_prefix(config))


def _address(config: ServeConfig) -> str:
    """Return the service's address once it answers there. A Ray Serve that ran before keeps the port that it has."""
    host = "127.0.0.1" if config.http.host == "0.0.0.0" else config.http.host
    client = SearchClient(f"http://{host}:{config.http.port}")
    deadline = time.monotonic() + _LISTEN_SECONDS
    while True:
        try:
            client.version()
            return f"http://{config.http.host}:{config.http.port}"
        except ServiceError as error:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"the service runs but does not answer ({error}); where Ray Serve ran before, it listens where it did: "
                    "give http.host and http.port of that, or end it first"
                ) from None
        time.sleep(0.2)


def _reason(config: ServeConfig) -> str:
    """Return the last line of what Ray Serve says of a deployment that failed."""
    application = serve.status().applications.get(config.name)
    said = [] if application is None else [each.message.strip() for each in application.deployments.values()]
    return "; ".join(message.splitlines()[-1] for message in said if message)


def _actor_prefix(config: ServeConfig) -> str:
    return f"fan-out:{config.name}:"


def _reserved(workers: WorkerConfig) -> dict[str, float]:
    return {"num_cpus": workers.cpus, **({"num_gpus": workers.gpus} if workers.gpus else {})}


def _check_resources(config: ServeConfig) -> None:
    """Raise ResourceError when a pool can never start, or all of them never together."""
    pools = {"replicas": config.replicas.workers, "fan_out": config.fan_out.workers}
    if config.rerank is not None:
        pools["rerank"] = config.rerank.workers
    for name, workers in pools.items():
        require_resources(workers, name)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, kind in (("CPU", "cpus"), ("GPU", "gpus")):
        wanted = {name: workers.actors * getattr(workers, kind) for name, workers in pools.items()}
        total = sum(node.get(resource, 0.0) for node in nodes)
        if sum(wanted.values()) > total + 1e-9:
            listed = " and ".join(f"{name} {each:g}" for name, each in wanted.items())
            raise ResourceError(
                f"the service asks for {sum(wanted.values()):g} {resource} ({listed}), but the cluster has {total:g}; lower "
                f"their actors or {kind}, or add nodes"
            )


def _check_student(source: str, version: IndexVersion, field: str) -> None:
    """Raise ConfigError when there is no student or it has another vocabulary than the index; loads no model."""
    size = configured_vocabulary_size(source)
    if size is not None and size != version.vocabulary_size:
        raise ConfigError(
            f"{field}: the student {source!r} has {size} terms, but the index {version.uri} is over "
            f"{version.vocabulary_size}; serve it with the student that was trained on it"
        )
