"""What a manifest says of a segment: where it lies, what passages it holds, and which of them are deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raydistill.storage.parts import Part

MAX_IMPACT = "max_impact"
"""Counter of a segment's receipt from which a manifest takes its largest impact."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The object that lists the deleted passages of a segment.

    Attributes:
        key, size, sha256: of the object, as for a segment.
        passages, postings: how many of the segment's are deleted.
    """

    key: str
    size: int
    sha256: str
    passages: int
    postings: int


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment of a version.

    Attributes:
        name: of the segment; segments keep it from version to version.
        key: where it lies, relative to the run root.
        size: bytes.
        sha256: of the file, 64 hex characters.
        passages: how many it holds.
        first_passage: number of its first passage within the index; the segment's own numbers begin at 0.
        postings: (term, passage) pairs.
        head_sha256: of the first HEAD_BYTES of the file (see raydistill.storage.parts).
        max_impact: its largest impact; 0 where nobody told.
        source: SHA-256 of the corpus part it was encoded from; "" where it was not.
        tombstone: what is deleted of it, None where nothing is. Deleted passages keep their numbers.
    """

    name: str
    key: str
    size: int
    sha256: str
    passages: int
    first_passage: int
    postings: int
    head_sha256: str = ""
    max_impact: float = 0.0
    source: str = ""
    tombstone: Tombstone | None = None

    @property
    def deleted(self) -> int:
        """How many of its passages are deleted."""
        return self.tombstone.passages if self.tombstone else 0

    @property
    def live(self) -> int:
        """How many of its passages are not deleted."""
        return self.passages - self.deleted

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> SegmentEntry:
        """Return the entry that a manifest describes."""
        tombstone = fields.get("tombstone")
        return cls(**{**fields, "tombstone": Tombstone(**tombstone) if tombstone else None})


def renumbered(segments: Sequence[SegmentEntry], first: int = 0) -> tuple[SegmentEntry, ...]:
    """Return the segments with passage numbers that go on from one to the next, the first of them `first`."""
    placed: list[SegmentEntry] = []
    for segment in segments:
        placed.append(replace(segment, first_passage=first))
        first += segment.passages
    return tuple(placed)


def entry_of(part: Part, source: str = "") -> SegmentEntry:
    """Return the entry of a stored segment; its first_passage is 0."""
    return SegmentEntry(
        name=part.name,
        key=part.key,
        size=part.size,
        sha256=part.sha256,
        passages=part.rows,
        first_passage=0,
        postings=int(part.counters["postings"]),
        head_sha256=part.head_sha256,
        max_impact=float(part.counters.get(MAX_IMPACT, 0.0)),
        source=source,
    )
