"""What lies under a run root: its holdings (an artifact, an index, …), what each key of them is, and what a document names.

A document names an object wherever it holds a dictionary with "key", "size" and "sha256". Whoever looks after a root goes
by that rule and not by the classes that wrote the document, so what a manifest names in a later release is looked after
too. The layouts themselves are described where they are written: `artifacts`, `parts`, raydistill.index.publish,
raydistill.teachers.cache, raydistill.distill.checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeVar

from raydistill.storage.store import ObjectInfo, ObjectStore

T = TypeVar("T")
R = TypeVar("R")

Kind = Literal["artifact", "index", "teacher cache", "checkpoint", "other"]
Role = Literal["manifest", "CURRENT", "receipt", "object"]
_THREADS = 16
_PENDING_A_THREAD = 4
# Of a listing, keys that share what the first expression that fits matches are one holding. Keys come in ascending order,
# so a holding's keys come together.
_HOLDINGS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("artifact", re.compile(r"artifacts/[^/]+/[^/]+-[0-9a-f]{16}/")),
    ("index", re.compile(r"indexes/[^/]+/")),
    ("teacher cache", re.compile(r"cache/teachers/[^/]+/")),
    ("checkpoint", re.compile(r"runs/.*/(checkpoint_[^/]+|best/\d+)/")),
    ("other", re.compile(r"(.*/)?")),
)
_ROLES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("manifest", re.compile(r"artifacts/[^/]+/[^/]+/_manifest\.json")),
    ("manifest", re.compile(r"indexes/[^/]+/manifests/\d{8,}\.json")),
    ("manifest", re.compile(r"runs/.*/(checkpoint_[^/]+|best/\d+)/state\.json")),
    ("CURRENT", re.compile(r"indexes/[^/]+/CURRENT")),
    ("receipt", re.compile(r"artifacts/[^/]+/[^/]+/_receipts/.+\.json")),
    ("receipt", re.compile(r"indexes/[^/]+/(.+/)?receipts/.+\.json")),
)


@dataclass(frozen=True, slots=True)
class NamedObject:
    """What a document says of an object that it names: key relative to the run root, bytes, SHA-256 in hex."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Holding:
    """The objects that belong together under one prefix.

    Attributes:
        kind: what they are.
        prefix: key prefix with its trailing slash.
        objects: by key, ascending.
    """

    kind: Kind
    prefix: str
    objects: Mapping[str, ObjectInfo]

    def with_role(self, role: Role) -> list[str]:
        """Return the keys of this role, ascending."""
        return [key for key in self.objects if role_of(key) == role]


def role_of(key: str) -> Role:
    """Return what an object is for: a document of some sort, or the plain object that documents name."""
    return next((role for role, pattern in _ROLES if pattern.fullmatch(key)), "object")


def holdings(store: ObjectStore, prefix: str) -> Iterator[Holding]:
    """Yield what lies under a key prefix, one holding in memory at a time."""
    for (kind, start), infos in groupby(store.list(prefix), key=lambda info: _holding_of(info.key)):
        yield Holding(kind, start, {info.key: info for info in infos})


def _holding_of(key: str) -> tuple[Kind, str]:
    for kind, pattern in _HOLDINGS:
        found = pattern.match(key)
        if found:
            return kind, found[0]
    raise AssertionError("unreachable: the last expression matches everything")


def named_objects(document: Any) -> Iterator[NamedObject]:
    """Yield every object that a document, as parsed from JSON, names, in order; some may come twice."""
    if isinstance(document, Mapping):
        if {"key", "size", "sha256"} <= document.keys():
            yield NamedObject(str(document["key"]), int(document["size"]), str(document["sha256"]))
        for item in document.values():
            yield from named_objects(item)
    elif isinstance(document, list):
        for item in document:
            yield from named_objects(item)


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield (item, work(item)) as they finish, on a few threads, with few items drawn ahead of what is finished.

    An error of `work` ends the iteration with it.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        pending: dict[Future[R], T] = {}
        try:
            for item in items:
                pending[pool.submit(work, item)] = item
                if len(pending) >= _THREADS * _PENDING_A_THREAD:
                    yield from _finished(pending)
            while pending:
                yield from _finished(pending)
        finally:
            for future in pending:
                future.cancel()


def _finished(pending: dict[Future[R], T]) -> Iterator[tuple[T, R]]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()
