"""Change of an index by passage id: what an append, a delete or a replacement makes of a version.

Segments never change. New passages come as further segments, deleted ones are listed in tombstones, and a replacement
is both in one version. Passages keep their numbers until a compaction. Encoding new passages is in `change_job`, the
commit in `commit`; nothing here needs Ray.

Cost: the sections with ids of all segments, and of those that lose passages the forward vectors, are fetched and mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.lexical import LexicalStatistics
from raydistill.errors import DataError, StorageError
from raydistill.index.forward import document_frequency, forward_vectors, row_frequency
from raydistill.index.lookup import find_passages
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.segment_entries import SegmentEntry, renumbered
from raydistill.index.summary import index_summary
from raydistill.index.tombstones import deleted_passages, put_tombstone
from raydistill.storage.artifacts import fingerprint

Operation = Literal["append", "delete", "replace"]
CHANGE = "change"
"""Name in a version's metadata of the change that made it (see `PassageChange`); a compaction keeps it."""
_CHANGE_VERSION = 1
_SHOWN = 5
_UNCHANGED: Mapping[str, int] = {"added": 0, "deleted": 0}


@dataclass(frozen=True)
class NewPassages:
    """Passages that are encoded and stored in segments that no version names yet.

    Attributes:
        segments: their first_passage does not count.
        encoding: `encoding_key` of the version they were encoded for.
        corpus: {"name", "fingerprint"} of the corpus artifact with their texts.
        document_frequency: int64 [V].
    """

    segments: tuple[SegmentEntry, ...]
    encoding: str
    corpus: Mapping[str, str]
    document_frequency: NDArray[np.int64]


@dataclass(frozen=True)
class PassageChange:
    """A change, to be made on whatever version is current (see `commit.commit_change`).

    The version's metadata: CHANGE: {"request", "operation", "added", "deleted", "unknown": ids that were not there,
    "examples": some of them}; "changed": {"added", "deleted"} since the index was built; "corpora": where the texts are,
    oldest first (a later one counts for an id that two hold); for a lexical index "drift" (see `lexical_drift`).

    Attributes:
        operation: what to do with the ids.
        request: identity of the change whatever it is made on, 64 hex characters: by it a repeated command is recognised.
        ids: gives the ids concerned by batches; called once for each base.
        new: what is appended; None for a delete.
        missing_ok: whether ids to delete or replace may be unknown.
    """

    operation: Operation
    request: str
    ids: Callable[[], Iterable[Sequence[str]]]
    new: NewPassages | None = None
    missing_ok: bool = False

    def __call__(self, base: IndexVersion) -> IndexVersion | None:
        """Return the version that follows from the base, or None when the base has the change already.

        Raises:
            DataError: an id that must not be there is, or one that must be there is not.
            StorageError: the base's passages are encoded otherwise than the new ones.
        """
        if self._is_done(base):
            return None
        if self.new is not None and self.new.encoding != encoding_key(base):
            raise StorageError(
                f"{base.uri} is not encoded like the passages to {self.operation}: the index was built anew meanwhile; "
                "submit the same command again to encode them for it"
            )
        numbers, unknown = self._resolved(base)
        if not len(numbers) and self.new is None:
            return None
        return self._version(base, numbers, unknown)

    def check(self, base: IndexVersion) -> bool:
        """Return whether there is something to do; raises what a call would raise for its ids."""
        if self._is_done(base):
            return False
        self._resolved(base)
        return True

    def _is_done(self, base: IndexVersion) -> bool:
        """Whether the base is what this change made, or holds all its passages untouched: the command is being repeated."""
        if base.metadata.get(CHANGE, {}).get("request") == self.request:
            return True
        untouched = {segment.key for segment in base.segments if segment.tombstone is None}
        return self.new is not None and untouched.issuperset(segment.key for segment in self.new.segments)

    def _resolved(self, base: IndexVersion) -> tuple[NDArray[np.int64], list[str]]:
        """Return the numbers to delete, ascending, and the ids that are not there."""
        known: list[str] = []
        unknown: list[str] = []
        numbers = [np.zeros(0, dtype=np.int64)]
        total = 0
        for batch in self.ids():
            found = find_passages(base, batch)
            total += len(batch)
            numbers.append(found[found >= 0])
            if self.operation == "append":
                known += [batch[place] for place in np.flatnonzero(found >= 0).tolist()]
            else:
                unknown += [batch[place] for place in np.flatnonzero(found < 0).tolist()]
        if known:
            raise DataError(
                f"{len(known)} of {total} passages to append are in {base.uri} already ({_some(known)}); use replace to "
                "give them new content, or take them out of the input"
            )
        if unknown and not self.missing_ok:
            raise DataError(
                f"{len(unknown)} of {total} passages to {self.operation} are not in {base.uri} ({_some(unknown)}); correct "
                f"the list, or say --missing ok to {'add them' if self.operation == 'replace' else 'go on without them'}"
            )
        return np.unique(np.concatenate(numbers)), unknown

    def _version(self, base: IndexVersion, numbers: NDArray[np.int64], unknown: Sequence[str]) -> IndexVersion:
        settings = {"request": self.request, "base": base.version}
        name = fingerprint("index-change", _CHANGE_VERSION, settings, {"base": base.fingerprint})
        frequency = live_frequency(base)
        segments, removed = with_deleted(base, numbers)
        added = 0
        frequency = frequency - removed
        metadata = dict(base.metadata)
        if self.new is not None:
            added = sum(segment.passages for segment in self.new.segments)
            frequency = frequency + self.new.document_frequency
            segments = (*segments, *renumbered(self.new.segments, first=base.passages))
            metadata["corpora"] = [*corpora(base), dict(self.new.corpus)]
        before = base.metadata.get("changed", _UNCHANGED)
        metadata["changed"] = {"added": before["added"] + added, "deleted": before["deleted"] + len(numbers)}
        metadata[CHANGE] = {
            "request": self.request,
            "operation": self.operation,
            "added": added,
            "deleted": len(numbers),
            "unknown": len(unknown),
            "examples": list(unknown[:_SHOWN]),
        }
        version = replace(base, fingerprint=name, segments=segments, passages=sum(segment.passages for segment in segments))
        return replace(version, metadata=with_statistics(version, metadata, frequency))


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", …" if len(ids) > _SHOWN else "")


