"""The head of the first SPLADE: the sum over positions in place of their maximum, never holding [batch, length, vocabulary].

A sum has no position that stands for all the others, so backward computes the logits again, slice by slice, where `head`
follows one position a term. What is kept between the two is the token states and [batch, vocabulary]; a slice of logits is
`SLICE_LOGITS` numbers at most. Plain torch on every device: there is no Triton kernel for the sum, and no short cut through
bfloat16 on the CPU, since a term's weight needs the logits of all its positions.

DeepSpeed ZeRO-3: as for `head.splade_head`, call it inside the forward of the module that owns the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raydistill.config import Pooling
from raydistill.encoders.head import product_dtype, result_dtype, splade_head

# Logits held at a time: in float32 16 MiB, which a cache holds.
SLICE_LOGITS = 2**22
LEAST_SLICE_TERMS = 64

Head = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""(hidden [B, L, H], weight [V, H], bias [V] or None, mask [B, L]) -> term weights [B, V]."""


def head_for(pooling: Pooling, log_twice: bool) -> Head:
    """Return the head that pools in a way. A second logarithm after a maximum is left to the caller: it may come last."""
    return partial(splade_sum_head, log_twice=log_twice) if pooling == "sum" else splade_head


def splade_sum_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    log_twice: bool = False,
    slice_terms: int | None = None,
) -> Tensor:
    """Return SPLADE weights w_v = sum_l log(1 + ReLU(hidden_l . weight_v + bias_v)) over unmasked positions l.

    The pooling of SPLADE v1 (Formal et al., arXiv 2107.05720, eq. 1). Gradients reach hidden, weight and bias from every
    position with a positive logit, exactly; work in backward follows the terms that any text of the batch has a weight and a
    gradient for. There is no second derivative. torch.compile breaks its graph here and runs this as it is.

    Args:
        hidden: [B, L, H] token states, any floating dtype; L at least 1.
        weight: [V, H] decoder rows, one a term; may be tied to the input embedding.
        bias: [V] or None.
        mask: [B, L], nonzero at positions that count. A row without any gives the zero vector.
        log_twice: sum log(1 + log(1 + ReLU(...))) instead.
        slice_terms: terms whose logits are held at a time; None takes as many as `SLICE_LOGITS` allows.

    Returns:
        float32 [B, V] (float64 for float64 input). Products, those of backward included, run in the autocast or the promoted
        dtype; bias, logarithms and sums in the returned one.
    """
    mask = mask.bool()
    if slice_terms is None:
        slice_terms = max(LEAST_SLICE_TERMS, SLICE_LOGITS // max(mask.numel(), 1))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias)):
        summed: Tensor = _SpladeSumHead.apply(hidden, weight, bias, mask, log_twice, slice_terms)
        return summed
    return _Product(hidden, weight, bias, mask).sums(log_twice, slice_terms)


def _activated(logits: Tensor, log_twice: bool) -> Tensor:
    """Return log(1 + ReLU(x)) of logits, or of that once more; the logits' own memory is used."""
    once = logits.relu_().log1p_()
    return once.log1p_() if log_twice else once


class _SpladeSumHead(torch.autograd.Function):
    """`splade_sum_head` with its gradient; see there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, log_twice: bool, slice_terms: int
    ) -> Tensor:
        product = _Product(hidden, weight, bias, mask)
        summed = product.sums(log_twice, slice_terms)
        ctx.save_for_backward(hidden, weight, bias, mask, summed)
        ctx.settings = product.dtype, log_twice, slice_terms
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_summed: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, mask, summed = ctx.saved_tensors
        dtype, log_twice, slice_terms = ctx.settings
        product = _Product(hidden, weight, bias, mask, dtype)
        grads = product.gradients(grad_summed, summed, log_twice, slice_terms, ctx.needs_input_grad[:3])
        return *grads, None, None, None


class _Product:
    """Token states times vocabulary, a slice at a time.

    Attributes:
        tokens: [B * L, H] in `dtype`, 0 at masked positions, whatever stands there.
        dtype: that the products run in.
        sum_dtype: that all else runs in.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dtype: torch.dtype | None = None
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.masked = ~mask.unsqueeze(-1)
        self.dtype = product_dtype(hidden, weight) if dtype is None else dtype
        self.sum_dtype = result_dtype(hidden, weight)
        self.tokens = hidden.masked_fill(self.masked, 0).reshape(-1, hidden.shape[2]).to(self.dtype)

    def logits(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Return those of some rows of the weight, [B, L, rows] in `sum_dtype`."""
        products = (self.tokens @ rows.to(self.dtype).T).to(self.sum_dtype)
        if bias is not None:
            products += bias.to(self.sum_dtype)
        return products.view(*self.hidden.shape[:2], len(rows))

    def sums(self, log_twice: bool, slice_terms: int) -> Tensor:
        """Return the weights, [B, V]."""
        summed = self.hidden.new_empty((len(self.hidden), len(self.weight)), dtype=self.sum_dtype)
        with torch.autocast(self.hidden.device.type, enabled=False):
            for start in range(0, len(self.weight), slice_terms):
                part = slice(start, start + slice_terms)
                logits = self.logits(self.weight[part], None if self.bias is None else self.bias[part])
                summed[:, part] = _activated(logits, log_twice).masked_fill_(self.masked, 0).sum(1)
        return summed

    def gradients(
        self, grad_summed: Tensor, summed: Tensor, log_twice: bool, slice_terms: int, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return those of hidden, weight and bias, in their dtypes; None where not wanted.

        Args:
            grad_summed: [B, V], of the weights. summed: [B, V], the weights.
        """
        grad_tokens = torch.zeros_like(self.tokens, dtype=self.sum_dtype) if wanted[0] else None
        grad_weight = torch.zeros_like(self.weight) if wanted[1] else None
        grad_bias = torch.zeros_like(self.bias) if self.bias is not None and wanted[2] else None
        # Where a weight is 0 all of its logits are negative, and nothing comes back.
        upstream = torch.where(summed > 0, grad_summed.to(self.sum_dtype), 0.0)
        with torch.autocast(self.hidden.device.type, enabled=False):
            for terms in upstream.ne(0).any(0).nonzero().squeeze(1).split(slice_terms):
                rows = self.weight[terms].to(self.dtype)
                logits = self.logits(rows, None if self.bias is None else self.bias[terms])
                slopes = _slopes(logits, log_twice).mul_(upstream[:, terms].unsqueeze(1)).masked_fill_(self.masked, 0)
                flat = slopes.view(len(self.tokens), len(terms))
                if grad_bias is not None:
                    grad_bias[terms] = flat.sum(0).to(grad_bias.dtype)
                flat = flat.to(self.dtype)
                if grad_tokens is not None:
                    grad_tokens += flat @ rows
                if grad_weight is not None:
                    grad_weight[terms] = (flat.T @ self.tokens).to(grad_weight.dtype)
        grad_hidden = None if grad_tokens is None else grad_tokens.view(self.hidden.shape).to(self.hidden.dtype)
        return grad_hidden, grad_weight, grad_bias


def _slopes(logits: Tensor, log_twice: bool) -> Tensor:
    """Return the derivative of `_activated`: 1 / (1 + x), for a second logarithm over 1 + log(1 + x); 0 where x <= 0."""
    positive = logits > 0
    shifted = logits.relu_().add_(1)
    slopes = shifted.reciprocal()
    return (slopes.div_(shifted.log_().add_(1)) if log_twice else slopes).mul_(positive)
