"""A dense sentence encoder as a scoring teacher: cosine similarities of texts. No training, no Ray.

The scores are those of the pooled, normalised last hidden states, as sentence-transformers computes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from raydistill.config import DenseTeacherConfig
from raydistill.encoders.documents import load_tokenizer
from raydistill.encoders.tokens import length_batches, pad_id, padded, tokenize
from raydistill.errors import ConfigError
from raydistill.model_source import resolve_model

FIELD = "index.documents.training.dense_teacher"


class DenseTeacher:
    """Encodes texts so that dot products of their vectors are cosine similarities.

    Args:
        config: model and pooling.
        device: where to compute.
        batch_tokens: padded tokens encoded at a time.

    Raises ConfigError when the model cannot be loaded.
    """

    def __init__(self, config: DenseTeacherConfig, device: torch.device, batch_tokens: int = 8192) -> None:
        folder = resolve_model(config.model, f"{FIELD}.model")
        try:
            model: Any = AutoModel.from_pretrained(
                folder, revision=config.revision, trust_remote_code=config.trust_remote_code, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{FIELD}.model: {config.model!r} could not be loaded: {reason}") from error
        self._model: nn.Module = model.to(device).eval()
        self._tokenizer = load_tokenizer(config.model, config.revision, config.trust_remote_code, f"{FIELD}.model")
        self._config = config
        self._device = device
        self._batch_tokens = batch_tokens

    @torch.no_grad()
    def vectors(self, texts: list[str]) -> Tensor:
        """Return vectors of length 1, float32 [len(texts), H]."""
        ids = tokenize(self._tokenizer, texts, self._config.max_tokens)
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for batch in length_batches([len(row) for row in ids], self._batch_tokens):
            input_ids, mask = padded([ids[number] for number in batch], pad_id(self._tokenizer), self._device)
            states = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
            for number, vector in zip(batch, self._pooled(states, mask), strict=True):
                found[number] = vector
        return nn.functional.normalize(torch.stack(found), dim=1)

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        if self._config.pooling == "cls":
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
