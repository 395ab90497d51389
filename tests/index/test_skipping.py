"""Search that skips postings returns what reading them all returns, to the bit: float32 sums in ascending order of terms."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.passage_masks import mask_without
from raydistill.index.search import Searcher
from raydistill.index.search_result import SearchResult
from raydistill.index.segment import Segment, write_segment
from raydistill.index.skipping import NEVER, SkippingCosts

ALWAYS = SkippingCosts(fewest=0, each=0, vector=0)
"""Skips wherever it may: a check after every term, and vectors that cost nothing."""


def summed(vectors: SparseBatch, queries: SparseBatch, k: int) -> SearchResult:
    """The definition: float32 sums over the terms of the query, one after another in ascending order."""
    columns = vectors.to_dense().T
    passages = np.full((len(queries), k), -1, dtype=np.int64)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for query in range(len(queries)):
        scores = np.zeros(len(vectors), dtype=np.float32)
        for term, weight in zip(*queries.row(query), strict=True):
            scores += weight * columns[term]
        order = np.lexsort((np.arange(len(vectors)), -scores))
        order = order[scores[order] > 0][:k]
        passages[query, : len(order)] = order
        best[query, : len(order)] = scores[order]
    return SearchResult(passages, best)


def skewed(rng: np.random.Generator, passages: int, vocabulary: int, per_passage: int) -> SparseBatch:
    """Passages whose terms are popular by rank and alike from one passage to the next, with distinct impacts."""
    popularity = 1.0 / (np.arange(vocabulary) + 3.0)
    rows = []
    for start in range(0, passages, 16):
        local = popularity * rng.exponential(1.0, vocabulary) ** 3
        for _ in range(min(16, passages - start)):
            terms = np.unique(rng.choice(vocabulary, per_passage, p=local / local.sum()))
            impacts = rng.gamma(2.0, 0.3 * np.log2(terms + 2.0)) + 0.01
            rows.append(dict(zip(terms.tolist(), impacts.tolist(), strict=True)))
    return SparseBatch.from_rows(rows, vocabulary)


def questions(rng: np.random.Generator, vectors: SparseBatch, count: int, terms: int) -> SparseBatch:
    """Queries about passages, with a few of their terms heavy and some popular ones light."""
    rows = []
    for row in rng.integers(0, len(vectors), count).tolist():
        own = rng.permutation(vectors.row(row)[0])[:terms]
        row_of = {int(term): float(rng.random() * 0.1 + 0.01) for term in rng.integers(0, 12, 6)}
        rows.append(row_of | {int(term): float(rng.gamma(3.0, 0.5)) for term in own})
    return SparseBatch.from_rows(rows, vectors.vocabulary_size)


def searcher_of(
    folder: Path, parts: list[SparseBatch], impacts: str = "f32", threads: int = 1, costs: SkippingCosts = ALWAYS
) -> Searcher:
    segments = []
    for position, part in enumerate(parts):
        path = folder / f"{position}.seg"
        write_segment(path, part, [f"{position}-{row}" for row in range(len(part))], impacts)  # type: ignore[arg-type]
        segments.append(Segment(path))
    searcher = Searcher(segments, threads=threads)
    searcher.costs = costs
    return searcher


def assert_equal(found: SearchResult, expected: SearchResult) -> None:
    np.testing.assert_array_equal(found.passages, expected.passages)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("impacts", ["f32", "f16", "u8"])
def test_skipping_reads_less_and_finds_the_same(tmp_path, impacts):
    rng = np.random.default_rng(1)
    vectors = skewed(rng, 6000, 400, 25)
    parts = [vectors.select(range(2500)), vectors.select(range(2500, 6000))]
    queries = questions(rng, vectors, 20, 6)
    searcher = searcher_of(tmp_path, parts, impacts)
    stored = searcher.vectors(np.arange(6000))
    for k in (1, 10, 100):
        found, cost = searcher.measured_search(queries, k)
        everything, whole = searcher.measured_search(queries, k, exhaustive=True)
        assert_equal(found, everything)
        assert_equal(found, summed(stored, queries, k))
        assert np.all(whole.postings >= whole.matching)
        if k == 1:
            assert cost.postings.sum() < 0.6 * whole.postings.sum()
            assert cost.vector_entries.sum() > 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    k=st.sampled_from([1, 2, 7, 40, 1000]),
    impacts=st.sampled_from(["f32", "f16", "u8"]),
    whole=st.booleans(),
    vector=st.sampled_from([0, 1, 30]),
    threads=st.integers(1, 3),
)
def test_any_collection_ties_or_not(tmp_path, seed, sizes, k, impacts, whole, vector, threads):
    rng = np.random.default_rng(seed)
    everything = skewed(rng, sum(sizes), 40, 8)
    if whole:  # few distinct impacts: sums tie everywhere
        everything = SparseBatch(everything.indptr, everything.term_ids, np.ceil(everything.weights), 40)
    edges = np.cumsum([0, *sizes])
    parts = [everything.select(np.arange(start, stop)) for start, stop in pairwise(edges.tolist())]
    queries = questions(rng, everything, 4, 5) if len(everything) else SparseBatch.from_rows([{3: 1.0}] * 2, 40)
    if whole:
        queries = SparseBatch(queries.indptr, queries.term_ids, np.ceil(queries.weights), 40)
    queries = SparseBatch.concatenate([queries, SparseBatch.from_rows([{}], 40)])
    searcher = searcher_of(tmp_path, parts, impacts, threads, SkippingCosts(0, 0, vector))
    expected = summed(searcher.vectors(np.arange(len(everything))), queries, k)
    assert_equal(searcher.search(queries, k), expected)
    for row in range(len(queries)):
        one = searcher.search(queries.select([row]), k)
        np.testing.assert_array_equal(one.passages[0], expected.passages[row])
        np.testing.assert_array_equal(one.scores[0], expected.scores[row])


@pytest.mark.parametrize("weight", [1e-44, 1e-30, 1.0, 1e30, 3e37])
@pytest.mark.parametrize("huge", [1.0, 1e-38, 1e6, 3e38])
def test_extreme_impacts_and_weights(tmp_path, weight, huge):
    rng = np.random.default_rng(3)
    vectors = skewed(rng, 1500, 60, 12)
    weights = vectors.weights.copy()
    weights[vectors.indptr[700]] = huge
    vectors = SparseBatch(vectors.indptr, vectors.term_ids, weights, 60)
    queries = questions(rng, vectors, 6, 5)
    scaled = queries.weights.copy()
    scaled[queries.indptr[:3]] = weight
    scaled[queries.indptr[3] :] = np.float32(weight) * scaled[queries.indptr[3] :]
    queries = SparseBatch(queries.indptr, queries.term_ids, np.maximum(scaled, np.float32(1e-45)), 60)
    searcher = searcher_of(tmp_path, [vectors.select(range(600)), vectors.select(range(600, 1500))])
    with np.errstate(over="ignore", under="ignore"):
        expected = summed(vectors, queries, 5)
    assert_equal(searcher.search(queries, 5), expected)


@pytest.mark.parametrize("vocabulary", [65_535, 65_536, 70_000])
def test_large_vocabularies(tmp_path, vocabulary):
    rng = np.random.default_rng(5)
    small = skewed(rng, 2000, 80, 15)
    spread = np.sort(rng.choice(vocabulary, 80, replace=False))
    spread[-1] = vocabulary - 1
    vectors = SparseBatch(small.indptr, spread[small.term_ids].astype(np.int32), small.weights, vocabulary)
    picked = questions(rng, small, 8, 6)
    queries = SparseBatch(picked.indptr, spread[picked.term_ids].astype(np.int32), picked.weights, vocabulary)
    searcher = searcher_of(tmp_path, [vectors])
    stored = searcher.vectors(np.arange(2000))
    np.testing.assert_array_equal(stored.term_ids, vectors.term_ids)
    for k in (1, 10, 3000):
        found = searcher.search(queries, k)
        assert_equal(found, searcher.measured_search(queries, k, exhaustive=True)[0])
        for row, passages in enumerate(found.passages):
            kept = passages[passages >= 0]
            [scores] = searcher.scores(queries.select([row]), [kept])
            np.testing.assert_array_equal(found.scores[row, : len(kept)], scores)
    np.testing.assert_array_equal(found.passages, summed(small, picked, 3000).passages)


def test_a_lower_number_in_a_later_segment_wins_a_tie(tmp_path):
    rng = np.random.default_rng(6)
    part = skewed(rng, 1000, 50, 10)
    queries = questions(rng, part, 10, 5)
    searcher = searcher_of(tmp_path, [part, part])
    backward = Searcher(searcher.segments, [1000, 0])
    backward.costs = ALWAYS
    for k in (1, 3, 10):
        expected = summed(SparseBatch.concatenate([part, part]), queries, k)
        assert_equal(searcher.search(queries, k), expected)
        assert_equal(backward.search(queries, k), expected)


def test_passages_outside_a_mask_do_not_hide_others(tmp_path):
    rng = np.random.default_rng(7)
    vectors = skewed(rng, 3000, 100, 15)
    queries = questions(rng, vectors, 10, 6)
    best = summed(vectors, queries, 20).passages
    gone = np.unique(best[:, :10])
    whole = searcher_of(tmp_path, [vectors])
    searcher = Searcher(whole.segments, allowed=[mask_without(3000, gone)])
    searcher.costs = ALWAYS
    left = np.setdiff1d(np.arange(3000), gone)
    expected = summed(vectors.select(left), queries, 10)
    assert_equal(searcher.search(queries, 10), SearchResult(left[expected.passages], expected.scores))


def test_threads_share_a_batch_and_the_segments_of_a_single_query(tmp_path):
    rng = np.random.default_rng(8)
    vectors = skewed(rng, 2000, 100, 15)
    parts = [vectors.select(range(start, start + 500)) for start in range(0, 2000, 500)]
    queries = questions(rng, vectors, 50, 6)
    alone = searcher_of(tmp_path, parts, costs=NEVER)
    expected = alone.search(queries, 20)
    for threads in (2, 4):
        searcher = Searcher(alone.segments, threads=threads)
        assert_equal(searcher.search(queries, 20), expected)
        one = searcher.search(queries.select([7]), 20)
        np.testing.assert_array_equal(one.passages[0], expected.passages[7])
        np.testing.assert_array_equal(one.scores[0], expected.scores[7])


def test_an_approximate_search_reads_less_fills_k_and_scores_exactly(tmp_path):
    rng = np.random.default_rng(9)
    vectors = skewed(rng, 6000, 400, 25)
    queries = questions(rng, vectors, 20, 6)
    searcher = searcher_of(tmp_path, [vectors.select(range(3000)), vectors.select(range(3000, 6000))])
    exact, safe = searcher.measured_search(queries, 10)
    recalls = []
    for share in (0.0, 0.3, 0.9):
        found, cost = searcher.measured_search(queries, 10, approximate=share)
        assert np.all(found.passages >= 0)
        for row, passages in enumerate(found.passages):
            [scores] = searcher.scores(queries.select([row]), [passages])
            np.testing.assert_array_equal(found.scores[row], scores)
            assert np.all(np.diff(scores) <= 0)
        pairs = zip(found.passages, exact.passages, strict=True)
        recalls.append(np.mean([len(np.intersect1d(*pair)) / 10 for pair in pairs]))
        read = cost.postings.sum() + cost.vector_entries.sum()
        assert share > 0.0 or read < safe.postings.sum() + safe.vector_entries.sum()
    assert recalls[0] > 0.3
    assert recalls[0] <= recalls[-1]
    assert recalls[-1] > 0.95
    with pytest.raises(DataError, match=r"approximate is 1\.0"):
        searcher.search(queries, 10, approximate=1.0)
