"""The check of a run root before hours are spent on it: does the store keep the promises that commits rely on?"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from raydistill.errors import StorageError
from raydistill.storage.store import ObjectStore, open_store

SCRATCH = "_probe/"
"""Key prefix of what is written to try a store; a process that dies leaves it to gc."""
_RACERS = 8
_ADVICE = (
    "two runs could overwrite each other's results there. Use a store with conditional writes (S3, GCS by its S3 interface, "
    "MinIO, Ceph, a local folder), or, where only one run at a time will ever write, set single_writer: true"
)


def check_root(root: str, single_writer: bool = False) -> None:
    """Write, race, swap, read and delete a few tiny objects under `{root}/_probe/`.

    With `single_writer`, no conditional writes are asked for: a lease keeps other writers away (see `lease`).

    Raises StorageError naming what is wrong: a missing bucket, no credentials, missing rights, no answer, a store that
    ignores If-None-Match or If-Match, or one that returns other bytes than were written.
    """
    store = open_store(root)
    with _scratch_key(store) as key:
        first, second = b"first " * 100, b"second"
        if single_writer:
            _check_plain(store, key, first, second)
            return
        if not store.put_if_absent(key, first):
            raise StorageError(f"{root}: creating a new object was refused as if it existed; {_ADVICE}")
        if store.put_if_absent(key, second):
            raise StorageError(f"{root}: the store ignores If-None-Match, so {_ADVICE}")
        if store.read(key) != first:
            raise StorageError(f"{root}: the store returns other bytes than were written; do not use it")
        _check_swap(store, key, second)
        _check_listing(store, key)
    with _scratch_key(store) as key:
        _check_race(store, key)


def store_time(store: ObjectStore) -> float:
    """Return what time it is by the store's own clock, in seconds since 1970; writes and removes a tiny object."""
    with _scratch_key(store) as key:
        store.replace(key, b"now")
        info = store.info(key)
    if info is None:
        raise StorageError(f"{store.root}: a new object cannot be found; the store is not consistent: do not use it")
    return info.modified


@contextmanager
def _scratch_key(store: ObjectStore) -> Iterator[str]:
    key = f"{SCRATCH}{uuid.uuid4().hex}"
    try:
        yield key
    finally:
        with suppress(StorageError):  # what the probe found matters more
            store.delete(key)


def _check_swap(store: ObjectStore, key: str, content: bytes) -> None:
    before = store.info(key)
    if before is None or not store.compare_and_swap(key, content, before.etag):
        raise StorageError(f"{store.root}: replacing an object by its etag (If-Match) was refused; {_ADVICE}")
    if store.compare_and_swap(key, b"stale", before.etag):
        raise StorageError(f"{store.root}: the store ignores If-Match, so {_ADVICE}")
    if store.read(key) != content:
        raise StorageError(
            f"{store.root}: a replaced object still reads as before; the store is not consistent: do not use it"
        )


def _check_plain(store: ObjectStore, key: str, first: bytes, second: bytes) -> None:
    """Check what even a single writer relies on: a write is read back, replaced and listed at once."""
    for content in (first, second):
        store.replace(key, content)
        if store.read(key) != content:
            raise StorageError(f"{store.root}: the store returns other bytes than were written; do not use it")
    _check_listing(store, key)


def _check_listing(store: ObjectStore, key: str) -> None:
    if [info.key for info in store.list(key)] != [key]:
        raise StorageError(
            f"{store.root}: a new object is missing in the listing; the store is not consistent: do not use it"
        )


def _check_race(store: ObjectStore, key: str) -> None:
    """Let several writers create one object at once: exactly one may be told that it did."""
    contents = [f"racer {number}".encode() for number in range(_RACERS)]
    with ThreadPoolExecutor(_RACERS) as pool:
        created = list(pool.map(lambda content: store.put_if_absent(key, content), contents))
    won = [content for content, was_created in zip(contents, created, strict=True) if was_created]
    if len(won) != 1 or store.read(key) != won[0]:
        raise StorageError(
            f"{store.root}: of {_RACERS} writers of one new object, {len(won)} were told they made it; {_ADVICE}"
        )
