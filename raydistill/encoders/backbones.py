"""Backbones: Hugging Face models as the student's heads need them. Loading, token states, pooling inside an MLM decoder.

What comes after the states lives in `heads`; which weights are trained in `adaptation`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.utils.hub import cached_file

from raydistill.config import Attention, HeadKind, Pooling
from raydistill.encoders.head import splade_head
from raydistill.encoders.head_sum import Head
from raydistill.errors import ConfigError
from raydistill.model_source import resolve_model

_POOLING_FOLDERS = ("1_SpladePooling", "document_1_SpladePooling")
"""Where sentence_transformers describes the pooling: of one encoder, and of the document side of two."""
_FACTORIES = {"mlm": AutoModelForMaskedLM, "identity": AutoModel, "decoder": AutoModelForCausalLM}


def load_backbone(
    model: str, revision: str | None, head: HeadKind, trust_remote_code: bool, field: str, device: str | None = None
) -> Any:
    """Load a checkpoint from the hub or a folder as `head` needs it, in float32 and evaluation mode.

    Args:
        field: the configuration section that named the model, for messages.
        device: where its weights go, default the CPU; "meta" gives shapes and no values, at no cost, for checks.

    Raises ConfigError when there is none, or when weights are missing that `head` needs.
    """
    folder = resolve_model(model, f"{field}.model")
    factory = _FACTORIES[head]
    try:
        backbone, report = factory.from_pretrained(
            folder,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
            device_map=device,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{field}.model: {model!r} could not be loaded as {factory.__name__}: {reason}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing and head == "mlm":
        fix = "set student.head: identity, or " if field == "student" else ""
        raise ConfigError(
            f"{field}.model: {model!r} has no complete masked-LM head (missing {', '.join(missing[:3])}...); "
            f"{fix}choose a checkpoint that was saved with its MLM head"
        )
    if missing:
        raise ConfigError(
            f"{field}.model: {model!r} lacks weights of its own architecture: {', '.join(missing[:3])}; is it complete?"
        )
    return backbone.eval()


def pooling_of_checkpoint(
    model: str, revision: str | None, field: str, asked: Pooling | None = None
) -> tuple[Pooling, bool]:
    """Return how a masked LM pools over tokens, and whether it pools log(1 + log(1 + ReLU(logit))) (arXiv 2504.14839).

    sentence_transformers' folders say both. One that says nothing, such as naver's, pools as it is asked to, by default by
    the maximum, and has one logarithm.

    Args:
        asked: `pooling` of the section; None follows the checkpoint.

    Raises ConfigError for poolings and activations that nobody knows, and for another pooling than the checkpoint says.
    """
    found = next(filter(None, (_pooling_config(model, revision, name, field) for name in _POOLING_FOLDERS)), {})
    stated, activation = found.get("pooling_strategy", "max"), found.get("activation_function", "relu")
    if stated not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise ConfigError(
            f"{field}.model: {model!r} pools by {stated} of {activation}; only max and sum of relu and of log1p_relu are "
            "supported"
        )
    if found and asked is not None and asked != stated:
        raise ConfigError(
            f"{field}.pooling is {asked}, but {model!r} says that it pools by {stated}; set {field}.pooling to {stated}, or "
            "leave it out"
        )
    return asked or stated, activation == "log1p_relu"


def _pooling_config(model: str, revision: str | None, folder: str, field: str) -> dict[str, Any]:
    try:
        path = cached_file(
            resolve_model(model, f"{field}.model"),
            f"{folder}/config.json",
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        return {}  # no such model at all: loading it says so
    return {} if path is None else dict(json.loads(Path(path).read_text(encoding="utf-8")))


def position_limit(backbone: Any) -> int | None:
    """Return how many tokens the backbone can read, None where nothing bounds it.

    With learned positions that is their number; rotary models (ModernBERT, Llama and its kin) have no such table, and the
    length they were trained for counts.
    """
    limit = getattr(backbone.config, "max_position_embeddings", None)
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from after the padding id.
            limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return limit


def token_states(backbone: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the base model's last states, [B, L, H], of an encoder or a causal language model.

    Positions are counted from the first unmasked token where the model takes them, so padding may be on either side.
    """
    base = backbone.base_model
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if backbone.get_output_embeddings() is not None:  # a language model; encoders count positions in their own way
        accepted = inspect.signature(type(base).forward).parameters
        if "position_ids" in accepted:
            inputs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        if "use_cache" in accepted:
            inputs["use_cache"] = False
    states: Tensor = base(**inputs).last_hidden_state
    return states


