"""From the terms of an objective to one loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from raydistill.config.objective import (
    Bce,
    InfoNce,
    Kld,
    ListwiseCe,
    MarginMse,
    Objective,
    PartialRanking,
    RankNet,
    RepCosine,
    RepMse,
    ScoreTerm,
    Term,
)
from raydistill.distill.objectives.contrastive import infonce
from raydistill.distill.objectives.divergence import kld, listwise_ce
from raydistill.distill.objectives.margins import margin_mse
from raydistill.distill.objectives.pointwise import bce
from raydistill.distill.objectives.ranking import partial_ranking, ranknet
from raydistill.distill.objectives.representation import rep_cosine, rep_mse
from raydistill.distill.objectives.scores import StepScores

LOSSES: dict[type[Term], Callable[[StepScores, Any], Tensor]] = {
    Kld: kld,
    ListwiseCe: listwise_ce,
    InfoNce: infonce,
    MarginMse: margin_mse,
    Bce: bce,
    PartialRanking: partial_ranking,
    RankNet: ranknet,
    RepMse: rep_mse,
    RepCosine: rep_cosine,
}


def distillation_loss(
    scores: StepScores, objective: Objective, teacher_names: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the terms (scalar) and each term's own, unweighted value by its part name.

    Args:
        scores: the step; differentiable in `own`, `everyone` and `queries`.
        objective: the terms and weights.
        teacher_names: the T teachers, in the order of `scores.teachers`.

    Raises:
        ValueError: a term that names no teacher of the step, or needs scores or rewrites that are not there.
    """
    parts: dict[str, Tensor] = {}
    loss = scores.own.new_zeros(())
    for name, (weight, term) in zip(objective.part_names, objective.terms, strict=True):
        step = scores
        if isinstance(term, ScoreTerm) and term.teacher is not None:
            step = scores.of_teacher(term.teacher, teacher_names)
        parts[name] = LOSSES[type(term)](step, term)
        loss = loss + weight * parts[name]
    return loss, parts
