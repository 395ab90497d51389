"""Exact top k of one segment without reading all postings: what cannot reach the k-th best score is left out.

How. The terms of a query are read in the order of how much they can add to a score for each posting. For those not read
yet, the maxima of blocks of 64 passages bound what they can still add to a passage: bounds[block]. After some terms, the
k passages with the best partial scores are scored exactly, from their forward vectors; the worst of these is a floor of
the k-th best score. A passage whose partial score and bound stay below it is out. When few passages are left, their exact
scores are taken from the forward vectors, and the postings of the remaining terms, mostly frequent and light ones, are never
read. (MaxScore, on accumulators, with block maxima.)

An approximate search does the same in two steps that are less careful: only a share of each bound counts, so the first step
reads fewer terms and leaves fewer candidates, and some passages that belong to the best k are lost; the second step is
exact.

Why the result equals the exhaustive one to the bit: scores come from `exact_score`, and a passage is left out only when its
bound lies below the floor by more than rounding can explain. Bounds are float32 sums of at most 2n additions of n terms,
each within 2^-24 of what the sum of all terms' maxima can be: `slack` covers them. Partial and exact scores are sums of the
same products in another order, each within n * 2^-24 of the true sum, relatively: `margin` covers that.

Rounding is only relative where nothing overflows or is denormal, so queries with extreme bounds go the exhaustive way, as do
those for which it is cheaper: few postings, or k so large that the floor is low.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from raydistill.index.accumulate import SMALLEST, add_term, any_reaches, collect, exact_score, is_allowed
from raydistill.index.compiled import compiled
from raydistill.index.heaps import offer
from raydistill.index.postings import BLOCK

_FIRST_CHECK, _NEXT_CHECK = 0.08, 1.25
_SMALLEST, _LARGEST = 1e-20, 1e30
_INFLATION = np.float32(1.0 + 2.0**-20)


class SkippingCosts(NamedTuple):
    """When skipping is tried and when it stops; results do not depend on it.

    fewest: postings of the query in the segment; with fewer, an exhaustive pass is a matter of microseconds. each:
    postings for each of the k; with fewer, bounds seldom pay. vector: an exact score from a forward vector takes as long
    as so many postings. share: of what unread terms can add at most that counts; 1 is safe, less is approximate.
    """

    fewest: int
    each: int
    vector: int
    share: float = 1.0


USUAL = SkippingCosts(fewest=150_000, each=8_000, vector=150)
NEVER = SkippingCosts(fewest=2**62, each=0, vector=0)


def approximate_costs(exact: SkippingCosts, share: float) -> SkippingCosts:
    """Return the costs of a search in two steps: candidates by part of the terms, then their exact scores."""
    # Fewer candidates are left, so it pays for fewer postings and larger k.
    return SkippingCosts(exact.fewest // 10, exact.each // 2, exact.vector, share)


@compiled
def search_segment(  # type: ignore[no-untyped-def]
    lists,
    passages_here,
    first_passage,
    allowed,
    query_offsets,
    query_terms,
    query_weights,
    first_query,
    last_query,
    costs,
    accumulators,
    bounds,
    dense_query,
    heap_scores,
    heap_passages,
    heap_sizes,
    touched,
):
    """Push the passages of one segment through the heaps of queries first_query..last_query - 1.

    lists: SegmentArrays of passages_here passages. allowed: mask of those that may be found, None for all. costs:
    SkippingCosts. accumulators float32 [>= whole blocks], bounds float32 [>= blocks], dense_query float32 [V]: all zero on
    entry and on return. heap_scores float32 and heap_passages int64 [queries, k] are heaps (see `heaps`) of heap_sizes
    int64 [queries] items. touched int64 [queries, 2]: grows by the postings read and by the entries of forward vectors read.
    """
    k = heap_scores.shape[1]
    for query in range(first_query, last_query):
        terms = query_terms[query_offsets[query] : query_offsets[query + 1]]
        weights = query_weights[query_offsets[query] : query_offsets[query + 1]]
        scores = heap_scores[query]
        passages = heap_passages[query]
        entries = 0
        largest = 0.0
        for place in range(len(terms)):
            term = terms[place]
            entries += lists.entry_offsets[term + 1] - lists.entry_offsets[term]
            largest += np.float64(weights[place]) * np.float64(lists.term_maxima[term])
        if entries == 0:
            continue
        filled = heap_sizes[query]
        if entries >= costs.fewest and entries >= k * costs.each and _SMALLEST < largest < _LARGEST:
            if filled == k and largest * (1.0 + (len(terms) + 8) * 2.0**-23) < scores[0]:
                continue
            found = _bounded(
                lists,
                costs,
                passages_here,
                first_passage,
                allowed,
                terms,
                weights,
                largest,
                entries,
                accumulators,
                bounds,
                dense_query,
                scores,
                passages,
                filled,
                touched[query],
            )
            if found >= 0:
                heap_sizes[query] = found
                continue
        for place in range(len(terms)):
            touched[query, 0] += add_term(lists, terms[place], weights[place], accumulators)
        heap_sizes[query] = collect(accumulators, passages_here, first_passage, allowed, scores, passages, filled)


@compiled
def _bounded(  # type: ignore[no-untyped-def]
    lists,
    costs,
    size,
    first_passage,
    allowed,
    terms,
    weights,
    largest,
    entries,
    accumulators,
    bounds,
    dense_query,
    scores,
    passages,
    filled,
    touched,
):
    """Return the new size of the heap, or -1, with the heap as it was, when too many passages stay possible."""
    k = len(scores)
    blocks = (size + BLOCK - 1) // BLOCK
    count = len(terms)
    slack = np.float32(largest * (4 * count + 8) * 2.0**-24)
    margin = 1.0 - (2 * count + 8) * 2.0**-24
    for place in range(count):
        dense_query[terms[place]] = weights[place]
    order = np.argsort(_priorities(lists, terms, weights))
    for place in range(count):
        at = lists.block_places[terms[place]]
        if at >= 0:
            _raise(bounds, lists.block_maxima[at], costs.share * _unit(lists, terms[place], weights[place]), blocks)
    floor = np.float64(scores[0]) if filled == k else 0.0
    best_scores = np.empty(k, dtype=np.float32)
    best_passages = np.empty(k, dtype=np.int64)
    read = 0
    next_check = int(entries * _FIRST_CHECK)
    checked = False
    for step in range(count):
        term = terms[order[step]]
        read += add_term(lists, term, weights[order[step]], accumulators)
        at = lists.block_places[term]
        if at < 0:
            continue
        still_open = _lower(
            bounds,
            lists.block_maxima[at],
            costs.share * _unit(lists, term, weights[order[step]]),
            blocks,
            floor * margin - slack,
        )
        if step + 1 == count:
            break
        if read < next_check or (floor > 0.0 and still_open * BLOCK * costs.vector > entries):
            continue
        next_check = int(read * _NEXT_CHECK)
        if not checked or still_open * BLOCK * costs.vector > read:
            checked = True
            reached = _floor(
                lists, blocks, allowed, accumulators, dense_query, best_scores, best_passages, touched, costs.share
            )
            floor = max(floor, reached)
        following = terms[order[step + 1]]
        affordable = 2 * (lists.entry_offsets[following + 1] - lists.entry_offsets[following])
        left = _possible(accumulators, bounds, blocks, floor * margin - slack)
        if floor > 0.0 and left * costs.vector <= affordable:
            break
    touched[0] += read
    result = -1
    if floor == 0.0:
        floor = _floor(lists, blocks, allowed, accumulators, dense_query, best_scores, best_passages, touched, costs.share)
    if floor > 0.0 and _possible(accumulators, bounds, blocks, floor * margin - slack) * costs.vector <= entries:
        result = _finish(
            lists,
            size,
            first_passage,
            allowed,
            accumulators,
            bounds,
            dense_query,
            scores,
            passages,
            filled,
            floor,
            margin,
            slack,
            touched,
        )
    accumulators[: blocks * BLOCK] = 0.0
    bounds[:blocks] = 0.0
    for place in range(count):
        dense_query[terms[place]] = 0.0
    return result


@compiled
def _priorities(lists, terms, weights):  # type: ignore[no-untyped-def]
    """Return float64 [terms], lowest to be read first: terms without block maxima, then most score for each posting."""
    priorities = np.empty(len(terms), dtype=np.float64)
    for place in range(len(terms)):
        term = terms[place]
        entries = lists.entry_offsets[term + 1] - lists.entry_offsets[term]
        worth = np.float64(weights[place]) * np.float64(lists.term_maxima[term]) / max(1, entries)
        priorities[place] = -np.inf if lists.block_places[term] < 0 else -worth
    return priorities


@compiled
def _unit(lists, term, weight):  # type: ignore[no-untyped-def]
    """Return what one step of a term's block maxima can add to a score, rounded up."""
    return weight * (lists.term_maxima[term] / np.float32(255.0)) * _INFLATION


