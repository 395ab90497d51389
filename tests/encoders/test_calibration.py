"""A calibrated identity head starts as sparse as asked, silent on special tokens, and with term weights that make sense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders.calibration import calibration_from_maxima, sampled_texts
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.encoders.tokens import padded, tokenize
from raydistill.errors import ConfigError


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 0.9), texts=st.integers(2, 20), terms=st.integers(20, 60))
@settings(max_examples=50, deadline=None)
def test_the_asked_share_is_active_and_silent_terms_are_not(seed: int, share: float, texts: int, terms: int) -> None:
    generator = np.random.default_rng(seed)
    maxima = (generator.normal(size=terms) * 5 + generator.normal(size=(texts, terms))).astype(np.float32)
    silent = np.arange(terms) < 2
    result = calibration_from_maxima(maxima, silent, share)
    logits = result.scale * maxima + result.bias
    assert not (logits[:, silent] > 0).any()
    assert abs((logits > 0).mean() - share) <= 2 / maxima.size + 1e-3
    assert result.active_share == pytest.approx((logits > 0).mean())
    assert np.std((logits - logits.mean(axis=0))[:, ~silent]) == pytest.approx(1.0, rel=1e-3)
    assert np.isfinite(result.bias).all()


def test_a_term_that_is_high_on_every_text_does_not_fire_on_every_text() -> None:
    maxima = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    maxima[:, 7] += 100.0
    result = calibration_from_maxima(maxima, np.zeros(40, dtype=bool), 0.05)
    assert (result.scale * maxima[:, 7] + result.bias[7] > 0).mean() < 0.5


def test_what_cannot_be_calibrated_is_refused(tiny_folder: Callable[..., Path], tiny_tokenizer: Any) -> None:
    maxima = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(ConfigError, match="active_share"):
        calibration_from_maxima(maxima, np.zeros(3, dtype=bool), 0.0)
    with pytest.raises(ConfigError, match="special token"):
        calibration_from_maxima(maxima, np.ones(3, dtype=bool), 0.1)
    with pytest.raises(ConfigError, match="there are none"):
        sampled_texts([])
    config = StudentConfig(model=str(tiny_folder()), text=TextConfig(max_tokens=64))
    with pytest.raises(ConfigError, match="identity"):
        SpladeModel.from_config(config).calibrate(["paris"], tiny_tokenizer, 0.1)


def test_one_text_is_enough_to_calibrate(tiny_folder: Callable[..., Path], tiny_tokenizer: Any) -> None:
    config = StudentConfig(model=str(tiny_folder("Bert", False)), head="identity", text=TextConfig(max_tokens=64))
    model = SpladeModel.from_config(config)
    result = model.calibrate(["the capital of france"], tiny_tokenizer, 0.2, 64)
    assert np.isfinite(result.scale)
    assert model(*padded(tokenize(tiny_tokenizer, ["the capital of france"], 64), 0)).isfinite().all()


def test_gradients_stay_finite_beside_silent_terms(tiny_folder: Callable[..., Path], tiny_tokenizer: Any) -> None:
    config = StudentConfig(model=str(tiny_folder("Bert", False)), head="identity", text=TextConfig(max_tokens=64))
    model = SpladeModel.from_config(config)
    sample = ["the capital of france", "who wrote war peace", "the old river"]
    model.calibrate(sample, tiny_tokenizer, 0.2, 64)
    model(*padded(tokenize(tiny_tokenizer, sample, 64), 0)).sum().backward()
    assert model.vocabulary_head is not None
    assert model.vocabulary_head.bias.grad is not None
    assert model.vocabulary_head.bias.grad[:6].eq(0).all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_minilm_says_what_a_text_is_about(minilm: str) -> None:
    from raydistill.encoders.documents import load_tokenizer

    config = StudentConfig(model=minilm, head="identity")
    model, tokenizer = SpladeModel.from_config(config), load_tokenizer(minilm, None, False, "student.model")
    sample = [
        "who is the author of war and peace",
        "what is the weather like in june",
        "how do i reset the password of my account",
        "the river runs through the old city",
        "when was the first world war",
        "is there a train from london to york",
    ]
    result = model.calibrate(sample, tokenizer, active_share=0.003)
    assert result.active_share == pytest.approx(0.003, rel=0.02)
    encoder = SpladeEncoder(model, tokenizer, device="cpu")
    terms, weights = encoder.encode_queries(["The capital of France is Paris"]).row(0)
    names = encoder.vocabulary()
    heaviest = [names[terms[n]] for n in np.argsort(-weights)[:8]]
    assert {"capital", "france", "paris"} <= set(heaviest)
    assert not {"the", "of", "is", "[CLS]", "[SEP]"} & set(heaviest)
    assert torch.is_grad_enabled()
