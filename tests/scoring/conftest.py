"""A tiny random language model that reads prompts of some thousand bytes, and an engine on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raydistill.teachers.transformers_engine import ModelTokenizer, TransformersEngine
from tests.teachers.conftest import saved, tiny_tokenizer


def random_judge(folder: Path) -> str:
    """Save a random causal model of one token a byte into a folder and return it."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return saved(LlamaForCausalLM(config), tokenizer, folder)


@pytest.fixture(scope="session")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return random_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="session")
def judge_engine(judge_model: str) -> TransformersEngine:
    return TransformersEngine(judge_model, ModelTokenizer(judge_model), device="cpu")
