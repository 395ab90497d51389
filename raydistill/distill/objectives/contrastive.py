"""Gold passages against negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from raydistill.config.objective import InfoNce
from raydistill.distill.objectives.scores import StepScores, batch_mean, masked_mean


def infonce(scores: StepScores, term: InfoNce) -> Tensor:
    """Cross-entropy of each gold against the negatives, mean over a query's golds; see `config.objective.InfoNce`.

    A passage that several queries drew is a negative as often as it was drawn. Queries with a gold and a negative count.
    Raises ValueError where the batch's scores are needed and not there.
    """
    golds = scores.positive & scores.present
    negative_scores, negatives = _negatives(scores, term)
    counts = golds.any(dim=1) & negatives.any(dim=1)
    logits = (negative_scores / term.tau).masked_fill(~negatives, float("-inf"))
    # A row of -inf has no finite gradient; rows that do not count may be anything finite.
    against = torch.logsumexp(logits.masked_fill(~counts.unsqueeze(1), 0.0), dim=1, keepdim=True)
    lead = scores.own.masked_fill(~golds, 0.0) / term.tau - against
    # -log(e^g / (e^g + sum_n e^n)) = log(1 + e^-(g - log sum_n e^n)), exact however far ahead or behind the gold is.
    return batch_mean(masked_mean(-functional.logsigmoid(lead), golds, dim=1), counts)


def _negatives(scores: StepScores, term: InfoNce) -> tuple[Tensor, Tensor]:
    """Return student scores float32 [B, N] and which of them are negatives, bool [B, N]."""
    if term.negatives == "own":
        return scores.own, scores.present & ~scores.positive
    if scores.everyone is None or scores.excluded is None:
        raise ValueError(f"{term} needs the scores of every query and every passage of the batch, and they are not there")
    if term.negatives == "batch":
        return scores.everyone, ~scores.excluded
    gold_columns = torch.zeros_like(scores.excluded[0])
    gold_columns[scores.gold[scores.gold >= 0]] = True
    return scores.everyone, gold_columns & ~scores.excluded
