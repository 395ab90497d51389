"""The encoding loop: batches within their budget and their padding bound, sparse rows without dense ones, honest counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.encoding import WINDOW_TEXTS, sparse_rows, tokenised_window
from raydistill.encoders.interface import EncodingTally
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.encoders.tokens import length_batches, tokenize

Folder = Callable[..., Path]


def tiny_encoder(tiny_folder: Folder, tokenizer: Any, **options: Any) -> SpladeEncoder:
    model = SpladeModel.from_config(StudentConfig(model=str(tiny_folder()), text=TextConfig(max_tokens=64)))
    return SpladeEncoder(model, tokenizer, **{"max_tokens": 64, "device": "cpu", **options})


@given(lengths=st.lists(st.integers(0, 40), max_size=30), budget=st.integers(1, 100))
@settings(max_examples=80, deadline=None)
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = length_batches(lengths, budget)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(1, *(lengths[n] for n in b)) <= budget for b in batches)


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=200), budget=st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_padding_stays_within_the_stated_bound(lengths: list[int], budget: int) -> None:
    batches = length_batches(lengths, budget)
    computed = sum(len(batch) * max(lengths[n] for n in batch) for batch in batches)
    assert computed - sum(lengths) <= budget * math.log(max(lengths) / min(lengths)) + 1e-6


def test_a_window_of_real_lengths_pads_under_five_percent() -> None:
    rng = np.random.default_rng(3)
    lengths = np.clip(rng.lognormal(math.log(126), 0.55, WINDOW_TEXTS), 16, 512).astype(int).tolist()
    bound = 8192 * math.log(max(lengths) / min(lengths)) / sum(lengths)
    computed = sum(len(batch) * lengths[batch[0]] for batch in length_batches(lengths, 8192))
    assert 1 - sum(lengths) / computed <= bound < 0.05


@st.composite
def weight_rows(draw: st.DrawFn) -> np.ndarray:
    rows, terms = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    # Few distinct values: ties are the rule.
    values = draw(st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 2.0]), min_size=rows * terms, max_size=rows * terms))
    return np.array(values, dtype=np.float32).reshape(rows, terms)


@given(dense=weight_rows(), max_terms=st.none() | st.integers(1, 12), min_weight=st.sampled_from([0.0, 0.25, 0.7]))
@settings(max_examples=200, deadline=None)
def test_sparse_rows_are_the_heaviest_above_the_threshold(
    dense: np.ndarray, max_terms: int | None, min_weight: float
) -> None:
    found = sparse_rows(torch.from_numpy(dense), max_terms, min_weight)
    found.validate()
    for number, row in enumerate(dense):
        # By weight, then by term id: of equal weights the lower ids stay.
        order = sorted((term for term in range(len(row)) if row[term] > min_weight), key=lambda t: (-row[t], t))
        kept = sorted(order[:max_terms])
        terms, weights = found.row(number)
        assert terms.tolist() == kept
        assert weights.tolist() == row[kept].tolist()


def test_a_weight_that_is_no_number_is_not_lost() -> None:
    weights = torch.tensor([[0.0, torch.nan, 1.0, 2.0]])
    for found in (sparse_rows(weights), sparse_rows(weights, max_terms=2), sparse_rows(weights, min_weight=0.5)):
        with pytest.raises(ValueError, match="finite"):
            found.validate()


def test_a_stream_gives_each_windows_vectors_in_order(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    encoder = tiny_encoder(tiny_folder, tiny_tokenizer, max_terms=5, batch_tokens=40)
    tally = EncodingTally()
    parts = list(encoder.encode_stream([texts[:3], [], texts[3:]], tally))
    assert [len(part) for part in parts] == [3, len(texts) - 3]
    expected = encoder.encode_passages(texts).to_dense()
    np.testing.assert_allclose(SparseBatch.concatenate(parts).to_dense(), expected, atol=1e-4)
    assert tally.passages == len(texts)
    assert tally.tokens == sum(len(row) for row in tokenize(tiny_tokenizer, texts, 64))
    assert tally.tokens < tally.padded_tokens
    assert tally.compute_seconds > 0


def test_windows_are_read_as_they_are_needed(tiny_folder: Folder, tiny_tokenizer: Any) -> None:
    read = []

    def windows() -> Iterator[list[str]]:
        for number in range(5):
            read.append(number)
            yield ["paris", "the river"]

    stream = tiny_encoder(tiny_folder, tiny_tokenizer).encode_stream(windows(), EncodingTally())
    next(stream)
    assert read == [0]


def test_cut_passages_are_counted(tiny_tokenizer: Any) -> None:
    texts = ["paris " * 6, "paris " * 7, "paris " * 60, ""]  # 8, 9, 62 and 2 tokens
    window = tokenised_window(tiny_tokenizer, texts, 8, 100)
    assert (window.truncated, window.tokens) == (2, 8 + 8 + 8 + 2)


def test_threshold_and_budget_prune_passages_only(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    whole = tiny_encoder(tiny_folder, tiny_tokenizer).encode_queries(texts)
    threshold = float(np.median(whole.weights))
    pruned = tiny_encoder(tiny_folder, tiny_tokenizer, min_weight=threshold)
    dense = whole.to_dense()
    np.testing.assert_array_equal(pruned.encode_passages(texts).to_dense(), np.where(dense > threshold, dense, 0))
    np.testing.assert_array_equal(pruned.encode_queries(texts).to_dense(), dense)


def test_bf16_stays_near_fp32(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    exact = tiny_encoder(tiny_folder, tiny_tokenizer).encode_passages(texts).to_dense()
    rounded = tiny_encoder(tiny_folder, tiny_tokenizer, dtype=torch.bfloat16).encode_passages(texts).to_dense()
    # 8 significant bits a product, through two layers.
    np.testing.assert_allclose(rounded, exact, atol=0.05 * exact.max())
    assert not np.array_equal(rounded, exact)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_gives_the_vectors_of_the_cpu(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    many = texts * 50
    expected = tiny_encoder(tiny_folder, tiny_tokenizer, batch_tokens=64).encode_passages(many)
    encoder = tiny_encoder(tiny_folder, tiny_tokenizer, device="cuda", batch_tokens=64)
    tally = EncodingTally()
    found = SparseBatch.concatenate(list(encoder.encode_stream([many[:100], many[100:]], tally)))
    np.testing.assert_allclose(found.to_dense(), expected.to_dense(), atol=1e-3)
    assert tally.compute_seconds > 0
