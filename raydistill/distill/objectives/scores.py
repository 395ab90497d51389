"""The score tensors of a step, their agreement in shape, and the mean over the queries that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepScores:
    """Everything an objective needs of one global batch: B queries with K places, T teachers, P passages in all.

    Scores are dot products of sparse vectors. Column k of all [B, K] and [B, T, K] tensors is the same passage.

    Attributes:
        own: float32 [B, K]; student score of each query and the passage in each of its places.
        everyone: float32 [B, P] or None; student score of each query and every passage of the batch.
        teacher: float32 [B, K]; the teachers' combined score.
        teachers: float32 [B, T, K]; each teacher's own score, NaN where absent.
        present: bool [B, K]; the place holds a passage with a combined teacher score.
        positive: bool [B, K]; the place holds a gold passage of the query.
        log_weight: float32 [B, K]; log of the inverse probability with which the passage was drawn, 0 where places are
            to count alike.
        gold: int64 [B]; column of `everyone` with the query's first gold, -1 where it has none.
        excluded: bool [B, P] or None; columns that are no negatives of the query: its golds, its own and those that other
            queries drew, and columns without a passage. There wherever `everyone` is.
        queries: float32 [B, V]; the student's vectors.
        rewrites: float32 [B, V] or None; the rewrites' vectors, an empty row where there is none.

    Raises:
        ValueError: two tensors that disagree in shape.
    """

    own: Tensor
    everyone: Tensor | None
    teacher: Tensor
    teachers: Tensor
    present: Tensor
    positive: Tensor
    log_weight: Tensor
    gold: Tensor
    excluded: Tensor | None
    queries: Tensor
    rewrites: Tensor | None

    def __post_init__(self) -> None:
        queries, places = self.own.shape
        for name in ("teacher", "present", "positive", "log_weight"):
            self._same(name, (queries, places), "own")
        self._same("teachers", (queries, self.teachers.shape[1], places), "own")
        self._same("gold", (queries,), "own")
        self._same("queries", (queries, self.queries.shape[-1]), "own")
        if self.everyone is not None:
            if self.excluded is None:
                raise ValueError("everyone is there but excluded is not: a query's own golds would become its negatives")
            self._same("everyone", (queries, self.everyone.shape[-1]), "own")
            self._same("excluded", tuple(self.everyone.shape), "everyone")
        if self.rewrites is not None:
            self._same("rewrites", tuple(self.queries.shape), "queries")

    def _same(self, name: str, expected: tuple[int, ...], other: str) -> None:
        found = tuple(getattr(self, name).shape)
        if found != expected:
            raise ValueError(
                f"{name} has the shape {list(found)} where {other} ({list(getattr(self, other).shape)}) asks for "
                f"{list(expected)}: their columns would not be the same passages"
            )

    def of_teacher(self, name: str, teacher_names: Sequence[str]) -> StepScores:
        """Return the same step with one teacher's own scores in place of the combined ones.

        Places that this teacher did not score are absent. Raises ValueError for a name that no teacher has.
        """
        if len(teacher_names) != self.teachers.shape[1]:
            raise ValueError(f"teachers has {self.teachers.shape[1]} rows, but {len(teacher_names)} names came with it")
        if name not in teacher_names:
            raise ValueError(f"there is no teacher {name!r}; there are {', '.join(teacher_names)}")
        scores = self.teachers[:, list(teacher_names).index(name)]
        present = self.present & ~torch.isnan(scores)
        return replace(self, teacher=scores.masked_fill(~present, 0.0), present=present)


def batch_mean(per_query: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of `per_query` (finite, [B]) over the queries that count (bool [B]); 0 when none does."""
    return per_query.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return the mean of `values` (finite) over `mask` along `dim`; 0 where the mask is empty."""
    return values.masked_fill(~mask, 0.0).sum(dim=dim) / mask.sum(dim=dim).clamp(min=1)
