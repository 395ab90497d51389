"""The effectiveness-cost front against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raydistill.tuning.front import pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


def dominated(points: list[tuple[int, int]], place: int) -> bool:
    cost, value = points[place]
    return any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)


@given(POINTS)
def test_the_front_holds_exactly_the_points_that_no_other_dominates_by_ascending_cost(
    points: list[tuple[int, int]],
) -> None:
    front = pareto_front([cost for cost, _ in points], [value for _, value in points])
    assert sorted(front) == [place for place in range(len(points)) if not dominated(points, place)]
    assert [points[place] for place in front] == sorted(points[place] for place in front)


def test_a_dear_point_that_gives_no_more_is_off_the_front() -> None:
    assert pareto_front([2.0, 1.0, 3.0, 3.0], [0.3, 0.2, 0.3, 0.4]) == [1, 0, 3]
