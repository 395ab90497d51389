"""One optimizer step's loss as a function of the query vectors of the whole global batch.

Every worker holds the same batch description and the same gathered query vectors, so every worker computes the same
loss, whatever the world size: in-batch negatives and the penalties see the global batch, not a worker's share. The
gradient with respect to the query vectors then goes back through each worker's own encoder passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydistill.config.objective import Kld, ListwiseCe, Objective
from raydistill.distill.objectives import StepScores, distillation_loss, teacher_entropy
from raydistill.distill.sparsity import Sparsity
from raydistill.distill.stream import StepBatch


@dataclass(frozen=True)
class StepTensors:
    """A StepBatch on a device; documents as coordinate lists of `nnz` entries, what the objective does not read left out.

    Attributes:
        document: int64 [nnz] row of the passage, ascending; term: int64 [nnz]; weight: float32 [nnz].
        asker: int64 [P]; the query that drew each passage.
        place, teacher, teachers, present, positive, log_weight, gold, depth: see StepBatch.
        excluded: see StepBatch; None unless the objective needs batch scores.
        rewrites: float32 [B, V], dense; None unless the objective needs rewrites.
    """

    document: Tensor
    term: Tensor
    weight: Tensor
    asker: Tensor
    place: Tensor
    teacher: Tensor
    teachers: Tensor
    present: Tensor
    positive: Tensor
    log_weight: Tensor
    gold: Tensor
    depth: Tensor
    excluded: Tensor | None
    rewrites: Tensor | None

    @staticmethod
    def of(batch: StepBatch, device: torch.device, objective: Objective) -> StepTensors:
        """Move what the objective reads of a batch to a device."""
        documents = batch.documents
        row_of_entry = np.repeat(np.arange(len(documents)), documents.lengths())
        asker = np.repeat(np.arange(len(batch.present)), batch.present.sum(axis=1))

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return StepTensors(
            document=tensor(row_of_entry),
            term=tensor(documents.term_ids.astype(np.int64)),
            weight=tensor(documents.weights),
            asker=tensor(asker),
            place=tensor(batch.place),
            teacher=tensor(batch.teacher),
            teachers=tensor(batch.teachers),
            present=tensor(batch.present),
            positive=tensor(batch.positive),
            log_weight=tensor(batch.log_weight),
            gold=tensor(batch.gold),
            depth=tensor(batch.depth),
            excluded=tensor(batch.excluded) if objective.needs_batch_scores else None,
            rewrites=_dense(batch, device) if objective.needs_rewrites else None,
        )


def _dense(batch: StepBatch, device: torch.device) -> Tensor:
    """The rewrites' vectors as float32 [B, V]; only their entries travel to the device."""
    rewrites = batch.rewrites
    rows = np.repeat(np.arange(len(rewrites)), rewrites.lengths())
    dense = torch.zeros(len(rewrites), rewrites.vocabulary_size, device=device)
    where = (torch.from_numpy(rows).to(device), torch.from_numpy(rewrites.term_ids.astype(np.int64)).to(device))
    dense[where] = torch.from_numpy(np.ascontiguousarray(rewrites.weights)).to(device)
    return dense


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


def query_gradients(
    queries: Tensor, step: StepTensors, objective: Objective, teacher_names: Sequence[str], sparsity: Sparsity
) -> tuple[Tensor, dict[str, float]]:
    """Return dL/dqueries of a global batch, penalties included, and the values to log.

    Args:
        queries: float32 [B, V]; student vectors of the global batch, in the order of the batch.
        step: the batch.
        objective: what is to be learnt.
        teacher_names: the T teachers, in the order of `step.teachers`.
        sparsity: the penalties at the current step; call its `advance` after the optimizer step.

    Returns:
        float32 [B, V]; loss (penalties included), each term of the objective by name and unweighted, teacher_entropy in
        nats (of the objective's first distribution: its teacher, temperature and sampling weights), and what
        `Sparsity.penalty` says.
    """
    leaf = queries.detach().requires_grad_(True)
    scores = StepScores(
        own=own_scores(leaf, step),
        everyone=all_scores(leaf, step) if objective.needs_batch_scores else None,
        teacher=step.teacher,
        teachers=step.teachers,
        present=step.present,
        positive=step.positive,
        log_weight=step.log_weight,
        gold=step.gold,
        excluded=step.excluded,
        queries=leaf,
        rewrites=step.rewrites,
    )
    loss, parts = distillation_loss(scores, objective, teacher_names)
    (gradient,) = torch.autograd.grad(loss, leaf)
    penalty, values = sparsity.penalty(leaf, step.depth)
    of_penalty = torch.autograd.grad(penalty, leaf)[0] if penalty.requires_grad else None
    values |= sparsity.weigh(leaf.detach(), gradient, of_penalty)
    if of_penalty is not None:
        gradient = gradient + of_penalty
    values |= {name: float(value.detach()) for name, value in parts.items()}
    values["loss"] = float((loss + penalty).detach())
    values["teacher_entropy"] = _entropy(scores, objective, teacher_names)
    return gradient, values


def _entropy(scores: StepScores, objective: Objective, teacher_names: Sequence[str]) -> float:
    """Return the entropy of what the objective's first distribution follows: its teacher, or all of them together."""
    first = next((term for _, term in objective.terms if isinstance(term, Kld | ListwiseCe)), Kld())
    heard = scores if first.teacher is None else scores.of_teacher(first.teacher, teacher_names)
    return float(teacher_entropy(heard.teacher, heard.present, first.tau, heard.log_weight))
