"""Cross-encoders: scores as transformers gives them, cuts where they are promised, and refusals."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config import RerankConfig
from raydistill.errors import ConfigError
from raydistill.reranking.cross_encoder import CrossEncoder, check_cross_encoder
from raydistill.reranking.order import query_text, reordered
from tests.animal_world import ANIMALS, TRAITS, tiny_cross_encoder, tiny_student

PASSAGES = [f"the {animal} {trait}" for animal in ANIMALS for trait in TRAITS.values()]


def config(folder: Path, **fields: object) -> RerankConfig:
    return RerankConfig.model_validate({"model": str(folder), "query_tokens": 12, "max_tokens": 32, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cross-encoder")
    tiny_cross_encoder(made)
    return made


def plain_score(folder: Path, query: str, passage: str) -> float:
    """Score a pair the way the library's own documentation does."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = AutoTokenizer.from_pretrained(folder)(query, passage, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0]
    return float(logits[0] if len(logits) == 1 else logits[1] - logits[0])


@pytest.mark.parametrize("labels", [1, 2])
def test_scores_are_those_of_the_model_whatever_the_batch(tmp_path, labels):
    tiny_cross_encoder(tmp_path, labels)
    query = "where does the otter sleep"
    expected = [plain_score(tmp_path, query, passage) for passage in PASSAGES]
    assert np.ptp(expected) > 0.1
    for batch_size in (1, 4, 32):
        found = CrossEncoder(config(tmp_path, batch_size=batch_size)).scores(query, PASSAGES)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert found.dtype == np.float32


def test_a_long_query_loses_its_end_and_a_long_passage_its_own(folder):
    encoder = CrossEncoder(config(folder))
    query, passage = " ".join(["otter"] * 12), " ".join(["water"] * 17)
    assert encoder.scores(f"{query} heron lynx", [passage]) == encoder.scores(query, [passage])
    assert encoder.scores(query, [f"{passage} viper moose"]) == encoder.scores(query, [passage])
    assert encoder.scores("heron otter", [passage]) != encoder.scores("otter heron", [passage])


def test_no_passages_and_no_words_are_fine(folder):
    encoder = CrossEncoder(config(folder))
    assert len(encoder.scores("otter", [])) == 0
    assert np.isfinite(encoder.scores("", ["", "otter"])).all()


def test_what_is_no_cross_encoder_is_refused(tmp_path, folder):
    tiny_student(tmp_path)
    with pytest.raises(ConfigError, match=r"rerank\.model: .* is BertForMaskedLM with 2 outputs; a cross-encoder is a"):
        CrossEncoder(config(tmp_path))
    with pytest.raises(ConfigError, match=r"rerank\.max_tokens is 512, but .* reads at most 64 tokens"):
        check_cross_encoder(config(folder, max_tokens=512), "rerank")
    with pytest.raises(ConfigError, match=r"query_tokens is 29; with 3 special tokens nothing of 32 is left"):
        check_cross_encoder(config(folder, query_tokens=29), "rerank")
    with pytest.raises(ConfigError, match="the folder '/nowhere' does not exist"):
        check_cross_encoder(RerankConfig(model="/nowhere"), "rerank")
    with pytest.raises(ValueError, match="no room is left for the passage"):
        config(folder, query_tokens=32)


def test_a_classifier_without_weights_is_refused(tmp_path):
    import json

    from transformers import BertForMaskedLM

    from tests.animal_world import tiny_bert, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    BertForMaskedLM(tiny_bert(len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(ConfigError, match=r"has no trained classifier \(.* is missing\)"):
        CrossEncoder(config(tmp_path))


def test_the_query_is_what_was_asked_for():
    history = [("where does the otter live", "near water")]
    assert query_text("and  what\ndoes it eat", history, "last turn") == "and what does it eat"
    assert query_text("what", history, "all user turns") == "what\nwhere does the otter live"
    assert query_text("what", history, "full conversation") == "what\nnear water\nwhere does the otter live"


@given(st.data(), st.integers(0, 30))
def test_a_new_order_keeps_every_passage_and_descends(data, passages):
    read = sorted(data.draw(st.sets(st.integers(0, passages - 1)))) if passages else []
    scores = np.array(data.draw(st.lists(st.sampled_from([-1.0, 0.0, 2.5]), min_size=len(read), max_size=len(read))))
    order, new = reordered(scores.astype(np.float32), passages, read)
    assert sorted(order) == list(range(passages))
    assert all(first >= second for first, second in pairwise(new))
    expected = sorted(range(len(read)), key=lambda number: (-scores[number], read[number]))
    assert order[: len(read)] == [read[number] for number in expected]
    assert order[len(read) :] == sorted(set(range(passages)) - set(read))
