"""Versions of an index: immutable segments, numbered manifests, and `CURRENT`, which moves by compare-and-swap.

    {root}/indexes/{name}/segments/{fingerprint[:16]}/{segment}-{sha8}{suffix}
                          receipts/{fingerprint[:16]}/{segment}.json
                          statistics/{fingerprint[:16]}/…
                          tombstones/…                      which passages of a segment are deleted (see `tombstones`)
                          manifests/{version:08d}.json      a version exists
                          CURRENT                           the version that searches use by default

A version is visible to those who ask for it from its manifest on, and to everyone from the move of CURRENT on. What a
segment contains is none of this module's business; see `segment`. How a version follows from another is in `commit`.
"""

from __future__ import annotations

import dataclasses
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raydistill.errors import StorageError
from raydistill.index.segment_entries import SegmentEntry, Tombstone, entry_of, renumbered
from raydistill.storage.artifacts import tool_versions
from raydistill.storage.cache import default_cache
from raydistill.storage.hashing import sealed, unsealed
from raydistill.storage.inventory import named_objects
from raydistill.storage.parts import Part, PartLedger, chosen_parts
from raydistill.storage.store import open_store

_SWAPS = 32
_HISTORY = 100
"""Former versions that CURRENT remembers."""
_STATISTICS = "statistics"
_FREQUENCIES = "frequencies"


