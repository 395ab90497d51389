"""What a published index holds, read for other formats: vectors by windows of passages, postings by term.

This is the one module of the exchange that knows how segments store things. Segments are fetched through the local cache
and memory-mapped; what is returned is decoded to float32.
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
    """Yield passages first..stop - 1 of a segment (its own numbers), at most 4,096 at a time; only these are in memory."""
    segment = Segment(version.fetch(entry))
    stop = segment.passages if stop is None else stop
    for start in range(first, stop, _WINDOW):
        rows = np.arange(start, min(start + _WINDOW, stop))
        vectors = gathered(lambda _: segment, np.zeros(len(rows), dtype=np.int64), rows, version.vocabulary_size)
        ids = [segment.passage_id(int(row)) for row in rows]
        yield Window(rows + entry.first_passage, ids, vectors)


class StoredPostings:
    """The postings of all segments of a version, term by term. All segments are mapped at once."""

    def __init__(self, version: IndexVersion) -> None:
        self._segments = [(Segment(version.fetch(entry)), entry.first_passage) for entry in version.segments]
        frequency = np.zeros(version.vocabulary_size, dtype=np.int64)
        for segment, _ in self._segments:
            frequency += np.diff(segment.term_offsets)
        self.document_frequency = frequency
        """int64 [V]; passages that hold each term."""

    def of_term(self, term: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return a term's passages (int64 [D], numbers within the index, ascending) and impacts (float32 [D])."""
        passages: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        impacts: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)]
        for segment, first in self._segments:
            start, stop = int(segment.term_offsets[term]), int(segment.term_offsets[term + 1])
            if start == stop:
                continue
            codes = segment.codes(segment.posting_impacts[start:stop])
            passages.append(segment.posting_passages[start:stop].astype(np.int64) + first)
            impacts.append(codes if segment.decoding is None else segment.decoding[codes])
        return np.concatenate(passages), np.concatenate(impacts)


def largest_impact(version: IndexVersion, entries: Sequence[SegmentEntry]) -> float:
    """Return the largest impact of some segments, 0 where they have no term."""
    largest = 0.0
    for entry in entries:
        for window in windows(version, entry):
            largest = max(largest, float(window.vectors.weights.max(initial=0.0)))
    return largest
