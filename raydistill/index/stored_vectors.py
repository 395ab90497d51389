"""The forward half of an opened segment: rows of terms and stored impacts, and what the impacts mean. No compiled code.

The file they come from is `segment`'s affair; which segments a passage number belongs to is `forward`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.index.segment_header import Impacts, SegmentHeader


class StoredVectors:
    """The forward vectors of a segment.

    Attributes (P passages, V terms, N entries):
        passages, vocabulary_size: P, V.
        impact_type: "f32", "f16" or "u8".
        row_offsets: int64 [P + 1]. terms: uint16 or uint32 [N]. impacts: float32, float16 or uint8 [N].
    """

    def __init__(
        self, header: SegmentHeader, row_offsets: NDArray[np.int64], terms: NDArray[Any], impacts: NDArray[Any]
    ) -> None:
        self.passages = header.passages
        self.vocabulary_size = header.vocabulary_size
        self.impact_type = header.impacts
        self.row_offsets = row_offsets
        self.terms = terms
        self.impacts = impacts
        self._decoding = _decoding_table(header.impacts, header.scale)

    @property
    def decoding(self) -> NDArray[np.float32] | None:
        """Impact of every stored value: float32 [65536] by the bits of an f16, float32 [256] of a u8, None for f32."""
        return self._decoding

    def codes(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return stored impacts as what indexes `decoding` (f16 as its uint16 bits), or as they are for f32; no copy."""
        return stored.view(np.uint16) if self.impact_type == "f16" else stored


def _decoding_table(impact_type: Impacts, scale: float) -> NDArray[np.float32] | None:
    if impact_type == "f32":
        return None
    if impact_type == "f16":
        with np.errstate(invalid="ignore"):
            return np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    return np.arange(256, dtype=np.float32) * np.float32(scale)
