"""The SPLADE student: a Hugging Face encoder with a sparse head, and the encoder that turns texts into sparse batches.

Two heads: `mlm` uses the checkpoint's own masked-LM head; `identity` ties the vocabulary to the input embedding,
logits = scale * (hidden . embedding) + bias, for encoders that ship without one. Pooling lives in `head`, the starting
values of the identity head in `calibration`, folders on disk in `checkpoint`, training elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM

from raydistill.config import StudentConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.calibration import Calibration, calibration_from_maxima, sampled_texts
from raydistill.encoders.head import max_pool_logits, splade_head
from raydistill.encoders.lexical import special_token_ids, terms_by_id
from raydistill.encoders.tokens import length_batches, pad_id, padded, tokenize
from raydistill.errors import ConfigError
from raydistill.model_source import resolve_model

HeadKind = Literal["mlm", "identity"]
TEXTS_AT_A_TIME = 4096
PLACEHOLDER = re.compile(r"\[unused\d+\]|<unused\d+>|madeupword\d+|\[no term \d+\]")


class IdentityHead(nn.Module):
    """SPLADE head without a transform of its own: logits = scale * (hidden . embedding) + bias.

    Attributes:
        weight: [V, H], the very parameter of the backbone's input embedding. It is registered here too because DeepSpeed
            ZeRO-3 gathers a parameter for the modules that own it.
        scale: [1].
        bias: [V].
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return term weights, float32 [B, V], of token states [B, L, H] under a mask [B, L]."""
        return splade_head(hidden * self.scale.to(hidden.dtype), self.weight, self.bias, mask)


class SpladeModel(nn.Module):
    """Token ids to term weights, w_v = max_l log(1 + ReLU(logit_lv)).

    With the mlm head the matrix product with the vocabulary is fused with the pooling wherever the backbone returns its
    decoder's output unchanged (BERT, DistilBERT, RoBERTa, XLM-R, ModernBERT, ELECTRA, MPNet do; it is verified by
    running a few tokens both ways). Elsewhere `fused` is False and the logits [B, L, V] are held, as everybody does.

    Attributes:
        backbone: `AutoModelForMaskedLM` (mlm) or `AutoModel` (identity).
        head: "mlm" or "identity".
        identity: the identity head's parameters; None with the mlm head.
        fused: whether the [B, L, V] logits are avoided.
    """

    def __init__(self, backbone: Any, head: HeadKind) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: HeadKind = head
        self.identity: IdentityHead | None = None
        if head == "identity":
            self.identity = IdentityHead(backbone.get_input_embeddings())
            # A pooler's output is not used: its parameters stay in the checkpoint, but optimizers must not wait for them.
            for name, parameter in backbone.named_parameters():
                if name.startswith("pooler."):
                    parameter.requires_grad_(False)
        self.fused = head == "identity" or self._decoder_output_is_the_logits()

    @classmethod
    def from_config(cls, student: StudentConfig) -> SpladeModel:
        """Load the student's starting checkpoint, in float32 and evaluation mode.

        An identity head starts uncalibrated: call `calibrate` before training.

        Raises ConfigError when the checkpoint cannot be loaded, has no MLM weights while `student.head` is mlm, or
        reads fewer tokens than `student.text.max_tokens`.
        """
        model = load_model(student.model, student.revision, student.head, student.trust_remote_code, "student")
        model.check_length(student.text.max_tokens, "student.text.max_tokens")
        return model

    def check_length(self, max_tokens: int, field: str) -> None:
        """Raise ConfigError naming `field` when the backbone has fewer positions than `max_tokens`."""
        limit = getattr(self.backbone.config, "max_position_embeddings", None)
        for name, module in self.backbone.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                # RoBERTa counts positions from after the padding id.
                limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        if limit is not None and max_tokens > limit:
            raise ConfigError(f"{field} is {max_tokens}, but the model reads at most {limit} tokens; lower it to {limit}")

    @property
    def vocabulary_size(self) -> int:
        """Number of columns of the output."""
        if self.identity is not None:
            return int(self.identity.bias.shape[0])
        return int(self.backbone.config.vocab_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return term weights.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 1 at tokens and 0 at padding. A row of zeros gives the zero vector.

        Returns:
            float32 [B, V], >= 0.
        """
        if self.identity is not None:
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            pooled: Tensor = self.identity(hidden, attention_mask)
            return pooled
        if not self.fused:
            return self._pooled_from_logits(input_ids, attention_mask)
        return self._pooled_in_decoder(input_ids, attention_mask)

    @torch.inference_mode()
    def calibrate(
        self, texts: Sequence[str], tokenizer: Any, active_share: float, max_tokens: int = 256, batch_tokens: int = 8192
    ) -> Calibration:
        """Set the identity head's scale and bias from a sample of texts, and return what was set.

        Terms are centred by their mean over the texts, the spread becomes 1, and on average `active_share` of the
        vocabulary is active; see `calibration` for why. Deterministic.

        Args:
            texts: in the student's form, typical of its input; at most 256 of them, evenly spaced, are encoded.
            tokenizer: the model's.
            active_share: in (0, 1].

        Raises ConfigError for the mlm head, for no texts and for an active share of 0.
        """
        if self.identity is None:
            raise ConfigError("only student.head identity is calibrated; an mlm head brings its own scale and bias")
        ids = tokenize(tokenizer, sampled_texts(texts), max_tokens)
        device = self.identity.bias.device
        training = self.training
        self.eval()
        maxima = []
        for batch in length_batches([len(row) for row in ids], batch_tokens):
            input_ids, mask = padded([ids[number] for number in batch], pad_id(tokenizer), device)
            hidden = self.backbone(input_ids=input_ids, attention_mask=mask).last_hidden_state
            maxima.append(max_pool_logits(hidden, self.identity.weight, mask.bool())[0].float().cpu().numpy())
        self.train(training)
        result = calibration_from_maxima(np.concatenate(maxima), silent_terms(tokenizer, self.vocabulary_size), active_share)
        self.identity.scale.fill_(result.scale)
        self.identity.bias.copy_(torch.from_numpy(result.bias))
        return result

    def parameter_groups(
        self, learning_rate: float, weight_decay: float, head_learning_rate: float | None = None
    ) -> list[dict[str, Any]]:
        """Return optimizer groups: matrices with decay; vectors without; the identity head's scale and bias apart.

        Args:
            learning_rate: of the backbone.
            weight_decay: of parameters with two or more dimensions.
            head_learning_rate: of the identity head's scale and bias; None takes `learning_rate`.
        """
        own = [] if self.identity is None else [self.identity.scale, self.identity.bias]
        own_ids = {id(parameter) for parameter in own}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in own_ids]
        groups = [
            {"params": [p for p in others if p.dim() > 1], "lr": learning_rate, "weight_decay": weight_decay},
            {"params": [p for p in others if p.dim() <= 1], "lr": learning_rate, "weight_decay": 0.0},
            {"params": own, "lr": learning_rate if head_learning_rate is None else head_learning_rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def _pooled_from_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.backbone(input_ids=input_ids, attention_mask=attention_mask).logits.float()
        best = logits.masked_fill(~attention_mask.bool().unsqueeze(-1), -torch.inf).amax(1)
        return torch.log1p(torch.relu(best))

    def _pooled_in_decoder(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # The decoder's forward is exchanged for the time of the call, so that the product happens inside the module that
        # owns the weight (ZeRO-3 gathers it there) and the backbone stays an ordinary model for everybody else.
        decoder = self.backbone.get_output_embeddings()
        with _forward_exchanged(decoder, partial(_decoder_weights, decoder, attention_mask)):
            pooled: Tensor = self.backbone(input_ids=input_ids, attention_mask=attention_mask).logits
        return pooled

    def _decoder_output_is_the_logits(self) -> bool:
        decoder = self.backbone.get_output_embeddings()
        if not isinstance(decoder, nn.Linear):
            return False
        device = decoder.weight.device
        ids = torch.tensor([[5, 6, 7, 8], [8, 7, 6, 5]], device=device) % self.vocabulary_size
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], device=device)
        training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.inference_mode():
                expected = self._pooled_from_logits(ids, mask)
                fused = self._pooled_in_decoder(ids, mask)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False  # the backbone reshapes or uses the logits: it has to see them
        finally:
            self.backbone.train(training)
        return fused.shape == expected.shape and torch.allclose(fused, expected, rtol=1e-3, atol=1e-3)


def load_model(model: str, revision: str | None, head: HeadKind, trust_remote_code: bool, field: str) -> SpladeModel:
    """Load a checkpoint from the hub or a folder, in float32 and evaluation mode.

    Args:
        field: the configuration section that named the model, for messages.

    Raises ConfigError when there is none, or when weights are missing that `head` needs.
    """
    folder = resolve_model(model, f"{field}.model")
    factory = AutoModelForMaskedLM if head == "mlm" else AutoModel
    try:
        backbone, report = factory.from_pretrained(
            folder,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
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
    return SpladeModel(backbone.eval(), head)


class SpladeEncoder:
    """Encodes texts with a `SpladeModel`; implements `SparseEncoder`.

    Texts are tokenised once, sorted by length and encoded in batches of at most `batch_tokens` padded tokens, so a text's
    neighbours vary; its weights agree within 1e-4 in float32 (padding changes the order of summation).

    Args:
        model: moved to `device` and put into evaluation mode.
        tokenizer: the Hugging Face tokenizer of the model.
        max_tokens: tokens kept of a text, special tokens included.
        max_terms: heaviest terms kept of a passage; None keeps all. Queries always keep all.
        batch_tokens: padded tokens in a batch; a single longer text is a batch of its own.
        device: torch device; default a GPU where torch sees one, else the CPU.
        dtype: autocast dtype of the backbone, for instance torch.bfloat16; None computes as the model is.
    """

    def __init__(
        self,
        model: SpladeModel,
        tokenizer: Any,
        max_tokens: int = 256,
        max_terms: int | None = None,
        batch_tokens: int = 8192,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.max_terms = max_terms
        self.batch_tokens = batch_tokens
        self.dtype = dtype

    @property
    def vocabulary_size(self) -> int:
        """Number of columns of every batch."""
        return self.model.vocabulary_size

    def vocabulary(self) -> list[str]:
        """Return the terms by id."""
        return terms_by_id(self.tokenizer.get_vocab(), self.vocabulary_size)

    def encode_passages(self, texts: Sequence[str]) -> SparseBatch:
        """Return one vector a passage, at most `max_terms` terms each."""
        return self._encode(texts, self.max_terms)

    def encode_queries(self, texts: Sequence[str]) -> SparseBatch:
        """Return one vector a query, all terms."""
        return self._encode(texts, None)

    def _encode(self, texts: Sequence[str], max_terms: int | None) -> SparseBatch:
        windows = [texts[start : start + TEXTS_AT_A_TIME] for start in range(0, len(texts), TEXTS_AT_A_TIME)]
        if not windows:
            return SparseBatch.from_rows([], self.vocabulary_size)
        return SparseBatch.concatenate([self._encode_window(list(window), max_terms) for window in windows])

    def _encode_window(self, texts: list[str], max_terms: int | None) -> SparseBatch:
        ids = tokenize(self.tokenizer, texts, self.max_tokens)
        batches = length_batches([len(row) for row in ids], self.batch_tokens)
        parts = [self._encode_batch([ids[number] for number in batch], max_terms) for batch in batches]
        place = np.argsort(np.concatenate([np.asarray(batch, dtype=np.int64) for batch in batches]))
        return SparseBatch.concatenate(parts).select(place)

    @torch.inference_mode()
    def _encode_batch(self, ids: list[list[int]], max_terms: int | None) -> SparseBatch:
        input_ids, attention_mask = padded(ids, pad_id(self.tokenizer), self.device)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            weights = self.model(input_ids, attention_mask)
        return sparse_rows(weights, max_terms)


def silent_terms(tokenizer: Any, vocabulary_size: int) -> NDArray[np.bool_]:
    """Return bool [V]: terms that shall never be active (special tokens, placeholders, rows that no token has)."""
    names = terms_by_id(tokenizer.get_vocab(), vocabulary_size)
    silent = np.array([PLACEHOLDER.fullmatch(name) is not None for name in names])
    silent[special_token_ids(tokenizer)] = True
    return silent


def sparse_rows(weights: Tensor, max_terms: int | None = None) -> SparseBatch:
    """Return the positive entries of [rows, V], the `max_terms` heaviest of each row where given."""
    if max_terms is not None and max_terms < weights.shape[1]:
        values, indices = weights.topk(max_terms, dim=1)
        weights = torch.zeros_like(weights).scatter_(1, indices, values)
    rows, terms = weights.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=weights.shape[0]).cpu().numpy()
    return SparseBatch(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        terms.cpu().numpy().astype(np.int32),
        weights[rows, terms].float().cpu().numpy(),
        weights.shape[1],
    )


def _decoder_weights(decoder: nn.Linear, mask: Tensor, hidden: Tensor) -> Tensor:
    if hidden.shape[:2] != mask.shape:
        raise ValueError(f"the decoder received states {tuple(hidden.shape)} for a mask {tuple(mask.shape)}")
    return splade_head(hidden, decoder.weight, decoder.bias, mask)


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
