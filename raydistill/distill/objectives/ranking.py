"""The order of a query's candidates: pairs that the teachers order, weighed by how much they matter.

Tensors of pairs are [B, K, K]; entry (i, j) compares place i with place j. A float32 one of 16 queries with
100 places takes 0.64 MB; memory grows with the square of the places.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from raydistill.config.objective import PartialRanking, RankNet
from raydistill.distill.objectives.scores import StepScores, batch_mean, masked_mean


def partial_ranking(scores: StepScores, term: PartialRanking) -> Tensor:
    """Loss of the teachers' order among candidates that are no gold; queries with an ordered pair of them count."""
    pairs = _ordered(scores.teacher, scores.present & ~scores.positive, term.gap)
    lead = _leads(scores.own, pairs, term.student_tau)
    losses = -functional.logsigmoid(lead) if term.form == "logistic" else functional.relu(term.margin - lead)
    return batch_mean(masked_mean(losses, pairs, dim=(1, 2)), pairs.any(dim=2).any(dim=1))


def ranknet(scores: StepScores, term: RankNet) -> Tensor:
    """Pairwise logistic loss of the teachers' order, weighted mean over a query's pairs; queries with a pair count."""
    pairs = _ordered(scores.teacher, scores.present, 0.0)
    losses = -functional.logsigmoid(_leads(scores.own, pairs, term.student_tau))
    counts = pairs.any(dim=2).any(dim=1)
    if term.weight == "none":
        return batch_mean(masked_mean(losses, pairs, dim=(1, 2)), counts)
    weights = _swap_effects(scores.own, scores.teacher, scores.present).masked_fill(~pairs, 0.0)
    total = weights.sum(dim=(1, 2))
    return batch_mean((weights * losses).sum(dim=(1, 2)) / total.masked_fill(~counts, 1.0), counts)


def _ordered(teacher: Tensor, mask: Tensor, gap: float) -> Tensor:
    """Pairs (i, j) under the mask with t_i - t_j > gap, bool [B, K, K]."""
    return (teacher.unsqueeze(2) - teacher.unsqueeze(1) > gap) & mask.unsqueeze(2) & mask.unsqueeze(1)


def _leads(student: Tensor, pairs: Tensor, tau: float) -> Tensor:
    """(s_i - s_j) / tau of the given pairs, 0 elsewhere, [B, K, K]."""
    return (student.unsqueeze(2) - student.unsqueeze(1)).masked_fill(~pairs, 0.0) / tau


def _swap_effects(student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """|g_i - g_j| |D(r_i) - D(r_j)|: what exchanging two places changes in DCG, up to a factor a query; [B, K, K].

    Ranks count present places only. Where the student scores two passages alike, the one that the teachers put lower is
    ranked higher: a student that has collapsed to equal scores is then treated as wrong and not as finished, and the
    rank does not depend on the order of the places. Passages alike for both share the mean of their ranks. Ranks come
    from comparisons, so nothing here has a gradient.
    """
    s_i, s_j, t_i, t_j = student.unsqueeze(2), student.unsqueeze(1), teacher.unsqueeze(2), teacher.unsqueeze(1)
    others = present.unsqueeze(1)
    before = ((s_j > s_i) | ((s_j == s_i) & (t_j < t_i))) & others
    alike = (s_j == s_i) & (t_j == t_i) & others
    rank = 1.0 + before.sum(dim=2, dtype=student.dtype) + 0.5 * (alike.sum(dim=2, dtype=student.dtype) - 1.0).clamp(min=0)
    discount = 1.0 / torch.log2(1.0 + rank)
    lowest = teacher.masked_fill(~present, float("inf")).amin(dim=1, keepdim=True)
    highest = teacher.masked_fill(~present, float("-inf")).amax(dim=1, keepdim=True)
    spread = highest - lowest
    # No pair is ordered where the spread is not above 0 (one passage, equal scores) or where nothing is present.
    gain = (teacher - lowest) / spread.masked_fill(~(spread > 0), 1.0)
    gain = gain.masked_fill(~present, 0.0)
    return (gain.unsqueeze(2) - gain.unsqueeze(1)).abs() * (discount.unsqueeze(2) - discount.unsqueeze(1)).abs()
