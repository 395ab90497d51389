"""The penalties against plain float64 references, their gradients, and the laws they obey; their text form and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raydistill.config import GuardPenalty, RegularisationConfig
from raydistill.config.regularisation import FlopsPenalty, L0FlopsPenalty, L1Penalty, PenaltySum, SparsityTarget
from raydistill.distill.regularisers import (
    flops_penalty,
    guard_penalty,
    l0_mask,
    l1_penalty,
    penalty_value,
    ramp,
    shared_terms,
    term_counts,
)

SEEDS = st.integers(0, 10_000)


def sparse_queries(seed: int, queries: int = 6, terms: int = 40, share: float = 0.3) -> torch.Tensor:
    """SPLADE-like vectors, float64 [queries, terms]: most entries 0, the others positive."""
    random = np.random.default_rng(seed)
    return torch.tensor(random.gamma(2.0, 0.4, (queries, terms)) * (random.random((queries, terms)) < share))


def weights_of(seed: int, queries: int = 6) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed + 1).gamma(1.0, 1.0, queries))


def value(penalty: Any, queries: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return penalty_value(penalty, queries, queries.abs(), term_counts(queries), weights)


def reference(penalty: Any, queries: np.ndarray, weights: np.ndarray) -> float:
    """The formulas, term by term and query by query."""
    size, total = len(queries), 0.0
    if isinstance(penalty, L1Penalty):
        return sum(weights[b] * sum(queries[b]) for b in range(size)) / size
    if isinstance(penalty, GuardPenalty):
        for b in range(size):
            strongest = sorted(queries[b], reverse=True)[: penalty.floor]
            total += weights[b] * sum(max(0.0, penalty.least - weight) for weight in strongest) / size
        return total
    for v in range(queries.shape[1]):
        mean = 0.0
        for b in range(size):
            counts = not isinstance(penalty, L0FlopsPenalty) or (queries[b] > 0).sum() > penalty.terms
            mean += np.sqrt(weights[b]) * queries[b, v] * counts / size
        total += mean**2
    return total


PENALTIES = [FlopsPenalty(), L1Penalty(), L0FlopsPenalty(terms=12), GuardPenalty(floor=8, least=1.0)]


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_penalty_equals_its_formula(penalty: Any, seed: int) -> None:
    queries, weights = sparse_queries(seed), weights_of(seed)
    expected = reference(penalty, queries.numpy(), weights.numpy())
    assert value(penalty, queries, weights).item() == pytest.approx(expected, rel=1e-9)
    in_float32 = value(penalty, queries.float(), weights.float()).item()
    assert in_float32 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_a_penalty_s_gradient_at_non_zero_terms_is_the_slope_of_its_formula(penalty: Any) -> None:
    queries, weights = sparse_queries(3), weights_of(3)
    leaf = queries.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(penalty, leaf, weights), leaf)
    step = 1e-6
    for b, v in torch.nonzero(queries)[::3].tolist():
        up, down = queries.numpy().copy(), queries.numpy().copy()
        up[b, v] += step
        down[b, v] -= step
        slope = (reference(penalty, up, weights.numpy()) - reference(penalty, down, weights.numpy())) / (2 * step)
        assert gradient[b, v].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_terms_at_zero_get_no_gradient(penalty: Any) -> None:
    leaf = sparse_queries(4).requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(penalty, leaf, weights_of(4)), leaf)
    assert (gradient[leaf.detach() == 0] == 0).all()


@given(seed=SEEDS, weight=st.floats(1e-4, 10.0))
@settings(max_examples=25, deadline=None)
def test_equal_weights_give_the_usual_lambda_times_flops_and_l1(seed: int, weight: float) -> None:
    queries = sparse_queries(seed)
    same = torch.full((len(queries),), weight, dtype=torch.float64)
    assert flops_penalty(queries, same).item() == pytest.approx(weight * queries.mean(dim=0).square().sum().item(), rel=1e-9)
    assert l1_penalty(queries, same).item() == pytest.approx(weight * queries.sum(dim=1).mean().item(), rel=1e-9)


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_order_of_queries_and_of_terms_does_not_matter(seed: int) -> None:
    queries, weights = sparse_queries(seed), weights_of(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, terms = torch.randperm(len(queries), generator=generator), torch.randperm(queries.shape[1], generator=generator)
    for penalty in PENALTIES:
        shuffled = value(penalty, queries[rows][:, terms], weights[rows])
        assert shuffled.item() == pytest.approx(value(penalty, queries, weights).item(), rel=1e-9)


def test_flops_of_a_batch_is_not_the_mean_of_its_halves() -> None:
    queries, weights = sparse_queries(5), torch.ones(6, dtype=torch.float64)
    halves = (flops_penalty(queries[:3], weights[:3]) + flops_penalty(queries[3:], weights[3:])) / 2
    assert halves.item() > 1.1 * flops_penalty(queries, weights).item()


def test_the_l0_mask_keeps_queries_above_the_threshold_alone() -> None:
    assert l0_mask(torch.tensor([3, 4, 5]), 4).tolist() == [0.0, 0.0, 1.0]


def test_the_guard_holds_fading_terms_and_lets_go_at_the_floor() -> None:
    queries = torch.tensor([[0.9, 0.1, 0.2, 0.0], [0.9, 0.8, 0.7, 0.0]], dtype=torch.float64, requires_grad=True)
    held = guard_penalty(queries, torch.ones(2, dtype=torch.float64), GuardPenalty(floor=2, least=0.5))
    (gradient,) = torch.autograd.grad(held, queries)
    assert held.item() == pytest.approx((0.5 - 0.2) / 2)
    assert gradient.tolist() == [[0.0, 0.0, -0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_shared_terms_average_to_flops_of_queries_and_passages(seed: int) -> None:
    queries = sparse_queries(seed)
    document_share = torch.tensor(np.random.default_rng(seed).random(40))
    query_share = (queries > 0).double().mean(dim=0)
    assert shared_terms(queries, document_share).mean().item() == pytest.approx((query_share @ document_share).item())


def test_the_ramp_is_quadratic_and_ends_at_one() -> None:
    assert [ramp(step, 4) for step in range(6)] == pytest.approx([1 / 16, 1 / 4, 9 / 16, 1.0, 1.0, 1.0])
    assert ramp(0, 0) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "flops",
        "0.002*flops + 0.0001*l1",
        "0.01*l0flops(terms=20) + 0.1*guard",
        "1e-05*l1 + 0.5*guard(floor=8, least=0.25)",
    ],
)
@pytest.mark.parametrize("target", [None, "flops<=1.8", "l0<=25"])
def test_a_configuration_survives_json_and_its_text_form(text: str, target: str | None) -> None:
    config = RegularisationConfig.model_validate({"terms": text, "target": target})
    assert str(PenaltySum.parse(text)) == text
    assert config.model_dump(mode="json")["terms"] == text
    assert config.model_dump(mode="json")["target"] == target
    assert RegularisationConfig.model_validate_json(config.model_dump_json()) == config


@given(bound=st.floats(1.0, 1e6), measure=st.sampled_from(["flops", "l0"]))
@settings(max_examples=50, deadline=None)
def test_a_target_survives_its_text_form(bound: float, measure: Any) -> None:
    target = SparsityTarget(measure, bound)
    assert SparsityTarget.parse(str(target)) == target


def test_the_target_drives_the_first_term_that_sparsifies_and_flops_where_there_is_none() -> None:
    def driven(terms: str, target: str | None = "l0<=25") -> tuple[str, list[str], float | None]:
        config = RegularisationConfig.model_validate({"terms": terms, "target": target})
        return str(config.controlled), [str(penalty) for _, penalty in config.fixed], config.start_lambda

    assert driven("0.1*guard + 0.002*l1 + 0.001*flops") == ("l1", ["guard", "flops"], 0.002)
    assert driven("0.1*guard") == ("flops", ["guard"], None)
    assert driven("none") == ("flops", [], None)
    assert driven("flops + 0.001*l1") == ("flops", ["l1"], None)
    assert driven("0.002*flops", None) == ("None", ["flops"], None)


@pytest.mark.parametrize(
    ("given_fields", "words"),
    [
        ({"terms": "0.1*flops_d"}, ("flops_d", "frozen", "no gradient", "leave it out")),
        ({"terms": "0.1*flop"}, ("flop", "did you mean 'flops'")),
        ({"terms": "0.1*flops + 0.2*flops"}, ("flops", "twice")),
        ({"terms": "0*flops"}, ("> 0", "leave the term out")),
        ({"terms": "0.1*l0flops(terms=0)"}, ("l0flops.terms is 0", ">= 1")),
        ({"terms": "0.1*guard(floor=0)"}, ("guard.floor is 0", ">= 1")),
        ({"terms": "0.1*guard(least=0)"}, ("guard.least is 0", "> 0")),
        ({"target": "l0>=25"}, ("upper bound", "l0<=25")),
        ({"target": "l1<=25"}, ("flops<=1.8 or l0<=25",)),
        ({"target": "l0<=many"}, ("many", "not a number")),
        ({"target": "l0<=0"}, ("l0<=0", "> 0")),
        ({"per_depth": True}, ("per_depth", "set target")),
        ({"controller": {"gain": 3.0}}, ("controller", "set target")),
        ({"target": "l0<=25", "controller": {"depth_buckets": 4}}, ("depth_buckets", "set per_depth")),
        ({"ramp_share": 0.5}, ("ramp_share is 0.5", "leave ramp_share out")),
        ({"ramp_share": 0.5, "target": "l0<=25", "terms": "0.1*flops + 0.1*guard"}, ("ramp_share is 0.5", "l0<=25")),
        ({"terms": "l0flops(terms=30)", "target": "l0<=25"}, ("terms holds l0flops", "below 25")),
        ({"terms": "0.1*guard(floor=25)", "target": "l0<=25"}, ("guard(floor=25)", "below 25")),
    ],
)
def test_what_cannot_work_is_refused_with_the_field_the_value_and_the_fix(
    given_fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as refused:
        RegularisationConfig.model_validate(given_fields)
    for word in words:
        assert word in str(refused.value)
