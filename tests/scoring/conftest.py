"""A tiny random language model that reads prompts of some thousand bytes, and an engine on it."""

from __future__ import annotations

import pytest

from raydistill.teachers.transformers_engine import ModelTokenizer, TransformersEngine
from tests.teachers.conftest import saved, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random causal model of one token a byte."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), 0.4, positions=4096, width=32)
    return saved(model, tokenizer, tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="session")
def judge_engine(judge_model: str) -> TransformersEngine:
    return TransformersEngine(judge_model, ModelTokenizer(judge_model), device="cpu")
