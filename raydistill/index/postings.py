"""Inversion of sparse vectors: from rows (passage -> terms) to postings (term -> passages), gap-coded, with block maxima.

Pure array code; the file that holds the result is `segment`, its reading by queries is `accumulate` and `skipping`.

A term's postings are a list of entries (gap, impact) in ascending order of passage; the passage of an entry is the sum of
the gaps up to and with it. Gaps take 8, 12 or 16 bits, whatever makes the term smallest: their low bytes lie apart, what
is above them lies in `gap_extras`, as half a byte (the first of two entries in the low half) or a whole one. A gap that does
not fit is bridged: entries with the largest gap and impact 0 stand in between, which add nothing to any score, so that loops
over postings need no branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.index.compiled import compiled

BLOCK = 64
"""Successive passages that share one maximum a term."""
_FEW = 2
"""A term has block maxima when it has at least so many postings a block on average."""
_WIDTHS = np.array([8, 12, 16], dtype=np.int64)


@dataclass(frozen=True)
class Postings:
    """The transpose of a CSR matrix of P passages over V terms with N stored entries.

    Attributes:
        document_frequency: uint32 [V]; passages that hold the term.
        entry_counts: uint32 [V]; entries of the term, bridges included. Entries lie one term after another.
        gap_bits: uint8 [V]; 8, 12 or 16.
        gap_lows: uint8; the low bytes of all entries' gaps. gap_extras: uint8; the rest, see `extra_starts`.
        impacts: in the type of the input, of all entries.
        maxima_terms: uint32 [D]; ascending, the terms that have block maxima.
        maxima: of the input's type [D, ceil(P / BLOCK)]; the largest impact of every block, 0 where there is none.
        largest: of the input's type [V]; the largest impact of every term, 0 where there is none.
    """

    document_frequency: NDArray[np.uint32]
    entry_counts: NDArray[np.uint32]
    gap_bits: NDArray[np.uint8]
    gap_lows: NDArray[np.uint8]
    gap_extras: NDArray[np.uint8]
    impacts: NDArray[Any]
    maxima_terms: NDArray[np.uint32]
    maxima: NDArray[Any]
    largest: NDArray[Any]


def blocks_of(passages: int) -> int:
    """Return how many blocks so many passages make."""
    return (passages + BLOCK - 1) // BLOCK


def invert(row_offsets: NDArray[np.int64], terms: NDArray[Any], impacts: NDArray[Any], vocabulary_size: int) -> Postings:
    """Return the postings of a CSR matrix: O(N + P + V) time, O(N + V) memory beside the result.

    Args:
        row_offsets: int64 [P + 1].
        terms: any integer type [N], each in [0, vocabulary_size), ascending within a row.
        impacts: [N], positive, any numeric type that numba knows and whose order is that of the impacts (quantised codes
            qualify, and the bits of f16).
        vocabulary_size: V.
    """
    blocks = blocks_of(len(row_offsets) - 1)
    frequency = np.zeros(vocabulary_size, dtype=np.int64)
    _count(terms, frequency)
    offsets = starts(frequency)
    passages = np.empty(len(terms), dtype=np.uint32)
    inverted = np.empty_like(impacts)
    _scatter(row_offsets, terms, impacts, offsets[:-1].copy(), passages, inverted)
    bridges = np.zeros((len(_WIDTHS), vocabulary_size), dtype=np.int64)
    _count_bridges(offsets, passages, bridges)
    counts_of = frequency + bridges
    chosen = np.argmin(counts_of * (_WIDTHS[:, None] + 8 * impacts.dtype.itemsize), axis=0)
    counts = np.take_along_axis(counts_of, chosen[None], axis=0)[0]
    gap_bits = _WIDTHS[chosen].astype(np.uint8)
    entries, extras = starts(counts), extra_starts(counts, gap_bits)
    gap_lows = np.empty(int(entries[-1]), dtype=np.uint8)
    gap_extras = np.zeros(int(extras[-1]), dtype=np.uint8)
    bridged = np.zeros(int(entries[-1]), dtype=impacts.dtype)
    _encode(offsets, passages, inverted, gap_bits, entries, extras, gap_lows, gap_extras, bridged)
    maxima_terms = np.flatnonzero((frequency >= _FEW * blocks) & (frequency > 0))
    maxima = np.zeros((len(maxima_terms), blocks), dtype=impacts.dtype)
    largest = np.zeros(vocabulary_size, dtype=impacts.dtype)
    _fill_maxima(offsets, passages, inverted, maxima_terms, maxima, largest)
    return Postings(
        frequency.astype(np.uint32),
        counts.astype(np.uint32),
        gap_bits,
        gap_lows,
        gap_extras,
        bridged,
        maxima_terms.astype(np.uint32),
        maxima,
        largest,
    )


def starts(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each of so many lists begins when they lie one after another, and where the last ends: int64 [V + 1]."""
    ends = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends


def extra_starts(counts: NDArray[Any], gap_bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return where each term's bytes begin in `gap_extras`, int64 [V + 1], by its number of entries and bits a gap."""
    return starts((counts.astype(np.int64) * (gap_bits.astype(np.int64) - 8) + 7) // 8)


@compiled
def _count(terms, counts):  # type: ignore[no-untyped-def]
    for position in range(len(terms)):
        counts[terms[position]] += 1


@compiled
def _scatter(row_offsets, terms, impacts, cursors, passages, inverted):  # type: ignore[no-untyped-def]
    for row in range(len(row_offsets) - 1):
        for position in range(row_offsets[row], row_offsets[row + 1]):
            term = terms[position]
            place = cursors[term]
            passages[place] = row
            inverted[place] = impacts[position]
            cursors[term] = place + 1


@compiled
def _count_bridges(offsets, passages, bridges):  # type: ignore[no-untyped-def]
    for term in range(len(offsets) - 1):
        last = np.int64(0)
        for place in range(offsets[term], offsets[term + 1]):
            gap = np.int64(passages[place]) - last
            last = np.int64(passages[place])
            # A bridge covers the largest gap; what is left for the entry itself is between 1 and that.
            if gap > 255:
                bridges[0, term] += (gap - 1) // 255
                bridges[1, term] += (gap - 1) // 4095
                bridges[2, term] += (gap - 1) // 65535


@compiled
def _encode(  # type: ignore[no-untyped-def]
    offsets, passages, inverted, gap_bits, entries, extras, gap_lows, gap_extras, bridged
):
    for term in range(len(offsets) - 1):
        bits = np.int64(gap_bits[term])
        longest = (1 << bits) - 1
        first = entries[term]
        at = first
        last = np.int64(0)
        for place in range(offsets[term], offsets[term + 1]):
            left = np.int64(passages[place]) - last
            last = np.int64(passages[place])
            while True:
                gap = min(left, longest)
                gap_lows[at] = gap & 255
                if bits == 12:
                    gap_extras[extras[term] + ((at - first) >> 1)] |= (gap >> 8) << (((at - first) & 1) << 2)
                elif bits == 16:
                    gap_extras[extras[term] + at - first] = gap >> 8
                left -= gap
                at += 1
                if left == 0:
                    break
            bridged[at - 1] = inverted[place]


@compiled
def _fill_maxima(offsets, passages, impacts, maxima_terms, maxima, largest):  # type: ignore[no-untyped-def]
    for term in range(len(offsets) - 1):
        for place in range(offsets[term], offsets[term + 1]):
            largest[term] = max(largest[term], impacts[place])
    for row in range(len(maxima_terms)):
        term = maxima_terms[row]
        for place in range(offsets[term], offsets[term + 1]):
            block = passages[place] // BLOCK
            maxima[row, block] = max(maxima[row, block], impacts[place])