def encoding_key(version: IndexVersion) -> str:
    """Return the identity of how a version's passages became stored vectors; new ones must be encoded alike.

    Raises StorageError for an index whose vectors came without an encoder.
    """
    metadata = version.metadata
    if "encoder" not in metadata or "documents" not in metadata:
        raise StorageError(
            f"{version.uri} does not say by which encoder its passages were encoded, so none can be added as text; build "
            "the index from the corpus"
        )
    return encoding_identity(metadata, metadata["statistics"]["sha256"] if is_lexical(version) else "")


def encoding_identity(metadata: Mapping[str, Any], statistics: str) -> str:
    """Return what `encoding_key` does.

    Args:
        metadata: "encoder" and "impacts" count. statistics: SHA-256 of those of a lexical index, "" for others.
    """
    settings = {"encoder": metadata["encoder"], "impacts": metadata["impacts"], "statistics": statistics}
    return fingerprint("index-encoding", _CHANGE_VERSION, settings, {})


def is_lexical(version: IndexVersion) -> bool:
    """Return whether the passages are encoded by the statistics of their collection."""
    return bool(version.metadata.get("documents", {}).get("kind") == "lexical")


def corpora(version: IndexVersion) -> list[dict[str, str]]:
    """Return {"name", "fingerprint"} of the corpora with the passages' texts, oldest first."""
    built = [version.metadata["corpus"]] if "corpus" in version.metadata else []
    return list(version.metadata.get("corpora", built))


def live_frequency(version: IndexVersion) -> NDArray[np.int64]:
    """Return how many passages that are not deleted hold each term, int64 [V], as stored or else counted."""
    content = version.open_frequencies()
    if content is None:
        return document_frequency(version)
    # Embedding rows without a token widen the vocabulary beyond what was counted.
    return LexicalStatistics.from_bytes(content).resized(version.vocabulary_size).document_frequency


def with_deleted(base: IndexVersion, numbers: NDArray[np.int64]) -> tuple[tuple[SegmentEntry, ...], NDArray[np.int64]]:
    """Return the base's segments with further passages deleted, and how many of those hold each term, int64 [V].

    Args:
        numbers: int64 [C]; of passages that are not deleted yet, ascending, without repetition.
    """
    segments = []
    removed = np.zeros(base.vocabulary_size, dtype=np.int64)
    for segment in base.segments:
        end = segment.first_passage + segment.passages
        gone = numbers[(numbers >= segment.first_passage) & (numbers < end)] - segment.first_passage
        if not len(gone):
            segments.append(segment)
            continue
        stored = forward_vectors(base, segment)
        removed += row_frequency(stored, gone)
        everything = np.union1d(deleted_passages(base, segment), gone)
        postings = int((stored.row_offsets[everything + 1] - stored.row_offsets[everything]).sum())
        tombstone = put_tombstone(base.root, base.name, segment, everything, postings)
        segments.append(replace(segment, tombstone=tombstone))
    return tuple(segments), removed


def with_statistics(version: IndexVersion, metadata: Mapping[str, Any], frequency: NDArray[np.int64]) -> dict[str, Any]:
    """Return the metadata of a version with its document frequencies (int64 [V], stored here) and summary."""
    postings = int(frequency.sum())
    statistics = LexicalStatistics(frequency, version.live, postings)
    part = IndexWriter(version.root, version.name, version.fingerprint).put_statistics(statistics.to_bytes())
    updated = {**metadata, "frequencies": part.to_json(), "summary": index_summary(version.segments, frequency)}
    if is_lexical(version):
        updated["drift"] = lexical_drift(version, metadata.get("changed", _UNCHANGED), statistics)
    elif "statistics" in metadata:
        updated["statistics"] = part.to_json()
    return updated


def lexical_drift(version: IndexVersion, changed: Mapping[str, int], live: LexicalStatistics) -> dict[str, float]:
    """Return how far the statistics that a lexical index was built with are from those of its passages now.

    changed_share: passages added and deleted since, relative to those it was built from.
    idf_shift: mean change of a posting's inverse document frequency, relative to its mean.
    """
    content = version.open_statistics()
    assert content is not None, "a lexical index has statistics"
    built = LexicalStatistics.from_bytes(content).resized(version.vocabulary_size)
    before, now = (each.inverse_document_frequency().astype(np.float64) for each in (built, live))
    frequency = live.document_frequency
    weight = float((frequency * before).sum())
    return {
        "changed_share": (changed["added"] + changed["deleted"]) / max(1, built.passages),
        "idf_shift": float((frequency * np.abs(now - before)).sum()) / weight if weight else 0.0,
    }
