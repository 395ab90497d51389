"""The segment: one immutable file with the vectors, postings and ids of a run of passages, read through memory maps.

Here live the format, its writer and its reader. Searching is in `search`, publishing a set of segments in `publish`.

Format, version 2: a safetensors file (any safetensors reader opens it). All numbers are little-endian.

    8 bytes           uint64, length H of the header
    H bytes           JSON header, padded with spaces so that 8 + H is a multiple of 8
    the rest          arrays one after another without gaps, in the order below, widest type first, so that
                      each begins at a multiple of its item size

With P passages numbered 0..P-1, V terms, N entries (passage, term, impact), B blocks of 128 postings:

    row_offsets       I64 [P + 1]   passage p owns row_offsets[p]:row_offsets[p + 1] of terms and impacts
    term_offsets      I64 [V + 1]   term t owns that slice of posting_passages and posting_impacts
    block_offsets     I64 [V + 1]   term t owns that slice of block_maxima
    id_offsets        I64 [P + 1]   passage p owns that slice of id_bytes
    id_order          U32 [P]       passage numbers in ascending order of their ids' UTF-8 bytes
    posting_passages  U32 [N]       ascending within a term
    terms             U16 [N] where V <= 65,536, else U32 [N]; ascending within a passage
    impacts           F32, F16 or U8 [N]; forward order (by passage, then term)
    posting_impacts   same type [N]; by term, then passage
    block_maxima      same type [B]; largest impact of each 128 successive postings of a term
    id_bytes          U8            UTF-8 of all passage ids, joined without separators

(Wider `terms` or `impacts` move up among the arrays of their width; the header gives every offset.) The header's
`__metadata__`, strings as safetensors asks: format "raydistill-segment", format_version "1", passages, postings,
vocabulary_size, impacts ("f32", "f16" or "u8"), scale, block ("128"). The impact of a stored value is value * scale in
float32; scale is "1.0" but for u8, where it is the largest impact of the segment / 255. sha256.NAME is the SHA-256 of
each array's bytes. The SHA-256 of the file, and that of its beginning, stand in the manifest that names it: so arrays
that are read alone are verified through the header. Equal input gives equal bytes.
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
from raydistill.index.passage_ids import find_ids
from raydistill.index.postings import BLOCK, Postings, invert
from raydistill.index.segment_header import (
    ARRAYS,
    FORMAT,
    FORMAT_VERSION,
    Impacts,
    corrupt,
    header_bytes,
    read_header,
)
from raydistill.index.stored_vectors import StoredVectors
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
    terms = vectors.term_ids.astype(np.uint16 if vectors.vocabulary_size <= 65536 else np.uint32)
    row_offsets = np.ascontiguousarray(vectors.indptr, dtype=np.int64)
    postings = invert(row_offsets, terms, stored, vectors.vocabulary_size)
    arrays = {
        "row_offsets": row_offsets,
        "terms": terms,
        "impacts": stored,
        **_posting_arrays(postings),
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


def _posting_arrays(postings: Postings) -> dict[str, NDArray[Any]]:
    return {
        "term_offsets": postings.term_offsets,
        "posting_passages": postings.passages,
        "posting_impacts": postings.impacts,
        "block_offsets": postings.block_offsets,
        "block_maxima": postings.block_maxima,
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
        term_offsets, posting_passages, posting_impacts, block_offsets, block_maxima: postings.
        id_offsets, id_bytes, id_order: external ids.
    """

    term_offsets: NDArray[np.int64]
    block_offsets: NDArray[np.int64]
    id_offsets: NDArray[np.int64]
    id_order: NDArray[np.uint32]
    posting_passages: NDArray[np.uint32]
    posting_impacts: NDArray[Any]
    block_maxima: NDArray[Any]
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
        super().__init__(header, arrays["row_offsets"], arrays["terms"], arrays["impacts"])
        self.path = path
        self.postings = header.postings
        self.scale = header.scale
        self.block = header.block
        for name in ARRAYS:
            setattr(self, name, arrays[name])
        self._check()

    def _check(self) -> None:
        lengths = {
            "row_offsets": self.passages + 1,
            "id_offsets": self.passages + 1,
            "id_order": self.passages,
            "term_offsets": self.vocabulary_size + 1,
            "block_offsets": self.vocabulary_size + 1,
            "terms": self.postings,
            "impacts": self.postings,
            "posting_passages": self.postings,
            "posting_impacts": self.postings,
            "block_maxima": int(self.block_offsets[-1]) if len(self.block_offsets) else 0,
            "id_bytes": int(self.id_offsets[-1]) if len(self.id_offsets) else 0,
        }
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise corrupt(self.path, f"array {name} has {len(getattr(self, name))} items instead of {length}")
        if self.row_offsets[-1] != self.postings or self.term_offsets[-1] != self.postings:
            raise corrupt(self.path, f"its offsets do not end at {self.postings} postings")

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
