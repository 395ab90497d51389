"""Differences of scores within a query against the teachers' differences."""

from __future__ import annotations

from torch import Tensor

from raydistill.config.objective import MarginMse
from raydistill.distill.objectives.scores import StepScores, batch_mean, masked_mean


def margin_mse(scores: StepScores, term: MarginMse) -> Tensor:
    """Mean squared difference of margins over a query's pairs; queries with a pair count.

    With e_j = s_j - scale t_j a pair's error is (e_i - e_j)^2. Its mean over pairs is a matter of means and variances
    of e, so the work is O(K) and not O(K^2).
    """
    errors = (scores.own - term.scale * scores.teacher).masked_fill(~scores.present, 0.0)
    if term.pairs == "all":
        # Mean over unordered pairs of (e_i - e_j)^2 = twice the unbiased variance of e.
        count = scores.present.sum(dim=1)
        return batch_mean(2.0 * _variance(errors, scores.present) * count / (count - 1).clamp(min=1), count >= 2)
    golds, others = scores.present & scores.positive, scores.present & ~scores.positive
    # Mean over (g, n) of (e_g - e_n)^2 = var(e_g) + var(e_n) + (mean e_g - mean e_n)^2, population variances.
    between = masked_mean(errors, golds, dim=1) - masked_mean(errors, others, dim=1)
    per_query = between.square() + _variance(errors, golds) + _variance(errors, others)
    return batch_mean(per_query, golds.any(dim=1) & others.any(dim=1))


def _variance(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance along the last dimension of values [B, K] under a mask; 0 where it is empty."""
    centred = values - masked_mean(values, mask, dim=1).unsqueeze(1)
    return masked_mean(centred.square(), mask, dim=1)
