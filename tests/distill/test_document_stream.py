"""Batches for a document encoder: their make-up, the order of sentences, and which scores a column carries."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.distill.document_stream import DocumentBatch, DocumentStream, Example, drawn_passages, standardised
from raydistill.errors import DataError
from raydistill.index.corpus import passage_parts
from raydistill.index.passage_texts import PassageTexts
from tests.distill.document_world import PASSAGES, learned, lexical_encoder, passages, put_corpus, put_examples, sentence


@pytest.fixture
def texts(tmp_path: Path) -> PassageTexts:
    corpus = put_corpus(str(tmp_path / "root"), tmp_path)
    return PassageTexts(corpus, passage_parts(corpus.manifest()))


def stream(tmp_path: Path, texts: PassageTexts, encoder: str, **training: Any) -> DocumentStream:
    return DocumentStream(
        put_examples(str(tmp_path / "root")), learned(encoder, **training).training, texts, lexical_encoder(encoder)
    )


def batches(found: DocumentStream, first: int, number: int) -> list[DocumentBatch]:
    return list(islice(found.batches(first), number))


def test_texts_are_found_by_number_over_all_parts(texts: PassageTexts) -> None:
    wanted = [47, 0, 19, 20, 0]
    assert texts.texts(wanted) == [passages()[number].text for number in wanted]
    assert len(texts) == PASSAGES
    with pytest.raises(DataError, match="passage number 48 is not in"):
        texts.texts([48])


def test_a_stream_continues_anywhere_with_the_batches_it_would_have_had(
    tmp_path: Path, texts: PassageTexts, tiny_encoder: str
) -> None:
    found = stream(tmp_path, texts, tiny_encoder)
    unbroken = batches(found, 0, 16)
    for first in (1, 7, 13):
        for ours, theirs in zip(batches(found, first, 3), unbroken[first:], strict=False):
            assert (ours.queries, ours.passages, ours.epoch) == (theirs.queries, theirs.passages, theirs.epoch)
            np.testing.assert_array_equal(ours.lexical, theirs.lexical)


def test_every_sentence_asks_once_an_epoch_and_runs_have_their_share(
    tmp_path: Path, texts: PassageTexts, tiny_encoder: str
) -> None:
    found = stream(tmp_path, texts, tiny_encoder, global_batch=5, run_share=0.4)
    seen = [query for batch in batches(found, 0, 16) for query in batch.queries[2:]]
    assert sorted(seen) == sorted(sentence(passage, 0) for passage in passages())
    recorded = {sentence(passages()[number], 1) for number in range(0, PASSAGES, 6)}
    assert all(set(batch.queries[:2]) <= recorded for batch in batches(found, 0, 4))


def test_columns_carry_the_scores_of_every_teacher_that_knows_the_pair(
    tmp_path: Path, texts: PassageTexts, tiny_encoder: str
) -> None:
    (batch,) = batches(stream(tmp_path, texts, tiny_encoder), 2, 1)
    encoder = lexical_encoder(tiny_encoder)
    expected = (
        encoder.encode_queries(list(batch.queries)).to_dense() @ encoder.encode_passages(list(batch.passages)).to_dense().T
    )
    np.testing.assert_allclose(batch.lexical, expected, rtol=1e-5)
    assert batch.recorded.shape == (5, 15)
    assert np.isnan(batch.recorded[1:]).all()
    assert np.isfinite(batch.recorded[0, :3]).sum() >= 2
    of_text = {passage.text: number for number, passage in enumerate(passages())}
    for row, query in enumerate(batch.queries):
        right = {
            number for number, passage in enumerate(passages()) if query in (sentence(passage, 0), sentence(passage, 1))
        }
        assert [of_text[text] in right for text in batch.passages] == batch.positive[row].tolist()


@given(
    gold=st.sets(st.integers(0, 30), max_size=3),
    listed=st.sets(st.integers(0, 30), max_size=8),
    others=st.sets(st.integers(0, 30), max_size=12),
    places=st.integers(2, 8),
)
def test_draws_hold_one_gold_no_repeats_and_leave_room_for_negatives(
    gold: set[int], listed: set[int], others: set[int], places: int
) -> None:
    shown = np.asarray(sorted(gold | listed | others), dtype=np.int64)
    recorded = np.where(np.isin(shown, sorted(listed)), 1.0, np.nan).astype(np.float32)
    example = Example("q", np.asarray(sorted(gold), dtype=np.int64), shown, recorded)
    drawn = drawn_passages(example, places, np.random.default_rng(0))
    kept = drawn[drawn >= 0].tolist()
    assert len(drawn) == places
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(shown.tolist())
    if gold:
        assert kept[0] in gold
    unlisted = others - listed - gold
    if unlisted:
        assert len(kept) == places or unlisted <= set(kept)
        assert set(kept) & unlisted
    assert len((set(kept) & gold) - listed) <= 1


def test_standardised_scores_are_free_of_a_systems_scale() -> None:
    scores = np.array([3.0, np.nan, 1.0, 2.0], dtype=np.float32)
    expected = np.array([1.2247, np.nan, -1.2247, 0.0])
    np.testing.assert_allclose(standardised(scores), expected, atol=1e-4)
    np.testing.assert_allclose(standardised(scores * 7 + 20), expected, atol=1e-4)
    np.testing.assert_array_equal(standardised(np.array([2.0, 2.0, np.nan], dtype=np.float32)), [0.0, 0.0, np.nan])
