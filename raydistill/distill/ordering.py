"""The order in which the queries of a group of parts are visited: at random, or so that batches are of a kind.

Pure arrays. An order is a permutation whatever its kind, so every query is visited once an epoch. Batches are cut from
the stream at multiples of the batch size, and a group may begin and end in the middle of a batch; those seams, and the
places where two sources meet, are where a batch is mixed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LENGTH_NOISE = 0.2


def by_depth(depths: NDArray[np.integer], lengths: NDArray[np.integer], random: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows in order of turn depth, and of text length within a depth; int64 [n].

    Lengths are blurred by up to 20 %, so that like queries do not meet the same others at every epoch.
    """
    blurred = lengths * random.uniform(1 - _LENGTH_NOISE, 1 + _LENGTH_NOISE, len(lengths))
    return np.lexsort((blurred, depths)).astype(np.int64)


def by_source(sources: NDArray[np.integer], random: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows source by source, in random order within each; int64 [n].

    Args:
        sources: integer [n]; number of each row's source.
    """
    return np.lexsort((random.permutation(len(sources)), sources)).astype(np.int64)


def cut_into_batches(
    ordered: NDArray[np.int64], position: int, batch: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return the rows such that every whole batch holds neighbours of `ordered`, the batches in random order.

    The pieces that complete the batch before the group and begin the one after it are cut from random places too, so
    that no kind of query is always found at the seams.

    Args:
        ordered: int64 [n]; rows, like ones beside each other.
        position: of the group's first row in the stream, in queries.
        batch: queries a batch.

    Returns:
        int64 [n], a permutation of `ordered`.
    """
    head = min(-position % batch, len(ordered))
    whole, tail = divmod(len(ordered) - head, batch)
    sizes = np.asarray([head, *[batch] * whole, tail])
    cut_order = random.permutation(len(sizes))
    ends = np.cumsum(sizes[cut_order])
    pieces = dict(zip(cut_order.tolist(), np.split(ordered, ends[:-1]), strict=True))
    middle = random.permutation(np.arange(1, whole + 1)).tolist()
    return np.concatenate([pieces[number] for number in (0, *middle, whole + 1)])
