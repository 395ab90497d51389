"""The actors of a fan-out: started, asked, asked again after a death. What they hold is in `segment_group`, what a search
over all of them is in `fan_out`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError

from raydistill.config import FanOutConfig
from raydistill.errors import RaydistillError, UnavailableError
from raydistill.index.segment_group import SegmentGroup

logger = logging.getLogger("raydistill")

NAMESPACE = "raydistill"
_STATUS_SECONDS = 5.0


class _GroupActor(SegmentGroup):
    """The group as an actor, which can say where it is."""

    def status(self) -> dict[str, Any]:
        """Return the group's status and the id of its node."""
        return {**super().status(), "node": ray.get_runtime_context().get_node_id()}


@dataclass(frozen=True)
class Call:
    """What is asked of a group, and for how long."""

    group: int
    method: str
    arguments: tuple[Any, ...]
    timeout_s: float


def shared(value: Any) -> Any:
    """Return a reference to a value that several calls are given: stored once, not sent with each."""
    return ray.put(value)


class Actors:
    """The actors of a fan-out: asks them, asks again after a death, and replaces those that Ray has given up."""

    def __init__(self, config: FanOutConfig, name: str | None) -> None:
        self.timeout_s = config.timeout_s
        self.open_timeout_s = config.open_timeout_s
        self._config = config
        self._name = name
        self._lock = threading.Lock()
        self._handles = [self._start(group) for group in range(config.workers.actors)]

    def __len__(self) -> int:
        return len(self._handles)

    def _start(self, group: int) -> Any:
        workers = self._config.workers
        options: dict[str, Any] = {
            "num_cpus": workers.cpus,
            "num_gpus": workers.gpus or None,
            "scheduling_strategy": "SPREAD",
            "max_restarts": -1,
            "max_task_retries": self._config.retries,
            # Threads of the actor, so that one long batch does not hold up the others nor a version that is being opened.
            "max_concurrency": max(4, 2 * int(workers.cpus)),
        }
        if self._name is not None:
            shared = {"namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
            options |= {"name": f"{self._name}-{group}", **shared}
        actor = ray.remote(concurrency_groups={"status": 1})(_GroupActor)
        return actor.options(**options).remote(max(1, int(workers.cpus)), self._config.versions)

    def ask(self, calls: Sequence[Call]) -> list[Any]:
        """Return the answers to all calls, made at once.

        Raises what a call raised, UnavailableError when there is no answer in time or an actor keeps dying.
        """
        answers: list[Any] = [None] * len(calls)
        waiting = list(range(len(calls)))
        reason = ""
        for _ in range(1 + self._config.retries):
            sent = [(number, *self._send(calls[number])) for number in waiting]
            waiting = []
            for number, handle, reference in sent:
                call = calls[number]
                try:
                    answers[number] = ray.get(reference, timeout=call.timeout_s)
                except RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, RaydistillError) else error) from None
                except GetTimeoutError:
                    raise UnavailableError(
                        f"group {call.group} of the index did not answer within {call.timeout_s:g} s; is its node lost and "
                        "no other free? Add nodes, or raise fan_out.timeout_s"
                    ) from None
                except RayError as error:
                    reason = " ".join(str(error).split())[:300]
                    waiting.append(number)
                    if isinstance(error, ActorDiedError):
                        self._replace(call.group, handle)
            if not waiting:
                return answers
        raise UnavailableError(
            f"group {calls[waiting[0]].group} of the index died {1 + self._config.retries} times in a row; most often its "
            f"node is out of memory: spread the index over more actors (fan_out.workers.actors). Ray: {reason}"
        )

    def _send(self, call: Call) -> tuple[Any, Any]:
        handle = self._handles[call.group]
        return handle, getattr(handle, call.method).remote(*call.arguments)

    def _replace(self, group: int, dead: Any) -> None:
        with self._lock:
            if self._handles[group] is dead:
                logger.warning("group %d of the index is gone for good; another actor takes its place", group)
                self._handles[group] = self._start(group)

    def statuses(self) -> list[dict[str, Any] | None]:
        """Return what each actor says of itself, None for those that say nothing within seconds."""
        sent = [handle.status.options(concurrency_group="status", max_task_retries=0).remote() for handle in self._handles]
        ray.wait(sent, num_returns=len(sent), timeout=_STATUS_SECONDS)
        return [_now(reference) for reference in sent]

    def end(self) -> None:
        """Stop all actors."""
        for handle in self._handles:
            ray.kill(handle)


def _now(reference: Any) -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = ray.get(reference, timeout=0)
    except RayError:
        return None
    return status


def end_named(prefix: str, kept: str | None = None) -> None:
    """Stop all shared actors whose name begins with the prefix, but for those whose name begins with `kept`."""
    for found in ray.util.list_named_actors(all_namespaces=True):
        name = str(found["name"])
        if found["namespace"] == NAMESPACE and name.startswith(prefix) and not (kept and name.startswith(kept)):
            try:
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))
            except ValueError:
                continue  # it ended meanwhile
