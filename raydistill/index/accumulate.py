"""The compiled loops of search: accumulate scores over postings, keep the best, score given pairs, gather vectors.

They know arrays only; `search` gives them segments and queries. Every score is a float32 sum over the query's terms in
ascending order of query weight * impact, whether it is taken from postings or from forward vectors: the two are equal
to the bit.

Impacts come as codes with a float32 table (`Segment.decoding`) or, table None, as float32 themselves.
"""

from __future__ import annotations

import numpy as np

from raydistill.index.compiled import compiled

_SCAN = 64  # accumulators whose maximum is compared with the threshold at once


@compiled
def search_segment(  # type: ignore[no-untyped-def]
    term_offsets,
    passages,
    codes,
    decoding,
    first_passage,
    query_offsets,
    query_terms,
    query_weights,
    first_query,
    last_query,
    accumulators,
    allowed,
    heap_scores,
    heap_passages,
    heap_sizes,
):
    """Push the passages of one segment through the heaps of queries first_query..last_query - 1.

    accumulators: float32 [>= passages of the segment], all zero on entry and on return. allowed: mask (see
    `passage_masks`) of the passages that may be found, None for all. heap_scores float32 and heap_passages int64
    [queries, k] are binary heaps with the worst at 0, of heap_sizes int64 [queries] items.
    """
    size = len(accumulators)
    for query in range(first_query, last_query):
        touched = False
        for place in range(query_offsets[query], query_offsets[query + 1]):
            term = query_terms[place]
            weight = query_weights[place]
            for position in range(term_offsets[term], term_offsets[term + 1]):
                impact = codes[position] if decoding is None else decoding[codes[position]]
                accumulators[passages[position]] += weight * impact
                touched = True
        if touched:
            heap_sizes[query] = _collect(
                accumulators, size, first_passage, allowed, heap_scores[query], heap_passages[query], heap_sizes[query]
            )


@compiled
def _collect(accumulators, size, first_passage, allowed, scores, passages, filled):  # type: ignore[no-untyped-def]
    # The bits of floats >= 0 order like integers, and only integer maxima are vectorised without fast-math.
    bits = accumulators.view(np.int32)
    k = len(scores)
    floor = np.zeros(1, dtype=np.float32)
    floor_bits = floor.view(np.int32)
    if filled == k:
        floor[0] = scores[0]
    for start in range(0, size, _SCAN):
        stop = min(start + _SCAN, size)
        largest = np.int32(0)
        for passage in range(start, stop):
            largest = max(largest, bits[passage])
        # Equal to the floor is still of interest: a segment visited later may hold lower passage numbers.
        if largest > 0 and largest >= floor_bits[0]:
            for passage in range(start, stop):
                score = accumulators[passage]
                if score <= 0.0 or score < floor[0]:
                    continue
                if allowed is not None and not (allowed[passage >> 3] >> (passage & 7)) & 1:
                    continue
                number = first_passage + passage
                if filled < k:
                    _push(scores, passages, filled, score, number)
                    filled += 1
                    if filled == k:
                        floor[0] = scores[0]
                elif score > scores[0] or number < passages[0]:
                    _replace_worst(scores, passages, k, score, number)
                    floor[0] = scores[0]
        accumulators[start:stop] = 0.0
    return filled


@compiled
def _push(scores, passages, filled, score, passage):  # type: ignore[no-untyped-def]
    place = filled
    while place > 0:
        parent = (place - 1) >> 1
        worse = score < scores[parent] or (score == scores[parent] and passage > passages[parent])
        if not worse:
            break
        scores[place] = scores[parent]
        passages[place] = passages[parent]
        place = parent
    scores[place] = score
    passages[place] = passage


@compiled
def _replace_worst(scores, passages, filled, score, passage):  # type: ignore[no-untyped-def]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= filled:
            break
        right = child + 1
        if right < filled and (
            scores[right] < scores[child] or (scores[right] == scores[child] and passages[right] > passages[child])
        ):
            child = right
        worse = scores[child] < score or (scores[child] == score and passages[child] > passage)
        if not worse:
            break
        scores[place] = scores[child]
        passages[place] = passages[child]
        place = child
    scores[place] = score
    passages[place] = passage


@compiled
def score_pairs(  # type: ignore[no-untyped-def]
    row_offsets,
    terms,
    codes,
    decoding,
    query_offsets,
    query_terms,
    query_weights,
    pair_offsets,
    rows,
    dense_query,
    scores,
):
    """Write the scores of given (query, passage) pairs that lie in one segment.

    pair_offsets int64 [queries + 1] into rows and scores; rows int64, numbers within the segment, -1 where the passage
    lies in another one (left untouched); dense_query float32 [V], all zero on entry and on return; scores float32.
    """
    for query in range(len(pair_offsets) - 1):
        for place in range(query_offsets[query], query_offsets[query + 1]):
            dense_query[query_terms[place]] = query_weights[place]
        for pair in range(pair_offsets[query], pair_offsets[query + 1]):
            row = rows[pair]
            if row < 0:
                continue
            total = np.float32(0.0)
            for position in range(row_offsets[row], row_offsets[row + 1]):
                impact = codes[position] if decoding is None else decoding[codes[position]]
                total += dense_query[terms[position]] * impact
            scores[pair] = total
        for place in range(query_offsets[query], query_offsets[query + 1]):
            dense_query[query_terms[place]] = 0.0
