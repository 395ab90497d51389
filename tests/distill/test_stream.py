"""The training stream: every query once an epoch, the same batches from any position, exact document vectors."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import SamplingConfig
from raydistill.distill.ordering import by_depth, by_source, cut_into_batches
from raydistill.distill.sampling import generator
from raydistill.distill.stream import CandidateStream, StepBatch, occurrences
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import TrainingError
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.teachers.combine import Combiner

Mined = tuple[Artifact, IndexVersion]
KINDS = ["mixed", "depth", "source"]


def stream(
    mined: Mined, buffer: int = 100, batch: int = 4, seed: int = 3, with_rewrites: bool = False, **sampling: Any
) -> CandidateStream:
    candidates, index = mined
    chosen = SamplingConfig(**{"passages": 6, "top": 1, "policy": "window(first=2, last=30)", **sampling})
    return CandidateStream(candidates, open_searcher(index), chosen, Combiner("mean"), batch, seed, buffer, with_rewrites)


def ids(batch: StepBatch) -> list[str]:
    return [query.query_id for query in batch.queries]


def assert_equal(one: StepBatch, other: StepBatch) -> None:
    assert ids(one) == ids(other)
    for spot in fields(StepBatch):
        left, right = getattr(one, spot.name), getattr(other, spot.name)
        if isinstance(left, SparseBatch):
            for name in ("indptr", "term_ids", "weights"):
                np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        elif isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        elif spot.name == "epoch":
            assert left == right


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("buffer", [1, 9, 100])
def test_an_epoch_visits_every_query_once_in_another_order(mined: Mined, buffer: int, kind: str) -> None:
    rows = islice(stream(mined, buffer, batch=2, batches=kind).batches(0), 22)
    queries = [query for batch in rows for query in ids(batch)]
    first, second = queries[:22], queries[22:]
    assert len(set(first)) == len(first) == 22
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("buffer", [1, 9, 100])
def test_starting_at_a_step_gives_the_batches_of_a_run_that_came_there(mined: Mined, buffer: int, kind: str) -> None:
    whole = list(islice(stream(mined, buffer, batches=kind, with_rewrites=True).batches(0), 14))
    for start in (1, 3, 5, 6, 13):  # 22 queries: steps 5 and 10 lie across two epochs
        assert_equal(next(stream(mined, buffer, batches=kind, with_rewrites=True).batches(start)), whole[start])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_query_gets_does_not_depend_on_the_batch_it_is_in(mined: Mined, kind: str) -> None:
    def samples(batch: int) -> dict[str, list[float]]:
        batches = islice(stream(mined, batch=batch, batches=kind, policy="importance").batches(0), 22 // batch)
        return {
            query.query_id: np.stack([each.teacher[row], each.log_weight[row]]).tolist()
            for each in batches
            for row, query in enumerate(each.queries)
        }

    assert samples(2) == samples(11) == samples(22)


def test_batches_by_depth_and_by_source_are_of_a_kind(mined: Mined) -> None:
    """22 queries in one group: a batch is mixed only where the kinds meet or the epoch ends."""
    for kind, number in (("depth", 4), ("source", 3)):
        batches = list(islice(stream(mined, batch=2, batches=kind).batches(0), 11))
        of_query = {f"c{n // 4}<::>{n % 4 + 1}": n % number for n in range(22)}
        kinds = [{of_query[name] for name in ids(batch)} for batch in batches]
        assert sum(len(found) > 1 for found in kinds) <= number - 1
        mixed = [{of_query[name] for name in ids(batch)} for batch in islice(stream(mined, batch=2).batches(0), 11)]
        assert sum(len(found) > 1 for found in mixed) > number


def test_text_lengths_are_alike_within_a_depth() -> None:
    random = np.random.default_rng(0)
    depths, lengths = random.integers(1, 5, 400), random.integers(20, 900, 400)
    ordered = by_depth(depths, lengths, random)
    assert np.all(np.diff(depths[ordered]) >= 0)
    spread = [np.ptp(lengths[part]) for part in np.split(ordered, 25)]
    assert np.mean(spread) < 0.6 * np.ptp(lengths)
    assert by_depth(depths, lengths, random).tolist() != ordered.tolist(), "lengths are blurred"


@given(st.integers(0, 60), st.integers(0, 1000), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_cutting_keeps_every_row_and_neighbours_together(size: int, position: int, batch: int, seed: int) -> None:
    sources = np.sort(np.random.default_rng(seed).integers(0, 3, size))
    ordered = by_source(sources, np.random.default_rng(seed))
    got = cut_into_batches(ordered, position, batch, np.random.default_rng(seed))
    assert sorted(got.tolist()) == list(range(size))
    head = -position % batch
    where = np.argsort(ordered)
    for start in range(head, size - batch + 1, batch):
        assert np.ptp(where[got[start : start + batch]]) == batch - 1, "a batch is a run of the order"


@pytest.mark.parametrize("kind", KINDS)
def test_every_nth_batch_is_one_of_all(mined: Mined, kind: str) -> None:
    whole = list(islice(stream(mined, 9, batches=kind).batches(2), 12))
    for first in range(3):
        for wanted, found in zip(whole[first::3], stream(mined, 9, batches=kind).batches(2 + first, every=3), strict=False):
            assert_equal(found, wanted)


@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_occurrences_are_those_that_a_look_at_each_finds(passages: list[int], wanted: list[list[int]]) -> None:
    numbers = np.asarray(passages, dtype=np.int64)
    found = occurrences(numbers, [np.asarray(each, dtype=np.int64) for each in wanted])
    assert found.shape == (len(wanted), len(passages))
    np.testing.assert_array_equal(found, [np.isin(numbers, each) for each in wanted])


def test_another_seed_gives_another_order(mined: Mined) -> None:
    assert ids(next(stream(mined, seed=3).batches(0))) != ids(next(stream(mined, seed=4).batches(0)))


def test_a_batch_pairs_each_place_with_its_own_passage_and_score(mined: Mined) -> None:
    _candidates, index = mined
    searcher = open_searcher(index)
    for batch in islice(stream(mined).batches(0), 6):
        asker = np.repeat(np.arange(len(batch.queries)), batch.present.sum(axis=1))
        assert len(asker) == len(batch.documents)
        for row, query in enumerate(batch.queries):
            drawn = batch.place[row][batch.present[row]]
            vectors = [batch.documents.row(place) for place in drawn]
            scores = np.nanmean(query.scores, axis=0)
            for place, (terms, weights), score in zip(drawn, vectors, batch.teacher[row], strict=False):
                assert asker[place] == row
                matches = [
                    position
                    for position, number in enumerate(query.passages)
                    if np.array_equal(searcher.vectors(np.asarray([number])).term_ids, terms)
                ]
                assert len(matches) == 1
                assert score == pytest.approx(scores[matches[0]], rel=1e-6)
                np.testing.assert_array_equal(searcher.vectors(query.passages[matches]).weights, weights)
            each = batch.teachers[row][:, batch.present[row]]
            assert each.shape == (2, len(drawn))
            assert np.isnan(each[1]).all() == (query.query_id == "c1<::>4")
            np.testing.assert_allclose(np.nanmean(each, axis=0), batch.teacher[row][batch.present[row]], rtol=1e-6)
            assert batch.depth[row] == query.depth
            assert batch.positive[row].sum() == len(query.gold)
            if len(query.gold):
                assert batch.place[row][batch.positive[row]].tolist() == [batch.gold[row]]
                gold = searcher.vectors(query.gold)
                np.testing.assert_array_equal(batch.documents.row(int(batch.gold[row]))[0], gold.term_ids)
                assert batch.excluded[row, batch.gold[row]]
            else:
                assert batch.gold[row] == -1


def test_rewrites_are_the_mean_of_the_teachers_that_have_one_and_are_read_only_when_asked_for(mined: Mined) -> None:
    candidates, _index = mined
    tables = [pq.read_table(candidates.fetch(part)).to_pylist() for part in candidates.manifest().parts]
    rows = {row["query_id"]: row for table in tables for row in table}
    for batch in islice(stream(mined, with_rewrites=True).batches(0), 6):
        batch.rewrites.validate()
        for vector, name in zip(batch.rewrites.to_dense(), ids(batch), strict=True):
            expected = np.zeros_like(vector)
            terms, weights = rows[name]["rewrite_terms"], rows[name]["rewrite_weights"]
            present = [(t, w) for t, w in zip(terms, weights, strict=True) if t is not None]
            assert len(present) == (1 if name == "c1<::>4" else 2)
            for term_ids, values in present:
                expected[term_ids] += np.asarray(values, dtype=np.float32) / len(present)
            np.testing.assert_allclose(vector, expected, rtol=1e-6)
    plain = next(stream(mined).batches(0)).rewrites
    assert (len(plain), plain.nnz) == (4, 0)


def test_what_the_last_student_ranks_highest_is_always_drawn(mined: Mined) -> None:
    candidates, index = mined
    searcher = open_searcher(index)
    tables = [pq.read_table(candidates.fetch(part)).to_pylist() for part in candidates.manifest().parts]
    stored = {row["query_id"]: row["student_best"] for table in tables for row in table}
    seen = 0
    for batch in islice(stream(mined, student_top=2, policy="uniform").batches(0), 6):
        for row, query in enumerate(batch.queries):
            assert query.student_best.tolist() == (stored[query.query_id] or [])
            drawn = [batch.documents.row(place)[1].tolist() for place in batch.place[row][batch.present[row]]]
            first = len(query.gold) + 1  # gold, and the one best by the teachers
            best = query.passages[int(np.nanmean(query.scores, axis=0).argmax())]
            wanted = [each for each in query.student_best if each in query.passages and each not in (*query.gold, best)][:2]
            for place, number in zip(range(first, first + 2), wanted, strict=False):
                # Where gold is the best of all, it takes no second place.
                shift = int(best in query.gold)
                assert drawn[place - shift] == searcher.vectors(np.asarray([number])).row(0)[1].tolist()
                seen += 1
    assert seen > 10
    assert not any(len(query.student_best) for query in next(stream(mined).batches(0)).queries), "read where it is asked for"


def test_a_calibration_sample_is_mixed_whatever_the_batches(mined: Mined) -> None:
    expected = [query.query_id for query in stream(mined).sample_queries(9)]
    assert len(set(expected)) == 9
    for kind in KINDS:
        assert [query.query_id for query in stream(mined, batches=kind).sample_queries(9)] == expected
    assert len(stream(mined, buffer=1).sample_queries(100)) == 22


def test_a_calibration_sample_reads_no_more_parts_than_it_needs(mined: Mined) -> None:
    candidates, _ = mined
    parts = candidates.manifest().parts
    first = parts[generator(3, 0, "parts").permutation(len(parts))[0]]
    for part in parts:
        if part != first:
            (Path(candidates.root) / part.key).unlink()
    assert len(stream(mined, buffer=1).sample_queries(first.rows)) == first.rows


def test_steps_round_up(mined: Mined) -> None:
    assert stream(mined, batch=4).steps(1.0) == 6
    assert stream(mined, batch=4).steps(2.0) == 11
    assert stream(mined, batch=64).steps(0.1) == 1


def test_nothing_to_train_on_is_an_error(mined: Mined) -> None:
    candidates, index = mined
    empty = Artifact(candidates.root, "candidates", "empty", fingerprint("candidates", 1, {"empty": True}, {}))
    ArtifactWriter(empty).commit([], {})
    with pytest.raises(TrainingError, match="nothing to train on"):
        stream((empty, index))
