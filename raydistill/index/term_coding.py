"""Term ids in 10 to 11 bits each: low bytes apart, high bits in unary (Elias-Fano). Plain NumPy, but for the encoder.

A vocabulary of V terms is cut into `pages` of 256. Of the N entries in forward order, `term_lows` holds term & 255.
Passage r with entries row_offsets[r]:row_offsets[r + 1] owns the bits row_offsets[r] + r * pages up to row_offsets[r + 1]
+ (r + 1) * pages of `term_highs`; bit b is bit b & 63 of word b >> 6. Among them, the j-th entry of the passage (from 0)
sets the one at j + (term >> 8); so every page ends with a zero. That takes 8 + 1 + pages * P / N bits an entry: 10 for
120 of 30,522 terms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pages_of(vocabulary_size: int) -> int:
    """Return how many pages of 256 terms a vocabulary has."""
    return (vocabulary_size + 255) >> 8


def high_words(postings: int, passages: int, vocabulary_size: int) -> int:
    """Return the length of `term_highs`: all bits, and one word more, so that loops may read one ahead."""
    return (postings + passages * pages_of(vocabulary_size) + 63) // 64 + 1


def decoded_terms(
    row_offsets: NDArray[np.int64],
    highs: NDArray[np.uint64],
    lows: NDArray[np.uint8],
    pages: int,
    rows: NDArray[np.int64],
    entries: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Return the term ids of rows, one row after another, int32 [entries of all rows].

    Args:
        row_offsets, highs, lows: of the segment. pages: of its vocabulary.
        rows: int64 [C], any order, repeats allowed. entries: int64, the positions of the rows' entries in forward order.
    """
    starts, stops = row_offsets[rows] + rows * pages, row_offsets[rows + 1] + (rows + 1) * pages
    first_bytes = starts >> 3
    sizes = ((stops + 7) >> 3) - first_bytes
    ends = np.cumsum(sizes)
    # Byte i of the gathered ones belongs to a row and lies at first_bytes + its place within the row.
    shift = first_bytes - (ends - sizes)
    packed = _bytes_of(highs)[np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(shift, sizes)]
    bits = np.unpackbits(packed, bitorder="little")
    first_bits = (ends - sizes) * 8 + (starts & 7)
    # The bytes at both ends of a row hold bits of its neighbours.
    _clear(bits, (ends - sizes) * 8, first_bits)
    _clear(bits, first_bits + (stops - starts), ends * 8)
    ones = np.flatnonzero(bits)
    counts = row_offsets[rows + 1] - row_offsets[rows]
    before = np.cumsum(counts) - counts
    highest = ones - np.repeat(first_bits - before, counts) - np.arange(len(ones))
    return ((highest << 8) | lows[entries]).astype(np.int32)


def _bytes_of(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return words.astype("<u8", copy=False).view(np.uint8)


def _clear(bits: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
    """Set bits[start:stop] to 0 for ranges of less than 8."""
    for place in range(7):
        bits[(starts + place)[starts + place < stops]] = 0


def low_bytes(terms: NDArray[Any]) -> NDArray[np.uint8]:
    """Return term & 255 of term ids."""
    return terms.astype(np.uint8)
