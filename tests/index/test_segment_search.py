"""Segments round-trip, refuse damage, and searches over them equal a dense product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import CorruptObjectError, DataError
from raydistill.index.compiled import compiled
from raydistill.index.passage_masks import mask_of, mask_without, members, others
from raydistill.index.postings import BLOCK, invert
from raydistill.index.search import Searcher
from raydistill.index.segment import Segment, write_segment


def random_batch(rng: np.random.Generator, rows: int, vocabulary: int, share: float = 0.1) -> SparseBatch:
    dense = rng.random((rows, vocabulary)) * (rng.random((rows, vocabulary)) < share)
    return SparseBatch.from_dense(dense.astype(np.float32))


def open_segments(folder: Path, parts: list[SparseBatch], impacts: str = "f32") -> list[Segment]:
    segments = []
    for position, part in enumerate(parts):
        path = folder / f"{position}.seg"
        write_segment(path, part, [f"s{position}-{row}" for row in range(len(part))], impacts)  # type: ignore[arg-type]
        segments.append(Segment(path))
    return segments


def brute_force(vectors: SparseBatch, queries: SparseBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Top k by score, then by number, from float64 sums rounded to float32 (exact for the small integers of the tests)."""
    scores = (queries.to_dense().astype(np.float64) @ vectors.to_dense().astype(np.float64).T).astype(np.float32)
    passages = np.full((len(queries), k), -1, dtype=np.int64)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for query in range(len(queries)):
        order = [p for p in np.lexsort((np.arange(len(vectors)), -scores[query])) if scores[query, p] > 0][:k]
        passages[query, : len(order)] = order
        best[query, : len(order)] = scores[query, order]
    return passages, best


def sparse_rows(vocabulary: int, largest_row_count: int) -> st.SearchStrategy[SparseBatch]:
    # Small whole weights: sums are exact in float32 in any order, and ties abound.
    row = st.dictionaries(st.integers(0, vocabulary - 1), st.integers(1, 4).map(float), max_size=6)
    return st.lists(row, max_size=largest_row_count).map(lambda rows: SparseBatch.from_rows(rows, vocabulary))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(sparse_rows(7, 90), min_size=1, max_size=3),
    queries=sparse_rows(7, 5),
    k=st.integers(1, 200),
    impacts=st.sampled_from(["f32", "f16"]),
    threads=st.integers(1, 2),
)
def test_search_equals_a_dense_product_with_ties_by_lower_number(tmp_path, parts, queries, k, impacts, threads):
    searcher = Searcher(open_segments(tmp_path, parts, impacts), threads=threads)
    found = searcher.search(queries, k)
    passages, scores = brute_force(SparseBatch.concatenate(parts), queries, k)
    np.testing.assert_array_equal(found.passages, passages)
    np.testing.assert_array_equal(found.scores, scores)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(sparse_rows(7, 90), min_size=1, max_size=3),
    queries=sparse_rows(7, 5),
    k=st.integers(1, 200),
    seed=st.integers(0, 100),
)
def test_passages_outside_the_mask_are_never_found_and_the_others_as_if_alone(tmp_path, parts, queries, k, seed):
    rng = np.random.default_rng(seed)
    segments = open_segments(tmp_path, parts)
    deleted = [np.flatnonzero(rng.random(len(part)) < rng.choice([0.0, 0.3, 1.0])) for part in parts]
    masks = [mask_without(len(part), gone) if len(gone) else None for part, gone in zip(parts, deleted, strict=True)]
    searcher = Searcher(segments, allowed=masks)
    starts = np.cumsum([0] + [len(part) for part in parts])
    gone = np.concatenate([numbers + start for numbers, start in zip(deleted, starts, strict=False)]).astype(int)
    everything = SparseBatch.concatenate(parts)
    left = np.setdiff1d(np.arange(len(everything)), gone)
    places, scores = brute_force(everything.select(left), queries, k)
    found = searcher.search(queries, k)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.passages, np.where(places < 0, -1, np.append(left, -1)[places]))
    ids = [f"s{part}-{row}" for part, rows in enumerate(parts) for row in range(len(rows))]
    numbers = searcher.find(ids)
    np.testing.assert_array_equal(numbers, np.where(np.isin(np.arange(len(ids)), gone), -1, np.arange(len(ids))))
    # Whoever holds the number of a deleted passage still gets what belongs to it.
    assert searcher.passage_ids(gone) == [ids[number] for number in gone]


