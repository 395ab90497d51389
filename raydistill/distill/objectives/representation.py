"""The student's query vector itself against the vector of the rewrite; queries with a rewrite count."""

from __future__ import annotations

from torch import Tensor

from raydistill.config.objective import RepCosine, RepMse
from raydistill.distill.objectives.scores import StepScores, batch_mean


def rep_mse(scores: StepScores, term: RepMse) -> Tensor:
    """Squared Euclidean distance of student and rewrite. Raises ValueError without rewrites."""
    rewrites = _rewrites(scores, term)
    return batch_mean((scores.queries - term.scale * rewrites).square().sum(dim=1), rewrites.any(dim=1))


def rep_cosine(scores: StepScores, term: RepCosine) -> Tensor:
    """1 - cosine of student and rewrite. Raises ValueError without rewrites.

    A student vector of zeros has no direction: it counts 1, with the finite gradient -r / |r|, towards the rewrite.
    """
    rewrites = _rewrites(scores, term)
    counts = rewrites.any(dim=1)
    squares = scores.queries.square().sum(dim=1)
    length = squares.masked_fill(squares == 0, 1.0).sqrt()
    target = rewrites / rewrites.norm(dim=1, keepdim=True).masked_fill(~counts.unsqueeze(1), 1.0)
    return batch_mean(1.0 - (scores.queries * target).sum(dim=1) / length, counts)


def _rewrites(scores: StepScores, term: RepMse | RepCosine) -> Tensor:
    if scores.rewrites is None:
        raise ValueError(f"{term} needs the rewrites' vectors, and they are not there")
    return scores.rewrites
