"""A service with a second stage: the cross-encoder's order, the index's scores beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raydistill.config import RerankConfig
from raydistill.errors import ConfigError
from raydistill.reranking.cross_encoder import CrossEncoder
from raydistill.reranking.order import query_text
from raydistill.serving.client import SearchClient
from tests.animal_world import tiny_cross_encoder
from tests.serving.conftest import World

CONVERSATION = ["tell me where the otter lives", "the otter lives in the forest near water", "what food does it eat"]
DEPTH = 8


@pytest.fixture(scope="module")
def rerank(tmp_path_factory: pytest.TempPathFactory) -> RerankConfig:
    folder = tmp_path_factory.mktemp("cross-encoder")
    tiny_cross_encoder(folder)
    fields = {"model": str(folder), "depth": DEPTH, "query_tokens": 24, "max_tokens": 64, "workers": {"cpus": 0.2}}
    return RerankConfig.model_validate(fields)


@pytest.fixture(scope="module")
def client(animals: World, rerank: RerankConfig) -> Iterator[SearchClient]:
    from raydistill.serving.start import running

    config = animals.config(rerank=rerank.model_dump(), name="reranked")
    with running(config) as address:
        yield SearchClient(address, timeout_s=180)


@pytest.mark.slow  # a service of its own, a minute on two cores
@pytest.mark.parametrize("k", [1, 5, 12])
def test_the_first_passages_are_those_that_the_cross_encoder_likes_best(client, rerank, k):
    first = client.search(CONVERSATION, max(k, DEPTH), rerank=False)
    second = client.search(CONVERSATION, k)
    asked, answered, question = CONVERSATION
    query = query_text(question, [(asked, answered)], rerank.query)
    scores = CrossEncoder(rerank).scores(query, [str(each.text) for each in first.passages[:DEPTH]])
    order = np.argsort(-scores, kind="stable")
    expected = [first.passages[place] for place in order] + list(first.passages[DEPTH:])
    assert [each.passage_id for each in second.passages] == [each.passage_id for each in expected[:k]]
    np.testing.assert_allclose(
        [each.first_score for each in second.passages], [each.score for each in expected[:k]], rtol=1e-4
    )
    np.testing.assert_allclose([each.score for each in second.passages[:DEPTH]], scores[order][:k], atol=1e-4)
    assert {"encode", "search", "rerank", "total"} == set(second.milliseconds)
    assert "rerank" not in first.milliseconds


@pytest.mark.slow
def test_texts_are_read_but_not_sent_when_nobody_asked(client):
    assert all(each.text is None for each in client.search(CONVERSATION, 3, text=False).passages)


def test_a_model_that_cannot_rerank_is_refused_before_anything_starts(animals: World, rerank: RerankConfig, tmp_path: Path):
    from raydistill.serving.start import check

    with pytest.raises(ConfigError, match=r"rerank\.model: .* is BertForMaskedLM"):
        check(animals.config(rerank={**rerank.model_dump(), "model": str(animals.folder / "encoder")}))
    with pytest.raises(ValueError, match="rerank needs the passages' texts"):
        animals.config(rerank=rerank.model_dump(), fan_out={"texts": False})
