"""The objectives once more, from their formulas: float64, one query, one passage, one pair at a time.

`per_query_losses` gives for every term the loss of each query, None where the query has no part in it. Nothing here
shares code with the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydistill.config import (
    Bce,
    InfoNce,
    Kld,
    ListwiseCe,
    MarginMse,
    PartialRanking,
    RankNet,
    RepCosine,
    RepMse,
    ScoreTerm,
    Term,
)
from raydistill.distill.objectives import StepScores

TEACHERS = ("human", "llm")


@dataclass(frozen=True)
class Step:
    """A step as arrays; see StepScores."""

    own: NDArray[Any]
    everyone: NDArray[Any]
    teacher: NDArray[Any]
    teachers: NDArray[Any]
    present: NDArray[Any]
    positive: NDArray[Any]
    log_weight: NDArray[Any]
    gold: NDArray[Any]
    excluded: NDArray[Any]
    queries: NDArray[Any]
    rewrites: NDArray[Any]

    def tensors(self, dtype: torch.dtype = torch.float64, **leaves: torch.Tensor) -> StepScores:
        """Return the tensors of this step, with some of them replaced."""
        tensors = {name: torch.tensor(value) for name, value in vars(self).items()}
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        return StepScores(**{**cast, **leaves})

    def query(self, row: int) -> Step:
        """Return the step with one query alone, all passages of the batch kept."""
        return replace(self, **{name: value[row : row + 1] for name, value in vars(self).items()})


def random_step(seed: int, queries: int = 6, places: int = 5, terms: int = 7) -> Step:
    """Return a random step: several golds, none, absent scores, one or no present place, shared passages, no rewrite."""
    random = np.random.default_rng(seed)
    passages = 4 * places
    present = random.random((queries, places)) < 0.8
    present[0, :], present[1, :] = True, False
    present[2, :] = np.arange(places) == seed % places
    drawn = np.stack([random.permutation(passages)[:places] for _ in range(queries)])
    golds = [set(random.choice(drawn[row], 2, replace=False)) if row % 3 != 2 else set() for row in range(queries)]
    positive = np.array([[drawn[row, k] in golds[row] for k in range(places)] for row in range(queries)]) & present
    columns = [(row, k) for row in range(queries) for k in range(places) if present[row, k]]
    document = np.array([drawn[place] for place in columns])
    student = random.normal(2, 2, (queries, passages))
    gold = [
        next((n for n, (asker, k) in enumerate(columns) if asker == row and positive[row, k]), -1) for row in range(queries)
    ]
    teachers = random.normal(2, 2, (queries, len(TEACHERS), places))
    teacher = np.where(present, teachers.mean(axis=1), 0.0)
    teacher[3, :3] = 1.25  # equal teacher scores: no order among them
    teachers[np.broadcast_to(~present[:, None, :], teachers.shape)] = np.nan
    teachers[:, 1][random.random((queries, places)) < 0.3] = np.nan
    rewrites = np.maximum(random.normal(0, 1, (queries, terms)), 0)
    rewrites[4] = 0.0
    return Step(
        own=np.where(present, np.take_along_axis(student, drawn, axis=1), 0.0),
        everyone=student[:, document],
        teacher=teacher,
        teachers=teachers,
        present=present,
        positive=positive,
        log_weight=np.where(present, random.gamma(1.0, 1.0, (queries, places)), 0.0),
        gold=np.array(gold),
        excluded=np.array([[number in golds[row] for number in document] for row in range(queries)]),
        queries=np.maximum(random.normal(0.3, 1, (queries, terms)), 0),
        rewrites=rewrites,
    )


def reference_loss(step: Step, term: Term, ranked_by: NDArray[Any] | None = None) -> float:
    """Return a term's loss: the mean over the queries that have a part in it; see `per_query_losses`."""
    losses = [loss for loss in per_query_losses(step, term, ranked_by) if loss is not None]
    return sum(losses) / len(losses) if losses else 0.0


def per_query_losses(step: Step, term: Term, ranked_by: NDArray[Any] | None = None) -> list[float | None]:
    """Return the loss of each query. `ranked_by`: student scores [B, K] that give ranks (constants for the gradient)."""
    if isinstance(term, ScoreTerm) and term.teacher is not None:
        scores = step.teachers[:, TEACHERS.index(term.teacher)]
        step = replace(step, teacher=scores, present=step.present & ~np.isnan(scores))
    ranks = step.own if ranked_by is None else ranked_by
    return [_query_loss(step, row, term, ranks[row]) for row in range(len(step.own))]


