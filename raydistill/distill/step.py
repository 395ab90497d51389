"""One optimizer step's loss as a function of the query vectors of the whole global batch.

Every worker holds the same batch description and the same gathered query vectors, so every worker computes the same
loss, whatever the world size: in-batch negatives and the FLOPS statistic see the global batch, not a worker's share.
The gradient with respect to the query vectors then goes back through each worker's own encoder passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydistill.config import ObjectiveConfig
from raydistill.distill.objectives import StepScores, distillation_loss, teacher_entropy
from raydistill.distill.regularisers import active_terms, flops_penalty, l1_penalty, ramp
from raydistill.distill.stream import StepBatch


@dataclass(frozen=True)
class StepTensors:
    """A StepBatch on a device; shapes as there, documents as coordinate lists of `nnz` entries.

    Attributes:
        document: int64 [nnz] row of the passage; term: int64 [nnz]; weight: float32 [nnz].
        asker: int64 [P]; the query that drew each passage.
        place, teacher, present, gold, excluded: see StepBatch.
    """

    document: Tensor
    term: Tensor
    weight: Tensor
    asker: Tensor
    place: Tensor
    teacher: Tensor
    present: Tensor
    gold: Tensor
    excluded: Tensor

    @staticmethod
    def of(batch: StepBatch, device: torch.device) -> StepTensors:
        """Move a batch to a device."""
        documents = batch.documents
        row_of_entry = np.repeat(np.arange(len(documents)), documents.lengths())
        asker = np.repeat(np.arange(len(batch.queries)), batch.present.sum(axis=1))

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return StepTensors(
            document=tensor(row_of_entry),
            term=tensor(documents.term_ids.astype(np.int64)),
            weight=tensor(documents.weights),
            asker=tensor(asker),
            place=tensor(batch.place),
            teacher=tensor(batch.teacher),
            present=tensor(batch.present),
            gold=tensor(batch.gold),
            excluded=tensor(batch.excluded),
        )


def own_scores(queries: Tensor, step: StepTensors) -> Tensor:
    """Return the dot products of each query with its own sampled passages, float32 [B, K], 0 where masked.

    Gathers only the query weights that some passage term asks for: work is proportional to the passages' terms.
    """
    products = queries[step.asker[step.document], step.term] * step.weight
    per_passage = queries.new_zeros(len(step.asker)).index_add(0, step.document, products)
    return per_passage[step.place] * step.present


def all_scores(queries: Tensor, step: StepTensors) -> Tensor:
    """Return the dot products of each query with every passage of the batch, float32 [B, P]."""
    documents = torch.sparse_coo_tensor(
        torch.stack([step.document, step.term]),
        step.weight,
        (len(step.asker), queries.shape[1]),
        check_invariants=False,
        is_coalesced=True,
    )
    return torch.sparse.mm(documents, queries.T).T


def step_loss(
    queries: Tensor, step: StepTensors, objective: ObjectiveConfig, step_number: int, ramp_steps: int
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a global batch (scalar) and the values to log.

    Args:
        queries: float32 [B, V]; student vectors of the global batch, in the order of the batch.
        step: the batch.
        objective: weights and temperatures.
        step_number, ramp_steps: for the regularisers' ramp, in optimizer steps.
    """
    scores = StepScores(
        own=own_scores(queries, step),
        everyone=all_scores(queries, step) if objective.contrastive_weight > 0 else None,
        teacher=step.teacher,
        present=step.present,
        gold=step.gold,
        excluded=step.excluded,
    )
    loss, parts = distillation_loss(scores, objective)
    share = ramp(step_number, ramp_steps)
    parts["flops"] = flops_penalty(queries)
    parts["l1"] = l1_penalty(queries)
    if objective.flops_weight > 0:
        loss = loss + objective.flops_weight * share * parts["flops"]
    if objective.l1_weight > 0:
        loss = loss + objective.l1_weight * share * parts["l1"]
    values = {name: float(value.detach()) for name, value in parts.items()}
    values["loss"] = float(loss.detach())
    values["l0"] = float(active_terms(queries.detach()))
    values["teacher_entropy"] = float(teacher_entropy(step.teacher, step.present, objective.temperature))
    values["flops_lambda"] = objective.flops_weight * share
    values["l1_lambda"] = objective.l1_weight * share
    return loss, values


def query_gradients(
    queries: Tensor, step: StepTensors, objective: ObjectiveConfig, step_number: int, ramp_steps: int
) -> tuple[Tensor, dict[str, float]]:
    """Return dL/dqueries, float32 [B, V], and the values to log; see `step_loss`."""
    leaf = queries.detach().requires_grad_(True)
    loss, values = step_loss(leaf, step, objective, step_number, ramp_steps)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, values
