"""The SPLADE head without its memory: token states to term weights, never holding [batch, length, vocabulary].

Forward works through the vocabulary in slices and keeps the best logit of each term; backward touches only the terms that
are active, through the position of their best logit. Which module's output enters here, and the tokenizer, are not this
module's affair. Half-precision products on an NVIDIA GPU go to the kernels in `head_triton` where Triton is installed.

Why the maximum can come first: log(1 + ReLU(x)) is monotone, and a term's bias is the same at all positions, so
max_l log(1 + ReLU(h_l . e_v + b_v)) = log(1 + ReLU(max_l (h_l . e_v) + b_v)).

float32 on a CPU that multiplies bfloat16 natively takes a short cut with the same result: a bfloat16 product, twice as
fast, rules out the terms that provably stay at 0 (Cauchy-Schwarz bounds its rounding error), and only the few that are left
are computed in float32.

DeepSpeed ZeRO-3 shows a parameter only while a module that owns it runs: call `splade_head` inside the forward of the
module that owns `weight` and `bias`, and hand over the parameters themselves, not views of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from raydistill.encoders.precision import multiplies_bf16

SLICE_TERMS = 1024
# Texts whose logits are held at a time have together so many tokens: with a slice of float32 16 MiB, which a cache holds.
GROUP_TOKENS = 4096
# From so many tokens on, rounding the weight to bfloat16 costs less than it saves.
SHORT_CUT_TOKENS = 256
# Fetching a scattered row of the weight takes the time of a product with so many tokens (measured, widths 384 and 768).
GATHER_TOKENS = 40


def splade_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, slice_terms: int = SLICE_TERMS) -> Tensor:
    """Return SPLADE weights w_v = max_l log(1 + ReLU(hidden_l . weight_v + bias_v)) over unmasked positions l.

    The pooling of SPLADE v2 (Formal et al., arXiv 2109.10086). Where gradients are wanted, they reach hidden, weight and
    bias from active terms only (w > 0), through the first position that attains the maximum; that is the exact gradient
    wherever it exists. There is no second derivative. torch.compile breaks its graph here and runs this as it is.

    Args:
        hidden: [B, L, H] token states, any floating dtype; L at least 1.
        weight: [V, H] decoder rows, one a term; may be tied to the input embedding.
        bias: [V] or None.
        mask: [B, L], nonzero at positions that count. A row without any gives the zero vector.
        slice_terms: terms whose logits are held at a time.

    Returns:
        float32 [B, V] (float64 for float64 input). Products run in the autocast or the promoted dtype; bias, ReLU, log
        and gradients in the returned one.
    """
    mask = mask.bool()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias)):
        pooled: Tensor = _SpladeHead.apply(hidden, weight, bias, mask, slice_terms)
        return pooled
    return _pooled(hidden, weight, bias, mask, slice_terms, with_positions=False)[0]


def max_pool_logits(
    hidden: Tensor,
    weight: Tensor,
    mask: Tensor,
    slice_terms: int = SLICE_TERMS,
    with_positions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return (max_l hidden_l . weight_v, its first position) over unmasked positions.

    Args:
        hidden, weight, slice_terms: as for `splade_head`.
        mask: bool [B, L].
        with_positions: whether positions are wanted; they cost time.

    Returns:
        Maxima, float32 (float64) [B, V], -inf for a row without unmasked positions; positions, int32 [B, V], or None.
    """
    batch, length, width = hidden.shape
    terms = weight.shape[0]
    dtype = product_dtype(hidden, weight)
    maxima = hidden.new_full((batch, terms), -torch.inf, dtype=result_dtype(hidden, weight))
    positions = torch.zeros((batch, terms), dtype=torch.int32, device=hidden.device) if with_positions else None
    with torch.autocast(hidden.device.type, enabled=False):
        if hidden.device.type == "cpu" and not with_positions:
            return _Packed(hidden, mask, dtype).maxima(weight, slice_terms, dtype), None
        kernels = _kernels(hidden.device, dtype)
        # Tiles are loaded by rows of whole 16 bytes.
        if kernels is not None and width % 8 == 0:
            found: tuple[Tensor, Tensor | None] = kernels.max_pool_logits(
                hidden.to(dtype), weight.to(dtype), mask, with_positions
            )
            return found
        tokens = hidden.reshape(batch * length, width).to(dtype)
        for start in range(0, terms, slice_terms):
            rows = weight[start : start + slice_terms].to(dtype)
            columns = slice(start, start + len(rows))
            logits = (tokens @ rows.T).view(batch, length, len(rows)).masked_fill_(~mask.unsqueeze(-1), -torch.inf)
            if positions is None:
                maxima[:, columns] = logits.amax(1)
            else:
                values, indices = logits.max(1)
                maxima[:, columns] = values
                positions[:, columns] = indices
    return maxima, positions


