"""What a draw of candidates promises, whatever the candidates."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import SamplingConfig
from raydistill.distill.sampling import draw


@st.composite
def cases(draw_value: st.DrawFn) -> tuple[np.ndarray, np.ndarray, SamplingConfig]:
    size = draw_value(st.integers(1, 60))
    values = draw_value(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), min_size=size, max_size=size))
    golds = draw_value(st.lists(st.integers(0, size - 1), max_size=3, unique=True))
    passages = draw_value(st.integers(1, 20))
    first = draw_value(st.integers(1, 30))
    policy = SamplingConfig(
        passages=passages,
        top=draw_value(st.integers(0, passages - 1)),
        first_rank=first,
        last_rank=draw_value(st.integers(first, 80)),
    )
    return np.asarray(values, dtype=np.float32), np.asarray(sorted(golds), dtype=np.int64), policy


@given(case=cases(), seed=st.integers(0, 99), epoch=st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_a_draw_keeps_its_promises(case: tuple[np.ndarray, np.ndarray, SamplingConfig], seed: int, epoch: int) -> None:
    scores, golds, policy = case
    sample = draw(scores, golds, policy, seed, epoch, "q")
    positions = sample.positions.tolist()
    assert len(positions) == len(set(positions)) <= policy.passages
    assert all(0 <= position < len(scores) for position in positions)
    drawn_golds = [position for position in positions if position in set(golds.tolist())]
    assert len(drawn_golds) == min(1, len(golds))
    assert (sample.gold == 0 and positions[0] in golds) if len(golds) else sample.gold == -1
    ranking = np.argsort(-scores, kind="stable").tolist()
    inside = set(ranking[: policy.top]) | set(ranking[policy.first_rank - 1 : policy.last_rank])
    inside = (inside - set(golds.tolist())) | set(drawn_golds)
    reachable = len([position for position in ranking[: policy.last_rank] if position not in golds]) + len(drawn_golds)
    top_beyond = len([position for position in ranking[policy.last_rank : policy.top] if position not in golds])
    assert len(positions) == min(policy.passages, reachable + top_beyond)
    if len(inside) >= policy.passages:
        assert set(positions) <= inside, "the window is widened only when it holds too few"
    if policy.passages >= policy.top + 1 + len(golds):
        assert set(ranking[: policy.top]) - set(golds.tolist()) <= set(positions)
    again = draw(scores, golds, policy, seed, epoch, "q")
    assert again.positions.tolist() == positions


def test_draws_differ_between_epochs_queries_and_seeds() -> None:
    scores = np.linspace(5, 0, 500, dtype=np.float32)
    policy = SamplingConfig(passages=17, first_rank=11, last_rank=400)
    none = np.asarray([], dtype=np.int64)
    draws = {
        tuple(draw(scores, none, policy, seed, epoch, query).positions.tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
        for query in ("a", "b")
    }
    assert len(draws) == 8


def test_uniform_draws_reach_the_whole_window_and_nothing_else() -> None:
    scores = np.linspace(5, 0, 100, dtype=np.float32)
    policy = SamplingConfig(passages=9, first_rank=11, last_rank=40)
    none = np.asarray([], dtype=np.int64)
    seen = np.concatenate([draw(scores, none, policy, 0, epoch, "q").positions for epoch in range(200)])
    assert set(seen.tolist()) == set(range(10, 40))