def _query_loss(step: Step, row: int, term: Term, ranked_by: NDArray[Any]) -> float | None:
    places = [k for k in range(step.own.shape[1]) if step.present[row, k]]
    golds = [k for k in places if step.positive[row, k]]
    others = [k for k in places if not step.positive[row, k]]
    s, t = step.own[row], step.teacher[row]
    if isinstance(term, (Kld, ListwiseCe)):
        return _list_loss(s, t, np.exp(step.log_weight[row]), places, term)
    if isinstance(term, InfoNce):
        return _contrastive_loss(step, row, golds, others, term)
    if isinstance(term, MarginMse):
        pairs = [(i, j) for i in golds for j in others]
        if term.pairs == "all":
            pairs = [(i, j) for i in places for j in places if i < j]
        return _mean([((s[i] - s[j]) - term.scale * (t[i] - t[j])) ** 2 for i, j in pairs])
    if isinstance(term, Bce):
        return _mean([_label_loss(s[k], t[k], term) for k in places])
    if isinstance(term, PartialRanking):
        leads = [(s[i] - s[j]) / term.student_tau for i in others for j in others if t[i] - t[j] > term.gap]
        if term.form == "hinge":
            return _mean([max(0.0, term.margin - lead) for lead in leads])
        return _mean([math.log(1 + math.exp(-lead)) for lead in leads])
    if isinstance(term, RankNet):
        return _ranknet_loss(s, t, places, ranked_by, term)
    q, r = step.queries[row], step.rewrites[row]
    if not any(r):
        return None
    if isinstance(term, RepMse):
        return sum((q[v] - term.scale * r[v]) ** 2 for v in range(len(q)))
    assert isinstance(term, RepCosine)
    return 1.0 - sum(q * r) / math.sqrt(sum(q * q) * sum(r * r))


def _mean(losses: list[float]) -> float | None:
    return sum(losses) / len(losses) if losses else None


def _list_loss(
    s: NDArray[Any], t: NDArray[Any], weight: NDArray[Any], places: list[int], term: Kld | ListwiseCe
) -> float | None:
    if len(places) < 2:
        return None
    student_tau = term.tau if term.student_tau is None else term.student_tau
    teacher_sum = sum(weight[k] * math.exp(t[k] / term.tau) for k in places)
    student_sum = sum(weight[k] * math.exp(s[k] / student_tau) for k in places)
    loss = 0.0
    for k in places:
        p, q = math.exp(t[k] / term.tau) / teacher_sum, math.exp(s[k] / student_tau) / student_sum
        loss += weight[k] * p * (math.log(p / q) if isinstance(term, Kld) else -math.log(q))
    return loss


def _contrastive_loss(step: Step, row: int, golds: list[int], others: list[int], term: InfoNce) -> float | None:
    columns = [p for p in range(step.everyone.shape[1]) if not step.excluded[row, p]]
    if term.negatives == "golds":
        columns = [p for p in columns if p in step.gold]
    negatives = step.own[row, others] if term.negatives == "own" else step.everyone[row, columns]
    if not len(negatives):
        return None
    against = sum(math.exp(score / term.tau) for score in negatives)
    leads = [math.exp(step.own[row, k] / term.tau) for k in golds]
    return _mean([-math.log(lead / (lead + against)) for lead in leads])


def _label_loss(score: float, teacher: float, term: Bce) -> float:
    student_tau = term.tau if term.student_tau is None else term.student_tau
    student_shift = term.shift if term.student_shift is None else term.student_shift
    y = 1 / (1 + math.exp(-(teacher / term.tau + term.shift)))
    z = 1 / (1 + math.exp(-(score / student_tau + student_shift)))
    return -(y * math.log(z) + (1 - y) * math.log(1 - z))


def _ranknet_loss(
    s: NDArray[Any], t: NDArray[Any], places: list[int], ranked_by: NDArray[Any], term: RankNet
) -> float | None:
    pairs = [(i, j) for i in places for j in places if t[i] > t[j]]
    if not pairs:
        return None
    ranking = sorted(places, key=lambda k: (-ranked_by[k], t[k]))
    lowest, highest = min(t[places]), max(t[places])
    total = weights = 0.0
    for i, j in pairs:
        weight = 1.0
        if term.weight == "ndcg":
            discounts = [1 / math.log2(2 + ranking.index(k)) for k in (i, j)]
            weight = (t[i] - t[j]) / (highest - lowest) * abs(discounts[0] - discounts[1])
        total += weight * math.log(1 + math.exp(-(s[i] - s[j]) / term.student_tau))
        weights += weight
    return total / weights
