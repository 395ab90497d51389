"""A step's scores, loss and gradient against dense float64 references, and their independence of the workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.config import RegularisationConfig
from raydistill.config.objective import Objective
from raydistill.distill.mined import MinedQuery
from raydistill.distill.objectives import StepScores, distillation_loss
from raydistill.distill.sparsity import Sparsity
from raydistill.distill.step import StepTensors, all_scores, own_scores, query_gradients
from raydistill.distill.stream import StepBatch
from raydistill.encoders.batch import SparseBatch

QUERIES, PLACES, TERMS, TEACHERS = 6, 5, 40, ("mistral", "t5")
CPU = torch.device("cpu")


def sparse(random: np.random.Generator, rows: int, share: float) -> np.ndarray:
    return (random.gamma(2.0, 0.5, (rows, TERMS)) * (random.random((rows, TERMS)) < share)).astype(np.float32)


def batch(seed: int = 0) -> StepBatch:
    """Six queries; the second has two passages only, the third no gold, the fourth one teacher."""
    random = np.random.default_rng(seed)
    present = np.ones((QUERIES, PLACES), dtype=bool)
    present[1, 2:] = False
    passages = int(present.sum())
    place = np.zeros((QUERIES, PLACES), dtype=np.int64)
    place[present] = np.arange(passages)
    teachers = random.gamma(2.0, 1.0, (QUERIES, len(TEACHERS), PLACES)).astype(np.float32)
    teachers[3, 1] = np.nan
    teachers[~np.broadcast_to(present[:, None], teachers.shape)] = np.nan
    teacher = np.zeros((QUERIES, PLACES), dtype=np.float32)
    teacher[present] = np.nanmean(np.where(present[:, None], teachers, 0.0), axis=1)[present]
    positive = np.zeros((QUERIES, PLACES), dtype=bool)
    positive[:, 0] = True
    positive[2] = False
    gold = np.where(positive.any(axis=1), place[:, 0], -1)
    excluded = np.zeros((QUERIES, passages), dtype=bool)
    excluded[gold >= 0, gold[gold >= 0]] = True
    mined = MinedQuery("c<::>1", 1, "what", (), *(np.zeros(0),) * 3, (np.zeros(0), np.zeros(0)))  # type: ignore[arg-type]
    return StepBatch(
        queries=(mined,) * QUERIES,
        documents=SparseBatch.from_dense(sparse(random, passages, 0.2)),
        place=place,
        teacher=teacher,
        teachers=teachers,
        present=present,
        positive=positive,
        log_weight=random.random((QUERIES, PLACES)).astype(np.float32) * present,
        gold=gold,
        excluded=excluded,
        depth=np.arange(1, QUERIES + 1),
        rewrites=SparseBatch.from_dense(sparse(random, QUERIES, 0.1)),
        epoch=0,
    )


def student(seed: int = 1) -> Tensor:
    return torch.from_numpy(sparse(np.random.default_rng(seed), QUERIES, 0.4))


def regularisation(**fields: Any) -> RegularisationConfig:
    return RegularisationConfig.model_validate(fields)


def dense_scores(step: StepBatch, queries: Tensor) -> StepScores:
    """The same scores from dense float64 products."""
    documents = torch.from_numpy(step.documents.to_dense()).double()
    everyone = queries @ documents.T
    present = torch.from_numpy(step.present)
    return StepScores(
        own=everyone.gather(1, torch.from_numpy(step.place)) * present,
        everyone=everyone,
        teacher=torch.from_numpy(step.teacher).double(),
        teachers=torch.from_numpy(step.teachers).double(),
        present=present,
        positive=torch.from_numpy(step.positive),
        log_weight=torch.from_numpy(step.log_weight).double(),
        gold=torch.from_numpy(step.gold),
        excluded=torch.from_numpy(step.excluded),
        queries=queries,
        rewrites=torch.from_numpy(step.rewrites.to_dense()).double(),
    )


def test_scores_are_the_dot_products_of_queries_and_stored_passages() -> None:
    step, queries = batch(), student()
    tensors = StepTensors.of(step, CPU, Objective.parse("kld"))
    expected = dense_scores(step, queries.double())
    assert expected.everyone is not None
    np.testing.assert_allclose(own_scores(queries, tensors), expected.own, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(all_scores(queries, tensors), expected.everyone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "kld(tau=2)",
        "0.9*kld(student_tau=4) + 0.1*infonce(tau=4)",
        "kld(teacher=t5) + 0.5*margin_mse",
        "0.2*rep_mse + 0.3*rep_cosine + 0.1*ranknet",
    ],
)
@pytest.mark.parametrize("terms", ["none", "0.3*flops + 0.01*l1 + 0.2*guard(floor=3, least=2)", "0.5*l0flops(terms=16)"])
def test_loss_and_gradient_equal_those_of_a_dense_float64_computation(text: str, terms: str) -> None:
    step, queries, objective = batch(), student(), Objective.parse(text)
    config = regularisation(terms=terms, **({} if terms == "none" else {"ramp_share": 0.0}))
    tensors = StepTensors.of(step, CPU, objective)
    gradient, values = query_gradients(queries, tensors, objective, TEACHERS, Sparsity(config, torch.rand(TERMS), 10))

    leaf = queries.double().requires_grad_(True)
    loss, _ = distillation_loss(dense_scores(step, leaf), objective, TEACHERS)
    active = (leaf > 0).sum(dim=1)
    for weight, penalty in config.terms.terms:
        if penalty.NAME == "guard":
            loss = loss + weight * (2.0 - leaf.topk(3, dim=1).values).clamp(min=0).sum(dim=1).mean()
        elif penalty.NAME == "l1":
            loss = loss + weight * leaf.sum(dim=1).mean()
        else:
            mask = active > 16 if penalty.NAME == "l0flops" else torch.ones_like(active, dtype=torch.bool)
            loss = loss + weight * (leaf * mask[:, None]).mean(dim=0).square().sum()
    (expected,) = torch.autograd.grad(loss, leaf)
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-6)
    # Where a weight is 0 no gradient passes the ReLU; the dense reference differentiates x at 0, |x| has slope 0 there.
    where = queries > 0
    np.testing.assert_allclose(gradient[where], expected[where], rtol=1e-5, atol=1e-6)


def test_only_what_the_objective_reads_is_moved() -> None:
    plain = StepTensors.of(batch(), CPU, Objective.parse("kld + infonce(negatives=own)"))
    assert plain.excluded is None
    assert plain.rewrites is None
    full = StepTensors.of(batch(), CPU, Objective.parse("infonce + rep_mse"))
    assert full.excluded is not None
    assert full.rewrites is not None
    np.testing.assert_array_equal(full.rewrites, batch().rewrites.to_dense())


def test_the_values_to_log_name_every_part() -> None:
    objective = Objective.parse("0.9*kld(tau=2) + 0.1*infonce")
    sparsity = Sparsity(regularisation(target="l0<=4", terms="0.01*flops + 0.1*l1"), torch.rand(TERMS), 100)
    queries, tensors = student(), StepTensors.of(batch(), CPU, objective)
    for _ in range(4):
        _, values = query_gradients(queries, tensors, objective, TEACHERS, sparsity)
        values |= sparsity.advance(queries, tensors.depth)
    assert values.keys() == {
        *(
            "loss",
            "kld",
            "infonce",
            "teacher_entropy",
            "l0",
            "flops",
            "penalty_pull",
            "sparsity_statistic",
            "sparsity_wanted",
            "sparsity_gap",
        ),
        *("flops_lambda", "flops_penalty", "l1_lambda", "l1_penalty"),
    }
    parts = 0.9 * values["kld"] + 0.1 * values["infonce"] + values["flops_penalty"] + values["l1_penalty"]
    assert values["loss"] == pytest.approx(parts, rel=1e-6)
    assert values["l0"] == pytest.approx((queries > 0).sum(dim=1).float().mean().item())


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_with_gathered_vectors_agree_with_one_worker_on_gradients_and_lambda(workers: int) -> None:
    config = regularisation(target="flops<=2", per_depth=True, terms="0.01*l1 + 0.1*guard")
    objective, share = Objective.parse("kld + 0.1*infonce"), torch.rand(TERMS, generator=torch.Generator().manual_seed(0))
    states = []
    for size in (1, workers):
        sparsities = [Sparsity(config, share, 40) for _ in range(size)]
        queries = student()
        for number in range(12):
            tensors = StepTensors.of(batch(number), CPU, objective)
            shares = list(queries.split(QUERIES // size))
            moved = []
            for rank, sparsity in enumerate(sparsities):
                gathered = torch.cat(shares)
                gradient, _ = query_gradients(gathered, tensors, objective, TEACHERS, sparsity)
                sparsity.advance(gathered, tensors.depth)
                mine = slice(rank * QUERIES // size, (rank + 1) * QUERIES // size)
                moved.append((gathered[mine] - 0.05 * gradient[mine]).clamp(min=0.0))
            queries = torch.cat(moved)
        states.append((queries, sparsities[0].state()))
        assert all(sparsity.state() == sparsities[0].state() for sparsity in sparsities)
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]
