"""The sparse student: a Hugging Face model with a sparse head, and the encoder that turns texts into sparse batches.

Four heads. `mlm` uses the checkpoint's own masked-LM head; `identity` ties the vocabulary to the input embedding of an
encoder that ships without one; `decoder` is a causal language model read through its `lm_head`, with attention in one or
both directions (CSPLADE, arXiv 2504.10816); `table` has a weight a term and no transformer. Transformers' heads pool over
tokens by the maximum (SPLADE v2), by the sum (SPLADE v1, see `head_sum`) or take a decoder's last token (PromptReps, arXiv
2404.18424). The heads' own parameters live in `heads`, backbones in
`backbones`, what is trained of them in `adaptation`, starting values in `calibration`, folders on disk in `checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydistill.config import Attention, HeadKind, Pooling, StudentConfig
from raydistill.encoders import backbones
from raydistill.encoders.adaptation import adapt, is_adapted, merged_backbone
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.calibration import Calibration, calibration_from_maxima, sampled_texts, silent_terms
from raydistill.encoders.encoding import encode_windows, sparse_rows, tokenised_window, windows_of
from raydistill.encoders.head import max_pool_logits
from raydistill.encoders.head_sum import head_for
from raydistill.encoders.heads import TermTable, VocabularyHead, heaviest_terms, last_states
from raydistill.encoders.interface import EncodingTally
from raydistill.encoders.lexical import terms_by_id
from raydistill.encoders.tokens import length_batches, pad_id, padded, tokenize
from raydistill.errors import ConfigError


class SpladeModel(nn.Module):
    """Token ids to term weights; with a transformer, w_v = max_l log(1 + ReLU(logit_lv)), or the sum; a table: `TermTable`.

    With the mlm head the matrix product with the vocabulary is fused with the pooling wherever the backbone returns its
    decoder's output unchanged (BERT, DistilBERT, RoBERTa, XLM-R, ModernBERT, ELECTRA, MPNet do; it is verified by
    running a few tokens both ways). Elsewhere `fused` is False and the logits [B, L, V] are held, as everybody does. The
    other heads never hold them.

    Args:
        backbone: `AutoModelForMaskedLM` (mlm), `AutoModel` (identity) or `AutoModelForCausalLM` (decoder); for a table,
            its Hugging Face configuration, which is only kept. The model starts in the backbone's mode, a table in
            evaluation mode.
        head: which of the four.
        attention: of a decoder; None elsewhere.
        pooling: over tokens; "last" for decoders only; says nothing of a table.
        table: the table head's parameters.
        top_terms: heaviest terms of a text that are kept, in training as in encoding; None keeps all.
        log_twice: of an mlm head: log(1 + log(1 + ReLU(logit))) at each token, as some checkpoints want.

    Attributes:
        backbone: the Hugging Face model; None for a table.
        config: its Hugging Face configuration.
        vocabulary_head: the parameters of an identity or decoder head; None elsewhere.
        table: the parameters of a table; None elsewhere.
        fused: whether the [B, L, V] logits are avoided.
        vocabulary_size: number of columns of the output.
        head_has_values: whether the head is ready to train: False until `start_head` or `calibrate` where one is needed.
    """

    def __init__(
        self,
        backbone: Any,
        head: HeadKind,
        attention: Attention | None = None,
        pooling: Pooling = "max",
        table: TermTable | None = None,
        log_twice: bool = False,
        top_terms: int | None = None,
    ) -> None:
        super().__init__()
        self.head: HeadKind = head
        self.attention = attention
        self.pooling = pooling
        self.log_twice = log_twice
        self.top_terms = top_terms
        self.table = table
        self._pool = head_for(pooling, log_twice)
        self.backbone = None if head == "table" else backbone
        self.config = backbone if head == "table" else backbone.config
        self.vocabulary_head: VocabularyHead | None = None
        if head in ("identity", "decoder"):
            self.vocabulary_head = VocabularyHead(_vocabulary_weight(backbone, head), self._pool)
            _leave_out_unused(backbone)
        if attention is not None:
            backbones.set_attention(backbone, attention, "student")
        self.fused = head != "mlm" or backbones.decoder_output_is_the_logits(backbone)
        self.head_has_values = head == "mlm"
        # Taken here: under ZeRO-3 the parameters have no length of their own.
        self.vocabulary_size = int(self.config.vocab_size)
        if self.vocabulary_head is not None:
            self.vocabulary_size = len(self.vocabulary_head.bias)
        elif table is not None:
            self.vocabulary_size = len(table.weight)
        self.train(self.backbone is not None and self.backbone.training)

    @classmethod
    def from_config(cls, student: StudentConfig) -> SpladeModel:
        """Load the student's starting point, in float32 and evaluation mode, with LoRA, freezing and checkpointing applied.

        A folder that raydistill exported goes on with the head that it learned. Otherwise call `start_head` before
        training.

        Raises ConfigError when the checkpoint cannot be loaded, has not the weights or the kind of head that
        `student.head` names, reads fewer tokens than `student.text.max_tokens`, or cannot be adapted as asked.
        """
        from raydistill.encoders.checkpoint import starting_model  # it builds models of this class

        model = starting_model(student)
        model.check_length(student.text.max_tokens, "student.text.max_tokens")
        if model.backbone is not None:
            adapt(model.backbone, student)
        return model

    def check_length(self, max_tokens: int, field: str) -> None:
        """Raise ConfigError naming `field` when the backbone has fewer positions than `max_tokens`."""
        limit = None if self.backbone is None else backbones.position_limit(self.backbone)
        if limit is not None and max_tokens > limit:
            raise ConfigError(f"{field} is {max_tokens}, but the model reads at most {limit} tokens; lower it to {limit}")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return term weights.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 1 at tokens and 0 at padding, which may be on either side of a decoder's or a table's
                text and on the right of others. A row of zeros gives the zero vector.

        Returns:
            float32 [B, V], >= 0; at most `top_terms` of a row above 0.
        """
        pooled: Tensor
        if self.table is not None:
            pooled = self.table(input_ids, attention_mask)
        elif self.vocabulary_head is not None:
            pooled = self.vocabulary_head(*self._states(input_ids, attention_mask))
        elif self.fused:
            pooled = backbones.pooled_in_decoder(self.backbone, input_ids, attention_mask, self._pool)
        else:
            pooled = backbones.pooled_from_logits(self.backbone, input_ids, attention_mask, self.pooling, self.log_twice)
        # The logarithm rises, so it may come after a maximum.
        pooled = torch.log1p(pooled) if self.log_twice and self.pooling != "sum" else pooled
        return pooled if self.top_terms is None else heaviest_terms(pooled, self.top_terms)

    def start_head(
        self,
        texts: Sequence[str],
        tokenizer: Any,
        student: StudentConfig,
        document_share: NDArray[np.float32] | None = None,
    ) -> None:
        """Give the head its starting values where it has none yet: nothing happens to mlm heads and exported students.

        Args:
            texts: training queries in the student's form; calibrate identity and decoder heads.
            tokenizer: the model's.
            student: the configuration the model was made from.
            document_share: float32 [V]; share of the indexed passages that hold each term; for tables that start from it.

        Raises ConfigError when texts or shares are needed and there are none.
        """
        if self.head_has_values:
            return
        if self.table is None:
            assert student.active_share is not None
            self.calibrate(texts, tokenizer, student.active_share, student.text.max_tokens)
        elif student.table_start == "idf":
            if document_share is None:
                raise ConfigError(
                    "student.table_start is idf, but no index says in how many passages a term is; set it to ones"
                )
            self.table.start_from(document_share)
        self.head_has_values = True

    @torch.inference_mode()
    def calibrate(
        self, texts: Sequence[str], tokenizer: Any, active_share: float, max_tokens: int = 256, batch_tokens: int = 8192
    ) -> Calibration:
        """Set an identity or decoder head's scale and bias from a sample of texts, and return what was set.

        Terms are centred by their mean over the texts, the spread becomes 1, and on average `active_share` of the
        vocabulary is active, which a sum of positive parts is where their maximum is; see `calibration` for why.
        Deterministic.

        Args:
            texts: in the student's form, typical of its input; at most 256 of them, evenly spaced, are encoded.
            tokenizer: the model's.
            active_share: in (0, 1].

        Raises ConfigError for other heads, for no texts and for an active share of 0.
        """
        head = self.vocabulary_head
        if head is None:
            raise ConfigError(f"only identity and decoder heads are calibrated; an {self.head} head brings its own values")
        ids = [row for row in tokenize(tokenizer, sampled_texts(texts), max_tokens) if row]
        training = self.training
        self.eval()
        maxima = []
        for batch in length_batches([len(row) for row in ids], batch_tokens):
            input_ids, mask = padded([ids[number] for number in batch], pad_id(tokenizer), head.bias.device)
            states, kept = self._states(input_ids, mask)
            maxima.append(max_pool_logits(states, head.weight, kept.bool())[0].float().cpu().numpy())
        self.train(training)
        result = calibration_from_maxima(np.concatenate(maxima), silent_terms(tokenizer, self.vocabulary_size), active_share)
        head.scale.fill_(result.scale)
        head.bias.copy_(torch.from_numpy(result.bias))
        self.head_has_values = True
        return result

    def merged(self) -> SpladeModel:
        """Return a plain model that gives the same vectors: LoRA updates are added to the weights they adapt.

        Without adapters that is the model itself. Otherwise it is a copy, in evaluation mode; the weights must be whole
        (not ZeRO-3 shards).
        """
        if self.backbone is None or not is_adapted(self.backbone):
            return self
        backbone = merged_backbone(self.backbone)
        model = SpladeModel(backbone, self.head, self.attention, self.pooling, None, self.log_twice, self.top_terms)
        if self.vocabulary_head is not None and model.vocabulary_head is not None:
            with torch.no_grad():
                model.vocabulary_head.scale.copy_(self.vocabulary_head.scale)
                model.vocabulary_head.bias.copy_(self.vocabulary_head.bias)
        model.head_has_values = self.head_has_values
        return model.to(next(self.parameters()).device).eval()

    def parameter_groups(
        self, learning_rate: float, weight_decay: float, head_learning_rate: float | None = None
    ) -> list[dict[str, Any]]:
        """Return optimizer groups: matrices with decay; vectors without; the head's own parameters apart.

        Every parameter that requires a gradient is in exactly one group, tied ones included.

        Args:
            learning_rate: of the backbone.
            weight_decay: of parameters with two or more dimensions.
            head_learning_rate: of a vocabulary head's scale and bias and of a table; None takes `learning_rate`.
        """
        own = list(self.table.parameters()) if self.table is not None else []
        if self.vocabulary_head is not None:
            own = [self.vocabulary_head.scale, self.vocabulary_head.bias]
        own_ids = {id(parameter) for parameter in own}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in own_ids]
        groups = [
            {"params": [p for p in others if p.dim() > 1], "lr": learning_rate, "weight_decay": weight_decay},
            {"params": [p for p in others if p.dim() <= 1], "lr": learning_rate, "weight_decay": 0.0},
            {"params": own, "lr": learning_rate if head_learning_rate is None else head_learning_rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def _states(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token states that a vocabulary head pools over, and their mask."""
        states = backbones.token_states(self.backbone, input_ids, attention_mask)
        return last_states(states, attention_mask) if self.pooling == "last" else (states, attention_mask)


def load_model(
    model: str,
    revision: str | None,
    head: HeadKind,
    trust_remote_code: bool,
    field: str,
    attention: Attention | None = None,
    pooling: Pooling | None = None,
) -> SpladeModel:
    """Load a transformer with its head; a pooling of None is the checkpoint's own, where an mlm one has it, or else max.

    Raises ConfigError as `load_backbone` and `pooling_of_checkpoint` of `backbones` do.
    """
    backbone = backbones.load_backbone(model, revision, head, trust_remote_code, field)
    own = backbones.pooling_of_checkpoint(model, revision, field, pooling) if head == "mlm" else (pooling or "max", False)
    return SpladeModel(backbone, head, attention, own[0], log_twice=own[1])


class SpladeEncoder:
    """Encodes texts with a `SpladeModel`; implements `SparseEncoder`.

    Texts are tokenised once, sorted by length and encoded in batches of at most `batch_tokens` padded tokens (the loop is
    `encoding.encode_windows`), so a text's neighbours vary; its weights agree within 1e-4 in float32 (padding changes the
    order of summation). Pruning is explicit and of passages only; queries keep all that the model gives.

    Args:
        model: moved to `device` and put into evaluation mode.
        tokenizer: the Hugging Face tokenizer of the model.
        max_tokens: tokens kept of a text, special tokens included.
        max_terms: heaviest terms kept of a passage; None keeps all.
        batch_tokens: padded tokens in a batch; a single longer text is a batch of its own.
        device: torch device; default a GPU where torch sees one, else the CPU.
        dtype: autocast dtype of the backbone, for instance torch.bfloat16; None computes as the model is.
        min_weight: terms of a passage that are not heavier are dropped, before the heaviest are chosen.
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
        min_weight: float = 0.0,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.max_terms = max_terms
        self.batch_tokens = batch_tokens
        self.dtype = dtype
        self.min_weight = min_weight

    @property
    def vocabulary_size(self) -> int:
        """Number of columns of every batch."""
        return self.model.vocabulary_size

    def vocabulary(self) -> list[str]:
        """Return the terms by id."""
        return terms_by_id(self.tokenizer.get_vocab(), self.vocabulary_size)

    def encode_passages(self, texts: Sequence[str]) -> SparseBatch:
        """Return one vector a passage, at most `max_terms` terms each."""
        return self._stacked(self.encode_stream(windows_of(texts), EncodingTally()))

    def encode_stream(self, windows: Iterable[Sequence[str]], tally: EncodingTally) -> Iterator[SparseBatch]:
        """Yield the passages' vectors window by window; see `SparseEncoder`. Windows of `WINDOW_TEXTS` pad little."""
        return self._encoded(windows, partial(sparse_rows, max_terms=self.max_terms, min_weight=self.min_weight), tally)

    def encode_queries(self, texts: Sequence[str]) -> SparseBatch:
        """Return one vector a query, all terms that the model gives."""
        if self.model.table is not None:
            return self._stacked(self._table_rows(self.model.table, window) for window in windows_of(texts))
        return self._stacked(self._encoded(windows_of(texts), sparse_rows, EncodingTally()))

    def _encoded(
        self, windows: Iterable[Sequence[str]], sparsify: Callable[[Tensor], SparseBatch], tally: EncodingTally
    ) -> Iterator[SparseBatch]:
        tokenise = partial(
            tokenised_window,
            self.tokenizer,
            max_tokens=self.max_tokens,
            batch_tokens=self.batch_tokens,
            pinned=self.device.type == "cuda",
        )
        return encode_windows(self.model, windows, tokenise, sparsify, self.device, self.dtype, tally)

    def _table_rows(self, table: TermTable, texts: list[str]) -> SparseBatch:
        rows = table.rows(tokenize(self.tokenizer, texts, self.max_tokens))
        return rows if self.model.top_terms is None else rows.heaviest(self.model.top_terms)

    def _stacked(self, batches: Iterable[SparseBatch]) -> SparseBatch:
        return SparseBatch.concatenate([SparseBatch.from_rows([], self.vocabulary_size), *batches])


def _vocabulary_weight(backbone: Any, head: HeadKind) -> nn.Parameter:
    matrix = backbone.get_input_embeddings() if head == "identity" else backbone.get_output_embeddings()
    if not isinstance(getattr(matrix, "weight", None), nn.Parameter):
        raise ConfigError(
            f"student.head is {head}, but {type(backbone).__name__} has no matrix over the vocabulary where one is needed; "
            "choose another head or model"
        )
    weight: nn.Parameter = matrix.weight
    return weight


def _leave_out_unused(backbone: Any) -> None:
    """Take what a vocabulary head does not use from training: it stays in the checkpoint, and no optimizer waits for it."""
    output = backbone.get_output_embeddings()
    for name, parameter in backbone.named_parameters():
        if name.startswith("pooler.") or (output is not None and parameter is getattr(output, "bias", None)):
            parameter.requires_grad_(False)
