"""Plans of synthetic conversations: the same for the same seed, whatever else is planned."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.synthesis.planning import drawn_plans, with_passages

KINDS = {"question": 3.0, "keywords": 1.0, "claim": 0.0}


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0, 1), st.integers(0, 5))
def test_a_plan_depends_on_its_number_and_the_seed_alone(conversations: int, turns: int, switch: float, seed: int) -> None:
    plans = drawn_plans(conversations, turns, switch, KINDS, seed)
    assert plans == drawn_plans(conversations + 3, turns, switch, KINDS, seed)[:conversations]
    for plan in plans:
        topics = [turn.topic for turn in plan.turns]
        assert len(topics) == turns
        assert topics[0] == 0
        assert all(later - earlier in (0, 1) for earlier, later in pairwise(topics))
        assert all(turn.kind != "claim" for turn in plan.turns)


def test_switches_and_kinds_are_about_as_frequent_as_asked() -> None:
    plans = drawn_plans(2000, 3, 0.25, KINDS, 0)
    assert sum(plan.topics - 1 for plan in plans) / 4000 == pytest.approx(0.25, abs=0.03)
    kinds = Counter(turn.kind for plan in plans for turn in plan.turns)
    assert kinds["question"] / 6000 == pytest.approx(0.75, abs=0.03)
    assert {plan.topics for plan in drawn_plans(20, 3, 0.0, KINDS, 0)} == {1}
    assert {plan.topics for plan in drawn_plans(20, 3, 1.0, KINDS, 0)} == {3}


@given(st.integers(1, 20), st.integers(1, 30))
def test_passages_are_handed_out_in_order_and_again_where_there_are_too_few(conversations: int, number: int) -> None:
    passages = [f"p{n}" for n in range(number)]
    plans = with_passages(drawn_plans(conversations, 4, 0.5, KINDS, 1), passages)
    handed = [passage for plan in plans for passage in plan.passages]
    assert handed == [passages[place % number] for place in range(len(handed))]
    assert all(len(plan.passages) == plan.topics for plan in plans)
    assert number < 4 or all(len(set(plan.passages)) == plan.topics for plan in plans)
