"""One step of a document encoder's training: who is a candidate of whom, and gradients on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raydistill.config import DocumentTrainingConfig
from raydistill.distill.document_step import SIDES, DocumentTensors, document_gradients
from raydistill.distill.document_stream import DocumentBatch
from raydistill.distill.sparsity import Sparsity

QUERIES, PASSAGES, TERMS = 3, 9, 11


def training(**fields: Any) -> DocumentTrainingConfig:
    return DocumentTrainingConfig.model_validate(
        {
            "runs": [{"name": "splade", "run": "/r"}],
            "passages": 3,
            "global_batch": QUERIES,
            "objective": "kld(teacher=lexical, tau=2) + 0.5*kld(teacher=recorded) + 0.3*infonce(tau=2)",
            **fields,
        }
    )


def batch(seed: int = 0) -> DocumentBatch:
    random = np.random.default_rng(seed)
    drawn = np.arange(PASSAGES) < 5
    recorded = np.full((QUERIES, PASSAGES), np.nan, dtype=np.float32)
    recorded[1, [2, 3]] = (1.0, -1.0)
    positive = np.zeros((QUERIES, PASSAGES), dtype=bool)
    positive[0, 0] = positive[2, 4] = True
    lexical = np.where(drawn, random.gamma(2.0, 1.0, (QUERIES, PASSAGES)), np.nan).astype(np.float32)
    return DocumentBatch(("a",) * QUERIES, ("p",) * PASSAGES, drawn, positive, recorded, lexical, 0)


def sparsity(config: DocumentTrainingConfig) -> dict[str, Sparsity]:
    return {
        "query": Sparsity(config.query_regularisation, None, 10),
        "passage": Sparsity(config.passage_regularisation, None, 10),
    }


def vectors(seed: int = 0) -> torch.Tensor:
    return torch.rand(QUERIES + PASSAGES, TERMS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1


def double(step: DocumentTensors) -> DocumentTensors:
    return DocumentTensors(step.drawn, step.positive, step.teachers.double(), step.combined.double())


def test_both_sides_have_the_gradient_of_finite_differences() -> None:
    config = training(
        query_regularisation={"terms": "0.1*flops", "ramp_share": 0.0},
        passage_regularisation={"terms": "0.2*l1", "ramp_share": 0.0},
    )
    step = double(DocumentTensors.of(batch(), None, config, torch.device("cpu")))
    start = vectors()
    gradient, _ = document_gradients(start, step, config, sparsity(config))
    direction = vectors(1) - 0.6
    direction[QUERIES + 5] = 0.0
    for rows in (slice(0, QUERIES), slice(QUERIES, None)):
        along = torch.zeros_like(direction)
        along[rows] = direction[rows]
        ahead, behind = (
            document_gradients(start + sign * 1e-6 * along, step, config, sparsity(config))[1]["loss"] for sign in (1, -1)
        )
        assert (gradient * along).sum().item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)


def test_a_place_where_nothing_was_drawn_has_no_part() -> None:
    config = training()
    step = DocumentTensors.of(batch(), None, config, torch.device("cpu"))
    start = vectors().float()
    gradient, values = document_gradients(start, step, config, sparsity(config))
    assert torch.all(gradient[QUERIES + 5] == 0)
    changed = start.clone()
    changed[QUERIES + 5] = 9.0
    assert document_gradients(changed, step, config, sparsity(config))[1] == values


def test_the_dense_teacher_is_followed_where_no_teacher_is_named() -> None:
    dense = torch.rand(QUERIES, PASSAGES, generator=torch.Generator().manual_seed(5))
    config = training(dense_teacher={"model": "m"}, objective="kld(tau=0.05, student_tau=1)")
    named = training(dense_teacher={"model": "m"}, objective="kld(teacher=dense, tau=0.05, student_tau=1)")
    losses = [
        document_gradients(
            vectors().float(), DocumentTensors.of(batch(), dense, each, torch.device("cpu")), each, sparsity(each)
        )[1]["loss"]
        for each in (config, named)
    ]
    assert losses[0] == pytest.approx(losses[1])
    lexical = training(objective="kld(tau=0.05, student_tau=1)")
    step = DocumentTensors.of(batch(), None, lexical, torch.device("cpu"))
    assert document_gradients(vectors().float(), step, lexical, sparsity(lexical))[1]["loss"] != pytest.approx(losses[0])


def test_recorded_scores_count_for_the_passages_that_the_run_lists_only() -> None:
    config = training(objective="kld(teacher=recorded, student_tau=1)")
    step = DocumentTensors.of(batch(), None, config, torch.device("cpu"))
    gradient, _ = document_gradients(vectors().float(), step, config, sparsity(config))
    moved = gradient.abs().sum(dim=1) > 0
    assert moved.tolist() == [False, True, False, False, False, True, True] + [False] * 5


@pytest.mark.parametrize("side", SIDES)
def test_each_side_has_a_sparsity_of_its_own(side: str) -> None:
    config = training(**{f"{side}_regularisation": {"terms": "0.5*flops", "ramp_share": 0.0}})
    plain = training()
    step = DocumentTensors.of(batch(), None, config, torch.device("cpu"))
    gradients = [document_gradients(vectors().float(), step, each, sparsity(each))[0] for each in (config, plain)]
    differs = (gradients[0] != gradients[1]).any(dim=1)
    expected = [True] * QUERIES + [False] * PASSAGES if side == "query" else [False] * QUERIES + [True] * 5 + [False] * 4
    assert differs.tolist() == expected


def test_terms_without_a_teacher_follow_the_dense_one_with_bm25_by_its_weight() -> None:
    of_dense = torch.rand(QUERIES, PASSAGES)
    fields = {"dense_teacher": {"model": "m"}, "objective": "kld(tau=0.05)"}
    found = DocumentTensors.of(batch(), of_dense, training(**fields, lexical_weight=0.3), torch.device("cpu"))
    alone = DocumentTensors.of(batch(), of_dense, training(**fields), torch.device("cpu"))
    drawn = torch.from_numpy(batch().drawn)
    lexical = torch.from_numpy(batch().lexical)
    torch.testing.assert_close(found.combined[:, drawn], (of_dense + 0.3 * lexical)[:, drawn])
    torch.testing.assert_close(alone.combined[:, drawn], of_dense[:, drawn])
    assert (found.combined[:, ~drawn] == 0).all()
