"""Pools of actors that work at the same time where the cluster has room for all of them, and one after another where not.

Which pools fit beside each other is decided before they start, node by node; within that, Ray schedules their actors.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

from raydistill.actor_pool import nodes_resources, places_on
from raydistill.config import WorkerConfig

logger = logging.getLogger("raydistill")
T = TypeVar("T")
_SECONDS_TO_LEAVE = 20.0
_SECONDS_TO_HEAR = 1.0


@dataclass(frozen=True)
class Pool:
    """Work that a pool of actors does.

    Attributes:
        name: for messages, such as `teacher sonnet`.
        workers: what it holds of the cluster while it runs.
        run: does the work on the driver's side, in a thread when other pools run beside it. It is given an event that is set
            when another pool has failed: it should then end soon, keeping what is done (see `until`).
        packed: an actor's GPUs are of one node, kept by a placement group. Beside actors that take another number of GPUs
            it could find that no node has so many left, however many are free.
        limit: what is limited for all who use it, such as an endpoint; pools of one limit do not work at the same time.
    """

    name: str
    workers: WorkerConfig
    run: Callable[[Event], None]
    packed: bool = False
    limit: str | None = None


def run_pools(pools: Sequence[Pool]) -> None:
    """Run every pool, each beside as many of its neighbours as the cluster has room for.

    Raises what the first pool to fail raises, once the others have ended; pools that wait for room are then not started.
    """
    for group in groups_that_fit(pools, nodes_resources()):
        if len(group) == 1:
            group[0].run(Event())
        else:
            logger.info("%s: the cluster has room for them at once", ", ".join(pool.name for pool in group))
            _run_at_once(group)


def until(stop: Event, items: Generator[T]) -> Iterator[T]:
    """Yield the items and end early, after one that came in, once the event is set; the generator is closed in any case."""
    with closing(items):
        for item in items:
            yield item
            if stop.is_set():
                return


def groups_that_fit(pools: Sequence[Pool], nodes: Sequence[tuple[float, float]]) -> list[list[Pool]]:
    """Cut the pools, in their order, into groups that a cluster holds at once; one that fits nowhere is alone.

    Args:
        nodes: CPUs and GPUs of each node.
    """
    groups: list[list[Pool]] = []
    for pool in pools:
        if groups and _get_on([*groups[-1], pool]) and _has_room([each.workers for each in (*groups[-1], pool)], nodes):
            groups[-1].append(pool)
        else:
            groups.append([pool])
    return groups


def _get_on(pools: Sequence[Pool]) -> bool:
    limits = [pool.limit for pool in pools if pool.limit is not None]
    if len(limits) != len(set(limits)):
        return False
    shapes = {pool.workers.gpus for pool in pools if pool.workers.gpus}
    return len(shapes) < 2 or not any(pool.packed for pool in pools)


def _has_room(wanted: Sequence[WorkerConfig], nodes: Sequence[tuple[float, float]]) -> bool:
    free = [list(node) for node in nodes]
    # The largest actors first: the small ones fit between them.
    for workers in sorted(wanted, key=lambda each: (each.gpus, each.cpus), reverse=True):
        left = workers.fewest_actors
        for node in free:
            placed = min(left, places_on(node[0], node[1], workers))
            node[0] -= placed * workers.cpus
            node[1] -= placed * workers.gpus
            left -= placed
        if left:
            return False
    return True


def _run_at_once(pools: Sequence[Pool]) -> None:
    stop = Event()
    ended: SimpleQueue[tuple[Pool, BaseException | None]] = SimpleQueue()

    def run(pool: Pool) -> None:
        try:
            pool.run(stop)
            ended.put((pool, None))
        except BaseException as error:
            ended.put((pool, error))

    # Daemons: one that cannot be interrupted does not keep the process.
    threads = [Thread(target=run, args=(pool,), name=pool.name, daemon=True) for pool in pools]
    first: BaseException | None = None
    try:
        for thread in threads:
            thread.start()
        for left in range(len(pools) - 1, -1, -1):
            pool, error = _next(ended)
            if error is None:
                continue
            stop.set()
            if first is not None:
                logger.error("%s: %s", pool.name, error)
            elif left:
                logger.error("%s failed: %s; the others end after the shards that come in next", pool.name, error)
            first = first or error
    except BaseException:  # Ctrl-C, or SIGTERM, which Ray makes a SystemExit
        stop.set()
        _interrupt(threads)
        raise
    if first is not None:
        raise first


def _next(ended: SimpleQueue[T]) -> T:
    """Return what comes next. A signal that arrives just before a wait would not end it, so no wait is long."""
    while True:
        try:
            return ended.get(timeout=_SECONDS_TO_HEAR)
        except Empty:
            continue


def _interrupt(threads: Sequence[Thread]) -> None:
    """Raise KeyboardInterrupt in threads too, and wait a little: they should leave the cluster before this process does."""
    for thread in threads:
        if thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
            )
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    for thread in threads:
        if thread.is_alive():
            thread.join(max(0.0, deadline - time.monotonic()))