@given(st.integers(0, 70), st.sets(st.integers(0, 69)))
def test_masks_hold_exactly_their_passages(passages, numbers):
    numbers = sorted(number for number in numbers if number < passages)
    inside = np.isin(np.arange(passages), numbers)
    np.testing.assert_array_equal(members(mask_of(passages, numbers), np.arange(passages)), inside)
    np.testing.assert_array_equal(members(mask_without(passages, numbers), np.arange(passages)), ~inside)
    assert others(mask_without(passages, numbers), passages).tolist() == numbers


@pytest.mark.parametrize("impacts", ["f32", "f16", "u8"])
@pytest.mark.parametrize("vocabulary", [50, 65536, 70000])
def test_scores_from_postings_and_from_forward_vectors_are_equal_to_the_bit(tmp_path, impacts, vocabulary):
    rng = np.random.default_rng(1)
    terms = np.sort(rng.choice(vocabulary, size=40, replace=False))
    terms[-1] = vocabulary - 1
    small = random_batch(rng, 400, 40, 0.3)
    vectors = SparseBatch(small.indptr, terms[small.term_ids].astype(np.int32), small.weights, vocabulary)
    picked = random_batch(rng, 9, 40, 0.4)
    queries = SparseBatch(picked.indptr, terms[picked.term_ids].astype(np.int32), picked.weights, vocabulary)
    searcher = Searcher(open_segments(tmp_path, [vectors.select(range(150)), vectors.select(range(150, 400))], impacts))
    found = searcher.search(queries, 1000)
    assert (found.passages >= 0).sum() > 1000
    for row, numbers in enumerate(found.passages):
        kept = numbers[numbers >= 0]
        [exact] = searcher.scores(queries.select([row]), [kept])
        np.testing.assert_array_equal(found.scores[row, : len(kept)], exact)
    dense = queries.to_dense() @ searcher.vectors(np.arange(400)).to_dense().T
    np.testing.assert_allclose(np.stack(searcher.scores(queries, [np.arange(400)] * 9)), dense, rtol=2e-6)


def test_segments_given_out_of_order_answer_alike(tmp_path):
    rng = np.random.default_rng(2)
    parts = [SparseBatch.from_dense(rng.integers(0, 3, (30, 6)).astype(np.float32)) for _ in range(3)]
    queries = SparseBatch.from_dense(np.eye(6, dtype=np.float32))
    segments = open_segments(tmp_path, parts)
    forward = Searcher(segments, [0, 30, 60]).search(queries, 25)
    backward = Searcher(segments[::-1], [60, 30, 0]).search(queries, 25)
    np.testing.assert_array_equal(forward.passages, backward.passages)


def test_quantised_impacts_stay_close_and_never_vanish(tmp_path):
    vectors = SparseBatch.from_rows([{0: 1e-9, 1: 300.0}, {1: 1e-30, 2: 0.123}], 3)
    for impacts, error in (("f16", 2**-11), ("u8", 0.5 / 255)):
        restored = Searcher(open_segments(tmp_path, [vectors], impacts)).vectors(np.array([0, 1]))
        np.testing.assert_array_equal(restored.term_ids, vectors.term_ids)
        assert restored.weights.min() > 0
        allowed = error * 300 if impacts == "u8" else error * vectors.weights + 2**-24
        assert np.all(np.abs(restored.weights - vectors.weights) <= allowed + (300 / 255 if impacts == "u8" else 0))


def test_an_impact_beyond_f16_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"index\.impacts"):
        write_segment(tmp_path / "s", SparseBatch.from_rows([{0: 1e5}], 1), ["a"], "f16")


def test_vectors_come_in_the_order_asked_with_repeats(tmp_path):
    rng = np.random.default_rng(3)
    vectors = random_batch(rng, 50, 30, 0.2)
    searcher = Searcher(open_segments(tmp_path, [vectors.select(range(20)), vectors.select(range(20, 50))]))
    asked = rng.integers(0, 50, 200)
    got = searcher.vectors(asked)
    got.validate()
    np.testing.assert_array_equal(got.to_dense(), vectors.to_dense()[asked])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.text(max_size=6), min_size=1, max_size=30, unique=True), others=st.lists(st.text(max_size=6)))
