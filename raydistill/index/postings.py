"""Inversion of sparse vectors: from rows (passage -> terms) to postings (term -> passages), and their block maxima.

Pure array code; the file that holds the result is `segment`, its reading by queries is `accumulate`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.index.compiled import compiled

BLOCK = 128
"""Postings in a block that shares one maximum."""


@dataclass(frozen=True)
class Postings:
    """The transpose of a CSR matrix of P passages over V terms with N stored entries.

    Attributes:
        term_offsets: int64 [V + 1]; term t owns the slice term_offsets[t]:term_offsets[t + 1] of the next two.
        passages: uint32 [N]; row numbers, strictly ascending within a term.
        impacts: [N], in the type of the input.
        block_offsets: int64 [V + 1]; term t owns block_offsets[t]:block_offsets[t + 1] of block_maxima.
        block_maxima: the largest impact of every `BLOCK` successive postings of a term (the last block is shorter).
    """

    term_offsets: NDArray[np.int64]
    passages: NDArray[np.uint32]
    impacts: NDArray[Any]
    block_offsets: NDArray[np.int64]
    block_maxima: NDArray[Any]


def invert(row_offsets: NDArray[np.int64], terms: NDArray[Any], impacts: NDArray[Any], vocabulary_size: int) -> Postings:
    """Return the postings of a CSR matrix by a counting sort: O(N + P + V) time, O(N + V) extra memory.

    Args:
        row_offsets: int64 [P + 1].
        terms: uint16 or uint32 [N], each in [0, vocabulary_size).
        impacts: [N], positive, any numeric type whose order is the order of the impacts (quantised codes qualify).
        vocabulary_size: V.
    """
    if impacts.dtype == np.float16:
        # numba has no float16 on CPUs; the bits of positive floats order like the floats.
        postings = invert(row_offsets, terms, impacts.view(np.uint16), vocabulary_size)
        return replace(
            postings,
            impacts=postings.impacts.view(np.float16),
            block_maxima=postings.block_maxima.view(np.float16),
        )
    term_offsets = np.zeros(vocabulary_size + 1, dtype=np.int64)
    _count(terms, term_offsets[1:])
    np.cumsum(term_offsets, out=term_offsets)
    passages = np.empty(len(terms), dtype=np.uint32)
    inverted = np.empty_like(impacts)
    _scatter(row_offsets, terms, impacts, term_offsets[:-1].copy(), passages, inverted)
    block_offsets = np.zeros(vocabulary_size + 1, dtype=np.int64)
    np.cumsum((np.diff(term_offsets) + BLOCK - 1) // BLOCK, out=block_offsets[1:])
    block_maxima = np.empty(int(block_offsets[-1]), dtype=impacts.dtype)
    _fill_block_maxima(term_offsets, inverted, block_offsets, block_maxima)
    return Postings(term_offsets, passages, inverted, block_offsets, block_maxima)


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
def _fill_block_maxima(term_offsets, impacts, block_offsets, block_maxima):  # type: ignore[no-untyped-def]
    for term in range(len(term_offsets) - 1):
        start = term_offsets[term]
        stop = term_offsets[term + 1]
        for block in range(block_offsets[term + 1] - block_offsets[term]):
            first = start + block * BLOCK
            largest = impacts[first]
            for position in range(first + 1, min(first + BLOCK, stop)):
                largest = max(largest, impacts[position])
            block_maxima[block_offsets[term] + block] = largest
