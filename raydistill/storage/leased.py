"""A store under a single-writer lease: conditions are looked up before a write instead of being left to the store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from raydistill.errors import StorageError
from raydistill.storage.hashing import content_size, sha256_hex
from raydistill.storage.inventory import role_of
from raydistill.storage.lease import lease_holder
from raydistill.storage.store import Leftover, ObjectInfo, ObjectStore

CHECK_SECONDS = 5.0
"""How long a process relies on having seen that the lease is still its owner's; for manifests and CURRENT, not at all."""
_BLOCK = 1 << 20
_seen: dict[tuple[str, str], float] = {}
"""(lease's root, owner) -> monotonic time at which this process last saw it hold the lease."""


class LeasedStore:
    """`ObjectStore` through another one, for the holder of a lease and its workers.

    What `put_if_absent` and `compare_and_swap` promise holds as far as the lease keeps other writers away (see `lease`),
    and among the holder's own workers only one after another: two that put one key at the same time may both be told that
    they did, and the later content stays. Parts are named by their content, so that costs nothing but the work.
    """

    def __init__(self, store: ObjectStore, leased: ObjectStore, owner: str) -> None:
        """`leased`: the plain store of the root whose lease `owner` holds; `store` is that or one below it."""
        self._store = store
        self._leased = leased
        self._owner = owner
        self.root = store.root

    def __repr__(self) -> str:
        return f"LeasedStore({self._store!r})"

    def read(self, key: str) -> bytes:
        return self._store.read(key)

    def open(self, key: str) -> BinaryIO:
        return self._store.open(key)

    def download(self, key: str, path: Path) -> None:
        self._store.download(key, path)

    def download_range(self, key: str, start: int, size: int, path: Path) -> None:
        self._store.download_range(key, start, size, path)

    def info(self, key: str) -> ObjectInfo | None:
        return self._store.info(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._store.list(prefix)

    def put_if_absent(self, key: str, content: bytes | Path) -> bool:
        found = self._store.info(key)
        if found is not None:
            return found.size == content_size(content) and self._sha256(key) == sha256_hex(content)
        self.replace(key, content)
        return True

    def compare_and_swap(self, key: str, content: bytes, expected_etag: str | None) -> bool:
        self._check(key)
        found = self._store.info(key)
        if (found.etag if found else None) != expected_etag:
            return False
        self._store.replace(key, content)
        return True

    def replace(self, key: str, content: bytes | Path) -> None:
        self._check(key)
        self._store.replace(key, content)

    def delete(self, key: str) -> None:
        self._check(key)
        self._store.delete(key)

    def leftovers(self) -> Iterator[Leftover]:
        return self._store.leftovers()

    def discard(self, leftover: Leftover) -> None:
        self._check(leftover.key)
        self._store.discard(leftover)

    def _check(self, key: str) -> None:
        """Raise StorageError when the lease is no longer its owner's."""
        mark = (self._leased.root, self._owner)
        publishes = role_of(key) in ("manifest", "CURRENT")
        if not publishes and time.monotonic() - _seen.get(mark, float("-inf")) < CHECK_SECONDS:
            return
        looked = time.monotonic()
        holder = lease_holder(self._leased)
        if holder is None or holder.owner != self._owner:
            raise StorageError(
                f"{self.root}/{key} was not written, since the lease of {self._leased.root} was lost to "
                f"{holder or 'nobody known'}; run again when that has ended: finished work is kept"
            )
        _seen[mark] = looked

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        with self._store.open(key) as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()
