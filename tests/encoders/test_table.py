"""The inference-free student: a weight a term, and a factor for how long ago the term was said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import LexicalDocumentsConfig, StudentConfig, TextConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.documents import check_positions, load_document_encoder, load_term_counter
from raydistill.encoders.heads import TermTable
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.lexical import count_statistics
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.encoders.tokens import padded
from raydistill.errors import ConfigError

Folder = Callable[..., Path]
SEPARATOR = 3
TERMS = 12


def student(folder: Path, **more: Any) -> StudentConfig:
    return StudentConfig(model=str(folder), head="table", text=TextConfig(max_tokens=64), **more)


def table(recency_parts: int, seed: int = 0) -> TermTable:
    made = TermTable(np.arange(TERMS) < 4, recency_parts, SEPARATOR)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.mul_(torch.randn(TERMS, generator=generator) + 0.5)
        if made.log_factor is not None:
            made.log_factor.copy_(torch.randn(recency_parts, generator=generator))
    return made


def by_definition(made: TermTable, ids: list[int]) -> dict[int, float]:
    weights: dict[int, float] = {}
    part = 0
    for term in ids:
        factor = 1.0 if made.log_factor is None else float(made.log_factor[min(part, made.recency_parts - 1)].exp())
        weights[term] = max(weights.get(term, 0.0), factor * max(float(made.weight[term]), 0.0))
        part += term == SEPARATOR
    return weights


rows_of_ids = st.lists(st.lists(st.integers(0, TERMS - 1), max_size=15), min_size=1, max_size=5)


@given(ids=rows_of_ids, parts=st.integers(1, 4), seed=st.integers(0, 50), left=st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_both_ways_to_encode_equal_the_definition(ids: list[list[int]], parts: int, seed: int, left: int) -> None:
    made = table(parts, seed)
    expected = SparseBatch.from_rows([by_definition(made, row) for row in ids], TERMS).to_dense()
    rows = made.rows(ids)
    rows.validate()
    np.testing.assert_allclose(rows.to_dense(), expected, rtol=1e-5)
    tokens, mask = padded(ids, SEPARATOR)
    tokens = torch.cat([torch.full((len(ids), left), SEPARATOR), tokens], 1)
    mask = torch.cat([torch.zeros(len(ids), left, dtype=torch.long), mask], 1)
    np.testing.assert_allclose(made(tokens, mask).detach().numpy(), expected, rtol=1e-5)


def test_weights_and_factors_of_what_was_said_learn_and_nothing_else() -> None:
    made = table(3)
    with torch.no_grad():
        made.weight[4:] = 1.0
    made(torch.tensor([[2, 5, 6, 3, 7, 3]]), torch.tensor([[1, 1, 1, 1, 1, 1]])).sum().backward()
    assert made.weight.grad is not None
    assert made.weight.grad.nonzero().squeeze(1).tolist() == [5, 6, 7]
    assert made.log_factor is not None
    assert made.log_factor.grad is not None
    assert made.log_factor.grad.ne(0).tolist() == [True, True, False]


def test_a_term_counts_where_it_is_strongest() -> None:
    made = table(2)
    with torch.no_grad():
        made.weight[4:] = 1.0
        made.log_factor.copy_(torch.log(torch.tensor([1.0, 0.25])))  # type: ignore[union-attr]
    weights = made(torch.tensor([[5, 3, 5, 6, 3, 7]]), torch.ones(1, 6, dtype=torch.long))[0]
    assert [round(float(weights[term]), 4) for term in (5, 6, 7)] == [1.0, 0.25, 0.25]


def test_the_start_is_the_idf_of_the_index_or_ones(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    config = student(tiny_folder())
    model = SpladeModel.from_config(config)
    assert model.table is not None
    share = np.linspace(0.0, 1.0, model.vocabulary_size, dtype=np.float32)
    model.start_head(texts, tiny_tokenizer, config, share)
    weights = model.table.weight.detach().numpy()
    assert (weights[:6] == 0).all(), "special tokens have no weight"
    np.testing.assert_allclose(weights[6:], np.log(1 + 1 / share[6:]), rtol=1e-5)
    ones = student(tiny_folder(), table_start="ones")
    plain = SpladeModel.from_config(ones)
    plain.start_head(texts, tiny_tokenizer, ones)
    assert plain.table is not None
    assert set(plain.table.weight.detach().numpy()[6:]) == {1.0}
    with pytest.raises(ConfigError, match="set it to ones"):
        SpladeModel.from_config(config).start_head(texts, tiny_tokenizer, config)
    with pytest.raises(ConfigError, match="the index has 3 terms"):
        plain.table.start_from(np.ones(3, dtype=np.float32))


def test_ones_over_lexical_passages_are_bm25_of_distinct_terms(
    tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]
) -> None:
    config = student(tiny_folder(), table_start="ones")
    statistics = count_statistics(load_term_counter(config), texts).to_bytes()
    lexical = load_document_encoder(LexicalDocumentsConfig(), config, statistics)
    encoder = SpladeEncoder(SpladeModel.from_config(config), tiny_tokenizer, device="cpu")
    distinct = ["the capital of france", "who wrote war peace"]
    np.testing.assert_array_equal(encoder.encode_queries(distinct).to_dense(), lexical.encode_queries(distinct).to_dense())
    assert encoder.vocabulary_size == lexical.vocabulary_size


def test_a_table_encoder_keeps_the_contract(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    model = SpladeModel.from_config(student(tiny_folder(), recency_parts=2))
    with torch.no_grad():
        model.table.log_factor.copy_(torch.tensor([0.3, -0.7]))  # type: ignore[union-attr]
    encoder = SpladeEncoder(model, tiny_tokenizer, max_tokens=16, device="cpu", max_terms=2)
    assert isinstance(encoder, SparseEncoder)
    together = encoder.encode_queries(texts)
    together.validate()
    alone = SparseBatch.concatenate([encoder.encode_queries([text]) for text in texts])
    np.testing.assert_array_equal(together.to_dense(), alone.to_dense())
    back = encoder.encode_queries(texts[::-1]).select(range(len(texts))[::-1])
    np.testing.assert_array_equal(together.to_dense(), back.to_dense())
    passages = encoder.encode_passages(texts)
    assert passages.lengths().tolist() == np.minimum(together.lengths(), 2).tolist()
    assert len(encoder.encode_queries([])) == 0


def test_a_table_learns_with_the_optimizer_groups_of_any_student(tiny_folder: Folder) -> None:
    model = SpladeModel.from_config(student(tiny_folder(), recency_parts=3))
    groups = model.parameter_groups(2e-5, weight_decay=0.1, head_learning_rate=0.05)
    assert [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups] == [(2, 0.05, 0.0)]
    assert model.merged() is model
    optimizer = torch.optim.AdamW(groups)
    ids = torch.tensor([[2, 7, 8, 3, 9, 3]])
    losses = []
    for _ in range(30):
        weights = model(ids, torch.ones_like(ids))[0]
        loss = (weights[7] - 3.0) ** 2 + weights[9] ** 2
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]


def test_texts_have_no_limit_and_parts_need_a_separator(tiny_folder: Folder, tiny_tokenizer: Any, tmp_path: Path) -> None:
    long = student(tiny_folder()).model_copy(update={"text": TextConfig(max_tokens=10_000)})
    check_positions(long, LexicalDocumentsConfig(kind="lexical"))
    SpladeModel.from_config(long)
    tiny_tokenizer.__class__(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tiny_folder() / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"set student\.recency_parts to 1"):
        SpladeModel.from_config(student(tmp_path))
    SpladeModel.from_config(student(tmp_path, recency_parts=1))