def set_attention(backbone: Any, attention: Attention, field: str) -> None:
    """Let a causal language model's tokens see the later ones (bidirectional), or not (causal).

    Uses the `is_causal` attribute of transformers' configurations, which is stored in config.json and so holds for
    everybody who loads the model. Raises ConfigError when the architecture ignores it, which a few tokens show.
    """
    backbone.config.is_causal = attention == "causal"
    if attention == "causal":
        return
    device = next(backbone.parameters()).device
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=device) % backbone.config.vocab_size
    with torch.inference_mode():
        first, second = token_states(backbone, ids, torch.ones_like(ids))[:, 0]
    if torch.equal(first, second):
        raise ConfigError(
            f"{field}.attention is bidirectional, but {type(backbone).__name__} lets no token see the later ones whatever "
            "its configuration says; set it to causal, or choose another model"
        )


def pooled_from_logits(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, pooling: Pooling = "max", log_twice: bool = False
) -> Tensor:
    """Return SPLADE weights float32 [B, V] of a masked LM from its logits, [B, L, V], as everybody computes them.

    A second logarithm (`log_twice`) is taken within a sum only; after a maximum it may come last.
    """
    logits = backbone(input_ids=input_ids, attention_mask=attention_mask).logits.float()
    masked = ~attention_mask.bool().unsqueeze(-1)
    if pooling == "sum":
        weights = torch.log1p(torch.relu(logits))
        return (torch.log1p(weights) if log_twice else weights).masked_fill(masked, 0).sum(1)
    return torch.log1p(torch.relu(logits.masked_fill(masked, -torch.inf).amax(1)))


def pooled_in_decoder(backbone: Any, input_ids: Tensor, attention_mask: Tensor, head: Head = splade_head) -> Tensor:
    """Return the same without ever holding [B, L, V]: the masked LM's decoder pools in place of returning logits.

    The decoder's forward is exchanged for the time of the call, so that the product happens inside the module that owns the
    weight (ZeRO-3 gathers it there) and the backbone stays an ordinary model for everybody else.
    """
    decoder = backbone.get_output_embeddings()
    with _forward_exchanged(decoder, partial(_decoder_weights, decoder, attention_mask, head)):
        pooled: Tensor = backbone(input_ids=input_ids, attention_mask=attention_mask).logits
    return pooled


def decoder_output_is_the_logits(backbone: Any) -> bool:
    """Whether `pooled_in_decoder` gives what `pooled_from_logits` does; found by running a few tokens both ways."""
    decoder = backbone.get_output_embeddings()
    if not isinstance(decoder, nn.Linear):
        return False
    device = decoder.weight.device
    ids = torch.tensor([[5, 6, 7, 8], [8, 7, 6, 5]], device=device) % backbone.config.vocab_size
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], device=device)
    training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode():
            expected = pooled_from_logits(backbone, ids, mask)
            fused = pooled_in_decoder(backbone, ids, mask)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # the backbone reshapes or uses the logits: it has to see them
    finally:
        backbone.train(training)
    return fused.shape == expected.shape and torch.allclose(fused, expected, rtol=1e-3, atol=1e-3)


def _decoder_weights(decoder: nn.Linear, mask: Tensor, head: Head, hidden: Tensor) -> Tensor:
    if hidden.shape[:2] != mask.shape:
        raise ValueError(f"the decoder received states {tuple(hidden.shape)} for a mask {tuple(mask.shape)}")
    return head(hidden, decoder.weight, decoder.bias, mask)


@contextmanager
def _forward_exchanged(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
