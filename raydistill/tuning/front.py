"""The effectiveness-cost front: which trials no other trial beats on both. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the positions of the points that no other dominates, by ascending cost.

    A point dominates another that costs at least as much and is worth at most as much, and differs in one of the two.
    Points that are equal in both stand together on the front or off it.

    Args:
        costs: finite, lower is better. values: finite, higher is better; as many.
    """
    order = sorted(range(len(costs)), key=lambda place: (costs[place], -values[place]))
    front: list[int] = []
    for place in order:
        point = (costs[place], values[place])
        if not front or values[place] > values[front[-1]] or point == (costs[front[-1]], values[front[-1]]):
            front.append(place)
    return front
