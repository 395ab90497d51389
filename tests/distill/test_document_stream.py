"""Batches for a document encoder: their make-up, the order of sentences, and which scores a column carries."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from raydistill.distill import document_stream
from raydistill.distill.document_stream import (
    DocumentBatch,
    DocumentReader,
    DocumentStream,
    Example,
    drawn_passages,
    standardised,
)
from raydistill.distill.reading import ready_batches
from raydistill.encoders.tokens import tokenize
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


@pytest.mark.parametrize("together", [30, 1000])
def test_a_stream_continues_anywhere_with_the_batches_it_would_have_had(
    tmp_path: Path, texts: PassageTexts, tiny_encoder: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_stream, "_SHUFFLED_TOGETHER", together)
    found = stream(tmp_path, texts, tiny_encoder)
    unbroken = batches(found, 0, 16)
    for first in (1, 7, 13):
        for ours, theirs in zip(batches(found, first, 3), unbroken[first:], strict=False):
            assert (ours.queries, ours.passages, ours.epoch) == (theirs.queries, theirs.passages, theirs.epoch)
            np.testing.assert_array_equal(ours.lexical, theirs.lexical)


@pytest.mark.parametrize("processes", [0, 2])
def test_batches_made_ready_ahead_are_those_of_the_stream_as_token_ids(
    tmp_path: Path, texts: PassageTexts, tiny_encoder: str, processes: int
) -> None:
    found = stream(tmp_path, texts, tiny_encoder)
    texts.texts([0])  # a part that is mapped already does not travel
    wanted = batches(found, 5, 12)
    # One for each thread and length: a tokenizer keeps where it last cut.
    long, short, tokenizer = (AutoTokenizer.from_pretrained(tiny_encoder) for _ in range(3))
    ahead = ready_batches(DocumentReader(found, long, 48, (short, 6)), 5, processes, "index.x.readers")
    for batch in wanted:
        ready = next(ahead)
        assert ready.ids == tokenize(tokenizer, [*batch.queries, *batch.passages], 48)
        assert ready.dense_ids == tokenize(tokenizer, [*batch.queries, *batch.passages], 6)
        assert ready.batch.epoch == batch.epoch
        for name in ("drawn", "positive", "recorded", "lexical"):
            np.testing.assert_array_equal(getattr(ready.batch, name), getattr(batch, name))
    ahead.close()


def test_bm25_is_not_asked_where_nobody_follows_it(tmp_path: Path, texts: PassageTexts, tiny_encoder: str) -> None:
    class Unasked:
        def encode_queries(self, texts: list[str]) -> Any:
            raise AssertionError("nobody learns from this")

    dense = {"dense_teacher": {"model": tiny_encoder}, "objective": "kld(teacher=dense) + kld(teacher=recorded)"}
    examples, training = put_examples(str(tmp_path / "root")), learned(tiny_encoder, **dense).training
    (batch,) = batches(DocumentStream(examples, training, texts, Unasked()), 0, 1)  # type: ignore[arg-type]
    assert np.isnan(batch.lexical).all()
    for objective, more in (("kld(teacher=dense) + kld(teacher=lexical)", {}), ("kld", {"lexical_weight": 0.1})):
        asked = learned(tiny_encoder, **{**dense, "objective": objective, **more}).training
        with pytest.raises(AssertionError, match="nobody learns"):
            batches(DocumentStream(examples, asked, texts, Unasked()), 0, 1)  # type: ignore[arg-type]


def test_every_sentence_asks_once_an_epoch_and_runs_have_their_share(
    tmp_path: Path, texts: PassageTexts, tiny_encoder: str
) -> None:
    found = stream(tmp_path, texts, tiny_encoder, global_batch=5, run_share=0.4)
    seen = [query for batch in batches(found, 0, 16) for query in batch.queries[2:]]
    assert sorted(seen) == sorted(sentence(passage, 0) for passage in passages())
    recorded = {sentence(passages()[number], 1) for number in range(0, PASSAGES, 6)}
    assert all(set(batch.queries[:2]) <= recorded for batch in batches(found, 0, 4))


def test_sentences_of_all_parts_are_mixed(
    tmp_path: Path, texts: PassageTexts, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changes() -> int:
        """Return how often one sentence of an epoch is of another part of the corpus than the one before."""
        found = stream(tmp_path, texts, tiny_encoder, global_batch=5, run_share=0.4)
        of_part = {sentence(passage, 0): number < 20 for number, passage in enumerate(passages())}
        parts = [of_part[query] for batch in batches(found, 0, 16) for query in batch.queries[2:]]
        return sum(one != other for one, other in pairwise(parts))

    assert changes() > 10
    monkeypatch.setattr(document_stream, "_SHUFFLED_TOGETHER", 30)
    assert changes() == 1, "what is too much to be held together comes part by part"


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
