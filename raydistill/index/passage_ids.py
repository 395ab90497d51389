"""Looking up passages by external id in a segment's id arrays (see `segment`): a binary search in compiled code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydistill.index.compiled import compiled


def find_ids(
    id_offsets: NDArray[np.int64],
    id_bytes: NDArray[np.uint8],
    id_order: NDArray[np.uint32],
    passage_ids: Sequence[str],
) -> NDArray[np.int64]:
    """Return the numbers of passages by id, int64 [len(passage_ids)], -1 where unknown; O(log P) each."""
    wanted = [passage_id.encode() for passage_id in passage_ids]
    offsets = np.zeros(len(wanted) + 1, dtype=np.int64)
    np.cumsum([len(content) for content in wanted], out=offsets[1:])
    packed = np.frombuffer(b"".join(wanted), dtype=np.uint8)
    numbers = np.empty(len(wanted), dtype=np.int64)
    _binary_search(id_offsets, id_bytes, id_order, offsets, packed, numbers)
    return numbers


@compiled
def _binary_search(id_offsets, id_bytes, id_order, offsets, wanted, numbers):  # type: ignore[no-untyped-def]
    for query in range(len(offsets) - 1):
        numbers[query] = -1
        low = 0
        high = len(id_order)
        while low < high:
            middle = (low + high) // 2
            passage = id_order[middle]
            start = id_offsets[passage]
            length = id_offsets[passage + 1] - start
            sought = offsets[query + 1] - offsets[query]
            order = 0
            for place in range(min(length, sought)):
                left = id_bytes[start + place]
                right = wanted[offsets[query] + place]
                if left != right:
                    order = -1 if left < right else 1
                    break
            if order == 0 and length != sought:
                order = -1 if length < sought else 1
            if order == 0:
                numbers[query] = passage
                break
            if order < 0:
                low = middle + 1
            else:
                high = middle
