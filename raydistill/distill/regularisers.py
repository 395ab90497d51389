"""What keeps queries sparse and alive: the penalties on the query vectors of a global batch, and the ramp of weights.

Pure functions. None of them is additive over sub-batches: pass the vectors of the whole global batch, or the penalty
changes with the number of workers. Every penalty takes one weight (lambda) a query, so that turn depths can differ.
Which weights, and when, is `sparsity`'s affair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydistill.config.regularisation import FlopsPenalty, GuardPenalty, L0FlopsPenalty, L1Penalty, Penalty


def flops_penalty(magnitudes: Tensor, weights: Tensor) -> Tensor:
    """FLOPS(Q; lambda) = sum_v (mean_b sqrt(lambda_b) |q_bv|)^2; lambda FLOPS(Q) where all lambda_b are lambda.

    FLOPS(Q) is that of Paria et al. (arXiv 2004.05665) and SPLADE. A query with weight 0 counts in the mean as empty.

    Args:
        magnitudes: float [B, V], |q|.
        weights: float [B], lambda_b >= 0.
    """
    mean = (weights.sqrt() / len(weights)) @ magnitudes
    return mean.square().sum()


def l1_penalty(magnitudes: Tensor, weights: Tensor) -> Tensor:
    """L1(Q; lambda) = mean_b lambda_b sum_v |q_bv|. Shapes as for `flops_penalty`."""
    return weights @ magnitudes.sum(dim=1) / len(weights)


def l0_mask(counts: Tensor, terms: int) -> Tensor:
    """1 for queries with more than `terms` non-zero terms, 0 for the others; float32 [B] from int64 [B].

    The mask of the l0 mask loss (Shen, Geng and Yang, arXiv 2504.14839): FLOPS' = sum_v (1/B sum_b M_b |q_bv|)^2 with
    M_b = 1[|q_b|_0 > terms]. There it is of documents and each term carries its IDF; here it is of queries, without IDF.
    """
    return (counts > terms).float()


def guard_penalty(queries: Tensor, weights: Tensor, guard: GuardPenalty) -> Tensor:
    """G(Q; lambda) = mean_b lambda_b sum_{j=1..floor} max(0, least - q_b(j)), q_b(j) the j-th strongest weight of query b.

    The hinge pulls on terms that fade, and lets go at `least`. A term at 0 adds a constant without gradient: through the
    ReLU of SPLADE none could reach it.

    Args:
        queries: float [B, V], >= 0.
        weights: float [B], lambda_b >= 0.
        guard: floor and least.
    """
    strongest = queries.topk(min(guard.floor, queries.shape[1]), dim=1).values
    # The strongest of a query with fewer terms are zeros at arbitrary places: no gradient for these.
    gaps = torch.where(strongest > 0, guard.least - strongest, guard.least)
    return weights @ gaps.clamp(min=0.0).sum(dim=1) / len(weights)


def penalty_value(penalty: Penalty, queries: Tensor, magnitudes: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """Return a penalty's value, weighted by `weights`.

    Args:
        penalty: which, with its parameters.
        queries: float [B, V], >= 0. magnitudes: |queries|, shared between penalties.
        counts: int64 [B], non-zero terms of each query.
        weights: float [B], lambda_b >= 0.
    """
    if isinstance(penalty, GuardPenalty):
        return guard_penalty(queries, weights, penalty)
    if isinstance(penalty, L1Penalty):
        return l1_penalty(magnitudes, weights)
    if isinstance(penalty, L0FlopsPenalty):
        return flops_penalty(magnitudes, weights * l0_mask(counts, penalty.terms).to(weights.dtype))
    if isinstance(penalty, FlopsPenalty):
        return flops_penalty(magnitudes, weights)
    raise TypeError(f"no formula for the penalty {penalty}")


def ramp(step: int, ramp_steps: int) -> float:
    """Share of its full weight that a regulariser has at optimizer step `step` (0-based): quadratic, then 1."""
    if ramp_steps <= 0:
        return 1.0
    return min(1.0, (step + 1) / ramp_steps) ** 2


def term_counts(queries: Tensor) -> Tensor:
    """Number of non-zero terms of each query (L0), int64 [B]. queries: float [B, V]."""
    return torch.count_nonzero(queries, dim=1)


def shared_terms(queries: Tensor, document_share: Tensor) -> Tensor:
    """Expected number of non-zero terms that each query shares with a passage, sum_v 1[q_bv > 0] p_d(v), float [B].

    Its mean over queries is FLOPS(Q, D) = sum_v p_q(v) p_d(v): the sum is linear in the queries.

    Args:
        queries: float [B, V], >= 0.
        document_share: float [V], share of passages that hold each term.
    """
    return (queries > 0).to(document_share.dtype) @ document_share
