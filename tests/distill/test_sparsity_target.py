"""The sparsity target: reached, held as an upper bound, at every depth; the same after a resume; collapse is reported.

The student here is a small linear SPLADE: vectors log(1 + ReLU(W x + b + depth * slope)), trained by AdamW with a
linearly decaying learning rate on batches of 12, as in a short real training, and pulled towards dense vectors that grow
with turn depth. Without a penalty it ends with about 45 of 120 terms at the first turn and 75 at the tenth.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.config import RegularisationConfig
from raydistill.distill.control import Controller, MovingMean
from raydistill.distill.regularisers import shared_terms, term_counts
from raydistill.distill.sparsity import Sparsity

TERMS, WIDTH, BATCH, DEPTHS, TOPICS = 120, 16, 12, 10, 24


@dataclass
class Student:
    """A linear student with its optimizer, data and regularisation."""

    config: dict[str, Any]
    steps: int = 120
    seed: int = 0
    start_bias: float = -0.3
    learning_rate: float = 8e-3
    records: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        topics = torch.randn(TOPICS, WIDTH, generator=generator)
        self.inputs = topics.repeat(DEPTHS, 1)
        self.depths = torch.arange(1, DEPTHS + 1).repeat_interleave(TOPICS)
        truth = torch.randn(TERMS, WIDTH, generator=generator) / math.sqrt(WIDTH)
        self.wanted = torch.log1p(torch.relu(self.inputs @ truth.T - 0.4 + 0.08 * self.depths[:, None]))
        noise = torch.randn(TERMS, WIDTH, generator=generator) / math.sqrt(WIDTH)
        self.weight = (0.6 * truth + 0.4 * noise).requires_grad_(True)
        self.bias = torch.full((TERMS,), self.start_bias, requires_grad=True)
        self.slope = torch.full((DEPTHS + 1,), 0.0).requires_grad_(True)
        self.document_share = torch.rand(TERMS, generator=generator) ** 3
        self.order = torch.stack([torch.randperm(len(self.inputs), generator=generator) for _ in range(60)]).flatten()
        self.sparsity = Sparsity(RegularisationConfig.model_validate(self.config), self.document_share, self.steps)
        self.optimizer = torch.optim.AdamW([self.weight, self.bias, self.slope], lr=self.learning_rate)

    def queries(self, rows: Tensor) -> Tensor:
        logits = self.inputs[rows] @ self.weight.T + self.bias + self.slope[self.depths[rows]][:, None]
        return torch.log1p(torch.relu(logits))

    def step(self) -> None:
        number = len(self.records)
        rows = self.order[number * BATCH : (number + 1) * BATCH]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * (self.steps - number) / self.steps
        queries = self.queries(rows)
        leaf = queries.detach().requires_grad_(True)
        loss = (leaf - self.wanted[rows]).square().sum(dim=1).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        penalty, values = self.sparsity.penalty(leaf, self.depths[rows])
        of_penalty = torch.autograd.grad(penalty, leaf)[0] if penalty.requires_grad else None
        values |= self.sparsity.weigh(leaf.detach(), gradient, of_penalty)
        self.optimizer.zero_grad()
        queries.backward(gradient if of_penalty is None else gradient + of_penalty)
        self.optimizer.step()
        values |= self.sparsity.advance(queries.detach(), self.depths[rows])
        self.records.append(values | {"loss": loss.item()})

    def train(self, until: int | None = None) -> Student:
        while len(self.records) < (until or self.steps):
            self.step()
        return self

    def l0(self, depth: int | None = None) -> float:
        return self._mean(term_counts(self.queries(torch.arange(len(self.inputs)))).float(), depth)

    def flops(self) -> float:
        return self._mean(shared_terms(self.queries(torch.arange(len(self.inputs))), self.document_share), None)

    def _mean(self, costs: Tensor, depth: int | None) -> float:
        return float(costs.mean() if depth is None else costs[self.depths == depth].mean())


@pytest.mark.parametrize("start_bias", [-0.3, 0.0, 0.3])
@pytest.mark.parametrize(("steps", "tolerance"), [(120, 0.12), (250, 0.06)])
def test_l0_ends_at_the_target_from_sparse_and_dense_starts(start_bias: float, steps: int, tolerance: float) -> None:
    student = Student({"target": "l0<=20"}, steps=steps, start_bias=start_bias)
    assert student.l0() > 30
    assert student.train().l0() == pytest.approx(20, rel=tolerance)
    assert student.sparsity.advice() is None


@pytest.mark.parametrize(("start_bias", "bound"), [(-1.2, 20), (-0.9, 20), (-0.9, 35), (-0.6, 35), (-0.6, 50)])
def test_a_student_that_begins_under_the_target_and_grows_is_held_at_it(start_bias: float, bound: int) -> None:
    free = Student({}, steps=170, start_bias=start_bias).train()
    held = Student({"target": f"l0<={bound}"}, steps=170, start_bias=start_bias)
    assert held.l0() < bound < free.l0() / 1.05
    assert held.train().l0() == pytest.approx(bound, rel=0.06)


@pytest.mark.parametrize("start_bias", [-1.2, -0.6])
@pytest.mark.parametrize("terms", [10, 19])
def test_a_penalty_that_spares_the_first_terms_begins_where_it_first_acts(terms: int, start_bias: float) -> None:
    student = Student({"target": "l0<=20", "terms": f"l0flops(terms={terms})"}, steps=170, start_bias=start_bias)
    assert student.train().l0() == pytest.approx(20, rel=0.08)
    assert Student({}, steps=170, start_bias=start_bias).train().l0() > 30


@pytest.mark.parametrize("terms", ["none", "0.3*l1", "l0flops(terms=5) + 0.05*guard"])
def test_flops_ends_at_the_target_whatever_penalty_is_driven(terms: str) -> None:
    student = Student({"target": "flops<=5", "terms": terms}, steps=250)
    assert student.flops() > 10
    assert student.train().flops() == pytest.approx(5, rel=0.06)


@pytest.mark.parametrize("start_bias", [-0.3, 0.3])
def test_with_per_depth_deep_turns_are_as_sparse_as_shallow_ones(start_bias: float) -> None:
    alike = Student({"target": "l0<=20", "per_depth": True}, steps=250, start_bias=start_bias).train()
    apart = Student({"target": "l0<=20"}, steps=250, start_bias=start_bias).train()
    assert apart.l0(8) / apart.l0(2) > 1.15
    assert alike.l0(8) / alike.l0(2) == pytest.approx(1.0, abs=0.1)
    assert alike.l0() == pytest.approx(20, rel=0.08)
    assert alike.records[-1]["lambda_depth_8"] > alike.records[-1]["lambda_depth_2"]


@pytest.mark.parametrize("per_depth", [False, True])
def test_a_student_under_the_target_feels_no_penalty_and_ends_as_without_a_target(per_depth: bool) -> None:
    free = Student({}).train()
    bounded = Student({"target": "l0<=110", "per_depth": per_depth}).train()
    assert {record["flops_lambda"] for record in bounded.records} == {0.0}
    assert torch.equal(free.weight, bounded.weight)


def test_lambda_goes_off_when_the_statistic_falls_under_the_target() -> None:
    controller = Controller(RegularisationConfig().controller, 20.0, 1, 200, start_lambda=0.5)
    for _ in range(20):
        controller.advance([40.0] * 12, [0] * 12)
    assert controller.lambdas[0] > 0.5
    for _ in range(60):
        controller.advance([12.0] * 12, [0] * 12)
    assert controller.lambdas == [0.0]


def test_lambda_does_not_come_on_while_the_penalties_pull_too_much_already() -> None:
    config = RegularisationConfig().controller
    for pull, comes_on in ((0.9 * config.most_pull, True), (1.1 * config.most_pull, False)):
        controller = Controller(config, 20.0, 1, 200, start_lambda=0.5)
        for cost in [10.0] * 20 + [40.0] * 20:
            controller.pulled(pull)
            controller.advance([cost] * 12, [0] * 12)
        assert (controller.lambdas[0] > 0.4) == comes_on


def test_a_depth_within_the_bound_is_left_alone_while_another_is_held() -> None:
    controller = Controller(RegularisationConfig().controller, 20.0, 2, 200, start_lambda=0.5)
    for _ in range(150):
        controller.advance([8.0] * 6 + [40.0] * 6, [0] * 6 + [1] * 6)
    shallow, deep = controller.lambdas
    assert shallow == 0.0
    assert deep > 0.5


def test_a_depth_that_is_seen_seldom_goes_with_its_neighbours() -> None:
    controller = Controller(RegularisationConfig().controller, 20.0, 5, 200, start_lambda=0.5)
    for _ in range(40):
        controller.advance([30.0] * 6 + [50.0] * 6, [0] * 6 + [3] * 6)
    lambdas = controller.lambdas
    assert lambdas[0] < lambdas[1] < lambdas[2] < lambdas[3]
    assert lambdas[0] < lambdas[4]


def test_lambda_starts_where_the_penalty_pulls_a_tenth_as_much_as_the_loss_unless_a_start_is_written() -> None:
    chosen = Student({"target": "l0<=20"}, steps=100).train(until=4)
    assert [record["penalty_pull"] for record in chosen.records[:3]] == [0.0, 0.0, 0.0]
    assert chosen.records[3]["penalty_pull"] == pytest.approx(0.1, rel=0.3)
    written = Student({"target": "l0<=20", "terms": "0.125*flops"}, steps=100).train(until=4)
    assert [record["flops_lambda"] for record in written.records] == [0.0, 0.0, 0.0, 0.125]


@pytest.mark.parametrize("stop", [2, 31])
def test_a_resumed_run_continues_to_the_last_bit(stop: int) -> None:
    config = {"target": "flops<=5", "per_depth": True, "terms": "0.01*l1 + 0.1*guard"}
    whole = Student(config, steps=60).train()
    resumed = Student(config, steps=60).train(until=stop)
    state = json.loads(json.dumps(resumed.sparsity.state()))
    resumed.sparsity = Sparsity(RegularisationConfig.model_validate(config), resumed.document_share, 60)
    resumed.sparsity.load_state(state)
    resumed.train()
    assert resumed.records == whole.records
    assert resumed.sparsity.state() == whole.sparsity.state()


def test_fixed_weights_grow_over_the_ramp_and_are_those_of_the_whole_batch() -> None:
    config = RegularisationConfig.model_validate({"terms": "0.5*flops + 0.1*l1", "ramp_share": 0.5})
    sparsity = Sparsity(config, None, steps=4)
    queries, depths = torch.rand(4, 6).requires_grad_(True), torch.ones(4, dtype=torch.int64)
    lambdas = []
    for _ in range(3):
        total, values = sparsity.penalty(queries, depths)
        lambdas.append(values["flops_lambda"])
        sparsity.advance(queries.detach(), depths)
    assert lambdas == pytest.approx([0.125, 0.5, 0.5])
    expected = 0.5 * queries.mean(dim=0).square().sum() + 0.1 * queries.sum(dim=1).mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert values["flops_penalty"] + values["l1_penalty"] == pytest.approx(total.item(), rel=1e-6)


def test_queries_at_the_guard_s_floor_are_exempt_from_the_other_penalties() -> None:
    config = RegularisationConfig.model_validate({"terms": "flops + l1 + guard(floor=2, least=0.5)", "ramp_share": 0.0})
    queries = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.2, 0.0]], requires_grad=True)
    total, _ = Sparsity(config, None, steps=10).penalty(queries, torch.tensor([1, 2]))
    (gradient,) = torch.autograd.grad(total, queries)
    assert (gradient[0] > 0).all()
    assert gradient[1].tolist() == [0.0, -0.5, 0.0]


def watched(config: dict[str, Any], counts: list[int]) -> str | None:
    """Advice after steps whose queries had these numbers of non-zero terms."""
    sparsity = Sparsity(RegularisationConfig.model_validate(config), None, steps=len(counts))
    for count in counts:
        queries = torch.zeros(6, 200)
        queries[:, :count] = 1.0
        sparsity.advance(queries, torch.ones(6, dtype=torch.int64))
    return sparsity.advice()


@pytest.mark.parametrize(
    ("config", "counts", "words"),
    [
        ({}, [113] * 3 + [60, 20] + [5] * 20, ("113 at the start", "queries have 5", "student_tau", "learning_rate")),
        ({}, [40] * 3 + [3] * 25, ("100% of the queries", "3 non-zero terms or fewer", "40.0 at the start")),
        ({"terms": "0.1*l1"}, [113] * 3 + [8] * 25, ("queries have 8", "lower the weights")),
        ({"target": "l0<=25"}, [113] * 3 + [5] * 25, ("l0<=25 is asked for", "at step 28")),
        ({"terms": "0.1*guard(floor=8)"}, [113] * 3 + [8] * 25, ("8 non-zero terms or fewer",)),
    ],
)
def test_collapse_is_reported_with_numbers_and_a_remedy(
    config: dict[str, Any], counts: list[int], words: tuple[str, ...]
) -> None:
    advice = watched(config, counts)
    assert advice is not None
    for word in words:
        assert word in advice


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        ({}, [113] * 3 + [57] * 20),
        ({"terms": "0.1*l1"}, [113] * 3 + [25] * 20),
        ({"target": "l0<=25"}, [113] * 3 + [25] * 20),
        ({"target": "l0<=3"}, [40] * 3 + [3] * 20),
        ({"target": "l0<=100"}, [60] * 3 + [40] * 20),
        ({}, [2] * 20),
    ],
)
def test_wanted_sparsity_is_no_collapse(config: dict[str, Any], counts: list[int]) -> None:
    assert watched(config, counts) is None


def test_a_target_on_flops_needs_passages() -> None:
    with pytest.raises(ValueError, match="flops<=5 is measured against fixed passages"):
        Sparsity(RegularisationConfig.model_validate({"target": "flops<=5"}), None, 10)


def test_a_moving_mean_is_exact_for_constants_and_weighs_recent_values_more() -> None:
    mean = MovingMean(5.0)
    for count in (3, 1, 7):
        mean.add(2.5 * count, count)
    assert mean.mean == pytest.approx(2.5)
    mean.add(10.0, 1)
    assert 2.5 < mean.mean < 10.0


def test_a_target_holds_for_what_validations_see_and_not_for_the_training_vectors() -> None:
    """Held-out queries with 1.4 times the terms of training ones: the student is driven that much further down."""
    config = {"target": "l0<=25"}
    blind, seeing = Student(config, steps=300), Student(config, steps=300)
    blind.train()
    for until in range(30, 301, 30):
        seeing.train(until)
        last = seeing.records[-1]["sparsity_statistic"]
        seeing.sparsity.validated(l0=1.4 * last, flops=0.0)
    held_out = [1.4 * each.records[-1]["sparsity_statistic"] for each in (blind, seeing)]
    assert held_out[0] > 1.2 * 25
    assert held_out[1] == pytest.approx(25, rel=0.08)


def test_what_validations_said_goes_through_a_checkpoint() -> None:
    unbroken = Student({"target": "l0<=25"})
    unbroken.train(60).sparsity.validated(l0=60.0, flops=0.0)
    state = json.loads(json.dumps(unbroken.sparsity.state()))
    resumed = Sparsity(RegularisationConfig.model_validate(unbroken.config), unbroken.document_share, unbroken.steps)
    resumed.load_state(state)
    assert resumed.state() == unbroken.sparsity.state()
    assert state["controller"]["gap"] > 0
