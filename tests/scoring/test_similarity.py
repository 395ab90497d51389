"""A dense encoder as a scorer: cosines as another library has them, each passage encoded once, mistakes told first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from raydistill.config import BiEncoderConfig, BiEncoderScorerConfig
from raydistill.errors import ConfigError
from raydistill.scoring import similarity
from raydistill.scoring.judges import Candidates, Tally
from raydistill.scoring.opening import check_scorer, open_judge
from raydistill.scoring.similarity import SimilarityJudge

TURNS = [
    Candidates("who directed blade runner?", ["Ridley Scott directed Blade Runner in 1982.", "Lizards live on islands."]),
    Candidates("where do lizards live?", ["Lizards live on islands.", "", "A film. " * 40]),
    Candidates("asked of nothing", []),
]


def scorer(model: str, **fields: Any) -> BiEncoderScorerConfig:
    encoder = {"model": model, "max_tokens": 32, **fields.pop("encoder", {})}
    return BiEncoderScorerConfig(**{"name": "dense", "encoder": encoder, **fields})


def judged(config: BiEncoderScorerConfig, tmp_path: Any) -> list[Any]:
    return open_judge(config, str(tmp_path)).judge(TURNS, Tally())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_scores_are_the_scaled_cosines_of_sentence_transformers(minilm: str, tmp_path: Any, pooling: str) -> None:
    words = Transformer(minilm, max_seq_length=32)
    theirs = SentenceTransformer(modules=[words, Pooling(384, pooling)], device="cpu")
    found = judged(
        scorer(minilm, encoder={"pooling": pooling, "query_prefix": "query: ", "passage_prefix": "text: "}), tmp_path
    )
    for turn, scores in zip(TURNS, found, strict=True):
        assert scores.shape == (len(turn.passages),)
        if turn.passages:
            vectors = theirs.encode([f"text: {text}" for text in turn.passages], normalize_embeddings=True)
            query = theirs.encode([f"query: {turn.query}"], normalize_embeddings=True)[0]
            np.testing.assert_allclose(scores, 20 * vectors @ query, atol=2e-4)
    assert found[0].argmax() == 0
    assert found[1].argmax() == 0
    halved = judged(scorer(minilm, scale=10.0), tmp_path)
    np.testing.assert_allclose(halved[0], judged(scorer(minilm), tmp_path)[0] / 2, rtol=1e-6)


def test_a_passage_is_encoded_once_and_the_memory_of_it_is_bounded(minilm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge() -> SimilarityJudge:
        return SimilarityJudge(BiEncoderConfig(model=minilm, max_tokens=32), 20.0, "scorers.dense.encoder")

    kept, tally = judge(), Tally()
    first = kept.judge(TURNS, tally)
    assert (tally.prompts, tally.cached) == (4, 0)  # five passages, two of which are one
    again = kept.judge(TURNS, tally)
    assert (tally.prompts, tally.cached) == (8, 4)
    monkeypatch.setattr(similarity, "_CACHE_BYTES", 2 * 384 * 4)
    small, tally = judge(), Tally()
    for _ in range(2):
        squeezed = small.judge(TURNS, tally)
    assert len(small._kept) == 2
    assert 0 < tally.cached < 4
    for one, two, three in zip(first, again, squeezed, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, three, atol=2e-5)


def test_an_encoder_that_cannot_be_used_is_told_before_anything_starts(minilm: str, tmp_path: Any) -> None:
    check_scorer(scorer(minilm))
    with pytest.raises(ConfigError, match=r"scorers.dense.encoder.max_tokens is 600, but .* reads at most 512 tokens"):
        check_scorer(scorer(minilm, encoder={"max_tokens": 600}))
    with pytest.raises(ConfigError, match=r"scorers.dense.encoder.model: .* has no readable config.json"):
        check_scorer(scorer(str(tmp_path)))
    with pytest.raises(ValueError, match="scale"):
        scorer(minilm, scale=0.0)
