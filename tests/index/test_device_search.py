"""The batched device search gives the searcher's results to the bit; here on the CPU device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_segment_search import open_segments, random_batch, sparse_rows

from raydistill.encoders.batch import SparseBatch
from raydistill.index.device_search import DeviceSearcher
from raydistill.index.passage_masks import mask_without
from raydistill.index.search import Searcher

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def assert_equal_results(searcher: Searcher, device: DeviceSearcher, queries: SparseBatch, k: int) -> None:
    expected, found = searcher.search(queries, k), device.search(queries, k)
    np.testing.assert_array_equal(found.passages, expected.passages)
    np.testing.assert_array_equal(found.scores, expected.scores)


def skip_without(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(sparse_rows(7, 90), min_size=1, max_size=3),
    queries=sparse_rows(7, 5),
    k=st.integers(1, 200),
    rows=st.integers(1, 100),
    columns=st.integers(1, 4),
)
def test_ties_blocks_and_small_collections(tmp_path, parts, queries, k, rows, columns):
    searcher = Searcher(open_segments(tmp_path, parts))
    assert_equal_results(searcher, DeviceSearcher(searcher, "cpu", rows, columns), queries, k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("impacts", ["f32", "f16", "u8"])
@pytest.mark.parametrize("vocabulary", [400, 70_000])
def test_real_weights_of_every_stored_type(tmp_path: Path, device: str, impacts: str, vocabulary: int) -> None:
    skip_without(device)
    rng = np.random.default_rng(11)
    terms = np.sort(rng.choice(vocabulary, size=300, replace=False)).astype(np.int32)
    terms[-1] = vocabulary - 1

    def spread(batch: SparseBatch) -> SparseBatch:
        return SparseBatch(batch.indptr, terms[batch.term_ids], batch.weights, vocabulary)

    parts = [spread(random_batch(rng, rows, 300, 0.3)) for rows in (700, 900)]
    searcher = Searcher(open_segments(tmp_path, parts, impacts))
    batched = DeviceSearcher(searcher, device, passages_at_a_time=256, queries_at_a_time=7)
    assert_equal_results(searcher, batched, spread(random_batch(rng, 20, 300, 0.2)), 50)
    assert batched.searched_again == 0


def test_deleted_passages_are_not_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    parts = [random_batch(rng, rows, 60, 0.3) for rows in (100, 70)]
    masks = [mask_without(100, rng.choice(100, 40)), None]
    searcher = Searcher(open_segments(tmp_path, parts), allowed=masks)
    assert_equal_results(searcher, DeviceSearcher(searcher, "cpu", 33, 4), random_batch(rng, 9, 60, 0.3), 80)


def test_more_ties_than_the_margin_are_left_to_the_searcher(tmp_path: Path) -> None:
    vectors = SparseBatch.from_rows([{0: 1.0, 1: 1.0 if row < 5 else 0.5} for row in range(300)], 2)
    searcher = Searcher(open_segments(tmp_path, [vectors]))
    batched = DeviceSearcher(searcher, "cpu", passages_at_a_time=50)
    queries = SparseBatch.from_rows([{0: 1.0}, {0: 1.0, 1: 1.0}, {}], 2)
    assert_equal_results(searcher, batched, queries, 5)
    assert batched.searched_again == 1
