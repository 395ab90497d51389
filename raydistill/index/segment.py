"""The segment: one immutable file with the vectors, postings and ids of a run of passages, read through memory maps.

Here live the format, its writer and its reader. Searching is in `search`, publishing a set of segments in `publish`.

Format, version 3: a safetensors file (any safetensors reader opens it). All numbers are little-endian.

    8 bytes           uint64, length H of the header
    H bytes           JSON header, padded with spaces so that 8 + H is a multiple of 8
    the rest          arrays one after another without gaps, widest type first, else in the order below, so that
                      each begins at a multiple of its item size

With P passages numbered 0..P-1, V terms, N vector entries (passage, term, impact), B = ceil(P / 64) blocks of 64 successive
passages, G = ceil(V / 256) pages of terms, E >= N posting entries:

    row_offsets         I64 [P + 1]   passage p owns row_offsets[p]:row_offsets[p + 1] of term_lows and impacts
    term_highs          U64 [(N + P * G + 63) // 64 + 1]   term >> 8 of all vector entries, in unary; see `term_coding`
    id_offsets          I64 [P + 1]   passage p owns that slice of id_bytes
    term_maxima         F32 [V]       largest impact of the term, as a number; 0 where it has none
    document_frequency  U32 [V]       passages that hold the term; they sum to N
    entry_counts        U32 [V]       posting entries of the term; they sum to E
    block_terms         U32 [D]       ascending; the terms with block maxima: those of at least 2 * B postings
    id_order            U32 [P]       passage numbers in ascending order of their ids' UTF-8 bytes
    impacts             F32, F16 or U8 [N]; forward order (by passage, then term)
    posting_impacts     same type [E]; by term, then passage; 0 in a bridge
    term_lows           U8 [N]        term & 255, forward order, ascending by term within a passage
    gap_lows            U8 [E]        gap & 255 of every posting entry; by term, then passage
    gap_extras          U8            gap >> 8 of terms of 12 and 16 bits: half a byte each (the first of two in the low
                                      half; a term begins with a byte of its own), or a byte each; term after term
    gap_bits            U8 [V]        8, 12 or 16: of the term's gaps
    block_maxima        U8 [D, B]     of term block_terms[d] in passages 64 * b to 64 * b + 63 no impact exceeds
                                      block_maxima[d, b] / 255 * term_maxima; 0 where there is none
    id_bytes            U8            UTF-8 of all passage ids, joined without separators

The e-th posting entry of a term belongs to the passage that is the sum of its gaps 0..e. A gap of more bits than the term
has is bridged by entries of the largest gap and impact 0, which belong to no posting (see `postings`). (A wider `impacts`
moves up among the arrays of its width; the header gives every offset.)

The header's `__metadata__`, strings as safetensors asks: format "raydistill-segment", format_version "3", passages, postings
(N), vocabulary_size, impacts ("f32", "f16" or "u8"), scale, block ("64"). The impact of a stored value is value * scale in
float32; scale is "1.0" but for u8, where it is the largest impact of the segment / 255. sha256.NAME is the SHA-256 of each
array's bytes. The SHA-256 of the file, and that of its beginning, stand in the manifest that names it: so arrays that are
read alone are verified through the header. Equal input gives equal bytes.

At f16 impacts, a posting takes 3 to 4 bytes here and an entry of a vector 3.3 (120 of 30,522 terms a passage).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.accumulate import SegmentArrays
from raydistill.index.compiled import compiled
from raydistill.index.passage_ids import find_ids
from raydistill.index.postings import BLOCK, Postings, blocks_of, extra_starts, invert, starts
from raydistill.index.segment_header import (
    ARRAYS,
    FORMAT,
    FORMAT_VERSION,
    Impacts,
    corrupt,
    header_bytes,
    read_header,
)
from raydistill.index.stored_vectors import StoredVectors, decoding_table
from raydistill.index.term_coding import high_words, low_bytes, pages_of
from raydistill.storage.parts import HEAD_BYTES

__all__ = ["FORMAT", "FORMAT_VERSION", "Impacts", "Segment", "write_segment"]

_LARGEST_F16 = 65504.0
_SMALLEST_F16 = np.float32(2.0**-24)


def write_segment(
    path: Path, vectors: SparseBatch, passage_ids: Sequence[str], impacts: Impacts, scale: float | None = None
) -> None:
    """Write the segment of some passages; the same input always gives the same bytes.

    Memory: about twice the forward vectors, for the inversion.

    Args:
        path: file to create or overwrite.
        vectors: one row a passage. Passages without any term are allowed; they are never found by a search.
        passage_ids: one id a row, distinct.
        impacts: stored precision. f16 rounds to 11 significant bits, u8 to 255 equal steps up to the segment's
            largest impact. No stored impact becomes 0: the smallest representable one takes its place.
        scale: of u8, for vectors that were stored with it before and shall keep their codes; None: largest impact / 255.

    Raises:
        DataError: ids repeat or do not match the rows, or an impact exceeds what f16 can hold.
    """
    if len(passage_ids) != len(vectors):
        raise DataError(f"segment {path.name}: {len(vectors)} vectors but {len(passage_ids)} passage ids; they must match")
    if len(vectors) >= 2**32:
        raise DataError(f"segment {path.name}: {len(vectors)} passages exceed 2^32 - 1; lower index.passages_per_segment")
    _check_vectors(vectors, path)
    stored, scale = _quantised(vectors.weights, impacts, path, scale)
    row_offsets = np.ascontiguousarray(vectors.indptr, dtype=np.int64)
    # numba has no float16 on CPUs; the bits of positive floats order like the floats.
    codes = stored.view(np.uint16) if impacts == "f16" else stored
    postings = invert(row_offsets, vectors.term_ids, codes, vectors.vocabulary_size)
    arrays: dict[str, NDArray[Any]] = {
        "row_offsets": row_offsets,
        "term_highs": _highs(row_offsets, vectors.term_ids, vectors.vocabulary_size),
        "term_lows": low_bytes(vectors.term_ids),
        "impacts": stored,
        **_posting_arrays(postings, impacts, scale),
        **_id_arrays(passage_ids, path),
    }
    metadata = {
        "passages": str(len(vectors)),
        "postings": str(vectors.nnz),
        "vocabulary_size": str(vectors.vocabulary_size),
        "impacts": impacts,
        "scale": repr(float(scale)),
        "block": str(BLOCK),
    }
    _write_arrays(path, arrays, metadata)


def _check_vectors(vectors: SparseBatch, path: Path) -> None:
    # The compiled loops do not check bounds, and one NaN would poison every score of its passage.
    if not vectors.nnz:
        return
    if vectors.term_ids.min() < 0 or vectors.term_ids.max() >= vectors.vocabulary_size:
        raise DataError(f"segment {path.name}: a term id lies outside the vocabulary of {vectors.vocabulary_size} terms")
    if not (vectors.weights.min() > 0 and np.isfinite(vectors.weights.max())):
        raise DataError(f"segment {path.name}: impacts must be finite and > 0; the document encoder gave others")


def _quantised(weights: NDArray[np.float32], impacts: Impacts, path: Path, kept: float | None) -> tuple[NDArray[Any], float]:
    """Return the stored values of float32 impacts and the factor that turns them back; of u8 the kept one, if any."""
    if impacts == "f32" or not len(weights):
        return weights.astype({"f32": np.float32, "f16": np.float16, "u8": np.uint8}[impacts]), 1.0
    largest = float(weights.max())
    if impacts == "f16":
        if largest > _LARGEST_F16:
            raise DataError(
                f"segment {path.name}: an impact of {largest:g} exceeds the largest f16 number (65504); "
                "set index.impacts to f32 or u8"
            )
        return np.maximum(weights, _SMALLEST_F16).astype(np.float16), 1.0
    scale = max(np.float32(largest / 255.0 if kept is None else kept), np.finfo(np.float32).tiny)
    return np.clip(np.rint(weights / scale), 1, 255).astype(np.uint8), float(scale)


def _highs(row_offsets: NDArray[np.int64], terms: NDArray[np.int32], vocabulary_size: int) -> NDArray[np.uint64]:
    words = np.zeros(high_words(len(terms), len(row_offsets) - 1, vocabulary_size), dtype=np.uint64)
    _set_high_bits(row_offsets, terms, pages_of(vocabulary_size), words)
    return words


@compiled
def _set_high_bits(row_offsets, terms, pages, words):  # type: ignore[no-untyped-def]
    for row in range(len(row_offsets) - 1):
        for position in range(row_offsets[row], row_offsets[row + 1]):
            # Entries before those of the row, and the entry's own number in it, make up its position.
            bit = position + row * pages + (np.int64(terms[position]) >> 8)
            words[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)


def _posting_arrays(postings: Postings, impacts: Impacts, scale: float) -> dict[str, NDArray[Any]]:
    table = decoding_table(impacts, scale)
    as_stored = np.float16 if impacts == "f16" else postings.impacts.dtype
    largest = postings.largest if table is None else table[postings.largest]
    maxima = np.zeros(postings.maxima.shape, dtype=np.uint8)
    for place, term in enumerate(postings.maxima_terms.tolist()):
        row = postings.maxima[place] if table is None else table[postings.maxima[place]]
        # In double precision a quotient is never too small by as much as searches inflate the bound.
        maxima[place] = np.clip(np.ceil(row.astype(np.float64) * 255.0 / np.float64(largest[term])), 0, 255)
    return {
        "term_maxima": largest,
        "document_frequency": postings.document_frequency,
        "entry_counts": postings.entry_counts,
        "block_terms": postings.maxima_terms,
        "posting_impacts": postings.impacts.view(as_stored),
        "gap_lows": postings.gap_lows,
        "gap_extras": postings.gap_extras,
        "gap_bits": postings.gap_bits,
        "block_maxima": maxima,
    }


def _id_arrays(passage_ids: Sequence[str], path: Path) -> dict[str, NDArray[Any]]:
    encoded = [passage_id.encode() for passage_id in passage_ids]
    order = sorted(range(len(encoded)), key=encoded.__getitem__)
    for before, after in pairwise(order):
        if encoded[before] == encoded[after]:
            raise DataError(
                f"segment {path.name}: passage id {passage_ids[before]!r} occurs twice, in rows {before} and {after}; "
                "every passage needs an id of its own"
            )
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(content) for content in encoded], out=offsets[1:])
    return {
        "id_offsets": offsets,
        "id_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "id_order": np.asarray(order, dtype=np.uint32),
    }


def _write_arrays(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    little = {name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    head, names = header_bytes(little, metadata)
    with path.open("wb") as file:
        file.write(head)
        for name in names:
            little[name].tofile(file)


class Segment(StoredVectors):
    """A segment file opened for reading; arrays are read-only views of one memory map and load on first touch.

    Attributes (P passages, V terms, N entries; types as in the module's format), besides those of StoredVectors:
        postings: N.
        scale: float; impact = stored value * scale.
        document_frequency: uint32 [V]; passages that hold each term.
        id_offsets, id_bytes, id_order: external ids.
        arrays: what the search loops read. Read postings by `postings_of`.
    """

    document_frequency: NDArray[np.uint32]
    entry_counts: NDArray[np.uint32]
    block_terms: NDArray[np.uint32]
    gap_bits: NDArray[np.uint8]
    gap_lows: NDArray[np.uint8]
    gap_extras: NDArray[np.uint8]
    posting_impacts: NDArray[Any]
    term_maxima: NDArray[np.float32]
    block_maxima: NDArray[np.uint8]
    id_offsets: NDArray[np.int64]
    id_order: NDArray[np.uint32]
    id_bytes: NDArray[np.uint8]

    def __init__(self, path: Path) -> None:
        """Open the file. Raises CorruptObjectError when it is truncated, no segment, or of an unknown version."""
        with path.open("rb") as file:
            header = read_header(file.read(HEAD_BYTES), path)
        size = path.stat().st_size
        if size != header.file_size:
            raise corrupt(path, f"it has {size} bytes but its header describes {header.file_size}")
        content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        arrays = {name: at.view(content[at.start : at.start + at.size]) for name, at in header.sections.items()}
        super().__init__(header, *(arrays[name] for name in ("row_offsets", "term_highs", "term_lows", "impacts")))
        self.path = path
        self.postings = header.postings
        self.scale = header.scale
        self.block = header.block
        for name in ARRAYS:
            setattr(self, name, arrays[name])
        self.arrays = self._checked()

    def _checked(self) -> SegmentArrays:
        """Return the arrays of the loops, which do not check bounds."""
        if self.block != BLOCK:
            raise corrupt(self.path, f"its blocks have {self.block} passages instead of {BLOCK}")
        passages, vocabulary, blocks = self.passages, self.vocabulary_size, blocks_of(self.passages)
        if len(self.entry_counts) != vocabulary or len(self.gap_bits) != vocabulary:
            raise corrupt(self.path, f"it does not describe the postings of {vocabulary} terms")
        entry_offsets, extra_offsets = starts(self.entry_counts), extra_starts(self.entry_counts, self.gap_bits)
        shapes: dict[str, tuple[int, ...]] = {
            "row_offsets": (passages + 1,),
            "term_highs": (high_words(self.postings, passages, vocabulary),),
            "id_offsets": (passages + 1,),
            "term_maxima": (vocabulary,),
            "document_frequency": (vocabulary,),
            "block_terms": (len(self.block_terms),),
            "id_order": (passages,),
            "impacts": (self.postings,),
            "posting_impacts": (int(entry_offsets[-1]),),
            "term_lows": (self.postings,),
            "gap_lows": (int(entry_offsets[-1]),),
            "gap_extras": (int(extra_offsets[-1]),),
            "block_maxima": (len(self.block_terms), blocks),
            "id_bytes": (int(self.id_offsets[-1]) if len(self.id_offsets) else 0,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise corrupt(self.path, f"array {name} has shape {getattr(self, name).shape} instead of {shape}")
        if self.row_offsets[-1] != self.postings or self.document_frequency.sum(dtype=np.int64) != self.postings:
            raise corrupt(self.path, f"its offsets do not end at {self.postings} postings")
        block_places = np.full(vocabulary, -1, dtype=np.int64)
        block_places[self.block_terms] = np.arange(len(self.block_terms))
        return SegmentArrays(
            entry_offsets=entry_offsets,
            extra_offsets=extra_offsets,
            gap_bits=self.gap_bits,
            gap_lows=self.gap_lows,
            gap_extras=self.gap_extras,
            posting_codes=self.codes(self.posting_impacts),
            decoding=self.decoding,
            term_maxima=self.term_maxima,
            block_places=block_places,
            block_maxima=self.block_maxima,
            row_offsets=self.row_offsets,
            term_highs=self.term_highs,
            term_lows=self.term_lows,
            pages=pages_of(vocabulary),
            codes=self.codes(self.impacts),
        )

    def postings_of(self, term: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the passages that hold a term, ascending, int64 [df], and its impacts in them, float32 [df]."""
        start, stop = self.arrays.entry_offsets[term : term + 2].tolist()
        first, last = self.arrays.extra_offsets[term : term + 2].tolist()
        extras = self.gap_extras[first:last]
        if self.gap_bits[term] == 12:
            extras = np.stack([extras & 15, extras >> 4], axis=1).reshape(-1)[: stop - start]
        gaps = self.gap_lows[start:stop].astype(np.int64)
        if len(extras):
            gaps |= extras.astype(np.int64) << 8
        codes = self.codes(self.posting_impacts[start:stop])
        real = codes != 0
        passages = np.cumsum(gaps)[real]
        return passages, codes[real] if self.decoding is None else self.decoding[codes[real]]

    def passage_id(self, number: int) -> str:
        """Return the external id of a passage, by its number within the segment."""
        start, stop = int(self.id_offsets[number]), int(self.id_offsets[number + 1])
        return self.id_bytes[start:stop].tobytes().decode()

    def find(self, passage_id: str) -> int:
        """Return the number of the passage with this id, or -1."""
        return int(self.find_all([passage_id])[0])

    def find_all(self, passage_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of passages by id, int64 [len(passage_ids)], -1 where unknown; O(log P) each."""
        return find_ids(self.id_offsets, self.id_bytes, self.id_order, passage_ids)
