"""The compiled loops that compute scores: over postings, term by term, and of single passages from forward vectors.

They know arrays only; `search` gives them segments and queries. Every score that is returned is a float32 sum over the
query's terms in ascending order of query weight * impact, whether it is taken from postings or from forward vectors: the
two are equal to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raydistill.index.compiled import compiled, trailing_zeros
from raydistill.index.heaps import keep_best, make_heap
from raydistill.index.postings import BLOCK

SMALLEST = np.float32(2.0**-149)  # float32 above 0


class SegmentArrays(NamedTuple):
    """What the loops read of a segment; P passages, V terms (see `segment` for the meaning of the stored arrays).

    entry_offsets, extra_offsets: int64 [V + 1], of a term's gap_lows and posting_codes, and of its gap_extras. block_places:
    int64 [V]; row of block_maxima, -1 without. term_highs, term_lows, pages: see `term_coding`. posting_codes, codes: the
    impacts as what indexes `decoding` (see `StoredVectors`), or, decoding None, as float32 themselves.
    """

    entry_offsets: NDArray[np.int64]
    extra_offsets: NDArray[np.int64]
    gap_bits: NDArray[np.uint8]
    gap_lows: NDArray[np.uint8]
    gap_extras: NDArray[np.uint8]
    posting_codes: NDArray[Any]
    decoding: NDArray[np.float32] | None
    term_maxima: NDArray[np.float32]
    block_places: NDArray[np.int64]
    block_maxima: NDArray[np.uint8]
    row_offsets: NDArray[np.int64]
    term_highs: NDArray[np.uint64]
    term_lows: NDArray[np.uint8]
    pages: int
    codes: NDArray[Any]


@compiled
def first_fault(terms, weights, vocabulary_size):  # type: ignore[no-untyped-def]
    """Return the position of the first entry whose term or weight the loops cannot take, -1 when there is none."""
    for place in range(len(terms)):
        if terms[place] < 0 or terms[place] >= vocabulary_size or not 0 < weights[place] < np.inf:
            return place
    return -1


@compiled
def impact_of(code, decoding):  # type: ignore[no-untyped-def]
    """Return the impact of a stored value, float32."""
    if decoding is None:
        return code
    return decoding[code]


@compiled
def add_term(lists, term, weight, accumulators):  # type: ignore[no-untyped-def]
    """Add weight * impact of every posting of a term to its passage's accumulator, and return how many entries it has."""
    start = lists.entry_offsets[term]
    count = lists.entry_offsets[term + 1] - start
    lows = lists.gap_lows[start : start + count]
    extras = lists.gap_extras[lists.extra_offsets[term] : lists.extra_offsets[term + 1]]
    codes = lists.posting_codes[start : start + count]
    decoding = lists.decoding
    passage = np.uint64(0)
    if lists.gap_bits[term] == 8:
        for place in range(count):
            passage += np.uint64(lows[place])
            accumulators[passage] += weight * impact_of(codes[place], decoding)
    elif lists.gap_bits[term] == 12:
        for place in range(count):
            extra = (np.uint64(extras[place >> 1]) >> np.uint64((place & 1) << 2)) & np.uint64(15)
            passage += np.uint64(lows[place]) | (extra << np.uint64(8))
            accumulators[passage] += weight * impact_of(codes[place], decoding)
    else:
        for place in range(count):
            passage += np.uint64(lows[place]) | (np.uint64(extras[place]) << np.uint64(8))
            accumulators[passage] += weight * impact_of(codes[place], decoding)
    return count


@compiled
def exact_score(lists, row, dense_query):  # type: ignore[no-untyped-def]
    """Return the score of one passage from its forward vector; dense_query is float32 [V]."""
    start = lists.row_offsets[row]
    stop = lists.row_offsets[row + 1]
    codes = lists.codes[start:stop]
    lows = lists.term_lows[start:stop]
    decoding = lists.decoding
    bit = start + row * lists.pages
    at = bit >> 6
    word = lists.term_highs[at] & (np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(bit & 63))
    base = (at << 6) - bit
    total = np.float32(0.0)
    for place in range(stop - start):
        while word == np.uint64(0):
            at += 1
            base += 64
            word = lists.term_highs[at]
        page = np.uint64(base + np.int64(trailing_zeros(word)) - place)
        word &= word - np.uint64(1)
        total += dense_query[(page << np.uint64(8)) | np.uint64(lows[place])] * impact_of(codes[place], decoding)
    return total


@compiled
def is_allowed(allowed, passage):  # type: ignore[no-untyped-def]
    """Whether a passage may be found: its bit in a mask (see `passage_masks`), None for all."""
    return allowed is None or (allowed[passage >> 3] >> (passage & 7)) & 1


@compiled
def any_reaches(values, start, level):  # type: ignore[no-untyped-def]
    """Whether one of BLOCK successive values is at least the level."""
    block = values[start : start + BLOCK]
    found = np.int32(0)
    # In a form that compilers turn into vector instructions, unlike a search that ends at the first.
    for place in range(BLOCK):
        found |= np.int32(block[place] >= level)
    return found != 0


@compiled
def collect(accumulators, size, first_passage, allowed, scores, passages, filled):  # type: ignore[no-untyped-def]
    """Put the passages with a score into a heap, set their accumulators to 0, and return how many the heap holds.

    accumulators: float32, whole blocks, those beyond `size` 0.

    Passages gather in a buffer of twice the heap's size, which is cut to the best k whenever it is full: less work than to
    keep a large heap in order all the time.
    """
    k = len(scores)
    room = 2 * k + BLOCK
    best_scores = np.empty(room, dtype=np.float32)
    best_passages = np.empty(room, dtype=np.int64)
    best_scores[:filled] = scores[:filled]
    best_passages[:filled] = passages[:filled]
    level = SMALLEST
    if filled == k:
        # Equal to the worst is still of interest: a segment visited later may hold lower passage numbers.
        level = max(level, scores[0])
    for start in range(0, size, BLOCK):
        if any_reaches(accumulators, start, level):
            for passage in range(start, start + BLOCK):
                score = accumulators[passage]
                if score >= level and is_allowed(allowed, passage):
                    best_scores[filled] = score
                    best_passages[filled] = first_passage + passage
                    filled += 1
            if filled > room - BLOCK:
                keep_best(best_scores, best_passages, filled, k)
                filled = k
                level = max(SMALLEST, best_scores[:k].min())
        accumulators[start : start + BLOCK] = 0.0
    if filled > k:
        keep_best(best_scores, best_passages, filled, k)
        filled = k
    scores[:filled] = best_scores[:filled]
    passages[:filled] = best_passages[:filled]
    make_heap(scores, passages, filled)
    return filled


@compiled
def score_pairs(  # type: ignore[no-untyped-def]
    lists, query_offsets, query_terms, query_weights, pair_offsets, rows, dense_query, scores
):
    """Write the scores of given (query, passage) pairs that lie in one segment.

    pair_offsets int64 [queries + 1] into rows and scores; rows int64, numbers within the segment, -1 where the passage
    lies in another one (left untouched); dense_query float32 [V], all zero on entry and on return; scores float32.
    """
    for query in range(len(pair_offsets) - 1):
        for place in range(query_offsets[query], query_offsets[query + 1]):
            dense_query[query_terms[place]] = query_weights[place]
        for pair in range(pair_offsets[query], pair_offsets[query + 1]):
            if rows[pair] >= 0:
                scores[pair] = exact_score(lists, rows[pair], dense_query)
        for place in range(query_offsets[query], query_offsets[query + 1]):
            dense_query[query_terms[place]] = 0.0
