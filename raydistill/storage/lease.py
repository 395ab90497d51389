"""The single-writer lease: what keeps two writers apart in a store whose conditional writes do not work.

    {root}/_lease.json    sealed: owner, purpose, host, process, token; rewritten while its owner lives

One run at a time holds the lease of a root. It, its workers and whoever else has $RAYDISTILL_LEASE in the environment
write through `LeasedStore`, which looks before it writes where it would otherwise ask the store for a condition.

Taking it (after Fischer): look, write the own name, wait longer than a look and a write took, look again. Who still finds
its own name has it. Its owner rewrites it every quarter of LEASE_SECONDS. It may be taken over when it was not rewritten for
LEASE_SECONDS, by the store's own clock. The token counts its owners.

What such a store permits, and no more:
  - A second run that starts while the first lives is refused.
  - An owner that lost its lease (stopped, cut off, or suspended for longer than LEASE_SECONDS) notices before it next
    publishes anything (a manifest or CURRENT), and within CHECK_SECONDS before it puts other objects.
  - A request that was already under way when the lease was lost is not held back: between the look and the write of an
    owner that woke up late, another's manifest or CURRENT can be overwritten. Nor is anybody held back who does not ask
    for the lease. Only conditional writes rule that out; where they work, do without the lease.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from raydistill.errors import StorageError
from raydistill.storage.hashing import sealed, unsealed
from raydistill.storage.probe import store_time
from raydistill.storage.store import LEASE_VARIABLE, ObjectStore, plain_store

logger = logging.getLogger("raydistill")

LEASE_KEY = "_lease.json"
LEASE_SECONDS = 120.0
SETTLE_SECONDS = 5.0
_RENEWALS = 4
_TRIES = 5


@dataclass(frozen=True)
class LeaseHolder:
    """Who holds, or held, the lease of a root.

    Attributes:
        owner: unique to one taking of the lease.
        purpose, host, process: for people.
        token: of the owner before, plus 1.
    """

    owner: str
    purpose: str
    host: str
    process: int
    token: int

    def __str__(self) -> str:
        return f"{self.purpose} on {self.host} (process {self.process})"


def lease_holder(store: ObjectStore) -> LeaseHolder | None:
    """Return who wrote the lease last, or None when it is free. Raises CorruptObjectError when it is damaged."""
    if store.info(LEASE_KEY) is None:
        return None
    fields = unsealed(store.read(LEASE_KEY), f"{store.root}/{LEASE_KEY}")
    return LeaseHolder(**{name: fields[name] for name in ("owner", "purpose", "host", "process", "token")})


def lease_variables() -> dict[str, str]:
    """Return the environment variables by which workers write under the lease that this process holds, if it does."""
    return {LEASE_VARIABLE: os.environ[LEASE_VARIABLE]} if LEASE_VARIABLE in os.environ else {}


@contextmanager
def single_writer(
    root: str, purpose: str, seconds: float = LEASE_SECONDS, settle_seconds: float = SETTLE_SECONDS
) -> Iterator[LeaseHolder]:
    """Hold the lease of a root; stores opened meanwhile by this process, and by workers it tells, write under it.

    Args:
        root: run root URI.
        purpose: what the holder does, for the sentence that refuses others.
        seconds: how long after its last renewal it may be taken over.
        settle_seconds: how long to wait for the writes of others who try to take it at the same time.

    Raises StorageError naming the holder when another has it, or when the store is too slow to tell.
    """
    store = plain_store(root)
    if LEASE_VARIABLE in os.environ:
        raise StorageError(f"{root}: this process holds a lease already ({os.environ[LEASE_VARIABLE]}); end that first")
    mine = _take(store, purpose, seconds, settle_seconds)
    os.environ[LEASE_VARIABLE] = json.dumps({"root": store.root, "owner": mine.owner})
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(store, mine, seconds, ended), daemon=True)
    renewing.start()
    try:
        yield mine
    finally:
        ended.set()
        renewing.join()
        del os.environ[LEASE_VARIABLE]
        with suppress(StorageError):  # what ended the work matters more; the lease runs out by itself
            if lease_holder(store) == mine:
                store.delete(LEASE_KEY)


def writing(root: str, single: bool, purpose: str) -> AbstractContextManager[object]:
    """Return the context in which a job may write to a root: with `single`, the root's lease is held."""
    return single_writer(root, purpose) if single else nullcontext()


def _take(store: ObjectStore, purpose: str, seconds: float, settle_seconds: float) -> LeaseHolder:
    took = 0.0
    for _ in range(_TRIES):
        mine, took = _wrote(store, purpose, seconds)
        if took <= settle_seconds / 2:
            time.sleep(settle_seconds)
            found = lease_holder(store)
            if found != mine:
                raise _taken(store, "another run" if found is None else str(found))
            logger.info("lease of %s taken, number %d", store.root, mine.token)
            return mine
        # Others may have looked meanwhile, and rely on a write to take less than they wait.
        if lease_holder(store) == mine:
            store.delete(LEASE_KEY)
        time.sleep(random.uniform(0, settle_seconds))
    raise StorageError(
        f"{store.root}: the lease could not be taken, since the store took {took:.1f} s to answer; run again when it is "
        "faster"
    )


def _wrote(store: ObjectStore, purpose: str, seconds: float) -> tuple[LeaseHolder, float]:
    """Look, write the lease if it is free, and return what was written and the seconds from the look on."""
    before = lease_holder(store)
    if before is not None:
        _refuse_the_living(store, before, seconds)
    began = time.monotonic()
    if lease_holder(store) != before:
        raise _taken(store, "another run that starts at the same time")
    mine = LeaseHolder(uuid.uuid4().hex, purpose, socket.gethostname(), os.getpid(), before.token + 1 if before else 1)
    store.replace(LEASE_KEY, sealed(_fields(mine)))
    return mine, time.monotonic() - began


def _refuse_the_living(store: ObjectStore, holder: LeaseHolder, seconds: float) -> None:
    """Raise unless the lease was not renewed for so long that its holder must be taken for dead."""
    info = store.info(LEASE_KEY)
    idle = store_time(store) - info.modified if info else seconds
    if idle < seconds:
        raise _taken(store, f"{holder}, which renewed it {max(0.0, idle):.0f} s ago", seconds)


def _taken(store: ObjectStore, who: str, seconds: float | None = None) -> StorageError:
    wait = "" if seconds is None else f" (if that is dead, the lease is free {seconds:.0f} s after it was renewed last)"
    return StorageError(f"{store.root} has one writer at a time, and its lease is held by {who}; wait until it ends{wait}")


def _renew(store: ObjectStore, mine: LeaseHolder, seconds: float, ended: threading.Event) -> None:
    """Rewrite the lease until the work ends, or another has it; those who write notice by themselves."""
    while not ended.wait(seconds / _RENEWALS):
        try:
            found = lease_holder(store)
            if found != mine:
                logger.warning("the lease of %s was lost to %s; this run can write no more", store.root, found or "nobody")
                return
            store.replace(LEASE_KEY, sealed(_fields(mine)))
        except StorageError as error:
            logger.warning("the lease of %s could not be renewed: %s", store.root, error)


def _fields(holder: LeaseHolder) -> dict[str, Any]:
    return dict(vars(holder))
