"""Removing what no manifest needs: old versions of indexes, parts and segments of work that was superseded or given up.

Live is: every artifact's manifest, the versions of an index that are kept (those that an artifact's metadata name as its
"index" among them: candidates hold passage numbers), CURRENT, the objects that these name, and the receipts of those. The
rest of an artifact's or index's folder is dead, and is removed when it has been there for the grace period. Logs,
checkpoints, the teachers' cache and whatever else lies under the root are left alone.

What makes this safe beside writers and readers:
  - Nothing has an age of its own: unfinished work counts as old when the newest object of the whole work is. So a build
    that has run for days keeps its first segments, and only one that put nothing for the grace period is taken for dead.
  - A version is kept for the grace period after it stopped being the current one.
  - Manifests and receipts go first. After a pause in which a commit that had already read its receipts can publish, the
    root is looked at anew, and only then objects go. So no reader finds a manifest whose objects were removed before it,
    and whoever resumes the work finds no receipt, not a receipt of something that is going.
  - Ages are by the store's own clock.
Interrupted anywhere, it can be run again.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from raydistill.errors import StorageError
from raydistill.storage.hashing import unsealed
from raydistill.storage.inventory import Holding, holdings, in_parallel, named_objects, role_of
from raydistill.storage.probe import SCRATCH, store_time
from raydistill.storage.store import ObjectInfo, ObjectStore, open_store

_PREFIXES = ("artifacts/", "indexes/", SCRATCH)
SETTLE_SECONDS = 60.0
"""Longest pause between receipts and objects. A commit takes seconds from reading its receipts to its manifest."""
# What an object of an index was made for: a build by its fingerprint, a tombstone by itself.
_WORK = re.compile(r"indexes/[^/]+/(?:tombstones/[^/]+|[^/]+/([0-9a-f]{16})/.+)")
_OLD_VERSION, _RECEIPT, _OBJECT = "old versions", "receipts of nothing live", "objects that no manifest names"
_LEFTOVER, _PROBE = "unfinished uploads", "probes"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept.

    Attributes:
        keep_versions: of every index, this many: the newest, and as many from the current one and its predecessors.
        grace_seconds: for how long everything is kept that nothing names.
    """

    keep_versions: int
    grace_seconds: float

    def __post_init__(self) -> None:
        if self.keep_versions < 1 or not 0 <= self.grace_seconds < math.inf:
            raise StorageError(
                f"{self.keep_versions} versions and a grace period of {self.grace_seconds:g} s cannot be kept; keep at "
                "least 1 version, for 0 hours or more"
            )


@dataclass
class Collected:
    """What was, or would be, removed.

    Attributes:
        removed: (where, what) -> (objects, bytes). young: the same, of what is dead but within the grace period.
        pinned: (index, version) -> artifacts for whose sake alone it is kept.
    """

    removed: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    young: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    pinned: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Dead:
    """Dead objects of a holding, of one sort."""

    what: str
    objects: Sequence[ObjectInfo]
    is_young: bool


def collect(root: str, policy: Policy, delete: bool = False, settle_seconds: float = SETTLE_SECONDS) -> Collected:
    """Find what is dead under a run root, remove it if asked to, and return it.

    `settle_seconds` bounds the pause between receipts and objects; it is never longer than the grace period.

    Raises CorruptObjectError when a manifest that says what lives is damaged; nothing it might name is removed.
    """
    store = open_store(root)
    if not delete:
        return _removed(store, policy, time.time(), delete=(), report=(_OLD_VERSION, _RECEIPT, _OBJECT, _PROBE))
    now = store_time(store)
    first = _removed(store, policy, now, delete=(_OLD_VERSION, _RECEIPT, _PROBE), report=(_OLD_VERSION, _RECEIPT, _PROBE))
    time.sleep(min(settle_seconds, policy.grace_seconds))
    second = _removed(store, policy, now, delete=(_OBJECT,), report=(_OBJECT,))
    return Collected({**first.removed, **second.removed}, {**first.young, **second.young}, second.pinned)


def _removed(store: ObjectStore, policy: Policy, now: float, delete: Sequence[str], report: Sequence[str]) -> Collected:
    """Go through the root once, delete what is dead and old of the sorts in `delete`, and return that of `report`."""
    found = Collected()
    cutoff = now - policy.grace_seconds
    pins: dict[tuple[str, int], int] = {}
    for prefix in _PREFIXES:  # artifacts first: they pin versions of indexes
        for holding in holdings(store, prefix):
            old, live = _judged(store, holding, policy.keep_versions, cutoff, pins, found)
            for dead in _dead(store, holding, old, live, cutoff):
                if dead.what in report and dead.objects:
                    gone = dead.objects
                    if dead.what in delete and not dead.is_young:
                        gone = _still_dead(store, holding, dead.objects)
                        for _ in in_parallel(store.delete, [info.key for info in gone]):
                            pass
                    where = found.young if dead.is_young else found.removed
                    _add(where, holding.prefix, dead.what, [info.size for info in gone])
    if _OBJECT in report:
        for leftover in list(store.leftovers()):
            is_young = leftover.modified > cutoff
            if _OBJECT in delete and not is_young:
                store.discard(leftover)
            where = found.young if is_young else found.removed
            _add(where, leftover.key.rpartition("/")[0] + "/", _LEFTOVER, [leftover.size])
    return found


