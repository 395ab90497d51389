"""Tiny random language models with a real tokenizer, made when the tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

POSITIONS = 128
OUT_OF_RANGE = "☃"
LEARNT = "who built it?"


def tiny_tokenizer() -> Any:
    """One token a byte; `OUT_OF_RANGE` is a token that the causal models have no embedding for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.add_tokens([OUT_OF_RANGE])
    return fast


def tiny_llama(vocabulary: int, initializer_range: float, positions: int = POSITIONS, width: int = 16) -> LlamaForCausalLM:
    """Return a random Llama of a few thousand parameters, the same at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=initializer_range,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random causal model, which writes any bytes at all."""
    tokenizer = tiny_tokenizer()
    return saved(tiny_llama(len(tokenizer) - 1, 0.5), tokenizer, tmp_path_factory.mktemp("tiny-causal"))


@pytest.fixture(scope="session")
def trained_causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a causal model that has learnt to answer every `plain-v1` prompt with LEARNT and a line break."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer) - 1, 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    examples = [f"{'user: ab question 12?' * (n % 5)}\nrewrite: {LEARNT}\n" for n in range(5)]
    answer = len(f" {LEARNT}\n")
    batch = tokenizer(examples, padding=True, return_tensors="pt", padding_side="left")
    labels = batch["input_ids"].clone()
    labels[:, :-answer] = -100
    for _ in range(400):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.01:
            break
    return saved(model, tokenizer, tmp_path_factory.mktemp("trained-causal"))


@pytest.fixture(scope="session")
def tiny_seq2seq(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random T5 of a few thousand parameters."""
    folder = tmp_path_factory.mktemp("tiny-seq2seq")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        initializer_factor=5.0,
        pad_token_id=2,
        eos_token_id=1,
        decoder_start_token_id=2,
    )
    return saved(T5ForConditionalGeneration(config), tokenizer, folder)


def saved(model: Any, tokenizer: Any, folder: Path) -> str:
    """Save both into the folder and return it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
