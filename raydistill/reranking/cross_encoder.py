"""Cross-encoders: a model that reads a query and a passage together and says how well they fit. Pure; no Ray.

Any `AutoModelForSequenceClassification` with one output (its logit is the score) or two (the second logit less the first).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydistill.config import CrossEncoderConfig
from raydistill.errors import ConfigError, first_line
from raydistill.model_source import check_length, model_config, resolve_model


class CrossEncoder:
    """Scores pairs of texts.

    Args:
        config: the model and what it reads.
        device: torch device.
        field: the configuration section, for messages.

    Raises ConfigError when the model cannot be loaded, has other outputs or reads fewer than `config.max_tokens` tokens.
    """

    def __init__(self, config: CrossEncoderConfig, device: str = "cpu", field: str = "rerank") -> None:
        from transformers import AutoModelForSequenceClassification

        check_cross_encoder(config, field)
        self._config = config
        self._device = torch.device(device)
        self._tokenizer = _tokenizer(config, field)
        try:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                resolve_model(config.model, f"{field}.model"),
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                dtype=getattr(torch, config.dtype),
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{field}.model: {config.model!r} could not be loaded: {first_line(error)}") from error
        fresh = sorted(loading["missing_keys"])
        if fresh:
            raise ConfigError(
                f"{field}.model: {config.model!r} has no trained classifier ({fresh[0]} is missing), so its scores would be "
                "random; name a cross-encoder"
            )
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def scores(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return how well each passage fits the query, float32 [passages]; higher is better.

        A pair's score does not depend on the others, within float tolerance.
        """
        pairs = [self._pair(query, passage) for passage in passages]
        scores = np.zeros(len(pairs), dtype=np.float32)
        longest_first = sorted(range(len(pairs)), key=lambda number: -len(pairs[number]["input_ids"]))
        for start in range(0, len(pairs), self._config.batch_size):
            batch = longest_first[start : start + self._config.batch_size]
            padded = self._tokenizer.pad([pairs[number] for number in batch], return_tensors="pt").to(self._device)
            logits = self._model(**padded).logits.float()
            found = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
            scores[batch] = found.cpu().numpy()
        return scores

    def _pair(self, query: str, passage: str) -> dict[str, Any]:
        """Tokenise a pair: the query cut at its own limit (its end is the oldest), then the passage at what is left."""
        config = self._config
        cut = self._tokenizer(
            query, add_special_tokens=False, truncation=True, max_length=config.query_tokens, return_offsets_mapping=True
        )["offset_mapping"]
        query = query[: cut[-1][1]] if cut else ""
        pair: dict[str, Any] = dict(self._tokenizer(query, passage, truncation="only_second", max_length=config.max_tokens))
        return pair


def check_cross_encoder(config: CrossEncoderConfig, field: str) -> None:
    """Raise ConfigError when a model is no cross-encoder or reads too little; reads its configuration and tokenizer only."""
    found = model_config(config.model, config.revision, config.trust_remote_code, f"{field}.model")
    architectures = found.architectures or []
    if not any("SequenceClassification" in each for each in architectures) or found.num_labels not in (1, 2):
        kind = ", ".join(architectures) or "a model of unknown kind"
        raise ConfigError(
            f"{field}.model: {config.model!r} is {kind} with {found.num_labels} outputs; a cross-encoder is a sequence "
            "classifier with one output or two"
        )
    check_length(found, config.max_tokens, config.model, f"{field}.max_tokens")
    special = _tokenizer(config, field).num_special_tokens_to_add(pair=True)
    if config.query_tokens + special >= config.max_tokens:
        raise ConfigError(
            f"{field}.query_tokens is {config.query_tokens}; with {special} special tokens nothing of {config.max_tokens} "
            f"is left for the passage: lower it, or raise {field}.max_tokens"
        )


def _tokenizer(config: CrossEncoderConfig, field: str) -> Any:
    from transformers import AutoTokenizer

    folder = resolve_model(config.model, f"{field}.model")
    try:
        return AutoTokenizer.from_pretrained(folder, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{field}.model: no tokenizer could be loaded from {config.model!r}: {first_line(error)}"
        ) from error