@compiled
def _raise(bounds, maxima, unit, blocks):  # type: ignore[no-untyped-def]
    for block in range(blocks):
        bounds[block] += unit * np.float32(maxima[block])


@compiled
def _lower(bounds, maxima, unit, blocks, threshold):  # type: ignore[no-untyped-def]
    """Take a term out of the bounds, and return how many of them still reach the threshold by themselves."""
    still = np.int32(0)
    level = np.float32(threshold)
    for block in range(blocks):
        bound = bounds[block] - unit * np.float32(maxima[block])
        bounds[block] = bound
        still += np.int32(bound >= level)
    return still


@compiled
def _possible(accumulators, bounds, blocks, threshold):  # type: ignore[no-untyped-def]
    """Return how many passages can still reach the threshold."""
    possible = 0
    for block in range(blocks):
        level = np.float32(threshold - np.float64(bounds[block]))
        if any_reaches(accumulators, block * BLOCK, level):
            for passage in range(block * BLOCK, block * BLOCK + BLOCK):
                possible += np.int64(accumulators[passage] >= level)
    return possible


@compiled
def _floor(lists, blocks, allowed, accumulators, dense_query, best_scores, best_passages, touched, share):  # type: ignore[no-untyped-def]
    """Return a lower bound of the k-th best score of the segment, 0 when fewer than k passages have a score so far."""
    k = len(best_scores)
    level = SMALLEST
    filled = 0
    for block in range(blocks):
        if any_reaches(accumulators, block * BLOCK, level):
            for passage in range(block * BLOCK, block * BLOCK + BLOCK):
                if accumulators[passage] >= level and is_allowed(allowed, passage):
                    filled = offer(best_scores, best_passages, filled, accumulators[passage], passage)
                    if filled == k:
                        level = max(SMALLEST, best_scores[0])
    if filled < k:
        return 0.0
    if share < 1.0:
        # These k passages themselves must reach what an approximate search asks for.
        return np.float64(level)
    lowest = np.inf
    for place in range(k):
        row = best_passages[place]
        touched[1] += lists.row_offsets[row + 1] - lists.row_offsets[row]
        lowest = min(lowest, np.float64(exact_score(lists, row, dense_query)))
    return lowest


@compiled
def _finish(  # type: ignore[no-untyped-def]
    lists,
    size,
    first_passage,
    allowed,
    accumulators,
    bounds,
    dense_query,
    scores,
    passages,
    filled,
    floor,
    margin,
    slack,
    touched,
):
    """Score every passage that can reach the floor exactly, offer it to the heap, and return the heap's size."""
    threshold = floor * margin - slack
    for start in range(0, size, BLOCK):
        bound = np.float64(bounds[start // BLOCK])
        if any_reaches(accumulators, start, np.float32(threshold - bound)):
            for passage in range(start, min(start + BLOCK, size)):
                if np.float64(accumulators[passage]) + bound >= threshold and is_allowed(allowed, passage):
                    touched[1] += lists.row_offsets[passage + 1] - lists.row_offsets[passage]
                    score = exact_score(lists, passage, dense_query)
                    if score > 0.0:
                        filled = offer(scores, passages, filled, score, first_passage + passage)
                        if filled == len(scores):
                            threshold = max(threshold, np.float64(scores[0]) * margin - slack)
    return filled
