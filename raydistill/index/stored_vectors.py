"""The forward half of an opened segment: rows of terms and stored impacts, and what the impacts mean. No compiled code.

The file they come from is `segment`'s affair; which segments a passage number belongs to is `forward`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.index.segment_header import Impacts, SegmentHeader
from raydistill.index.term_coding import decoded_terms, pages_of


class StoredVectors:
    """The forward vectors of a segment.

    Attributes (P passages, V terms, N entries):
        passages, vocabulary_size: P, V.
        impact_type: "f32", "f16" or "u8".
        row_offsets: int64 [P + 1]. impacts: float32, float16 or uint8 [N].
        term_highs, term_lows: uint64 and uint8 [N]; the entries' terms, see `term_coding`.
    """

    def __init__(
        self,
        header: SegmentHeader,
        row_offsets: NDArray[np.int64],
        term_highs: NDArray[np.uint64],
        term_lows: NDArray[np.uint8],
        impacts: NDArray[Any],
    ) -> None:
        self.passages = header.passages
        self.vocabulary_size = header.vocabulary_size
        self.impact_type = header.impacts
        self.row_offsets = row_offsets
        self.term_highs = term_highs
        self.term_lows = term_lows
        self.impacts = impacts
        self._decoding = decoding_table(header.impacts, header.scale)

    @property
    def decoding(self) -> NDArray[np.float32] | None:
        """Impact of every stored value: float32 [65536] by the bits of an f16, float32 [256] of a u8, None for f32."""
        return self._decoding

    def terms(self, rows: NDArray[np.int64], entries: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the terms of rows (int64 [C], any order, repeats allowed), one row after another.

        Args:
            entries: int64; the positions of the rows' entries in forward order, row after row, which the caller has at hand.
        """
        pages = pages_of(self.vocabulary_size)
        return decoded_terms(self.row_offsets, self.term_highs, self.term_lows, pages, rows, entries)

    def codes(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return stored impacts as what indexes `decoding` (f16 as its uint16 bits), or as they are for f32; no copy."""
        return stored.view(np.uint16) if self.impact_type == "f16" else stored


def decoding_table(impact_type: Impacts, scale: float) -> NDArray[np.float32] | None:
    """Return the impact of every stored value (see `StoredVectors.decoding`)."""
    if impact_type == "f32":
        return None
    if impact_type == "f16":
        with np.errstate(invalid="ignore"):
            return np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    return np.arange(256, dtype=np.float32) * np.float32(scale)
