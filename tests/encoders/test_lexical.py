"""The lexical encoder is BM25, whatever the sharding of the collection."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.lexical import (
    LexicalEncoder,
    LexicalStatistics,
    TermCounter,
    count_statistics,
    special_token_ids,
)
from raydistill.errors import ConfigError, CorruptObjectError

WORDS = ["[PAD]", "[UNK]", "[SEP]", "ray", "sparse", "index", "teacher", "student"]


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:3]])
    return tokenizer


texts = st.lists(st.lists(st.sampled_from([*WORDS[3:], "unheard"]), max_size=12).map(" ".join), max_size=12)


def bm25_by_definition(passages: list[str], query: str, number: int, k1: float, b: float) -> float:
    known = set(WORDS[3:])
    tokens = [[word for word in passage.split() if word in known] for passage in passages]
    mean_length = (sum(map(len, tokens)) / len(tokens)) or 1.0
    score = 0.0
    for word in (word for word in query.split() if word in known):
        df = sum(word in passage for passage in tokens)
        tf = tokens[number].count(word)
        idf = math.log(1 + (len(tokens) - df + 0.5) / (df + 0.5))
        if tf:
            score += idf * tf / (tf + k1 * (1 - b + b * len(tokens[number]) / mean_length))
    return score


@given(passages=texts.filter(bool), query=st.lists(st.sampled_from(WORDS[3:]), max_size=6).map(" ".join))
@settings(max_examples=60, deadline=None)
def test_dot_product_is_the_bm25_score(passages: list[str], query: str) -> None:
    tokenizer = word_tokenizer()
    encoder = LexicalEncoder(tokenizer, count_statistics(tokenizer, passages), k1=0.9, b=0.4)
    vectors = encoder.encode_passages(passages)
    vectors.validate()
    scores = vectors.to_dense() @ encoder.encode_queries([query]).to_dense()[0]
    expected = [bm25_by_definition(passages, query, number, 0.9, 0.4) for number in range(len(passages))]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@given(passages=texts, cut=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_statistics_of_shards_add_up_and_survive_storage(passages: list[str], cut: int) -> None:
    tokenizer = word_tokenizer()
    whole = count_statistics(tokenizer, passages)
    merged = count_statistics(tokenizer, passages[:cut]).merge(count_statistics(tokenizer, passages[cut:]))
    assert whole.to_bytes() == merged.to_bytes()
    loaded = LexicalStatistics.from_bytes(whole.to_bytes())
    assert (loaded.passages, loaded.tokens) == (len(passages), whole.tokens)
    np.testing.assert_array_equal(loaded.document_frequency, whole.document_frequency)


def test_special_and_unknown_tokens_get_no_weight() -> None:
    counter = TermCounter(word_tokenizer())
    row = dict(zip(*counter.counts(["ray [SEP] sparse unheard ray [PAD]"]).row(0), strict=True))
    assert row == {3: 2.0, 4: 1.0}


def test_text_longer_than_the_tokenizers_own_limit_is_counted_whole() -> None:
    tokenizer = word_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    assert TermCounter(tokenizer).counts(["ray " * 1000]).weights.tolist() == [1000.0]
    assert len(tokenizer.encode("ray " * 9).ids) == 64, "the caller's tokenizer must be left as it was"


def test_empty_input_and_empty_texts_give_empty_rows() -> None:
    encoder = LexicalEncoder(word_tokenizer(), LexicalStatistics.empty(len(WORDS)))
    assert len(encoder.encode_passages([])) == 0
    assert encoder.encode_passages(["", "[SEP]", "ray"]).lengths().tolist() == [0, 0, 1]


def test_rows_do_not_depend_on_their_batch() -> None:
    tokenizer = word_tokenizer()
    passages = [" ".join(WORDS[3 : 4 + n % 5]) for n in range(1100)]
    encoder = LexicalEncoder(tokenizer, count_statistics(tokenizer, passages))
    together = encoder.encode_passages(passages)
    together.validate()
    alone = encoder.encode_passages([passages[1099]])
    np.testing.assert_array_equal(together.row(1099)[1], alone.row(0)[1])


def test_columns_beyond_the_tokenizer_are_named_and_empty() -> None:
    tokenizer = word_tokenizer()
    statistics = count_statistics(tokenizer, ["ray sparse"]).resized(10)
    encoder = LexicalEncoder(tokenizer, statistics)
    assert isinstance(encoder, SparseEncoder)
    assert encoder.vocabulary_size == 10
    assert encoder.vocabulary() == [*WORDS, "[no term 8]", "[no term 9]"]


def test_errors_are_sentences() -> None:
    with pytest.raises(CorruptObjectError, match="no lexical statistics"):
        LexicalStatistics.from_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match="no fast tokenizer"):
        TermCounter(object())
    with pytest.raises(ConfigError, match="8 terms"):
        TermCounter(word_tokenizer(), 5)
    with pytest.raises(ValueError, match="cannot be merged"):
        LexicalStatistics.empty(3).merge(LexicalStatistics.empty(4))


def test_special_ids_come_from_the_tokenizer() -> None:
    assert special_token_ids(word_tokenizer()) == [0, 1, 2]


def test_the_module_does_not_import_torch() -> None:
    code = "import sys, raydistill.encoders.lexical; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
