"""Every objective against its formula in plain float64 loops, and the laws that all of them obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raydistill.config import Objective
from raydistill.config.objective import TERMS
from raydistill.distill.objectives import StepScores, distillation_loss, teacher_entropy
from tests.distill.objective_reference import TEACHERS, Step, per_query_losses, random_step, reference_loss

TEXTS = [
    "kld",
    "kld(tau=2, student_tau=0.7)",
    "kld(teacher=llm, tau=3)",
    "listwise_ce(tau=0.5)",
    "listwise_ce(teacher=llm, tau=2, student_tau=4)",
    "infonce(tau=2)",
    "infonce(negatives=own)",
    "infonce(negatives=golds, tau=0.5)",
    "margin_mse(scale=2)",
    "margin_mse(pairs=all)",
    "margin_mse(teacher=llm, pairs=all, scale=0.5)",
    "bce(tau=2, shift=-1)",
    "bce(teacher=llm, shift=-2, student_tau=3, student_shift=-0.5)",
    "partial_ranking(student_tau=2)",
    "partial_ranking(gap=1.5)",
    "partial_ranking(teacher=human, form=hinge, margin=0.5, student_tau=0.7)",
    "ranknet",
    "ranknet(weight=ndcg, student_tau=2)",
    "ranknet(teacher=llm, weight=ndcg)",
    "rep_mse(scale=3)",
    "rep_cosine",
]
LEAVES = ("own", "everyone", "queries")
every_objective = pytest.mark.parametrize("text", TEXTS)
seeds = given(seed=st.integers(0, 10_000))
few = settings(max_examples=8, deadline=None)


def term_of(text: str) -> Any:
    return Objective.parse(text).terms[0][1]


def loss_and_gradients(step: Step, text: str, dtype: torch.dtype = torch.float64) -> tuple[float, dict[str, NDArray[Any]]]:
    """Return the loss and its gradients with respect to own, everyone and queries; 0 for what it does not depend on."""
    leaves = {name: torch.tensor(getattr(step, name), dtype=dtype, requires_grad=True) for name in LEAVES}
    loss, _ = distillation_loss(step.tensors(dtype, **leaves), Objective.parse(text), TEACHERS)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    zeros = [
        torch.zeros_like(leaf) if found is None else found for leaf, found in zip(leaves.values(), gradients, strict=True)
    ]
    return loss.item(), {name: gradient.numpy() for name, gradient in zip(LEAVES, zeros, strict=True)}


def loss_of(step: Step, text: str) -> float:
    return distillation_loss(step.tensors(), Objective.parse(text), TEACHERS)[0].item()


def numeric_gradient(step: Step, name: str, loss: Callable[[Step], float]) -> NDArray[Any]:
    """Return central differences of a loss in one array of the step."""
    epsilon = 1e-5
    values = getattr(step, name)
    gradient = np.zeros_like(values)
    for place in np.ndindex(values.shape):
        change = np.zeros_like(values)
        change[place] = epsilon
        ahead, behind = (loss(replace(step, **{name: values + sign * change})) for sign in (1, -1))
        gradient[place] = (ahead - behind) / (2 * epsilon)
    return gradient


def test_every_term_is_among_the_tested_objectives() -> None:
    assert {term_of(text).NAME for text in TEXTS} == set(TERMS)


@every_objective
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_equal_the_formula(text: str, seed: int) -> None:
    step = random_step(seed)
    loss, gradients = loss_and_gradients(step, text)

    # The ranks of ranknet(weight=ndcg) are constants: the reference takes them from the unchanged scores.
    def expected(changed: Step) -> float:
        return reference_loss(changed, term_of(text), step.own)

    assert loss == pytest.approx(expected(step), rel=1e-6)
    assert loss > 0
    for name in LEAVES:
        numeric = numeric_gradient(step, name, expected)
        np.testing.assert_allclose(gradients[name], numeric, rtol=1e-6, atol=1e-8, err_msg=f"{text}: {name}")
    assert any(np.abs(gradient).max() > 1e-3 for gradient in gradients.values())


@every_objective
def test_float32_gives_the_same_loss_and_gradient(text: str) -> None:
    step = random_step(2)
    loss, gradients = loss_and_gradients(step, text, torch.float32)
    exact, exact_gradients = loss_and_gradients(step, text)
    assert loss == pytest.approx(exact, rel=1e-6)
    for name in LEAVES:
        np.testing.assert_allclose(gradients[name], exact_gradients[name], rtol=1e-5, atol=1e-6, err_msg=f"{text}: {name}")


@every_objective
@seeds
@few
def test_the_order_of_candidates_does_not_matter(text: str, seed: int) -> None:
    step = random_step(seed)
    random = np.random.default_rng(seed)
    order = random.permuted(np.tile(np.arange(step.own.shape[1]), (len(step.own), 1)), axis=1)
    columns = random.permutation(step.everyone.shape[1])
    shuffled = replace(
        step,
        **{
            name: np.take_along_axis(getattr(step, name), order, axis=1)
            for name in ("own", "teacher", "present", "positive", "log_weight")
        },
        teachers=np.take_along_axis(step.teachers, np.repeat(order[:, None], len(TEACHERS), axis=1), axis=2),
        everyone=step.everyone[:, columns],
        excluded=step.excluded[:, columns],
        gold=np.array([-1 if gold < 0 else int(np.argsort(columns)[gold]) for gold in step.gold]),
    )
    assert loss_of(shuffled, text) == pytest.approx(loss_of(step, text), rel=1e-9)


@every_objective
@seeds
@few
def test_absent_places_change_nothing_and_have_no_gradient(text: str, seed: int) -> None:
    step = random_step(seed)
    queries = len(step.own)
    random = np.random.default_rng(seed)

    def widened(values: NDArray[Any], padding: NDArray[Any] | float | bool) -> NDArray[Any]:
        shape = (*values.shape[:-1], 3)
        return np.concatenate([values, np.broadcast_to(np.asarray(padding, dtype=values.dtype), shape)], axis=-1)

    padded = replace(
        step,
        own=widened(step.own, random.normal(0, 50, (queries, 3))),
        teacher=widened(step.teacher, random.normal(0, 50, (queries, 3))),
        teachers=widened(step.teachers, 40.0),
        present=widened(step.present, False),
        positive=widened(step.positive, False),
        log_weight=widened(step.log_weight, 0.0),
    )
    loss, gradients = loss_and_gradients(padded, text)
    plain_loss, plain_gradients = loss_and_gradients(step, text)
    assert loss == pytest.approx(plain_loss, rel=1e-9)
    np.testing.assert_allclose(gradients["own"][:, :-3], plain_gradients["own"], rtol=1e-9, atol=1e-12)
    assert (gradients["own"][:, -3:] == 0).all()
    assert (gradients["own"][:, :-3][~step.present] == 0).all()


@every_objective
@seeds
@few
def test_a_batch_is_the_mean_of_its_queries_that_have_a_part(text: str, seed: int) -> None:
    # With all passages of the batch kept; what fewer passages do to in-batch negatives is below.
    step = random_step(seed)
    having_a_part = [row for row, loss in enumerate(per_query_losses(step, term_of(text))) if loss is not None]
    if "golds" in text:  # which columns are golds is said by the gold of every query
        singles = [per_query_losses(step, term_of(text))[row] for row in having_a_part]
    else:
        singles = [loss_of(step.query(row), text) for row in having_a_part]
    assert loss_of(step, text) == pytest.approx(np.mean(singles) if singles else 0.0, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@every_objective
def test_queries_without_anything_to_compare_have_zero_and_finite_gradients(text: str) -> None:
    step = random_step(3)
    empty = replace(
        step,
        present=np.zeros_like(step.present),
        positive=np.zeros_like(step.positive),
        own=np.zeros_like(step.own),
        teacher=np.zeros_like(step.teacher),
        teachers=np.full_like(step.teachers, np.nan),
        gold=np.full_like(step.gold, -1),
        rewrites=np.zeros_like(step.rewrites),
    )
    with torch.autograd.detect_anomaly(check_nan=True):  # no NaN on the way either
        loss, gradients = loss_and_gradients(empty, text)
    assert loss == 0.0
    for gradient in gradients.values():
        assert (gradient == 0).all()


@every_objective
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_equal_and_huge_student_scores_keep_the_gradient_finite(text: str, size: float) -> None:
    step = random_step(4)
    step = replace(step, **{name: getattr(step, name) * size for name in LEAVES})
    loss, gradients = loss_and_gradients(step, text, torch.float32)
    assert np.isfinite(loss)
    for gradient in gradients.values():
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("text", ["ranknet(weight=ndcg)", "kld", "rep_cosine"])
def test_a_student_that_scores_everything_alike_is_still_taught(text: str) -> None:
    step = random_step(4)
    collapsed = replace(step, **{name: np.zeros_like(getattr(step, name)) for name in LEAVES})
    _, gradients = loss_and_gradients(collapsed, text)
    assert max(np.abs(gradient).max() for gradient in gradients.values()) > 1e-2


def test_kld_of_equal_distributions_is_zero_and_listwise_ce_is_its_entropy_above_it() -> None:
    step = replace(random_step(5), own=random_step(5).teacher * 4, log_weight=np.zeros((6, 5)))
    assert loss_of(step, "kld(student_tau=4)") == pytest.approx(0.0, abs=1e-12)
    tensors = step.tensors()
    entropy = teacher_entropy(tensors.teacher, tensors.present, 2.0).item()
    assert loss_of(step, "listwise_ce(tau=2)") - loss_of(step, "kld(tau=2)") == pytest.approx(entropy, rel=1e-9)
    difference = loss_and_gradients(step, "kld(tau=2)")[1]["own"] - loss_and_gradients(step, "listwise_ce(tau=2)")[1]["own"]
    assert np.abs(difference).max() < 1e-12


def test_teacher_entropy_of_equal_scores_is_that_of_a_fair_die() -> None:
    present = torch.tensor([[True, True, True, False], [False] * 4, [False, True, False, False]])
    assert teacher_entropy(torch.zeros(3, 4), present).item() == pytest.approx(np.log(3), rel=1e-6)


def test_inverse_probabilities_make_a_drawn_passage_stand_for_its_copies() -> None:
    # Three candidates of which one occurs four times: drawing one of the four with weight 4 is the same list.
    own, teacher = np.array([[0.3, 1.0, -0.5]]), np.array([[1.0, 0.2, 0.9]])
    counts = np.array([1, 4, 1])
    base = random_step(0).query(0)

    def step(places: list[int], log_weight: NDArray[Any]) -> Step:
        shape = (1, len(places))
        return replace(
            base,
            own=own[:, places],
            teacher=teacher[:, places],
            teachers=np.zeros((1, len(TEACHERS), len(places))),
            present=np.ones(shape, dtype=bool),
            positive=np.zeros(shape, dtype=bool),
            log_weight=log_weight.reshape(shape),
        )

    whole = step([0, 1, 1, 1, 1, 2], np.zeros(6))
    drawn = step([0, 1, 2], np.log(counts))
    for text in ("kld(tau=0.5, student_tau=2)", "listwise_ce(tau=0.5)"):
        assert loss_of(drawn, text) == pytest.approx(loss_of(whole, text), rel=1e-12)


def test_weighted_samples_estimate_the_kld_over_all_candidates() -> None:
    # 40 candidates, half of them drawn, better ones more often. The estimate is consistent, not unbiased: the mean of
    # many draws must come far closer to the truth than without weights, not equal it.
    random = np.random.default_rng(0)
    student, teacher = random.normal(0, 1, 40), random.normal(0, 1, 40)
    inclusion = np.clip(0.5 + 0.4 * np.tanh(teacher), 0.05, 0.95)
    base = random_step(0).query(0)

    def step(drawn: NDArray[Any], weights: bool) -> Step:
        return replace(
            base,
            own=np.where(drawn, student, 0.0)[None],
            teacher=np.where(drawn, teacher, 0.0)[None],
            teachers=np.zeros((1, len(TEACHERS), 40)),
            present=drawn[None],
            positive=np.zeros((1, 40), dtype=bool),
            log_weight=np.where(drawn & weights, -np.log(inclusion), 0.0)[None],
        )

    truth = loss_of(step(np.ones(40, dtype=bool), False), "kld")
    draws = [random.random(40) < inclusion for _ in range(400)]
    weighted, plain = (np.mean([loss_of(step(drawn, weights), "kld") for drawn in draws]) for weights in (True, False))
    assert weighted == pytest.approx(truth, rel=0.08)
    assert abs(plain - truth) > 2 * abs(weighted - truth)


def test_infonce_over_the_batch_is_that_over_own_samples_once_the_others_are_excluded() -> None:
    step = random_step(6)
    columns = np.argwhere(step.present)[:, 0]
    alone = replace(step, excluded=step.excluded | (columns[None, :] != np.arange(len(step.own))[:, None]))
    assert loss_of(alone, "infonce(tau=2)") == pytest.approx(loss_of(step, "infonce(tau=2, negatives=own)"), rel=1e-9)


def test_infonce_only_grows_with_further_queries_in_the_batch() -> None:
    # Not the mean over parts of a batch: fewer queries bring fewer negatives. Hence the loss over the global batch.
    step = random_step(6)
    columns = np.argwhere(step.present)[:, 0]
    for row in (0, 3, 4):
        single = step.query(row)
        half = replace(single, excluded=single.excluded | (columns[None, :] // 3 != row // 3))
        assert loss_of(half, "infonce") < loss_of(single, "infonce")


def test_other_golds_of_a_query_are_not_its_negatives() -> None:
    step = random_step(0).query(0)
    assert step.positive.sum() == 2
    _, gradients = loss_and_gradients(step, "infonce")
    assert (gradients["everyone"][step.excluded] == 0).all()
    assert (gradients["everyone"][~step.excluded] > 0).all()
    assert (gradients["own"][step.positive] < 0).all()


def test_a_gold_without_negatives_has_no_part_in_infonce() -> None:
    step = random_step(9)
    lonely = replace(
        step,
        excluded=step.excluded | (np.arange(len(step.own)) == 0)[:, None],
        positive=step.positive | (step.present & (np.arange(len(step.own)) == 0)[:, None]),
    )
    for text in ("infonce", "infonce(negatives=own)", "infonce(negatives=golds)"):
        loss, gradients = loss_and_gradients(lonely, text)
        assert loss == pytest.approx(reference_loss(lonely, term_of(text)), rel=1e-9)
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
        assert (gradients["own"][0] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_equal_student_scores_rank_the_passage_first_that_the_teachers_put_lower(seed: int) -> None:
    step = random_step(seed).query(0)
    step = replace(step, own=np.round(step.own / 3))
    assert len(np.unique(step.own)) < step.own.size
    expected = reference_loss(step, term_of("ranknet(weight=ndcg)"))
    assert loss_of(step, "ranknet(weight=ndcg)") == pytest.approx(expected, rel=1e-9)


def test_partial_ranking_leaves_golds_and_differences_within_the_gap_alone() -> None:
    step = random_step(0).query(0)
    _, gradients = loss_and_gradients(step, "partial_ranking")
    assert (gradients["own"][step.positive] == 0).all()
    assert np.abs(gradients["own"]).max() > 0
    assert loss_of(step, "partial_ranking(gap=100)") == 0.0


def test_a_named_teacher_alone_is_followed_and_its_absent_scores_have_no_part() -> None:
    step = random_step(7)
    absent = step.present & np.isnan(step.teachers[:, 1])
    assert absent.any()
    _, gradients = loss_and_gradients(step, "margin_mse(teacher=llm, pairs=all)")
    assert (gradients["own"][absent] == 0).all()
    as_combined = replace(step, teacher=np.nan_to_num(step.teachers[:, 1]), present=step.present & ~absent)
    as_combined = replace(as_combined, positive=step.positive & as_combined.present)
    assert loss_of(step, "kld(teacher=llm)") == pytest.approx(loss_of(as_combined, "kld"), rel=1e-12)


def test_a_mixture_weighs_its_parts_and_names_them() -> None:
    step = random_step(8)
    objective = Objective.parse("0.7*kld + 0.2*infonce + 0.05*infonce(negatives=own) + 0.1*kld(teacher=llm) + 2*rep_mse")
    loss, parts = distillation_loss(step.tensors(), objective, TEACHERS)
    assert list(parts) == ["kld", "infonce", "infonce.2", "kld.llm", "rep_mse"]
    values = [loss_of(step, str(term)) for _, term in objective.terms]
    assert [part.item() for part in parts.values()] == pytest.approx(values, rel=1e-12)
    weights = [weight for weight, _ in objective.terms]
    assert loss.item() == pytest.approx(np.dot(weights, values), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        ("teacher", np.zeros((6, 4)), r"teacher has the shape \[6, 4\] where own \(\[6, 5\]\) asks for \[6, 5\]"),
        ("positive", np.zeros((6, 6), dtype=bool), r"positive has the shape \[6, 6\]"),
        ("teachers", np.zeros((6, 2, 4)), r"teachers has the shape \[6, 2, 4\]"),
        ("gold", np.zeros(5, dtype=int), r"gold has the shape \[5\]"),
        ("rewrites", np.zeros((6, 8)), r"rewrites has the shape \[6, 8\] where queries \(\[6, 7\]\) asks for \[6, 7\]"),
        ("excluded", np.zeros((6, 1), dtype=bool), r"excluded has the shape \[6, 1\] where everyone"),
    ],
)
def test_columns_that_do_not_belong_together_are_refused(name: str, wrong: NDArray[Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(random_step(0), **{name: wrong}).tensors()


def test_what_a_term_needs_and_does_not_find_is_said() -> None:
    scores = random_step(0).tensors()
    alone = replace(scores, everyone=None, excluded=None, rewrites=None)
    distillation_loss(alone, Objective.parse("kld + infonce(negatives=own)"), TEACHERS)
    for text, names, sentence in (
        ("infonce", TEACHERS, "infonce needs the scores of every query and every passage"),
        ("rep_cosine", TEACHERS, "rep_cosine needs the rewrites"),
        ("kld(teacher=lm)", TEACHERS, "there is no teacher 'lm'; there are human, llm"),
        ("kld(teacher=llm)", ("llm",), "teachers has 2 rows, but 1 names came with it"),
    ):
        with pytest.raises(ValueError, match=sentence):
            distillation_loss(alone, Objective.parse(text), names)
    with pytest.raises(ValueError, match="own golds would become its negatives"):
        replace(scores, excluded=None)
    assert isinstance(scores, StepScores)
