"""Stored passage vectors without their postings: all that training reads of an index, and the share of its terms.

Of every segment that a passage is asked of, four sections are fetched: row_offsets, term_highs, term_lows and impacts, on
first use, through the local cache, each verified by its own SHA-256 (the manifest vouches for the header, the header for its
sections). A local run root is mapped in place, and nothing is copied.

Bounds. Disk: 24 bytes a passage and, at f16 impacts, 3.1 bytes a posting of the segments touched (30,522 terms; one byte a
passage more for each 2,048 further ones); postings, half of a segment, never come. The cache evicts beyond its bound, but
a mapped section keeps its space until the process ends, so a cache smaller than the forward sections in use does not save
disk. Memory: mapped pages, which the kernel drops when it needs them, and the vectors returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.publish import IndexVersion, SegmentEntry
from raydistill.index.segment_header import SegmentHeader, corrupt, read_header
from raydistill.index.stored_vectors import StoredVectors
from raydistill.index.tombstones import deleted_passages
from raydistill.storage.parts import HEAD_BYTES

_ROWS_AT_A_TIME = 65_536


class ForwardVectors:
    """The vectors of an index version by passage number, equal to the bit to those of `search.Searcher`.

    Opening it reads nothing; see the module for what is fetched when, and for the bounds.
    """

    def __init__(self, version: IndexVersion) -> None:
        self.vocabulary_size = version.vocabulary_size
        self._version = version
        self._segments = sorted(version.segments, key=lambda segment: segment.first_passage)
        self._first = np.asarray([segment.first_passage for segment in self._segments], dtype=np.int64)
        self._ends = self._first + np.asarray([segment.passages for segment in self._segments], dtype=np.int64)
        self._opened: dict[int, StoredVectors] = {}

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        """Return the stored vectors of passages (int64 [C], any order, repeats allowed), impacts as float32.

        Raises:
            DataError: a number is no passage of the index.
            CorruptObjectError: a section is damaged.
        """
        numbers = np.asarray(passages, dtype=np.int64)
        owners = owning_segments(numbers, self._first, self._ends)
        return gathered(self._open, owners, numbers - self._first[owners], self.vocabulary_size)

    def _open(self, position: int) -> StoredVectors:
        if position not in self._opened:
            self._opened[position] = forward_vectors(self._version, self._segments[position])
        return self._opened[position]


def owning_segments(numbers: NDArray[np.int64], first: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of the segment of every passage number; segment s holds first[s]..ends[s] - 1, ascending.

    Raises DataError for a number that none holds.
    """
    owners = np.searchsorted(first, numbers, side="right") - 1
    bad = (owners < 0) | (numbers >= ends[np.maximum(owners, 0)])
    if np.any(bad):
        raise DataError(
            f"passage number {int(numbers[bad][0])} is not in the index of {int((ends - first).sum())} passages; "
            "the candidates or scores were made with another index version"
        )
    return owners


def gathered(
    segment: Callable[[int], StoredVectors], owners: NDArray[np.int64], rows: NDArray[np.int64], vocabulary_size: int
) -> SparseBatch:
    """Return stored vectors, impacts as float32.

    In plain NumPy: beside an encoder's pass the copy costs nothing, and a training worker need not load a compiler.

    Args:
        segment: gives the segment at a position; asked for those that own a row only.
        owners: int64 [C]; position of each vector's segment. rows: int64 [C]; its number within that segment.
    """
    of_segment = [(segment(int(position)), np.where(owners == position, rows, -1)) for position in np.unique(owners)]
    lengths = np.zeros(len(rows), dtype=np.int64)
    for stored, local in of_segment:
        here = local >= 0
        lengths[here] = stored.row_offsets[local[here] + 1] - stored.row_offsets[local[here]]
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    terms = np.empty(int(indptr[-1]), dtype=np.int32)
    weights = np.empty(int(indptr[-1]), dtype=np.float32)
    for stored, local in of_segment:
        rows_here = np.flatnonzero(local >= 0)
        sizes = lengths[rows_here]
        # Entry e of row r lies at row_offsets[r] + e there and goes to indptr[r] + e here.
        entry = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        source = np.repeat(stored.row_offsets[local[rows_here]], sizes) + entry
        target = np.repeat(indptr[rows_here], sizes) + entry
        terms[target] = stored.terms(local[rows_here], source)
        codes = stored.codes(stored.impacts[source])
        weights[target] = codes if stored.decoding is None else stored.decoding[codes]
    return SparseBatch(indptr, terms, weights, vocabulary_size)


