"""The training stream: every query once an epoch, the same batches from any position, exact document vectors."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from raydistill.config import SamplingConfig
from raydistill.distill.stream import CandidateStream, Prefetch, StepBatch
from raydistill.errors import TrainingError
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint

Mined = tuple[Artifact, IndexVersion]
POLICY = SamplingConfig(passages=6, top=1, first_rank=2, last_rank=30)


def stream(mined: Mined, buffer: int = 100, batch: int = 4, seed: int = 3) -> CandidateStream:
    candidates, index = mined
    return CandidateStream(candidates, open_searcher(index), POLICY, "mean", batch, seed, buffer)


def ids(batch: StepBatch) -> list[str]:
    return [query.query_id for query in batch.queries]


@pytest.mark.parametrize("buffer", [1, 9, 100])
def test_an_epoch_visits_every_query_once_in_another_order(mined: Mined, buffer: int) -> None:
    batches = list(islice(stream(mined, buffer, batch=2).batches(0), 22))
    first = [query for batch in batches[:11] for query in ids(batch)]
    second = [query for batch in batches[11:] for query in ids(batch)]
    assert len(set(first)) == len(first) == 22
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("buffer", [1, 9, 100])
def test_starting_at_a_step_gives_the_batches_of_a_run_that_came_there(mined: Mined, buffer: int) -> None:
    whole = list(islice(stream(mined, buffer).batches(0), 14))
    for start in (1, 5, 6, 13):
        late = next(stream(mined, buffer).batches(start))
        assert ids(late) == ids(whole[start])
        assert late.epoch == whole[start].epoch
        np.testing.assert_array_equal(late.teacher, whole[start].teacher)
        np.testing.assert_array_equal(late.documents.term_ids, whole[start].documents.term_ids)


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
            if len(query.gold):
                gold = searcher.vectors(query.gold)
                np.testing.assert_array_equal(batch.documents.row(int(batch.gold[row]))[0], gold.term_ids)
                assert batch.excluded[row, batch.gold[row]]
            else:
                assert batch.gold[row] == -1


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


def test_prefetch_hands_on_items_in_order_and_errors_at_their_place() -> None:
    def source():  # type: ignore[no-untyped-def]
        yield from range(5)
        raise TrainingError("the source broke")

    prefetch = Prefetch(source)
    assert [next(prefetch) for _ in range(5)] == list(range(5))
    with pytest.raises(TrainingError, match="the source broke"):
        next(prefetch)
    prefetch.close()


def test_closing_a_prefetch_ends_its_thread_though_nobody_reads() -> None:
    prefetch = Prefetch(lambda: iter(range(1_000_000)))
    assert next(prefetch) == 0
    prefetch.close()
    assert not prefetch._thread.is_alive()
