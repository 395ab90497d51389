"""What the student is trained to do: KL divergence to the teachers' score distribution, mixed with a contrastive loss.

Pure functions of score tensors: no encoder, no Ray, no I/O. Scores are dot products of sparse vectors, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from raydistill.config import ObjectiveConfig

_EXCLUDED = float("-inf")


@dataclass(frozen=True)
class StepScores:
    """Everything an objective needs of one global batch of B queries with up to K passages each, P passages in all.

    Attributes:
        own: float32 [B, K]; student score of each query and its own sampled passages (0 where masked).
        everyone: float32 [B, P] or None; student score of each query and every passage of the batch.
        teacher: float32 [B, K]; the teachers' combined score (0 where masked).
        present: bool [B, K]; False for padding and for passages without an exact teacher score.
        gold: int64 [B]; column of `everyone` that holds the query's gold passage, -1 where it has none.
        excluded: bool [B, P] or None; pairs that must not count as negatives (other golds of the query, and other copies
            of its gold drawn for other queries).
    """

    own: Tensor
    everyone: Tensor | None
    teacher: Tensor
    present: Tensor
    gold: Tensor
    excluded: Tensor | None


def kl_divergence(
    student: Tensor,
    teacher: Tensor,
    present: Tensor,
    temperature: float = 1.0,
    student_temperature: float | None = None,
) -> Tensor:
    """Mean over queries of KL(softmax(teacher / tau) || softmax(student / tau_s)) over the present passages.

    DiSCo, arXiv 2410.14609, equation of the distillation loss. Not multiplied by tau squared.

    Args:
        student, teacher: float32 [B, K].
        present: bool [B, K]; passages outside it have no part in either softmax. A query with fewer than two present
            passages contributes 0.
        temperature: tau > 0, of the teacher.
        student_temperature: tau_s > 0, of the student; None takes tau. Scores of an encoder whose weights live on another
            scale than the teachers' need their own, or the first thing learned is to shrink (and the vectors collapse).
    """
    scaled_teacher = (teacher / temperature).masked_fill(~present, _EXCLUDED)
    scaled_student = (student / (student_temperature or temperature)).masked_fill(~present, _EXCLUDED)
    empty = ~present.any(dim=1, keepdim=True)
    # A row of -inf has no softmax; any finite row does, and its divergence is then 0.
    log_p = functional.log_softmax(scaled_teacher.masked_fill(empty, 0.0), dim=1)
    log_q = functional.log_softmax(scaled_student.masked_fill(empty, 0.0), dim=1)
    # Masked entries would be 0 * (-inf - -inf); putting 0 before the subtraction keeps their gradients 0 as well.
    difference = log_p.masked_fill(~present, 0.0) - log_q.masked_fill(~present, 0.0)
    return (log_p.exp() * difference).sum(dim=1).mean()


def info_nce(scores: Tensor, gold: Tensor, excluded: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the gold passage among all passages of the batch (InfoNCE), mean over the queries with a gold.

    Args:
        scores: float32 [B, P].
        gold: int64 [B]; the gold passage's column, -1 where the query has none (such queries have no part).
        excluded: bool [B, P] or None; pairs left out of the normalisation. The gold itself is never left out.
        temperature: tau_c > 0.
    """
    judged = (gold >= 0).nonzero().squeeze(1)
    if judged.numel() == 0:
        return scores.sum() * 0.0
    logits = scores[judged] / temperature
    if excluded is not None:
        keep_gold = functional.one_hot(gold[judged], scores.shape[1]).bool()
        logits = logits.masked_fill(excluded[judged] & ~keep_gold, _EXCLUDED)
    return functional.cross_entropy(logits, gold[judged])


def teacher_entropy(teacher: Tensor, present: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean entropy in nats of the teachers' distribution, a measure of how much there is to learn; float32 scalar."""
    scaled = (teacher / temperature).masked_fill(~present, _EXCLUDED)
    scaled = scaled.masked_fill(~present.any(dim=1, keepdim=True), 0.0)
    log_p = functional.log_softmax(scaled, dim=1)
    return -(log_p.exp() * log_p.masked_fill(~present, 0.0)).sum(dim=1).mean()


def distillation_loss(scores: StepScores, objective: ObjectiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """L = (1 - w) KLD + w NCE; returns the loss and its unweighted parts by name (a part with weight 0 is left out)."""
    parts: dict[str, Tensor] = {}
    loss = scores.own.new_zeros(())
    weight = objective.contrastive_weight
    if weight < 1.0:
        parts["kld"] = kl_divergence(
            scores.own, scores.teacher, scores.present, objective.temperature, objective.student_temperature
        )
        loss = loss + (1.0 - weight) * parts["kld"]
    if weight > 0.0:
        if scores.everyone is None:
            raise ValueError("the contrastive loss needs the scores of all passages of the batch")
        parts["nce"] = info_nce(scores.everyone, scores.gold, scores.excluded, objective.contrastive_temperature)
        loss = loss + weight * parts["nce"]
    return loss, parts
