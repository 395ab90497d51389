"""The SPLADE head without its memory: token states to term weights, never holding [batch, length, vocabulary].

Forward works through the vocabulary in slices and keeps, for each term, the best position; backward touches only the
terms that are active. Which module's output enters here, and the tokenizer, are not this module's affair.

Why the maximum can come first: log(1 + ReLU(x)) is monotone, and a term's bias is the same at all positions, so
max_l log(1 + ReLU(h_l . e_v + b_v)) = log(1 + ReLU(max_l (h_l . e_v) + b_v)).

DeepSpeed ZeRO-3 shows a parameter only while a module that owns it runs: call `splade_head` inside the forward of the
module that owns `weight` and `bias`, and hand over the parameters themselves, not views of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICE_TERMS = 2048


def splade_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, slice_terms: int = SLICE_TERMS) -> Tensor:
    """Return SPLADE weights w_v = max_l log(1 + ReLU(hidden_l . weight_v + bias_v)) over unmasked positions l.

    The pooling of SPLADE v2 (Formal et al., arXiv 2109.10086). Where gradients are wanted, they reach hidden, weight and
    bias from active terms only (w > 0), through the first position that attains the maximum; that is the exact gradient
    wherever it exists. There is no second derivative.

    Args:
        hidden: [B, L, H] token states, any floating dtype; B and L at least 1.
        weight: [V, H] decoder rows, one a term; may be tied to the input embedding.
        bias: [V] or None.
        mask: [B, L], nonzero at positions that count. A row without any gives the zero vector.
        slice_terms: terms whose logits are held at a time: memory is B * L * slice_terms numbers.

    Returns:
        float32 [B, V] (float64 for float64 input). Products run in the autocast or the promoted dtype; bias, ReLU, log
        and gradients in the returned one.
    """
    mask = mask.bool()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias)):
        pooled: Tensor = _SpladeHead.apply(hidden, weight, bias, mask, slice_terms)
        return pooled
    return _weights(max_pool_logits(hidden, weight, mask, slice_terms)[0], bias)


def max_pool_logits(
    hidden: Tensor,
    weight: Tensor,
    mask: Tensor,
    slice_terms: int = SLICE_TERMS,
    with_positions: bool = False,
    row_by_row: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (max_l hidden_l . weight_v, its position) over unmasked positions.

    Args:
        hidden, weight, slice_terms: as for `splade_head`.
        mask: bool [B, L].
        with_positions: whether positions are wanted; they cost time.
        row_by_row: one product a text, without its padding, instead of one product for all. Default: on a CPU, where it
            is 1.5 times faster; on a GPU many small kernels do not pay.

    Returns:
        Maxima, float32 (float64) [B, V], -inf for a row without unmasked positions; positions, int32 [B, V], or None.
    """
    batch, length, _ = hidden.shape
    terms = weight.shape[0]
    product_dtype = torch.promote_types(hidden.dtype, weight.dtype)
    hidden = hidden.to(product_dtype)
    maxima = torch.full((batch, terms), -torch.inf, dtype=_result_dtype(hidden, weight), device=hidden.device)
    positions = torch.zeros((batch, terms), dtype=torch.int32, device=hidden.device) if with_positions else None
    separate = hidden.device.type == "cpu" if row_by_row is None else row_by_row
    row_positions = [row.nonzero().squeeze(1) for row in mask] if separate else None
    for start in range(0, terms, slice_terms):
        rows = weight[start : start + slice_terms].to(product_dtype).T
        columns = slice(start, start + rows.shape[1])
        if row_positions is None:
            logits = (hidden.reshape(batch * length, -1) @ rows).view(batch, length, -1)
            _store_maximum(logits.masked_fill_(~mask.unsqueeze(-1), -torch.inf), 1, maxima[:, columns], positions, columns)
            continue
        for number, kept in enumerate(row_positions):
            if len(kept) == 0:
                continue
            logits = hidden[number].index_select(0, kept) @ rows
            if positions is None:
                maxima[number, columns] = logits.amax(0).to(maxima.dtype)
            else:
                values, indices = logits.max(0)
                maxima[number, columns] = values.to(maxima.dtype)
                positions[number, columns] = kept[indices].to(torch.int32)
    return maxima, positions


class _SpladeHead(torch.autograd.Function):
    """`splade_head` with its gradient; see there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, slice_terms: int) -> Tensor:
        maxima, positions = max_pool_logits(hidden, weight, mask, slice_terms, with_positions=True)
        pooled = _weights(maxima, bias)
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
        rows, terms = grad_logits.nonzero(as_tuple=True)
        flat_positions = rows * length + positions[rows, terms].long()
        # One entry for each active (text, term): products with it cost their number, not B * L * V.
        routed = torch.sparse_coo_tensor(
            torch.stack([flat_positions, terms]),
            grad_logits[rows, terms],
            (batch * length, weight.shape[0]),
            check_invariants=False,
        ).coalesce()
        grad_hidden = grad_weight = grad_bias = None
        with torch.autocast(hidden.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                product = torch.sparse.mm(routed, weight.to(pooled.dtype))
                grad_hidden = product.view(batch, length, width).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                flat_hidden = hidden.reshape(batch * length, width).to(pooled.dtype)
                grad_weight = torch.sparse.mm(routed.t(), flat_hidden).to(weight.dtype)
            if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
                grad_bias = grad_logits.sum(0).to(ctx.bias_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


def _weights(maxima: Tensor, bias: Tensor | None) -> Tensor:
    shifted = maxima if bias is None else maxima + bias.to(maxima.dtype)
    return torch.log1p(torch.relu(shifted))


def _result_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    return torch.float64 if torch.promote_types(hidden.dtype, weight.dtype) == torch.float64 else torch.float32


def _store_maximum(logits: Tensor, dim: int, maxima: Tensor, positions: Tensor | None, columns: slice) -> None:
    if positions is None:
        maxima.copy_(logits.amax(dim))
    else:
        values, indices = logits.max(dim)
        maxima.copy_(values)
        positions[:, columns] = indices.to(torch.int32)
