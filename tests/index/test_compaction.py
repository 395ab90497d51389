"""Compaction changes no result, whatever the precision; equal groups give equal bytes; nothing is merged that may not be."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from change_world import TERMS, apply, build, compaction, random_vectors, rewritten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydistill.encoders.batch import SparseBatch
from raydistill.index.commit import commit_change
from raydistill.index.compaction import plan_groups
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.index.segment import Impacts, Segment

NAMES = [f"p{number}" for number in range(24)]


def uneven_vectors(seed: int) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(seed)
    made = random_vectors(NAMES, seed)
    return {name: {term: float(np.float32(rng.lognormal(0, 2))) for term in row} for name, row in made.items()}


def answers(version: IndexVersion, seed: int) -> tuple[list[list[str]], list[list[float]]]:
    rng = np.random.default_rng(seed)
    queries = SparseBatch.from_dense((rng.random((6, TERMS)) * (rng.random((6, TERMS)) < 0.4)).astype(np.float32))
    searcher = open_searcher(version)
    found = searcher.search(queries, 30)
    ids = [searcher.passage_ids(numbers[numbers >= 0]) for numbers in found.passages]
    return ids, found.scores.tolist()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 9),
    deleted=st.sets(st.sampled_from(NAMES), min_size=1),
    full=st.integers(1, 30),
    impacts=st.sampled_from(["f32", "f16", "u8"]),
    most_deleted=st.sampled_from([0.0, 0.5]),
)
def test_a_compacted_index_answers_alike_to_the_bit(
    seed: int, rows: int, deleted: set[str], full: int, impacts: Impacts, most_deleted: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = apply(build(f"file://{folder}", uneven_vectors(seed), impacts, rows), "delete", ids=sorted(deleted))
        after = commit_change(before.root, "passages", compaction(before, full, 1.0, most_deleted))
        assert answers(after, seed) == answers(before, seed)
        assert after.live == before.live
        if most_deleted == 0.0 and after.live:
            assert after.deleted == 0
        known = [name for name in NAMES if name not in deleted]
        numbers = open_searcher(after).find(known)
        assert open_searcher(after).passage_ids(numbers) == known


@pytest.fixture
def root(tmp_path) -> str:
    return f"file://{tmp_path}/runs"


def test_only_neighbours_that_are_small_or_worn_are_rewritten_up_to_a_full_segment(root: str) -> None:
    version = build(root, uneven_vectors(1), rows=3)  # eight segments of three
    version = apply(version, "delete", ids=["p0", "p1", "p2", "p9", "p10", "p13"])
    kept = [[each.name for each in group.segments] for group in plan_groups(version, 6, 0.5, 0.5)]
    assert kept == [["s0"], ["s3", "s4"]], "a full segment stays, an emptied one and two small neighbours go"
    kept = [[each.name for each in group.segments] for group in plan_groups(version, 6, 1.0, 0.5)]
    assert kept == [["s0", "s1", "s2"], ["s3", "s4", "s5"], ["s6", "s7"]]
    assert [group.live for group in plan_groups(version, 6, 1.0, 0.5)] == [6, 6, 6]
    assert plan_groups(build(root, uneven_vectors(2), rows=3), 3, 1.0, 0.0) == []


def test_u8_segments_are_merged_only_where_they_have_one_scale_and_keep_their_codes(root: str) -> None:
    vectors = random_vectors(NAMES, 3)
    for number, name in enumerate(NAMES):
        largest = 5.0 if number < 12 else 7.0
        vectors[name][0] = largest if number % 4 == 3 else 1.5
    version = apply(build(root, vectors, "u8", rows=4), "delete", ids=["p0", "p21"])
    groups = plan_groups(version, 100, 1.0, 0.0)
    assert [len(group.segments) for group in groups] == [3, 3]
    before = [Segment(version.fetch(segment)) for segment in groups[0].segments]
    after = Segment(version.fetch(rewritten(version, groups[0])))
    assert after.scale == before[0].scale
    codes = np.concatenate([segment.impacts for segment in before])
    np.testing.assert_array_equal(after.impacts, codes[int(before[0].row_offsets[1]) :])  # all but those of p0


def test_the_same_group_gives_the_same_bytes_and_is_stored_once(root: str) -> None:
    version = apply(build(root, uneven_vectors(4), "f16", rows=5), "delete", ids=["p3"])
    [group] = plan_groups(version, 100, 1.0, 0.0)
    assert rewritten(version, group) == rewritten(version, group)


def test_an_index_of_which_everything_is_deleted_can_still_be_opened_and_filled_again(root: str) -> None:
    version = apply(build(root, uneven_vectors(5), rows=5), "delete", ids=NAMES)
    compacted = commit_change(root, "passages", compaction(version))
    assert (compacted.live, len(compacted.segments)) == (0, 1)
    assert commit_change(root, "passages", compaction(compacted)) == compacted
    assert answers(compacted, 1)[0] == [[]] * 6
    filled = apply(compacted, "append", random_vectors(["p3"], 1))
    assert open_searcher(filled).find(["p3", "p4"]).tolist() == [compacted.passages, -1]