def document_share(version: IndexVersion) -> NDArray[np.float32]:
    """Return the share of an index's passages that hold each term, float32 [V]; deleted passages do not count.

    Fetches the document frequencies alone, and of segments with deleted passages the forward vectors too.
    """
    return (document_frequency(version) / max(1, version.live)).astype(np.float32)


def document_frequency(version: IndexVersion) -> NDArray[np.int64]:
    """Return how many passages that are not deleted hold each term, int64 [V]."""
    counts = np.zeros(version.vocabulary_size, dtype=np.int64)
    for segment in version.segments:
        counts += segment_frequency(version, segment)
        if segment.tombstone is not None:
            counts -= row_frequency(forward_vectors(version, segment), deleted_passages(version, segment))
    return counts


def segment_frequency(version: IndexVersion, segment: SegmentEntry) -> NDArray[np.int64]:
    """Return how many passages of a segment hold each term, int64 [V], deleted ones included; fetches that alone."""
    frequency = _section(version, segment, segment_header(version, segment), "document_frequency")
    return frequency.astype(np.int64)


def row_frequency(stored: StoredVectors, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many of some rows of a segment, int64 [C], hold each term: int64 [V]."""
    counts = np.zeros(stored.vocabulary_size, dtype=np.int64)
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        vectors = gathered_rows(stored, rows[start : start + _ROWS_AT_A_TIME])
        counts += np.bincount(vectors.term_ids, minlength=stored.vocabulary_size)
    return counts


def gathered_rows(stored: StoredVectors, rows: NDArray[np.int64]) -> SparseBatch:
    """Return the vectors of some rows of one segment, int64 [C], impacts as float32."""
    return gathered(lambda _: stored, np.zeros(len(rows), dtype=np.int64), rows, stored.vocabulary_size)


def forward_vectors(version: IndexVersion, segment: SegmentEntry) -> StoredVectors:
    """Return a segment's forward vectors, mapped; fetches their four sections."""
    header = segment_header(version, segment)
    arrays = [_section(version, segment, header, name) for name in ("row_offsets", "term_highs", "term_lows", "impacts")]
    return StoredVectors(header, *arrays)


def passage_id_arrays(
    version: IndexVersion, segment: SegmentEntry
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint32]]:
    """Return a segment's id_offsets, id_bytes and id_order (see `segment`), mapped; fetches these sections alone."""
    header = segment_header(version, segment)
    offsets, content, order = (_section(version, segment, header, name) for name in ("id_offsets", "id_bytes", "id_order"))
    return offsets, content, order


def segment_header(version: IndexVersion, segment: SegmentEntry) -> SegmentHeader:
    """Return a segment's header; fetches the beginning of its file."""
    size = min(HEAD_BYTES, segment.size)
    path, start = version.fetch_range(segment, 0, size, segment.head_sha256)
    with path.open("rb") as file:
        file.seek(start)
        header = read_header(file.read(size), path)
    if (header.file_size, header.vocabulary_size) != (segment.size, version.vocabulary_size):
        raise corrupt(path, "its header describes another segment than the manifest")
    return header


def _section(version: IndexVersion, segment: SegmentEntry, header: SegmentHeader, name: str) -> NDArray[Any]:
    """Return an array of a segment as a read-only memory map, fetched when needed."""
    section = header.sections[name]
    if not section.size:
        return np.zeros(section.shape, dtype=section.dtype)
    path, start = version.fetch_range(segment, section.start, section.size, section.sha256)
    return section.view(np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=(section.size,))))