def test_ids_are_found_whatever_their_characters(tmp_path, ids, others):
    write_segment(tmp_path / "s", SparseBatch.from_rows([{}] * len(ids), 3), ids, "f16")
    searcher = Searcher([Segment(tmp_path / "s")], [100])
    expected = [100 + ids.index(text) if text in ids else -1 for text in ids + others]
    assert searcher.find(ids + others).tolist() == expected
    assert searcher.passage_ids([number for number in expected if number >= 0]) == [t for t in ids + others if t in ids]


def test_a_repeated_id_is_named(tmp_path):
    with pytest.raises(DataError, match="'b' occurs twice, in rows 1 and 2"):
        write_segment(tmp_path / "s", SparseBatch.from_rows([{}] * 3, 3), ["a", "b", "b"], "f16")


def test_an_index_without_postings_answers_nothing(tmp_path):
    searcher = Searcher(open_segments(tmp_path, [SparseBatch.from_rows([{}, {}], 4), SparseBatch.from_rows([], 4)]))
    found = searcher.search(SparseBatch.from_rows([{1: 1.0}, {}], 4), 3)
    assert found.passages.tolist() == [[-1] * 3] * 2
    assert np.all(np.isneginf(found.scores))
    assert searcher.search(SparseBatch.from_rows([], 4), 3).passages.shape == (0, 3)
    assert searcher.scores(SparseBatch.from_rows([], 4), []) == []


def test_postings_are_the_transpose_and_block_maxima_bound_their_blocks():
    rng = np.random.default_rng(4)
    vectors = random_batch(rng, 700, 5, 0.6)
    postings = invert(vectors.indptr, vectors.term_ids.astype(np.uint16), vectors.weights, 5)
    dense = vectors.to_dense()
    for term in range(5):
        part = slice(postings.term_offsets[term], postings.term_offsets[term + 1])
        rows = np.nonzero(dense[:, term])[0]
        np.testing.assert_array_equal(postings.passages[part], rows)
        np.testing.assert_array_equal(postings.impacts[part], dense[rows, term])
        maxima = postings.block_maxima[postings.block_offsets[term] : postings.block_offsets[term + 1]]
        expected = [dense[rows[start : start + BLOCK], term].max() for start in range(0, len(rows), BLOCK)]
        np.testing.assert_array_equal(maxima, np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("impacts", ["f32", "f16", "u8"])
def test_bytes_are_deterministic_and_any_safetensors_reader_opens_them(tmp_path, impacts):
    vectors = random_batch(np.random.default_rng(5), 33, 70)
    for name in ("a", "b"):
        write_segment(tmp_path / name, vectors, [f"p{row}" for row in range(33)], impacts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    arrays = load_file(tmp_path / "a")
    segment = Segment(tmp_path / "a")
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(segment, name), array)
        assert getattr(segment, name).ctypes.data % array.itemsize == 0
    assert arrays["terms"].dtype == np.uint16


def test_damage_and_unknown_versions_are_refused(tmp_path):
    path = tmp_path / "s"
    write_segment(path, random_batch(np.random.default_rng(6), 20, 30), [str(row) for row in range(20)], "f16")
    content = path.read_bytes()
    damaged = tmp_path / "damaged"
    for cut in (0, 5, 40, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:cut])
        with pytest.raises(CorruptObjectError, match="damaged"):
            Segment(damaged)
    damaged.write_bytes(content + b"x")
    with pytest.raises(CorruptObjectError, match="damaged"):
        Segment(damaged)
    damaged.write_bytes(content.replace(b'"format_version":"2"', b'"format_version":"9"'))
    with pytest.raises(CorruptObjectError, match="version '9' is unknown"):
        Segment(damaged)
    damaged.write_bytes(content.replace(b"raydistill-segment", b"somebodys--segment"))
    with pytest.raises(CorruptObjectError, match="somebodys--segment"):
        Segment(damaged)


def test_queries_and_numbers_that_do_not_fit_are_refused(tmp_path):
    searcher = Searcher(open_segments(tmp_path, [SparseBatch.from_rows([{0: 1.0}], 4)]))
    with pytest.raises(DataError, match="over 5 terms but the index over 4"):
        searcher.search(SparseBatch.from_rows([{0: 1.0}], 5), 1)
    for number in (-1, 1):
        with pytest.raises(DataError, match=f"passage number {number} is not"):
            searcher.vectors(np.array([number]))


def test_loops_compile_where_no_cache_can_be_written():
    # A function without a source file is what numba finds no cache for, as in a read-only installation.
    names: dict[str, object] = {}
    exec("def double(number):\n    return 2 * number", names)
    assert compiled(names["double"])(21) == 42  # type: ignore[type-var]
