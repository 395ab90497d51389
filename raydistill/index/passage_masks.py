"""Masks: sets of a segment's passages as bits, for loops that must ask of every passage whether it counts.

A mask is uint8 [ceil(P / 8)] for a segment of P passages; passage p is in the set when bit p & 7 of byte p >> 3 is set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]


def mask_of(passages: int, numbers: Sequence[int] | NDArray[np.integer]) -> Mask:
    """Return the mask of the given numbers (within the segment, any order, repeats allowed) among so many passages."""
    chosen = np.zeros(passages, dtype=bool)
    chosen[np.asarray(numbers, dtype=np.int64)] = True
    return np.packbits(chosen, bitorder="little")


def mask_without(passages: int, numbers: Sequence[int] | NDArray[np.integer]) -> Mask:
    """Return the mask of all passages but the given numbers."""
    chosen = np.ones(passages, dtype=bool)
    chosen[np.asarray(numbers, dtype=np.int64)] = False
    return np.packbits(chosen, bitorder="little")


def members(mask: Mask, numbers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which of the numbers (int [C], within the segment) are in the mask, bool [C]."""
    wanted = np.asarray(numbers, dtype=np.int64)
    return ((mask[wanted >> 3] >> (wanted & 7).astype(np.uint8)) & 1).astype(bool)


def others(mask: Mask, passages: int) -> NDArray[np.int64]:
    """Return the numbers, of so many passages, that are not in the mask: int64, ascending."""
    return np.flatnonzero(np.unpackbits(mask, count=passages, bitorder="little") == 0)