def _judged(
    store: ObjectStore, holding: Holding, keep: int, cutoff: float, pins: dict[tuple[str, int], int], found: Collected
) -> tuple[list[str], set[str]]:
    """Return the manifests of a holding that are not kept, and the keys that the kept ones name.

    Takes note of what they pin, and of what is kept because it is pinned.
    """
    kept, old = _versions(store, holding, keep, cutoff)
    for key in [key for key in old if _version(key) in pins]:
        found.pinned[_version(key)] = pins[_version(key)]
        old.remove(key)
        kept.append(key)
    live: set[str] = set()
    for document in _documents(store, kept):
        live |= {named.key for named in named_objects(document)}
        index = document.get("metadata", {}).get("index")
        if holding.kind == "artifact" and isinstance(index, dict) and {"name", "version"} <= index.keys():
            pinned = (str(index["name"]), int(index["version"]))
            pins[pinned] = pins.get(pinned, 0) + 1
    return old, live


def _add(where: dict[tuple[str, str], tuple[int, int]], place: str, what: str, sizes: Sequence[int]) -> None:
    if sizes:
        objects, size = where.get((place, what), (0, 0))
        where[place, what] = (objects + len(sizes), size + sum(sizes))


def _version(manifest: str) -> tuple[str, int]:
    """Return the name of the index and the number of the version that a manifest's key stands for."""
    _, name, _, number = manifest.split("/")
    return name, int(number.removesuffix(".json"))


def _dead(store: ObjectStore, holding: Holding, old: Sequence[str], live: set[str], cutoff: float) -> Iterator[_Dead]:
    """Yield what is dead in a holding, manifests before receipts before objects."""
    if holding.prefix.startswith(SCRATCH):
        for is_young in (False, True):
            yield _Dead(
                _PROBE, [each for each in holding.objects.values() if (each.modified > cutoff) == is_young], is_young
            )
        return
    if holding.kind not in ("artifact", "index"):
        return
    yield _Dead(_OLD_VERSION, [holding.objects[key] for key in old], is_young=False)
    receipts = dict(_receipts(store, holding))
    works: dict[str, list[ObjectInfo]] = {}
    for key, info in holding.objects.items():
        is_dead = key not in live and (role_of(key) == "object" or not receipts.get(key, {"-"}) & live)
        if role_of(key) in ("object", "receipt") and is_dead and (work := _work(holding, key)) is not None:
            works.setdefault(work, []).append(info)
    for infos in works.values():
        is_young = max(info.modified for info in infos) > cutoff
        for what, role in ((_RECEIPT, "receipt"), (_OBJECT, "object")):
            yield _Dead(what, [info for info in infos if role_of(info.key) == role], is_young)


def _work(holding: Holding, key: str) -> str | None:
    """Return what the key's object was made for: an artifact, or a build of an index. None for strangers in the folder."""
    if holding.kind == "artifact":
        return holding.prefix
    found = _WORK.fullmatch(key)
    return (found[1] or key) if found else None


def _versions(store: ObjectStore, holding: Holding, keep: int, cutoff: float) -> tuple[list[str], list[str]]:
    """Return the manifests that are kept and those that are not, ascending."""
    manifests = holding.with_role("manifest")
    if holding.kind != "index":
        return manifests, []
    key_of = {int(key.rpartition("/")[2].removesuffix(".json")): key for key in manifests}
    numbers = sorted(key_of)
    current = _read(store, f"{holding.prefix}CURRENT") or {}
    named = int(current.get("version", 0))
    history = [(int(each["version"]), each["until"]) for each in current.get("history", ())]
    kept = {named, *numbers[-keep:], *[number for number in numbers if number <= named][-keep:]}
    before = dict.fromkeys(number for number, _ in reversed(history) if number in key_of and number != named)
    kept |= set(list(before)[: keep - 1])
    kept |= {number for number, until in history if datetime.fromisoformat(until).timestamp() > cutoff}
    for number, successor in zip(numbers, [*numbers[1:], None], strict=True):
        ages = [holding.objects[key_of[each]].modified for each in (number, successor) if each is not None]
        if max(ages) > cutoff:
            kept.add(number)
    return [key_of[number] for number in numbers if number in kept], [key_of[n] for n in numbers if n not in kept]


def _documents(store: ObjectStore, manifests: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield what the manifests say that are (still) there."""
    for _, document in in_parallel(lambda key: _read(store, key), manifests):
        if document is not None:
            yield document


def _named_by(store: ObjectStore, manifests: Iterable[str]) -> set[str]:
    return {named.key for document in _documents(store, manifests) for named in named_objects(document)}


def _receipts(store: ObjectStore, holding: Holding) -> Iterator[tuple[str, set[str]]]:
    """Yield every receipt and the keys of what it names."""
    for key, document in in_parallel(lambda key: _read(store, key), holding.with_role("receipt")):
        yield key, {named.key for named in named_objects(document)}


def _read(store: ObjectStore, key: str) -> dict[str, Any] | None:
    """Return a sealed document, or None when it is not (or no longer) there."""
    try:
        return unsealed(store.read(key), f"{store.root}/{key}")
    except StorageError:
        if store.info(key) is None:
            return None
        raise


def _still_dead(store: ObjectStore, holding: Holding, infos: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
    """Leave out what came to life since the holding was listed: by a new manifest, or by a roll-back."""
    if holding.kind == "index":
        current = _read(store, f"{holding.prefix}CURRENT") or {}
        named = f"{holding.prefix}manifests/{int(current.get('version', 0)):08d}.json"
        new = [info.key for info in store.list(f"{holding.prefix}manifests/") if info.key not in holding.objects]
        live = _named_by(store, [*new, named]) | {named}
    elif holding.kind == "artifact":
        manifest = f"{holding.prefix}_manifest.json"
        live = set() if manifest in holding.objects else _named_by(store, [manifest])
    else:
        return infos
    return [info for info in infos if info.key not in live]