@dataclass(frozen=True)
class IndexVersion:
    """An immutable, complete index. Picklable, JSON-able.

    Attributes:
        root: run root URI.
        name: of the index.
        version: 1, 2, … in order of publication.
        fingerprint: of everything that decides the content, 64 hex characters.
        segments: in order of first_passage.
        vocabulary_size: terms of the encoder.
        passages: of all segments, deleted ones included.
        metadata: "encoder", "documents", "statistics" (a Part, where there is one), "summary" (see `summary`) and what else
            the builder tells. One that follows from another version has its number as "base" (see `commit`).
    """

    root: str
    name: str
    version: int
    fingerprint: str
    segments: tuple[SegmentEntry, ...]
    vocabulary_size: int
    passages: int
    metadata: Mapping[str, Any]

    @property
    def uri(self) -> str:
        """Where the version's manifest lies."""
        return f"{self.root.rstrip('/')}/{_manifest_key(self.name, self.version)}"

    @property
    def deleted(self) -> int:
        """How many passages are deleted."""
        return sum(segment.deleted for segment in self.segments)

    @property
    def live(self) -> int:
        """How many passages can be found."""
        return self.passages - self.deleted

    @property
    def object_keys(self) -> frozenset[str]:
        """Keys of all objects that the version needs, its manifest aside: what must not be collected as garbage."""
        parts = [Part.from_json(self.metadata[name]) for name in (_STATISTICS, _FREQUENCIES) if name in self.metadata]
        tombstones = [segment.tombstone for segment in self.segments if segment.tombstone]
        keys = [segment.key for segment in self.segments] + [each.key for each in tombstones]
        return frozenset(keys + [part.key for part in parts])

    def fetch(self, segment: SegmentEntry | Tombstone) -> Path:
        """Return a local, read-only file of the object, verified once a process. Raises CorruptObjectError if damaged."""
        return default_cache().fetch(open_store(self.root), segment.key, segment.size, segment.sha256)

    def fetch_range(self, segment: SegmentEntry, start: int, size: int, sha256: str) -> tuple[Path, int]:
        """Return a local, read-only file that holds `size` bytes (> 0) of the segment from `start` on, and where in it they
        begin; only they are fetched and verified. Raises CorruptObjectError if damaged."""
        return default_cache().fetch_range(open_store(self.root), segment.key, start, size, sha256)

    def open_statistics(self) -> bytes | None:
        """Return the collection statistics of a lexical index, verified; None for encoders that need none.

        The passages of a lexical index that was changed stay encoded by the statistics it was built with: these.
        """
        return self._open_part(_STATISTICS)

    def open_frequencies(self) -> bytes | None:
        """Return the document frequencies of the passages that are not deleted (`LexicalStatistics`, whose tokens are
        postings unless the index is as it was built); None where none were stored."""
        return self._open_part(_FREQUENCIES if _FREQUENCIES in self.metadata else _STATISTICS)

    def _open_part(self, name: str) -> bytes | None:
        fields = self.metadata.get(name)
        if fields is None:
            return None
        part = Part.from_json(fields)
        return default_cache().fetch(open_store(self.root), part.key, part.size, part.sha256).read_bytes()

    def to_json(self) -> dict[str, Any]:
        """Return the version as a dictionary that JSON can hold."""
        fields = {spot.name: getattr(self, spot.name) for spot in dataclasses.fields(self)}
        return {
            **fields,
            "segments": [dataclasses.asdict(segment) for segment in self.segments],
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> IndexVersion:
        """Return the version that `to_json` described; further fields are ignored."""
        known = {spot.name: fields[spot.name] for spot in dataclasses.fields(cls)}
        known["segments"] = tuple(map(SegmentEntry.from_json, fields["segments"]))
        return cls(**known)


@dataclass(frozen=True)
class IndexWriter:
    """Builds one version: many workers put segments at once, one commits. Picklable."""

    root: str
    name: str
    fingerprint: str

    @property
    def _segments(self) -> PartLedger:
        folder = f"indexes/{self.name}"
        return PartLedger(
            self.root, f"{folder}/segments/{self.fingerprint[:16]}", f"{folder}/receipts/{self.fingerprint[:16]}"
        )

    @property
    def _statistics(self) -> PartLedger:
        """Statistics have a ledger of their own, so that no segment can take their name."""
        folder = f"indexes/{self.name}/statistics/{self.fingerprint[:16]}"
        return PartLedger(self.root, folder, f"{folder}/receipts")

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return the receipts of the segments that need not be built again, by name (see `put_segment`)."""
        return {name: _receipt(part) for name, part in self._segments.finished().items()}

    def put_segment(
        self, name: str, path: Path, passages: int, postings: int, counters: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Store a segment file and return the receipt that counts: this one's, or of whoever had stored the name before.

        The receipt is a JSON-able dictionary: name, key, size, sha256, head_sha256, passages, postings, counters. The file
        stays the caller's. Raises CorruptObjectError when the store holds other bytes under this content's name.
        """
        part = self._segments.put(name, path, path.suffix, passages, {**(counters or {}), "postings": postings})
        return _receipt(part)

    def put_statistics(self, content: bytes) -> Part:
        """Store the collection statistics (safetensors) and return their part, for metadata["statistics"]."""
        return self._statistics.put(_STATISTICS, content, ".safetensors", 0, {})

    def find_statistics(self) -> tuple[Part, bytes] | None:
        """Return the statistics that an earlier, unfinished run stored, with their bytes; None when there are none."""
        part = self._statistics.find(_STATISTICS)
        if part is None:
            return None
        return part, default_cache().fetch(open_store(self.root), part.key, part.size, part.sha256).read_bytes()

    def entries(
        self,
        names: Sequence[str],
        sources: Mapping[str, str] | None = None,
        adopted: Mapping[str, SegmentEntry] | None = None,
    ) -> tuple[SegmentEntry, ...]:
        """Return the finished segments in this order, numbered from 0 on.

        Args:
            names: of the segments.
            sources: name -> SHA-256 of the corpus part it was encoded from, where that is known.
            adopted: name -> segment of another version that takes the place of one of ours. Nothing of it is deleted here.

        Raises StorageError when a segment is missing.
        """
        adopted, sources = adopted or {}, sources or {}
        own = [name for name in names if name not in adopted]
        parts = chosen_parts(self._segments.finished(), own, f"{self.root}/indexes/{self.name}") if own else ()
        by_name = {part.name: entry_of(part, sources.get(part.name, "")) for part in parts}
        return renumbered([replace(adopted.get(name) or by_name[name], name=name, tombstone=None) for name in names])

    def commit(
        self,
        segment_names: Sequence[str],
        vocabulary_size: int,
        metadata: Mapping[str, Any],
        sources: Mapping[str, str] | None = None,
        adopted: Mapping[str, SegmentEntry] | None = None,
    ) -> IndexVersion:
        """Publish the segments as the next version, in this order, make it current, and return it; see `entries`.

        A version with the same fingerprint is returned instead of a second one. Raises StorageError when a segment is
        missing.
        """
        # Listed once: a twin that commits after this listing is met at the number that both then try to take.
        numbers = version_numbers(self.root, self.name)
        version = _newest_with(self.root, self.name, numbers, self.fingerprint)
        if version is None:
            segments = self.entries(segment_names, sources, adopted)
            version = self._publish(max(numbers, default=0) + 1, segments, vocabulary_size, metadata)
        make_current(version)
        return version

    def _publish(
        self, number: int, segments: tuple[SegmentEntry, ...], vocabulary_size: int, metadata: Mapping[str, Any]
    ) -> IndexVersion:
        """Take the first version number that is free, from `number` on; a twin with our fingerprint has done our work."""
        while True:
            version = IndexVersion(
                root=self.root,
                name=self.name,
                version=number,
                fingerprint=self.fingerprint,
                segments=segments,
                vocabulary_size=vocabulary_size,
                passages=sum(segment.passages for segment in segments),
                metadata=dict(metadata),
            )
            published = put_manifest(version)
            if published.fingerprint == self.fingerprint:
                return published
            number += 1


def missing_objects(version: IndexVersion) -> list[str]:
    """Return the keys of what a version names of its index and the store does not hold in full, by one listing."""
    prefix = f"indexes/{version.name}/"
    found = {info.key: info.size for info in open_store(version.root).list(prefix)}
    named = [each for each in named_objects(version.to_json()) if each.key.startswith(prefix)]
    return [each.key for each in named if found.get(each.key) != each.size]


def put_manifest(version: IndexVersion) -> IndexVersion:
    """Take the version's number and return who has it now: this version, or whichever took the number before.

    Raises StorageError when something that it names is not there (any more).
    """
    missing = missing_objects(version)
    if missing:
        raise StorageError(
            f"{version.uri} was not published: {version.root}/{missing[0]} is gone, which was there before; gc may have "
            "removed it, or somebody by hand: run the same again, which makes it anew"
        )
    # The operation id makes the bytes ours alone: a lost answer is not mistaken for another writer's commit.
    content = sealed({**version.to_json(), **origin()})
    open_store(version.root).put_if_absent(_manifest_key(version.name, version.version), content)
    return load_version(version.root, version.name, version.version)


def find_version(root: str, name: str, fingerprint: str) -> IndexVersion | None:
    """Return the newest version with this fingerprint, or None."""
    return _newest_with(root, name, version_numbers(root, name), fingerprint)


def _newest_with(root: str, name: str, numbers: Sequence[int], fingerprint: str) -> IndexVersion | None:
    for number in reversed(numbers):
        version = load_version(root, name, number)
        if version.fingerprint == fingerprint:
            return version
    return None


def current_version(root: str, name: str) -> IndexVersion:
    """Return the version that CURRENT names. Raises StorageError when the index was never published."""
    store, key = open_store(root), current_key(name)
    if store.info(key) is None:
        raise StorageError(
            f"{store.root}/indexes/{name} holds no published index; run the index stage, or check root and name"
        )
    return load_version(root, name, int(unsealed(store.read(key), f"{store.root}/{key}")["version"]))


def load_version(root: str, name: str, version: int) -> IndexVersion:
    """Return one version by number. Raises StorageError when there is none, CorruptObjectError when it is damaged."""
    store, key = open_store(root), _manifest_key(name, version)
    if store.info(key) is None:
        raise StorageError(
            f"{store.root}/indexes/{name} has no version {version}; its manifests folder shows those there are"
        )
    # The root is the one it was found under, so that a copied or moved run root still works.
    return IndexVersion.from_json({**unsealed(store.read(key), f"{store.root}/{key}"), "root": root})


def make_current(version: IndexVersion, older: bool = False) -> None:
    """Let CURRENT name this version, unless a later one was current before (then only with `older`, a rollback).

    CURRENT remembers the highest version it ever named, so that repeating an old job neither undoes a rollback nor
    replaces a newer index, while a crash between manifest and CURRENT is made good by the next commit. It also remembers
    which versions it named until when: readers may still hold them, so gc spares them for a while. Raises StorageError
    when other writers keep moving CURRENT.
    """
    store, key = open_store(version.root), current_key(version.name)
    for swap in range(_SWAPS):
        found = store.info(key)  # before reading: if the object moves in between, the swap is refused
        named = None
        if found is not None:
            named = unsealed(store.read(key), f"{store.root}/{key}")
            highest = int(named["highest"])
            if int(named["version"]) == version.version or (highest >= version.version and not older):
                return
        if store.compare_and_swap(key, moved_current(named, version), found.etag if found else None):
            return
        time.sleep(random.uniform(0, 0.01 * (swap + 1)))
    raise StorageError(
        f"{store.root}/{key} kept moving during {_SWAPS} tries; stop other writers of this index and run again"
    )


def moved_current(named: Mapping[str, Any] | None, version: IndexVersion) -> bytes:
    """Return what CURRENT holds once it has moved to a version, from what it held before (None: it was not there).

    {"version", "highest": that it ever named, "history": [{"version", "until"}, ...] of those it named before, sealed}
    """
    now = origin()
    before = named or {"highest": 0}
    history = list(before.get("history", ()))
    if named is not None:
        history.append({"version": named["version"], "until": now["created"]})
    highest = max(int(before["highest"]), version.version)
    return sealed({"version": version.version, "highest": highest, "history": history[-_HISTORY:], **now})


def _receipt(part: Part) -> dict[str, Any]:
    fields = part.to_json()
    passages, postings = fields.pop("rows"), int(fields["counters"].pop("postings"))
    return {**fields, "passages": passages, "postings": postings}


def origin() -> dict[str, Any]:
    """Return who wrote a document, and when; no two calls return the same."""
    return {
        "operation_id": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tool_versions": tool_versions(),
    }


def _manifest_key(name: str, version: int) -> str:
    return f"indexes/{name}/manifests/{version:08d}.json"


def current_key(name: str) -> str:
    """Return the key of the object that names the current version (see `moved_current`)."""
    return f"indexes/{name}/CURRENT"


def version_numbers(root: str, name: str) -> list[int]:
    """Return the numbers of all versions whose manifest exists, ascending."""
    prefix = f"indexes/{name}/manifests/"
    stems = (info.key[len(prefix) :].removesuffix(".json") for info in open_store(root).list(prefix))
    return sorted(int(stem) for stem in stems if stem.isdigit())
