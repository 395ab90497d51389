"""Which actor of a fan-out holds which segments. Pure; the actors are in `fan_out`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_SLACK = 1.25
"""A group may hold this many times its fair share of bytes before a segment goes to one that it likes less."""


def assigned_groups(segments: Sequence[tuple[str, int]], groups: int) -> list[int]:
    """Return the group, 0 to groups - 1, of every segment.

    Each segment has an order of preference among the groups that follows from its hash alone (rendezvous hashing), and goes,
    the largest first, to the first group in it that has room. So the plan of a version needs no memory of the one before,
    and yet most segments that two versions share stay where their bytes are. No group gets more than 1.25 times the fair
    share and the largest segment.

    Args:
        segments: SHA-256 and bytes of each.
        groups: at least 1.
    """
    sizes = [size for _, size in segments]
    room = max(_SLACK * sum(sizes) / groups, max(sizes, default=0))
    load = [0] * groups
    chosen = [0] * len(segments)
    for number in sorted(range(len(segments)), key=lambda each: (-sizes[each], segments[each][0])):
        sha256, size = segments[number]
        liked = sorted(range(groups), key=lambda group: hashlib.sha256(f"{sha256} {group}".encode()).digest())
        with_room = (group for group in liked if load[group] + size <= room)
        chosen[number] = next(with_room, load.index(min(load)))
        load[chosen[number]] += size
    return chosen
