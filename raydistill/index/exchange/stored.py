"""What a published index holds, read for other formats: vectors by windows of passages, postings by term.

This is the one module of the exchange that knows how segments store things. Segments are fetched through the local cache
and memory-mapped; what is returned is decoded to float32. Deleted passages are left out: a passage has its number within
the index, and a place among those that are not deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.index.forward import gathered
from raydistill.index.publish import IndexVersion, SegmentEntry
from raydistill.index.segment import Segment
from raydistill.index.tombstones import deleted_passages

_WINDOW = 4096


@dataclass(frozen=True)
class Window:
    """Some passages of an index, in order.

    Attributes:
        numbers: int64 [P]; passage numbers within the index, ascending.
        ids: P external ids.
        vectors: P rows, impacts as float32.
    """

    numbers: NDArray[np.int64]
    ids: list[str]
    vectors: SparseBatch


def windows(version: IndexVersion, entry: SegmentEntry, first: int = 0, stop: int | None = None) -> Iterator[Window]:
    """Yield the passages first..stop - 1 of a segment (its own numbers) that are not deleted, at most 4,096 at a time; only
    these are in memory."""
    segment, deleted = Segment(version.fetch(entry)), deleted_passages(version, entry)
    stop = segment.passages if stop is None else stop
    for start in range(first, stop, _WINDOW):
        rows = np.setdiff1d(np.arange(start, min(start + _WINDOW, stop)), deleted, assume_unique=True)
        if len(rows):
            ids = [segment.passage_id(int(row)) for row in rows]
            yield Window(rows + entry.first_passage, ids, _rows(segment, rows))


def stored_rows(version: IndexVersion, entry: SegmentEntry) -> Iterator[SparseBatch]:
    """Yield the vectors of all passages of a segment, at most 4,096 at a time; those of deleted ones are empty."""
    segment, deleted = Segment(version.fetch(entry)), deleted_passages(version, entry)
    for start in range(0, segment.passages, _WINDOW):
        rows = np.arange(start, min(start + _WINDOW, segment.passages))
        vectors = _rows(segment, rows)
        gone = np.repeat(np.isin(rows, deleted, assume_unique=True), vectors.lengths())
        kept = np.concatenate([[0], np.cumsum(~gone)])[vectors.indptr]
        yield SparseBatch(kept, vectors.term_ids[~gone], vectors.weights[~gone], vectors.vocabulary_size)


def _rows(segment: Segment, rows: NDArray[np.int64]) -> SparseBatch:
    return gathered(lambda _: segment, np.zeros(len(rows), dtype=np.int64), rows, segment.vocabulary_size)


class StoredPostings:
    """The postings of all segments of a version, term by term. All segments are mapped at once.

    Attributes:
        document_frequency: int64 [V]; passages, not deleted, that hold each term.
    """

    def __init__(self, version: IndexVersion) -> None:
        self._segments: list[tuple[Segment, NDArray[np.int64], int]] = []
        self.document_frequency = np.zeros(version.vocabulary_size, dtype=np.int64)
        place = 0
        for entry in version.segments:
            segment, deleted = Segment(version.fetch(entry)), deleted_passages(version, entry)
            self._segments.append((segment, deleted, place))
            self.document_frequency += _document_frequency(segment)
            gone = _rows(segment, deleted).term_ids
            self.document_frequency -= np.bincount(gone, minlength=version.vocabulary_size)
            place += entry.live

    def of_term(self, term: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return a term's passages (int64 [D], their places among those that are not deleted, ascending) and impacts
        (float32 [D])."""
        passages: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        impacts: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)]
        for segment, deleted, place in self._segments:
            numbers, found = _postings_of(segment, term)
            if len(deleted) and len(numbers):
                before = np.searchsorted(deleted, numbers)
                kept = deleted[np.minimum(before, len(deleted) - 1)] != numbers
                numbers, found = (numbers - before)[kept], found[kept]
            passages.append(numbers + place)
            impacts.append(found)
        return np.concatenate(passages), np.concatenate(impacts)


def _document_frequency(segment: Segment) -> NDArray[np.int64]:
    """Return how many passages of a segment hold each term, int64 [V], deleted ones included."""
    return np.diff(segment.term_offsets)


def _postings_of(segment: Segment, term: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a term's passages within a segment (int64 [D], ascending) and impacts (float32 [D])."""
    slot = slice(int(segment.term_offsets[term]), int(segment.term_offsets[term + 1]))
    codes = segment.codes(segment.posting_impacts[slot])
    return segment.posting_passages[slot].astype(np.int64), codes if segment.decoding is None else segment.decoding[codes]


def largest_impact(version: IndexVersion, entries: Sequence[SegmentEntry]) -> float:
    """Return the largest impact of some segments, 0 where they have no term; reads the vectors of those alone whose entry
    does not tell."""
    largest = 0.0
    for entry in entries:
        if entry.max_impact:
            largest = max(largest, entry.max_impact)
            continue
        for window in windows(version, entry):
            largest = max(largest, float(window.vectors.weights.max(initial=0.0)))
    return largest