class _SpladeHead(torch.autograd.Function):
    """`splade_head` with its gradient; see there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, slice_terms: int) -> Tensor:
        pooled, positions = _pooled(hidden, weight, bias, mask, slice_terms, with_positions=True)
        ctx.save_for_backward(hidden, weight, positions, pooled)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, positions, pooled = ctx.saved_tensors
        batch, length, width = hidden.shape
        # d log(1 + x) / dx = 1 / (1 + x) = exp(-w) where x > 0, and 0 elsewhere.
        grad_logits = torch.where(pooled > 0, grad_pooled.to(pooled.dtype) * torch.exp(-pooled), 0.0)
        # One entry for each active (text, term): sums over them cost their number, not B * L * V.
        texts, terms = grad_logits.nonzero(as_tuple=True)
        values = grad_logits[texts, terms]
        places = texts * length + positions[texts, terms]
        grad_hidden = grad_weight = grad_bias = None
        with torch.autocast(hidden.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                flat = _sums_of_rows(weight, terms, values, places, batch * length, hidden.dtype)
                grad_hidden = flat.view(batch, length, width)
            if ctx.needs_input_grad[1]:
                states = hidden.reshape(batch * length, width)
                grad_weight = _sums_of_rows(states, places, values, terms, weight.shape[0], weight.dtype)
            if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
                grad_bias = grad_logits.sum(0).to(ctx.bias_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


def _pooled(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, slice_terms: int, with_positions: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the weights [B, V] and, if wanted, int32 [B, V] the position that each active one comes from."""
    if hidden.device.type != "cpu":
        maxima, positions = max_pool_logits(hidden, weight, mask, slice_terms, with_positions)
        return _weights(maxima, bias), positions
    dtype = product_dtype(hidden, weight)
    with torch.autocast("cpu", enabled=False):
        texts = _Packed(hidden, mask, dtype)
        short_cut = dtype == torch.float32 and len(texts.tokens) >= SHORT_CUT_TOKENS and multiplies_bf16()
        return _pooled_on_cpu(texts, weight, bias, slice_terms, with_positions, short_cut)


class _Packed:
    """The unmasked token states of a batch, one after the other.

    Attributes:
        tokens: [T, H].
        ends: B + 1 numbers; text b has the tokens from ends[b] to ends[b + 1].
        places: int32 [T]; the position of each within its text.
    """

    def __init__(self, hidden: Tensor, mask: Tensor, dtype: torch.dtype) -> None:
        counts = mask.sum(1)
        self.ends = [0, *counts.cumsum(0).tolist()]
        self.places = mask.nonzero()[:, 1].to(torch.int32)
        whole = self.ends[-1] == mask.numel()
        self.tokens = (hidden.reshape(mask.numel(), hidden.shape[2]) if whole else hidden[mask]).to(dtype)

    def groups(self) -> Iterator[list[int]]:
        """Yield numbers of consecutive texts, some, that have together at most GROUP_TOKENS tokens, or one."""
        group: list[int] = []
        for text, end in enumerate(self.ends[1:]):
            if group and end - self.ends[group[0]] > GROUP_TOKENS:
                yield group
                group = []
            if end > self.ends[text]:
                group.append(text)
        if group:
            yield group

    def _common_length(self, group: list[int]) -> int | None:
        """Return the tokens of each text of a group where they are equal and no text lies between, else None: then one
        maximum over all texts takes the place of one a text."""
        lengths = {self.ends[text + 1] - self.ends[text] for text in range(group[0], group[-1] + 1)}
        return lengths.pop() if len(lengths) == 1 else None

    def maxima(self, weight: Tensor, slice_terms: int, dtype: torch.dtype) -> Tensor:
        """Return max_l hidden_l . weight_v of products in `dtype`, [B, V] float32 (float64); -inf for empty texts."""
        result = torch.promote_types(self.tokens.dtype, torch.float32)
        maxima = self.tokens.new_full((len(self.ends) - 1, len(weight)), -torch.inf, dtype=result)
        tokens, groups = self.tokens.to(dtype), [(group, self._common_length(group)) for group in self.groups()]
        for start in range(0, len(weight), slice_terms):
            rows = weight[start : start + slice_terms].to(dtype).T
            for group, length in groups:
                first = self.ends[group[0]]
                logits = tokens[first : self.ends[group[-1] + 1]] @ rows
                if length is not None:
                    best = logits.view(len(group), length, rows.shape[1]).amax(1)
                    maxima[group[0] : group[-1] + 1, start : start + slice_terms] = best
                    continue
                for text in group:
                    best = logits[self.ends[text] - first : self.ends[text + 1] - first].amax(0)
                    maxima[text, start : start + slice_terms] = best
        return maxima


