"""Heads with parameters of their own: a scaled and shifted vocabulary over token states, and a table of term weights; with
what stands before and after them: the last state, the heaviest terms. The pooling arithmetic lives in `head` and
`head_sum`, the values a vocabulary head starts from in `calibration`. Nothing here loads files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.head import splade_head
from raydistill.encoders.head_sum import Head
from raydistill.errors import ConfigError


class VocabularyHead(nn.Module):
    """SPLADE head over a weight that is already there: logits = scale * (hidden . weight) + bias.

    Encoders without an MLM head lend their input embedding (identity head), causal language models their `lm_head`. Raw
    logits of either are positive or not for nearly the whole vocabulary at once; a calibrated scale and a bias for each
    term make them sparse from the first step.

    Args:
        weight: of the backbone's embedding or `lm_head`.
        head: how positions are pooled.

    Attributes:
        weight: [V, H], the very parameter that was given. It is registered here too because
            DeepSpeed ZeRO-3 gathers a parameter for the modules that own it.
        scale: [1].
        bias: [V].
    """

    def __init__(self, weight: nn.Parameter, head: Head = splade_head) -> None:
        super().__init__()
        self.weight = weight
        self._head = head
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return term weights, float32 [B, V], of token states [B, L, H] under a mask [B, L]."""
        return self._head(hidden * self.scale.to(hidden.dtype), self.weight, self.bias, mask)


class TermTable(nn.Module):
    """Query weights without a transformer: q_v = relu(weight_v) * max over v's occurrences of exp(log_factor of their part).

    Parts are what the separator token divides: part 0 is the last question, part 1 the answer before it, and so on into the
    past. The inference-free query side of sparse retrieval (Geng et al., arXiv 2411.04403) with a memory for how long ago a
    term was said. A weight that falls to 0 has left the vocabulary for good: relu has no gradient there.

    Args:
        silent: bool [V]; terms that never have a weight.
        recency_parts: parts with a factor of their own; later ones share the last. 1: no difference between parts.
        separator: id of the token between parts; None with one part.

    Attributes:
        weight: [V]; ones at the start, 0 for silent terms.
        log_factor: [recency_parts]; zeros at the start. None with one part.
    """

    def __init__(self, silent: NDArray[np.bool_], recency_parts: int, separator: int | None) -> None:
        super().__init__()
        if recency_parts > 1 and separator is None:
            raise ConfigError(
                f"student.recency_parts is {recency_parts}, but student.model's tokenizer has no separator token to tell "
                "parts of the conversation by; set student.recency_parts to 1"
            )
        self.separator = separator
        self.recency_parts = recency_parts
        self.weight = nn.Parameter(torch.from_numpy(~silent).float())
        self.log_factor = nn.Parameter(torch.zeros(recency_parts)) if recency_parts > 1 else None

    @torch.no_grad()
    def start_from(self, document_share: NDArray[np.float32]) -> None:
        """Set the weight of each term that may have one to log(1 + 1 / share).

        Args:
            document_share: float32 [V]; share of the passages that hold each term. A term that no passage holds gets the
                weight of the rarest that one does: nothing will ever match it.
        """
        if len(document_share) != len(self.weight):
            raise ConfigError(
                f"the index has {len(document_share)} terms and the table {len(self.weight)}; index the collection for this "
                "student"
            )
        held = document_share[document_share > 0]
        rarest = float(held.min()) if len(held) else 1.0
        weights = np.log1p(1.0 / np.maximum(document_share, rarest)).astype(np.float32)
        self.weight.copy_(torch.from_numpy(weights).to(self.weight.device) * (self.weight != 0))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return term weights, float32 [B, V], of token ids int64 [B, L] under a mask [B, L]."""
        kept = mask.bool()
        if self.log_factor is None:
            factors = kept.float()
        else:
            separators = ((input_ids == self.separator) & kept).long()
            part = (separators.cumsum(1) - separators).clamp(max=self.recency_parts - 1)
            factors = self.log_factor.float().exp()[part] * kept
        strongest = factors.new_zeros((len(input_ids), len(self.weight))).scatter_reduce(1, input_ids, factors, "amax")
        return strongest * torch.relu(self.weight.float())

    @torch.no_grad()
    def rows(self, ids: Sequence[Sequence[int]]) -> SparseBatch:
        """Return what `forward` gives, from unpadded ids and without [B, V] numbers: work follows the number of tokens."""
        lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        terms = np.fromiter((term for row in ids for term in row), dtype=np.int64, count=int(lengths.sum()))
        row = np.repeat(np.arange(len(ids)), lengths)
        weights = torch.relu(self.weight.float()).cpu().numpy()[terms]
        if self.log_factor is not None:
            separators = (terms == self.separator).astype(np.int64)
            before = np.cumsum(separators) - separators
            row_start = np.cumsum(lengths) - lengths
            before_row = np.concatenate([before, [0]])[row_start]
            part = np.minimum(before - before_row[row], self.recency_parts - 1)
            weights = weights * self.log_factor.float().exp().cpu().numpy()[part]
        size = len(self.weight)
        # Sorted by row, term and weight, the last entry of each (row, term) is its strongest occurrence.
        keys = row * size + terms
        order = np.lexsort((weights, keys))
        keys, weights = keys[order], weights[order]
        kept = np.append(keys[1:] != keys[:-1], True)[: len(keys)] & (weights > 0)
        row_of_entry, term_ids = np.divmod(keys[kept], size)
        counts = np.bincount(row_of_entry, minlength=len(ids))
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return SparseBatch(indptr, term_ids.astype(np.int32), weights[kept].astype(np.float32), size)


def heaviest_terms(weights: Tensor, terms: int) -> Tensor:
    """Return the weights with all but the `terms` heaviest of each row set to 0; of equal weights those with lower ids stay.

    The top-k activation of VDR (Zhou et al., arXiv 2212.07699) after SPLADE's log(1 + ReLU(x)): gradients reach the terms
    that stay. VDR's own elu1p is not offered: it leaves every term above 0, so that `head` has no active terms to follow,
    penalties none to count and `calibration` none to aim at, and sentence_transformers has no module for it.

    The dense counterpart of `SparseBatch.heaviest`, with the same rows. A weight that is not a number stays, to be seen; a
    row then may have more terms.

    Args:
        weights: [B, V], >= 0.
        terms: at least 1.
    """
    if terms >= weights.shape[1]:
        return weights
    found = weights.detach()
    lightest = found.topk(terms, dim=1).values[:, -1:]
    heavier, equal = ~(found <= lightest), found == lightest
    room = terms - heavier.sum(1, keepdim=True)
    stays = heavier | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
    return torch.where(stays, weights, 0.0)


def last_states(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state of each row's last unmasked token, [B, 1, H], and its mask, bool [B, 1] (False: a row without any).

    Args:
        hidden: [B, L, H].
        mask: [B, L]; padding may be on either side.
    """
    kept = mask.bool()
    place = (kept * torch.arange(1, kept.shape[1] + 1, device=kept.device)).amax(1).sub(1).clamp(min=0)
    return hidden[torch.arange(len(hidden), device=hidden.device), place].unsqueeze(1), kept.any(1, keepdim=True)
