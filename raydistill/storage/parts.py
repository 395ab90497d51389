"""Parts: immutable objects named by their content, each with a receipt that says which object counts. What they add up
to (an artifact, an index version) is decided elsewhere, by a manifest.

A part is put in two steps, object then receipt, both put-if-absent. A crash between them leaves an object that no
receipt names (an orphan for gc); two workers that compute the same part differently leave two objects, and the one
receipt that won decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydistill.errors import CorruptObjectError, StorageError
from raydistill.storage.hashing import content_size, range_sha256, sealed, sha256_hex, unsealed
from raydistill.storage.store import ObjectStore, open_store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")
_SUFFIX = re.compile(r"(\.[A-Za-z0-9_-]+)*")
_READERS = 16
_RECEIPT_TRIES = 8
HEAD_BYTES = 1 << 16
"""Bytes at the beginning of an object that have a SHA-256 of their own."""


@dataclass(frozen=True, slots=True)
class Part:
    """One immutable object of an artifact.

    Attributes:
        name: the part's name within its artifact, usually of its input shard.
        key: where the object lies, relative to the run root.
        size: bytes.
        sha256: of the content, 64 hex characters.
        head_sha256: of its first HEAD_BYTES, by which those who read sections of an object verify its header.
        rows: how many rows (queries, passages, …) it holds.
        counters: what its maker counted, summed over parts by readers of a manifest.
    """

    name: str
    key: str
    size: int
    sha256: str
    rows: int
    counters: Mapping[str, float] = field(default_factory=dict)
    head_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return {
            "name": self.name,
            "key": self.key,
            "size": self.size,
            "sha256": self.sha256,
            "head_sha256": self.head_sha256,
            "rows": self.rows,
            "counters": dict(self.counters),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Part:
        """Return the part that `to_json` described; further fields are ignored."""
        return cls(
            name=fields["name"],
            key=fields["key"],
            size=int(fields["size"]),
            sha256=fields["sha256"],
            rows=int(fields["rows"]),
            counters=dict(fields["counters"]),
            head_sha256=fields.get("head_sha256", ""),
        )


@dataclass(frozen=True, slots=True)
class PartLedger:
    """The parts under one prefix of a run root, and their receipts.

    Attributes:
        root: run root URI.
        objects: key prefix of the parts' objects, without trailing slash.
        receipts: key prefix of their receipts, without trailing slash.
    """

    root: str
    objects: str
    receipts: str

    def put(self, name: str, content: bytes | Path, suffix: str, rows: int, counters: Mapping[str, float]) -> Part:
        """Store a part and return the one that counts: this one, or what another worker had stored under the name before.

        Safe to repeat and to race. Raises CorruptObjectError when the store holds other bytes under this content's name.
        """
        _check_name(name, suffix)
        store = open_store(self.root)
        digest = sha256_hex(content)
        key = f"{self.objects}/{name}-{digest[:8]}{suffix}"
        part = Part(name, key, content_size(content), digest, int(rows), dict(counters), _head_sha256(content))
        if not store.put_if_absent(key, content):
            raise CorruptObjectError(
                f"{store.root}/{key} exists with bytes that do not match its name; delete it and run the stage again"
            )
        return self._receipt(store, part)

    def finished(self) -> dict[str, Part]:
        """Return the parts that have a receipt and whose object is there in full, by name."""
        store = open_store(self.root)
        keys = [info.key for info in store.list(f"{self.receipts}/") if info.key.endswith(".json")]
        sizes = self._object_sizes(store)
        parts = _read_parts(store, keys)
        return {part.name: part for part in parts if sizes.get(part.key) == part.size}

    def find(self, name: str) -> Part | None:
        """Return the part of this name, or None while it has no receipt or its object is gone."""
        store = open_store(self.root)
        key = self._receipt_key(name)
        if store.info(key) is None:
            return None
        part = Part.from_json(unsealed(store.read(key), f"{store.root}/{key}"))
        return part if _is_whole(store, part) else None

    def _receipt_key(self, name: str) -> str:
        return f"{self.receipts}/{name}.json"

    def _object_sizes(self, store: ObjectStore) -> dict[str, int]:
        return {info.key: info.size for info in store.list(f"{self.objects}/")}

    def _receipt(self, store: ObjectStore, part: Part) -> Part:
        """Write the part's receipt, or return the part of the receipt that was first.

        A receipt whose object was deleted since names nothing; it is replaced by compare-and-swap, never deleted, so
        that two workers who heal it at once cannot undo each other.
        """
        key = self._receipt_key(part.name)
        for _ in range(_RECEIPT_TRIES):
            if store.put_if_absent(key, sealed(part.to_json())):
                return part
            found = store.info(key)
            if found is None:
                continue
            first = Part.from_json(unsealed(store.read(key), f"{store.root}/{key}"))
            if _is_whole(store, first):
                return first
            if store.compare_and_swap(key, sealed(part.to_json()), found.etag):
                return part
        raise StorageError(f"{store.root}/{key} kept changing while the part was committed; stop other runs of this stage")


def check_unique(names: Iterable[str], what: str) -> None:
    """Raise StorageError when a name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise StorageError(f"{what} names the part {name!r} twice; give every part a name of its own")
        seen.add(name)


def chosen_parts(finished: Mapping[str, Part], names: Iterable[str], uri: str) -> tuple[Part, ...]:
    """Return the finished parts in the order of the names. Raises StorageError naming the missing ones."""
    wanted = list(names)
    check_unique(wanted, uri)
    missing = [name for name in wanted if name not in finished]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise StorageError(
            f"{uri} cannot be committed: {len(missing)} of {len(wanted)} parts are missing ({shown}); "
            "run the stage again to make them"
        )
    return tuple(finished[name] for name in wanted)


def _head_sha256(content: bytes | Path) -> str:
    return sha256_hex(content[:HEAD_BYTES]) if isinstance(content, bytes) else range_sha256(content, 0, HEAD_BYTES)


def _check_name(name: str, suffix: str) -> None:
    if not _NAME.fullmatch(name) or not _SUFFIX.fullmatch(suffix):
        raise StorageError(
            f"{name + suffix!r} is no part name: use letters, digits and . _ = - after a first letter or digit, "
            "and a suffix like .parquet"
        )


def _is_whole(store: ObjectStore, part: Part) -> bool:
    info = store.info(part.key)
    return info is not None and info.size == part.size


def _read_parts(store: ObjectStore, keys: list[str]) -> list[Part]:
    """Read receipts in parallel: a large artifact has thousands, and each is a round trip."""

    def read(key: str) -> Part:
        return Part.from_json(unsealed(store.read(key), f"{store.root}/{key}"))

    if len(keys) < 2:
        return [read(key) for key in keys]
    with ThreadPoolExecutor(min(_READERS, len(keys))) as pool:
        return list(pool.map(read, keys))


def summed_counters(parts: Iterable[Part]) -> dict[str, float]:
    """Return the sums of the parts' counters by name."""
    counters: dict[str, float] = {}
    for part in parts:
        for name, count in part.counters.items():
            counters[name] = counters.get(name, 0) + count
    return counters
