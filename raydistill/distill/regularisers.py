"""What keeps queries sparse: FLOPS and L1 over the global batch, and the ramp of their weights."""

from __future__ import annotations

import torch
from torch import Tensor


def flops_penalty(queries: Tensor) -> Tensor:
    """FLOPS(Q) = sum_v (mean_b |q_bv|)^2 (Paria et al., arXiv 2004.05665; SPLADE).

    Not additive over sub-batches: pass the vectors of the whole global batch, or the penalty grows with the number of
    workers. queries: float32 [B, V].
    """
    return queries.abs().mean(dim=0).square().sum()


def l1_penalty(queries: Tensor) -> Tensor:
    """L1(Q) = mean_b sum_v |q_bv|. queries: float32 [B, V]."""
    return queries.abs().sum(dim=1).mean()


def ramp(step: int, ramp_steps: int) -> float:
    """Share of its full weight that a regulariser has at optimizer step `step` (0-based): quadratic, then 1."""
    if ramp_steps <= 0:
        return 1.0
    return min(1.0, (step + 1) / ramp_steps) ** 2


def active_terms(queries: Tensor) -> Tensor:
    """Mean number of non-zero terms a query (L0), a statistic without gradient. queries: float32 [B, V]."""
    return torch.count_nonzero(queries, dim=1).float().mean()