def _pooled_on_cpu(
    texts: _Packed, weight: Tensor, bias: Tensor | None, slice_terms: int, with_positions: bool, short_cut: bool
) -> tuple[Tensor, Tensor | None]:
    """Return what `_pooled` does.

    The first product gives the maxima, in the short cut approximate ones. Terms that can be active are multiplied once more,
    in full precision: for their exact maximum after the short cut, and for its position. Looking for the position of all
    maxima in the first product takes a third of its time.
    """
    dtype = texts.tokens.dtype
    maxima = texts.maxima(weight, slice_terms, torch.bfloat16 if short_cut else dtype)
    if not short_cut and not with_positions:
        return _weights(maxima, bias), None
    pooled = torch.zeros_like(maxima) if short_cut else _weights(maxima, bias)
    positions = torch.zeros(maxima.shape, dtype=torch.int32) if with_positions else None
    term_norms = weight.to(dtype).norm(dim=1) if short_cut else None
    for text, (start, end) in enumerate(pairwise(texts.ends)):
        if start == end:
            continue
        states = texts.tokens[start:end]
        if term_norms is None:
            possible = pooled[text] > 0
        else:
            bound = _upper_bound(maxima[text], states, term_norms)
            # Written so that NaN is possible: it has to be seen in the result.
            possible = ~((bound if bias is None else bound + bias) <= 0)
        for terms, rows in _rows_of(weight, possible, len(states), slice_terms):
            logits = rows.to(dtype) @ states.T
            values, best = logits.max(1) if with_positions else (logits.amax(1), None)
            if short_cut:
                pooled[text, terms] = _weights(values.to(pooled.dtype), None if bias is None else bias[terms])
            if positions is not None and best is not None:
                positions[text, terms] = texts.places[start:end][best]
    return pooled, positions


def _upper_bound(approximate: Tensor, states: Tensor, term_norms: Tensor) -> Tensor:
    """Return what the exact maxima cannot exceed.

    Rounding to bfloat16 changes a number by at most u = 2^-8 of itself, so a product of rounded vectors is off by at most
    (2 u + u^2) sum_i |h_i e_i| <= (2 u + u^2) |h| |e|; its float32 additions add H 2^-24 of that sum at most (twice that is
    taken, for rounding in pairs), and rounding the result u of itself. One hundredth is added for the norms' own rounding.

    Args:
        approximate: float32 [V]; maxima of the bfloat16 product over one text's tokens.
        states: float32 [T, H], the text's.
        term_norms: float32 [V]; |e_v|.
    """
    unit = 2.0**-8
    slack = 1.01 * (2 * unit + unit**2 + states.shape[1] * 2.0**-23)
    return approximate + approximate.abs() * (1.01 * unit) + (slack * states.norm(dim=1).amax()) * term_norms


def _rows_of(weight: Tensor, possible: Tensor, length: int, slice_terms: int) -> Iterator[tuple[Tensor | slice, Tensor]]:
    """Yield pieces of the vocabulary that together hold the possible terms, and their rows of the weight.

    Few terms are fetched one by one; where they are so many that a product with the whole weight is cheaper, all are given.
    """
    if int(possible.sum()) * (length + GATHER_TOKENS) < len(weight) * length:
        for terms in possible.nonzero().squeeze(1).split(slice_terms):
            yield terms, weight[terms]
    else:
        for start in range(0, len(weight), slice_terms):
            yield slice(start, start + slice_terms), weight[start : start + slice_terms]


def _sums_of_rows(table: Tensor, index: Tensor, values: Tensor, segment: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return the sums over entries e of each segment of values_e * table[index_e], [count, H] in `dtype`.

    Args:
        table: [N, H].
        index, segment: int64 [E], unsorted.
        values: float32 (float64) [E]; sums run in their dtype.
    """
    order = segment.argsort(stable=True)
    starts = torch.searchsorted(segment[order], torch.arange(count, device=segment.device))
    kernels = _kernels(table.device, table.dtype)
    if kernels is not None:
        sums: Tensor = kernels.sums_of_rows(table, index[order], values[order], starts, dtype)
        return sums
    bags = functional.embedding_bag(
        index[order], table.to(values.dtype), starts, mode="sum", per_sample_weights=values[order]
    )
    return bags.to(dtype)


def _weights(maxima: Tensor, bias: Tensor | None) -> Tensor:
    shifted = maxima if bias is None else maxima + bias.to(maxima.dtype)
    return torch.log1p(torch.relu(shifted))


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    promoted = torch.promote_types(hidden.dtype, weight.dtype)
    if promoted != torch.float64 and torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return promoted


def result_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)


def _kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """Return the module of kernels if it has some for this device and dtype."""
    if device.type != "cuda" or torch.version.cuda is None or dtype not in (torch.float16, torch.bfloat16):
        return None
    return _triton_module()


@lru_cache(maxsize=1)
def _triton_module() -> ModuleType | None:
    try:
        from raydistill.encoders import head_triton
    except ImportError:  # no Triton, or one before 3.4, without tensor descriptors
        return None
    return head_triton
