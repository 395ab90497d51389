"""Dense sentence encoders: vectors whose dot products are cosine similarities. No training, no Ray.

Vectors are the pooled, normalised last hidden states, as sentence-transformers computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from raydistill.config import DenseEncoderConfig
from raydistill.encoders.documents import load_tokenizer
from raydistill.encoders.tokens import length_batches, pad_id, padded, tokenize
from raydistill.errors import ConfigError
from raydistill.model_source import check_length, model_config, resolve_model


class DenseEncoder:
    """Encodes texts so that dot products of their vectors are cosine similarities.

    Args:
        config: model and pooling.
        field: the configuration section, for messages.
        device: where to compute.
        dtype: of the weights; vectors are float32.
        batch_tokens: padded tokens encoded at a time.

    Raises ConfigError when the model cannot be loaded.
    """

    def __init__(
        self,
        config: DenseEncoderConfig,
        field: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        batch_tokens: int = 8192,
    ) -> None:
        folder = resolve_model(config.model, f"{field}.model")
        try:
            model: Any = AutoModel.from_pretrained(
                folder, revision=config.revision, trust_remote_code=config.trust_remote_code, dtype=dtype
            )
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{field}.model: {config.model!r} could not be loaded: {reason}") from error
        self._model: nn.Module = model.to(device).eval()
        self.tokenizer = load_tokenizer(config.model, config.revision, config.trust_remote_code, f"{field}.model")
        self.max_tokens = config.max_tokens
        self._config = config
        self._device = device
        self._batch_tokens = batch_tokens

    def vectors(self, texts: list[str]) -> Tensor:
        """Return vectors of length 1, float32 [len(texts), H], on the encoder's device; there is at least one text."""
        return self.vectors_of(tokenize(self.tokenizer, texts, self.max_tokens))

    @torch.no_grad()
    def vectors_of(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return what `vectors` does, of texts that are token ids already."""
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        for batch in length_batches([len(row) for row in ids], self._batch_tokens):
            input_ids, mask = padded([ids[number] for number in batch], pad_id(self.tokenizer), self._device)
            states = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()
            for number, vector in zip(batch, self._pooled(states, mask), strict=True):
                found[number] = vector
        return nn.functional.normalize(torch.stack(found), dim=1)

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        if self._config.pooling == "cls":
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def check_dense_encoder(config: DenseEncoderConfig, field: str) -> None:
    """Raise ConfigError when there is no such model, or it reads too little; reads its configuration and tokenizer only."""
    found = model_config(config.model, config.revision, config.trust_remote_code, f"{field}.model")
    check_length(found, config.max_tokens, config.model, f"{field}.max_tokens")
    load_tokenizer(config.model, config.revision, config.trust_remote_code, f"{field}.model")
