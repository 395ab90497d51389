"""Bounded heaps of the best passages of a query, as compiled loops over arrays.

A heap is two arrays of k items, scores float32 and passages int64, of which the first `filled` count; the worst is at 0. Worse
is a lower score or, of equal scores, a higher passage number.
"""

from __future__ import annotations

from raydistill.index.compiled import compiled


@compiled
def offer(scores, passages, filled, score, passage):  # type: ignore[no-untyped-def]
    """Put a passage in, if it is among the best k, and return how many there are then."""
    if filled < len(scores):
        _push(scores, passages, filled, score, passage)
        return filled + 1
    if score > scores[0] or (score == scores[0] and passage < passages[0]):
        _sink(scores, passages, filled, score, passage)
    return filled


@compiled
def sort_heap(scores, passages, filled):  # type: ignore[no-untyped-def]
    """Sort a heap in place, best first; it is a heap no longer."""
    for last in range(filled - 1, 0, -1):
        score = scores[last]
        passage = passages[last]
        scores[last] = scores[0]
        passages[last] = passages[0]
        _sink(scores, passages, last, score, passage)


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
def _sink(scores, passages, filled, score, passage):  # type: ignore[no-untyped-def]
    """Put an item in the place of the worst of `filled`."""
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
