"""One optimizer step's loss as a function of the vectors of all queries and passages of the global batch.

The counterpart of `step` where documents are trained too: nothing is read from an index, both sides get gradients, and
every passage of the batch is a candidate of every query, wherever a teacher scores the pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydistill.config import DocumentTrainingConfig
from raydistill.distill.document_stream import DocumentBatch
from raydistill.distill.objectives import StepScores, distillation_loss
from raydistill.distill.sparsity import Sparsity

SIDES = ("query", "passage")


@dataclass(frozen=True)
class DocumentTensors:
    """What is known of a batch of B queries and P passages before anything is encoded, on a device.

    Attributes:
        drawn: bool [P]. positive: bool [B, P].
        teachers: float32 [B, T, P], NaN where absent, in the order of `DocumentTrainingConfig.teachers`.
        combined: float32 [B, P]; scores of those who know all pairs: dense where there is one, with BM25 by its weight, else
            lexical.
    """

    drawn: Tensor
    positive: Tensor
    teachers: Tensor
    combined: Tensor

    @staticmethod
    def of(
        batch: DocumentBatch, dense: Tensor | None, training: DocumentTrainingConfig, device: torch.device
    ) -> DocumentTensors:
        """Join a batch with the dense teacher's scores, float32 [B, P] (None without that teacher)."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        drawn = tensor(batch.drawn)
        of_teacher = {"recorded": tensor(batch.recorded), "lexical": tensor(batch.lexical)}
        if dense is not None:
            of_teacher["dense"] = dense.to(device).masked_fill(~drawn, torch.nan)
        everywhere = of_teacher["dense" if dense is not None else "lexical"]
        if training.lexical_weight is not None:
            everywhere = everywhere + training.lexical_weight * of_teacher["lexical"]
        return DocumentTensors(
            drawn=drawn,
            positive=tensor(batch.positive) & drawn,
            teachers=torch.stack([of_teacher[name] for name in training.teachers], dim=1),
            combined=everywhere.nan_to_num(0.0),
        )


def document_gradients(
    vectors: Tensor, step: DocumentTensors, training: DocumentTrainingConfig, sparsity: dict[str, Sparsity]
) -> tuple[Tensor, dict[str, float]]:
    """Return dL/dvectors of a global batch, penalties of both sides included, and the values to log.

    Args:
        vectors: float32 [B + P, V]; the queries' vectors, then the passages', in the order of the batch.
        step: the batch.
        training: objective and teachers.
        sparsity: the penalties of each of SIDES at the current step; call their `advance` after the optimizer step.

    Returns:
        float32 [B + P, V], 0 for places where nothing was drawn; loss, each term of the objective, and for each side what
        `Sparsity.penalty` says, with the side's name before it.
    """
    queries = len(step.positive)
    leaf = vectors.detach().requires_grad_(True)
    asked, read = leaf[:queries], leaf[queries:]
    own = asked @ read.T
    present = step.drawn.expand_as(own)
    scores = StepScores(
        own=own,
        everyone=own,
        teacher=step.combined,
        teachers=step.teachers,
        present=present,
        positive=step.positive,
        log_weight=torch.zeros_like(own),
        gold=torch.where(step.positive.any(dim=1), step.positive.int().argmax(dim=1), -1),
        excluded=step.positive | ~present,
        queries=asked,
        rewrites=None,
    )
    loss, parts = distillation_loss(scores, training.objective, training.teachers)
    (gradient,) = torch.autograd.grad(loss, leaf)
    values = {name: float(value.detach()) for name, value in parts.items()}
    total = float(loss.detach())
    rows_of = {"query": torch.arange(queries, device=leaf.device), "passage": queries + step.drawn.nonzero().squeeze(1)}
    penalties = torch.zeros_like(gradient)
    for side, (rows, depths) in batch_sides(leaf.detach(), step).items():
        own_leaf = rows.requires_grad_(True)
        penalty, found = sparsity[side].penalty(own_leaf, depths)
        of_penalty = torch.autograd.grad(penalty, own_leaf)[0] if penalty.requires_grad else None
        found |= sparsity[side].weigh(own_leaf.detach(), gradient[rows_of[side]], of_penalty)
        values |= {f"{side}_{name}": value for name, value in found.items()}
        total += float(penalty.detach())
        if of_penalty is not None:
            penalties[rows_of[side]] = of_penalty
    return gradient + penalties, {**values, "loss": total, "l0": values["passage_l0"]}


def batch_sides(vectors: Tensor, step: DocumentTensors) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (vectors, depths) of each side, without empty places; depths are all 1, int64 [rows]."""
    queries = len(step.positive)
    sides = {"query": vectors[:queries], "passage": vectors[queries:][step.drawn]}
    return {side: (rows, torch.ones(len(rows), dtype=torch.int64, device=rows.device)) for side, rows in sides.items()}
