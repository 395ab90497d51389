"""The commit of a version that follows from another: optimistic, so that of writers who race none loses its change.

A change is made on the version that CURRENT names, its base, and published as the next number. Then CURRENT moves from
the base to it, if CURRENT still names the base. When something else came first, the change is made again on what is
there now, or is refused where the two conflict.

A manifest that is there while CURRENT has not yet moved to it belongs to a writer between the two steps, alive or dead.
Whoever comes next moves CURRENT for it, and builds on it. So whatever was published is never passed over, and writers
wait for nobody. Only a version whose base is not current any more (somebody rolled back meanwhile) is left aside; its
writer, if alive, makes its change again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raydistill.errors import StorageError
from raydistill.index.publish import (
    IndexVersion,
    current_key,
    current_version,
    load_version,
    moved_current,
    put_manifest,
    version_numbers,
)
from raydistill.storage.hashing import unsealed
from raydistill.storage.store import open_store

BASE = "base"
"""Name in a version's metadata of the number of the version it follows from; absent from versions that were built."""
_TRIES = 200
_LONGEST_PAUSE = 1.0


@dataclass(frozen=True)
class Head:
    """Where an index stands.

    Attributes:
        version: the one that CURRENT names.
        etag: of CURRENT, read before it. named: what it holds.
        newest: highest number that any manifest has.
    """

    version: IndexVersion
    etag: str
    named: Mapping[str, Any]
    newest: int

    @property
    def highest(self) -> int:
        """Highest version that CURRENT ever named."""
        return int(self.named["highest"])


def settled_head(root: str, name: str) -> Head:
    """Return where an index stands, after moving CURRENT for writers who published and have not moved it yet.

    Raises StorageError when the index was never published.
    """
    for attempt in range(_TRIES):
        head = _head(root, name)
        waiting = _next_waiting(head)
        if waiting is None:
            return head
        if not _move(head, waiting):
            _pause(attempt)
    raise _moving(root, name)


def commit_change(root: str, name: str, change: Callable[[IndexVersion], IndexVersion | None]) -> IndexVersion:
    """Publish what a change makes of the current version, make it current, and return it.

    Args:
        change: from the base to the version that shall follow; its number does not count, `fingerprint` must tell it from
            what any other change makes. None when there is nothing to do: the base is returned. It may raise, which ends
            the commit, and is called again on another base whenever that moved.

    Raises:
        StorageError: the index was never published, or other writers keep coming first.
    """
    for attempt in range(_TRIES):
        head = settled_head(root, name)
        made = change(head.version)
        if made is None:
            return head.version
        metadata = {**made.metadata, BASE: head.version.version}
        wanted = replace(made, root=root, name=name, version=head.newest + 1, metadata=metadata)
        published = put_manifest(wanted)
        # A twin with our fingerprint on our base has done our work.
        ours = published.fingerprint == wanted.fingerprint and published.metadata.get(BASE) == head.version.version
        if ours and (_move(head, published) or _follows(root, name, published)):
            return published
        _pause(attempt)
    raise _moving(root, name)


def _head(root: str, name: str) -> Head:
    store, key = open_store(root), current_key(name)
    found = store.info(key)  # before reading: if the object moves in between, the swap is refused
    if found is None:
        current_version(root, name)  # says what to do; or, moved this moment, is read again
        return _head(root, name)
    named = unsealed(store.read(key), f"{store.root}/{key}")
    newest = max(version_numbers(root, name), default=0)
    return Head(load_version(root, name, int(named["version"])), found.etag, named, newest)


def _next_waiting(head: Head) -> IndexVersion | None:
    """Return the lowest published version that CURRENT has yet to name, None when there is none."""
    root, name = head.version.root, head.version.name
    for number in version_numbers(root, name):
        if number > int(head.named["highest"]):
            version = load_version(root, name, number)
            if version.metadata.get(BASE) in (None, head.version.version):
                return version
    return None


def _move(head: Head, version: IndexVersion) -> bool:
    """Move CURRENT from where the head saw it to a later version; False when it has moved since."""
    moved = moved_current(head.named, version)
    return open_store(version.root).compare_and_swap(current_key(version.name), moved, head.etag)


def _follows(root: str, name: str, version: IndexVersion) -> bool:
    """Return whether the current version is this one or follows from it: then another writer has moved CURRENT for us."""
    current = current_version(root, name)
    while current.version > version.version:
        base = current.metadata.get(BASE)
        if base is None:
            return False
        current = load_version(root, name, int(base))
    return current.version == version.version


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, min(0.01 * (attempt + 1), _LONGEST_PAUSE)))


def _moving(root: str, name: str) -> StorageError:
    return StorageError(
        f"{root}/indexes/{name}: other writers came first {_TRIES} times; submit the same command again when fewer write"
    )
