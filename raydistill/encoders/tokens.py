"""Texts to padded batches of token ids: tokenise once, group by length, pad. What is done with them lives elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SLICE_TEXTS = 256
"""Texts that a tokenizer gets at a time: what it makes beside ids (offsets, words, what it cut) is many times as large."""


def tokenize(tokenizer: Any, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Return the token ids of each text with special tokens, cut at `max_tokens`."""
    return tokenize_counted(tokenizer, texts, max_tokens)[0]


def tokenize_counted(tokenizer: Any, texts: list[str], max_tokens: int) -> tuple[list[list[int]], int]:
    """Return what `tokenize` does, and how many texts were longer."""
    ids: list[list[int]] = []
    longer = 0
    for start in range(0, len(texts), SLICE_TEXTS):
        found, cut = _tokenized(tokenizer, texts[start : start + SLICE_TEXTS], max_tokens)
        ids += found
        longer += cut
    return ids, longer


def _tokenized(tokenizer: Any, texts: list[str], max_tokens: int) -> tuple[list[list[int]], int]:
    # A text may hold [SEP] as a separator: it becomes that token, which is what the student's text form wants.
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_tokens,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    full = [number for number, row in enumerate(ids) if len(row) >= max_tokens]
    if encoded.encodings is None:  # a tokenizer in Python keeps nothing of what it cut
        return ids, sum(len(tokenizer(texts[number])["input_ids"]) > max_tokens for number in full)
    return ids, sum(bool(encoded.encodings[number].overflowing) for number in full)


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return row numbers grouped by similar length, longest first, each group within `batch_tokens` padded tokens."""
    batches: list[list[int]] = []
    longest = 0
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = max(lengths[number], 1)
        batches[-1].append(number)
    return batches


def padded(ids: Sequence[Sequence[int]], padding: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask), int64 [rows, longest], padded on the right."""
    longest = max(1, *(len(row) for row in ids))
    input_ids = np.full((len(ids), longest), padding, dtype=np.int64)
    mask = np.zeros((len(ids), longest), dtype=np.int64)
    for number, row in enumerate(ids):
        input_ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return torch.from_numpy(input_ids).to(device), torch.from_numpy(mask).to(device)


def pad_id(tokenizer: Any) -> int:
    """Return the id that fills rows; 0 for a tokenizer without a padding token (masked positions are never read)."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
