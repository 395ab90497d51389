"""Keeping the heaviest terms: what stays, where gradients go, and that training and encoding agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.heads import heaviest_terms
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.encoders.tokens import padded, tokenize

Folder = Callable[..., Path]
# Few different weights, so that most rows tie at the limit.
ROWS = arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 12)), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0]))


@given(weights=ROWS, terms=st.integers(1, 14))
@settings(max_examples=200, deadline=None)
def test_rows_are_those_of_the_sparse_batch_whatever_ties(weights: np.ndarray, terms: int) -> None:
    kept = heaviest_terms(torch.from_numpy(weights), terms).numpy()
    assert (kept > 0).sum(1).max(initial=0) <= terms
    np.testing.assert_array_equal(kept, SparseBatch.from_dense(weights).heaviest(terms).to_dense())
    order = np.lexsort((np.broadcast_to(np.arange(weights.shape[1]), weights.shape), -weights))
    for row, ranked in enumerate(order):
        expected = np.zeros_like(weights[row])
        expected[ranked[:terms]] = weights[row, ranked[:terms]]
        np.testing.assert_array_equal(kept[row], expected)


@given(weights=ROWS, terms=st.integers(1, 14), more=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_keeping_more_first_changes_nothing(weights: np.ndarray, terms: int, more: int) -> None:
    found = torch.from_numpy(weights)
    once = heaviest_terms(found, terms)
    assert torch.equal(heaviest_terms(heaviest_terms(found, terms + more), terms), once)
    assert torch.equal(heaviest_terms(once, terms), once)


def test_gradients_reach_the_terms_that_stay_and_no_others() -> None:
    weights = torch.tensor([[3.0, 1.0, 2.0, 1.0, 0.0], [0.0, 0.0, 5.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    upstream = torch.arange(1.0, 11.0, dtype=torch.float64).view(2, 5)
    (heaviest_terms(weights, 3) * upstream).sum().backward()
    assert weights.grad is not None
    assert weights.grad[0].tolist() == [1.0, 2.0, 3.0, 0.0, 0.0]
    assert weights.grad[1, 2] == 8.0
    distinct = torch.tensor([[3.0, 1.0, 2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: heaviest_terms(w, 2), (distinct,))


def test_a_weight_that_is_no_number_stays_to_be_seen() -> None:
    weights = torch.tensor([[1.0, torch.nan, 3.0, 2.0], [1.0, 4.0, 3.0, 2.0]])
    for terms in (1, 2, 3):
        kept = heaviest_terms(weights, terms)
        assert kept[0, 1].isnan()
        assert kept[1].isfinite().all()


STUDENTS: list[tuple[str, dict[str, Any]]] = [
    ("Bert", {"head": "mlm"}),
    ("Bert", {"head": "mlm", "pooling": "sum"}),
    ("Bert", {"head": "identity", "active_share": 0.4}),
    ("Llama", {"head": "decoder", "active_share": 0.4}),
    ("Llama", {"head": "decoder", "active_share": 0.4, "attention": "causal", "pooling": "last"}),
    ("Bert", {"head": "table", "table_start": "ones", "recency_parts": 2}),
]


@pytest.mark.parametrize(("architecture", "fields"), STUDENTS)
def test_every_head_keeps_its_heaviest_terms_in_training_and_in_encoding(
    architecture: str, fields: dict[str, Any], tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]
) -> None:
    folder = str(tiny_folder(architecture, fields["head"] != "identity"))

    def student(**more: Any) -> SpladeModel:
        config = StudentConfig(model=folder, text=TextConfig(max_tokens=64), **fields, **more)
        model = SpladeModel.from_config(config)
        model.start_head(texts, tiny_tokenizer, config)
        return model

    ids, mask = padded(tokenize(tiny_tokenizer, texts, 64), 0)
    whole, cut = student(), student(top_terms=3)
    assert whole(ids, mask).gt(0).sum(1).max() > 3
    cut.train()
    expected = heaviest_terms(whole(ids, mask), 3)
    torch.testing.assert_close(cut.eval()(ids, mask), expected)
    assert cut.train()(ids, mask).gt(0).sum(1).max() == 3
    encoder = SpladeEncoder(cut, tiny_tokenizer, 64, device="cpu")
    queries = encoder.encode_queries(texts)
    queries.validate()
    assert queries.lengths().max() == 3
    np.testing.assert_allclose(queries.to_dense(), expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_passages(texts).to_dense(), expected.detach().numpy(), atol=1e-5)
