"""Bounded heaps of the best passages of a query, as compiled loops over arrays.

A heap is two arrays of k items, scores float32 and passages int64, of which the first `filled` count; the worst is at 0.
Worse is a lower score or, of equal scores, a higher passage number.
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
def keep_best(scores, passages, count, k):  # type: ignore[no-untyped-def]
    """Bring the best k of `count` > k items to the front, in any order (quickselect)."""
    low = 0
    high = count - 1
    while low < high:
        middle = (low + high) >> 1
        score = scores[middle]
        passage = passages[middle]
        left = low
        right = high
        while left <= right:
            while scores[left] > score or (scores[left] == score and passages[left] < passage):
                left += 1
            while scores[right] < score or (scores[right] == score and passages[right] > passage):
                right -= 1
            if left <= right:
                scores[left], scores[right] = scores[right], scores[left]
                passages[left], passages[right] = passages[right], passages[left]
                left += 1
                right -= 1
        if k - 1 <= right:
            high = right
        elif k - 1 >= left:
            low = left
        else:
            break


@compiled
def make_heap(scores, passages, filled):  # type: ignore[no-untyped-def]
    """Turn the first `filled` items, in any order, into a heap."""
    for root in range((filled >> 1) - 1, -1, -1):
        _sink_from(scores, passages, root, filled, scores[root], passages[root])


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
    _sink_from(scores, passages, 0, filled, score, passage)


@compiled
def _sink_from(scores, passages, place, filled, score, passage):  # type: ignore[no-untyped-def]
    """Put an item in a place whose subtrees are heaps."""
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
