"""The objectives against plain float64 references, and the laws they obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import ObjectiveConfig
from raydistill.distill.objectives import StepScores, distillation_loss, info_nce, kl_divergence, teacher_entropy
from raydistill.distill.regularisers import flops_penalty, l1_penalty, ramp


def scores(seed: int, queries: int = 4, passages: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    student = torch.tensor(random.normal(0, 3, (queries, passages)), dtype=torch.float32)
    teacher = torch.tensor(random.normal(0, 3, (queries, passages)), dtype=torch.float32)
    present = torch.tensor(random.random((queries, passages)) < 0.7)
    return student, teacher, present


def reference_kl(student: np.ndarray, teacher: np.ndarray, present: np.ndarray, tau: float) -> float:
    total = 0.0
    for s, t, keep in zip(student.astype(float), teacher.astype(float), present, strict=True):
        if not keep.any():
            continue
        p = np.exp(t[keep] / tau - np.logaddexp.reduce(t[keep] / tau))
        log_q = s[keep] / tau - np.logaddexp.reduce(s[keep] / tau)
        total += float((p * (np.log(p) - log_q)).sum())
    return total / len(student)


@given(seed=st.integers(0, 10_000), tau=st.floats(0.3, 5.0))
@settings(max_examples=60, deadline=None)
def test_kl_equals_its_definition_over_present_passages(seed: int, tau: float) -> None:
    student, teacher, present = scores(seed)
    expected = reference_kl(student.numpy(), teacher.numpy(), present.numpy(), tau)
    assert kl_divergence(student, teacher, present, tau).item() == pytest.approx(expected, abs=1e-5, rel=1e-5)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_kl_does_not_see_the_order_of_passages_nor_padding(seed: int) -> None:
    student, teacher, present = scores(seed)
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    loss = kl_divergence(student, teacher, present)
    shuffled = kl_divergence(student[:, order], teacher[:, order], present[:, order])
    padding = torch.full((len(student), 3), 7.0)
    absent = torch.zeros_like(padding, dtype=torch.bool)
    padded = kl_divergence(
        torch.cat([student, padding], 1), torch.cat([teacher, -padding], 1), torch.cat([present, absent], 1)
    )
    assert shuffled.item() == pytest.approx(loss.item(), abs=1e-5)
    assert padded.item() == pytest.approx(loss.item(), abs=1e-5)


def test_kl_of_equal_scores_is_zero_and_its_gradient_matches_finite_differences() -> None:
    student, teacher, present = scores(3)
    assert kl_divergence(teacher, teacher, present).item() == pytest.approx(0.0, abs=1e-6)
    double = student.double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: kl_divergence(s, teacher.double(), present, 2.0), (double,))


def test_the_student_may_have_a_temperature_of_its_own() -> None:
    student, teacher, present = scores(4)
    own = kl_divergence(student * 6.0, teacher, present, 1.0, student_temperature=6.0)
    assert own.item() == pytest.approx(kl_divergence(student, teacher, present).item(), rel=1e-5)


def test_a_query_without_present_passages_adds_nothing_and_no_nan_gradient() -> None:
    student, teacher, present = scores(5)
    present[1] = False
    leaf = student.clone().requires_grad_(True)
    loss = kl_divergence(leaf, teacher, present)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad[1] == 0).all()


def test_info_nce_equals_cross_entropy_over_the_columns_that_count() -> None:
    everyone = torch.tensor([[2.0, 1.0, 0.5, 3.0], [0.0, 1.0, 4.0, 1.0], [9.0, 9.0, 9.0, 9.0]])
    gold = torch.tensor([0, 2, -1])
    excluded = torch.zeros(3, 4, dtype=torch.bool)
    excluded[0, [0, 3]] = True  # the gold itself stays, the other copy of a gold leaves
    tau = 0.5
    first = -(2.0 / tau - np.logaddexp.reduce(np.array([2.0, 1.0, 0.5]) / tau))
    second = -(4.0 / tau - np.logaddexp.reduce(np.array([0.0, 1.0, 4.0, 1.0]) / tau))
    assert info_nce(everyone, gold, excluded, tau).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_info_nce_of_a_batch_without_gold_is_zero_with_zero_gradient() -> None:
    everyone = torch.randn(2, 5, requires_grad=True)
    loss = info_nce(everyone, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0.0
    assert (everyone.grad == 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_the_mixture_weighs_its_parts(weight: float) -> None:
    student, teacher, present = scores(7)
    everyone = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    batch = StepScores(student, everyone, teacher, present, torch.tensor([0, 6, -1, 20]), None)
    loss, parts = distillation_loss(batch, ObjectiveConfig(contrastive_weight=weight, contrastive_temperature=0.7))
    expected = (1 - weight) * kl_divergence(student, teacher, present).item() + weight * info_nce(
        everyone, batch.gold, None, 0.7
    ).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(parts) == ({"kld"} if weight == 0 else {"nce"} if weight == 1 else {"kld", "nce"})


def test_teacher_entropy_of_equal_scores_is_that_of_a_fair_die() -> None:
    present = torch.tensor([[True, True, True, False]])
    assert teacher_entropy(torch.zeros(1, 4), present).item() == pytest.approx(np.log(3), rel=1e-6)


def test_flops_is_the_square_of_batch_means_and_not_additive() -> None:
    queries = torch.tensor([[1.0, 0.0, 3.0], [3.0, 0.0, 0.0]])
    assert flops_penalty(queries).item() == pytest.approx(2.0**2 + 1.5**2)
    halves = (flops_penalty(queries[:1]) + flops_penalty(queries[1:])) / 2
    assert halves.item() > flops_penalty(queries).item()
    assert l1_penalty(queries).item() == pytest.approx((4.0 + 3.0) / 2)


def test_the_ramp_grows_quadratically_to_one() -> None:
    shares = [ramp(step, 10) for step in range(15)]
    assert shares == sorted(shares)
    assert shares[4] == pytest.approx(0.25)
    assert shares[9:] == [1.0] * 6
    assert ramp(0, 0) == 1.0
