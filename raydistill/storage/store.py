"""The seam to object storage: what a store must do, and `open_store`, which picks the store for a URI.

Keys are relative to the store's root URI, use "/" and never start with one. Every object is written whole in one
request and never streamed, because a stream that fails half-way publishes a truncated object on S3.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

LEASE_VARIABLE = "RAYDISTILL_LEASE"
"""Environment variable {"root", "owner"} of a process that writes under a single-writer lease."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object: key relative to the store's root, size in bytes, opaque version tag, and when it
    was written, in seconds since 1970 by the store's own clock."""

    key: str
    size: int
    etag: str
    modified: float


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a writer that died left behind, and what no listing shows: a temporary file, an upload in parts.

    Attributes:
        place: for `discard`; means something to its own store only.
        key: under which it would have become an object, as far as that is known.
        size: bytes it takes, 0 where the store does not tell.
        modified: when it was begun, in seconds since 1970 by the store's own clock.
    """

    place: str
    key: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """A flat namespace of immutable objects under one root URI, plus a few small ones moved by compare-and-swap.

    Implementations are cheap to pickle (URI and options only; credentials come from the environment of each
    process), retry throttling (503, SLOW_DOWN), 409 conflicts and resets with jitter, and raise `StorageError` with
    the URI, the cause and what to do. `root` is the URI without a trailing slash.
    """

    root: str

    def read(self, key: str) -> bytes:
        """Return the whole object; its length is checked against the store's size. Raises StorageError if absent."""

    def open(self, key: str) -> BinaryIO:
        """Return the object as a stream that ends after all its bytes or raises StorageError. Raises it if absent."""

    def download(self, key: str, path: Path) -> None:
        """Write the object to a local file atomically (temporary name, then rename), verifying its length."""

    def download_range(self, key: str, start: int, size: int, path: Path) -> None:
        """Write `size` bytes (> 0) of the object from `start` on to a local file, verifying their number."""

    def info(self, key: str) -> ObjectInfo | None:
        """Return what is stored under the key, or None."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with the prefix, in ascending order of key."""

    def put_if_absent(self, key: str, content: bytes | Path) -> bool:
        """Create the object unless the key exists; True when this call (or a lost earlier try of the very same bytes,
        found again by content) created it, False when other bytes are there already. Atomic among all writers."""

    def compare_and_swap(self, key: str, content: bytes, expected_etag: str | None) -> bool:
        """Replace the object if its etag is the expected one (None: must not exist). False when another writer won.
        An answer lost after success is resolved by reading back."""

    def replace(self, key: str, content: bytes | Path) -> None:
        """Write unconditionally: only for objects with one writer that nobody depends on (logs, progress, reports)."""

    def delete(self, key: str) -> None:
        """Remove the object; absent is fine."""

    def leftovers(self) -> Iterator[Leftover]:
        """Yield what dead and running writers have begun anywhere under the root and not made an object."""

    def discard(self, leftover: Leftover) -> None:
        """Remove a leftover; absent is fine. Its writer, should it live, gets an error."""


def open_store(uri: str) -> ObjectStore:
    """Return the store for `s3://bucket/prefix` or `file:///absolute/path` (an absolute path is read as file://).

    Where this process writes under a single-writer lease of the root (see `lease`), so does the store.

    Raises StorageError for other schemes, relative paths (they do not resolve in Ray workers), a missing bucket or
    missing credentials; never creates a bucket.
    """
    store = plain_store(uri)
    lease = os.environ.get(LEASE_VARIABLE)
    if not lease:
        return store
    held = json.loads(lease)
    if not f"{store.root}/".startswith(f"{held['root']}/"):
        return store
    from raydistill.storage.leased import LeasedStore

    return LeasedStore(store, store if store.root == held["root"] else plain_store(held["root"]), held["owner"])


def plain_store(uri: str) -> ObjectStore:
    """Return the store for a URI as `open_store` does, whatever lease there is."""
    if uri.startswith("s3://"):
        from raydistill.storage.s3 import S3Store

        return S3Store(uri)
    from raydistill.storage.local import LocalStore

    return LocalStore(uri)
