"""What a draw of candidates promises, whatever the candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raydistill.config import SamplingConfig, result_fields
from raydistill.distill.sampling import Sample, draw, inclusion_probabilities, systematic_sample

NO_GOLD = np.asarray([], dtype=np.int64)


def policies(draw_value: st.DrawFn, places: int) -> str:
    first = draw_value(st.integers(1, 30))
    texts = [f"window(first={first}, last={draw_value(st.integers(first, 80))})", "uniform", "top", "importance(tau=0.5)"]
    if places:
        edges = draw_value(st.sampled_from(["mass", "width"]))
        texts.append(f"quantiles(bins={draw_value(st.integers(1, places))}, edges={edges})")
    return draw_value(st.sampled_from(texts))


@st.composite
def cases(draw_value: st.DrawFn) -> tuple[np.ndarray, np.ndarray, SamplingConfig, np.ndarray]:
    size = draw_value(st.integers(1, 60))
    values = draw_value(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), min_size=size, max_size=size))
    golds = draw_value(st.lists(st.integers(0, size - 1), max_size=4, unique=True))
    gold = draw_value(st.sampled_from(["one", "all", "none"]))
    passages = draw_value(st.integers(2 if gold == "all" else 1, 20))
    top = draw_value(st.integers(0, passages - 1))
    student_top = draw_value(st.integers(0, passages - 1 - top))
    policy = policies(draw_value, passages - top - student_top - (gold != "none"))
    sampling = SamplingConfig(passages=passages, top=top, student_top=student_top, gold=gold, policy=policy)
    liked = draw_value(st.lists(st.integers(0, size - 1), max_size=12, unique=True))
    return (
        np.asarray(values, dtype=np.float32),
        np.asarray(sorted(golds), dtype=np.int64),
        sampling,
        np.asarray(liked, dtype=np.int64),
    )


@given(case=cases(), seed=st.integers(0, 99), epoch=st.integers(0, 9))
@settings(max_examples=400, deadline=None)
def test_a_draw_keeps_its_promises(
    case: tuple[np.ndarray, np.ndarray, SamplingConfig, np.ndarray], seed: int, epoch: int
) -> None:
    scores, golds, sampling, liked = case
    sample = draw(scores, golds, sampling, seed, epoch, "q", liked)
    positions = sample.positions.tolist()
    assert len(positions) == len(set(positions)) <= sampling.passages, "no repeats, no more than asked"
    assert all(0 <= position < len(scores) for position in positions)
    np.testing.assert_array_equal(sample.positive, np.isin(sample.positions, golds))
    if sampling.gold != "none":
        forced = min(len(golds), 1 if sampling.gold == "one" else sampling.passages - 1)
        assert sample.positive.tolist() == [True] * forced + [False] * (len(positions) - forced), "golds first, no others"
    ranking = np.argsort(-scores, kind="stable").tolist()
    candidates = ranking if sampling.gold == "none" else [each for each in ranking if each not in golds]
    best = [each for each in ranking[: sampling.top] if each in candidates]
    free = sampling.passages - (sample.positive.sum() if sampling.gold != "none" else 0)
    assert set(best[:free]) <= set(positions), "the best ones are always taken"
    others = [each for each in liked.tolist() if each in candidates and each not in best]
    assert set(others[: max(0, min(sampling.student_top, free - len(best)))]) <= set(positions), "and the student's"
    if sampling.policy.NAME != "window":
        assert len(positions) == min(sampling.passages, len(candidates) + sampling.passages - free)
    assert np.all(sample.log_weight >= 0)
    assert np.all(np.isfinite(sample.log_weight))
    if sampling.policy.NAME != "importance":
        assert not sample.log_weight.any()
    assert draw(scores, golds, sampling, seed, epoch, "q", liked).positions.tolist() == positions
    without = sampling.model_copy(update={"student_top": 0})
    plain = draw(scores, golds, without, seed, epoch, "q").positions
    np.testing.assert_array_equal(draw(scores, golds, without, seed, epoch, "q", liked).positions, plain)


@given(size=st.integers(1, 60), passages=st.integers(1, 20), first=st.integers(1, 30), more=st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_a_window_is_widened_upwards_only_when_it_holds_too_few(size: int, passages: int, first: int, more: int) -> None:
    scores = np.linspace(5, 0, size, dtype=np.float32)
    sampling = SamplingConfig(passages=passages, policy=f"window(first={first}, last={first + more})")
    ranks = draw(scores, NO_GOLD, sampling, 0, 0, "q").positions + 1
    reachable = min(size, first + more)
    assert len(ranks) == min(passages, reachable)
    assert ranks.max() <= reachable
    assert ranks.min() >= min(first, reachable - len(ranks) + 1)


def test_draws_differ_between_epochs_queries_and_seeds() -> None:
    scores = np.linspace(5, 0, 500, dtype=np.float32)
    for policy in ("window(last=400)", "uniform", "quantiles", "importance"):
        sampling = SamplingConfig(passages=17, policy=policy)
        draws = {
            tuple(draw(scores, NO_GOLD, sampling, seed, epoch, query).positions.tolist())
            for seed in (0, 1)
            for epoch in (0, 1)
            for query in ("a", "b")
        }
        assert len(draws) == 8, policy


def visits(scores: np.ndarray, golds: list[int], sampling: SamplingConfig, number: int) -> list[Sample]:
    return [draw(scores, np.asarray(golds, dtype=np.int64), sampling, 0, epoch, "q") for epoch in range(number)]


def test_uniform_draws_reach_the_whole_window_and_nothing_else() -> None:
    scores = np.linspace(5, 0, 100, dtype=np.float32)
    samples = visits(scores, [], SamplingConfig(passages=9, policy="window(first=11, last=40)"), 200)
    assert {position for sample in samples for position in sample.positions.tolist()} == set(range(10, 40))


def test_one_gold_is_drawn_anew_at_each_visit_and_all_golds_come_together() -> None:
    scores = np.linspace(5, 0, 40, dtype=np.float32)
    one = visits(scores, [3, 20, 30], SamplingConfig(passages=5, policy="uniform"), 60)
    assert {int(sample.positions[0]) for sample in one} == {3, 20, 30}
    together = visits(scores, [3, 20, 30], SamplingConfig(passages=5, policy="uniform", gold="all"), 3)
    assert all(sample.positions[:3].tolist() == [3, 20, 30] for sample in together)
    cut = visits(scores, [3, 20, 30], SamplingConfig(passages=3, policy="uniform", gold="all"), 60)
    assert all(sample.positive.tolist() == [True, True, False] for sample in cut), "one place is kept for another passage"


def test_without_a_gold_policy_golds_are_drawn_and_marked_like_any_other() -> None:
    scores = np.linspace(5, 0, 10, dtype=np.float32)
    samples = visits(scores, [3], SamplingConfig(passages=5, policy="uniform", gold="none"), 400)
    share = np.mean([sample.positive.any() for sample in samples])
    assert share == pytest.approx(0.5, abs=0.1)  # 4 standard errors


def test_stratified_draws_mirror_the_scores_closer_than_uniform_ones() -> None:
    scores = np.sort(np.random.default_rng(0).gamma(1.0, 2.0, 400).astype(np.float32))[::-1].copy()

    def spread(policy: str) -> float:
        samples = visits(scores, [], SamplingConfig(passages=16, policy=policy), 200)
        return float(np.std([scores[sample.positions].mean() for sample in samples]))

    uniform, mass = spread("uniform"), spread("quantiles(bins=15)")
    assert mass < uniform / 2
    for sample in visits(scores, [], SamplingConfig(passages=17, policy="quantiles"), 20):
        per_bin = np.histogram(sample.positions, bins=np.linspace(0, 400, 9))[0]
        assert sorted(per_bin.tolist()) == [2] * 7 + [3], "the odd place goes to a bin at random"
    wide = visits(scores, [], SamplingConfig(passages=17, policy="quantiles(bins=4, edges=width)"), 20)
    edges = np.linspace(scores[-1], scores[0], 5)
    for sample in wide:
        sizes, taken = np.histogram(scores, edges)[0], np.histogram(scores[sample.positions], edges)[0]
        assert np.all(taken >= np.minimum(sizes, 4)), "few high scores are taken whole"


@given(sizes=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40), data=st.data())
@settings(max_examples=200, deadline=None)
def test_inclusion_probabilities_add_up_and_keep_proportions_below_certainty(
    sizes: list[float], data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, len(sizes)))
    values = np.asarray(sizes)
    probability = inclusion_probabilities(values, number)
    assert probability.sum() == pytest.approx(number, abs=1e-6)
    assert np.all((probability > 0) & (probability <= 1))
    open_units = probability < 1
    ratio = probability[open_units] / values[open_units]
    assert np.allclose(ratio, ratio[:1], rtol=1e-9)
    if open_units.any() and not open_units.all():
        assert values[~open_units].min() * ratio[0] >= 1 - 1e-6, "only those that would exceed 1 are certain"
    drawn = systematic_sample(probability, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == len(drawn) == number


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def kld(teacher: np.ndarray, student: np.ndarray, log_weight: np.ndarray | float) -> float:
    """KL(p || q) with the correction added to both sides' logits, float64."""
    p, q = softmax(teacher + log_weight), softmax(student + log_weight)
    return float(np.sum(p * (np.log(p) - np.log(q))))


@pytest.fixture(scope="module")
def full_list() -> tuple[np.ndarray, np.ndarray]:
    """Teacher and student scores of 400 candidates."""
    random = np.random.default_rng(5)
    teacher = random.gamma(2.0, 1.2, 400).astype(np.float32)
    return teacher, (0.6 * teacher + random.normal(0, 1, 400)).astype(np.float32)


def test_importance_sums_are_unbiased(full_list: tuple[np.ndarray, np.ndarray]) -> None:
    teacher, student = full_list
    samples = visits(teacher, [], SamplingConfig(passages=24, top=4, policy="importance(tau=1)"), 4000)
    for values in (np.exp(teacher.astype(np.float64)), student.astype(np.float64), np.ones(400)):
        estimates = [np.sum(values[each.positions] * np.exp(each.log_weight.astype(np.float64))) for each in samples]
        error = np.std(estimates) / np.sqrt(len(estimates))
        assert abs(np.mean(estimates) - values.sum()) < 4 * error + 1e-6 * abs(values.sum())
    taken = np.bincount(np.concatenate([each.positions for each in samples]), minlength=400) / len(samples)
    weight = {int(p): float(w) for each in samples for p, w in zip(each.positions, each.log_weight, strict=True)}
    expected = np.asarray([np.exp(-weight.get(position, np.inf)) for position in range(400)])
    assert np.max(np.abs(taken - expected)) < 4 * np.sqrt(0.25 / len(samples))


def test_the_corrected_divergence_and_its_gradient_are_those_of_all_candidates_ever_closer(
    full_list: tuple[np.ndarray, np.ndarray],
) -> None:
    teacher, student = full_list[0].astype(np.float64), full_list[1].astype(np.float64)
    exact, slope = kld(teacher, student, 0.0), softmax(student) - softmax(teacher)
    off: dict[str, dict[int, float]] = {"corrected": {}, "uncorrected": {}}
    tilted: dict[str, dict[int, float]] = {"corrected": {}, "uncorrected": {}}
    for passages in (16, 48, 144):
        samples = visits(full_list[0], [], SamplingConfig(passages=passages, policy="importance(tau=1)"), 600)
        for name, share in (("corrected", 1.0), ("uncorrected", 0.0)):
            values, gradient = [], np.zeros(len(teacher))
            for each in samples:
                t, s, log_weight = teacher[each.positions], student[each.positions], share * each.log_weight
                values.append(kld(t, s, log_weight))
                gradient[each.positions] += (softmax(s + log_weight) - softmax(t + log_weight)) / len(samples)
            off[name][passages] = abs(float(np.mean(values)) - exact) / exact
            tilted[name][passages] = float(np.linalg.norm(gradient - slope) / np.linalg.norm(slope))
    print(f"relative error of the mean KLD, by passages: {off}; of its mean gradient: {tilted}")
    for error, largest in ((off["corrected"], 0.01), (tilted["corrected"], 0.05)):
        assert error[16] > error[48] > error[144]
        assert error[144] < largest
    assert all(off["corrected"][passages] < 0.1 * off["uncorrected"][passages] for passages in (48, 144))
    assert all(tilted["corrected"][passages] < 0.1 * tilted["uncorrected"][passages] for passages in (16, 48, 144))


def test_policies_without_parameters_have_identities_of_their_own() -> None:
    texts = ["window(first=2, last=9)", "uniform", "top", "quantiles", "importance(tau=2)"]
    configs = [SamplingConfig(policy=text) for text in texts]
    assert len({str(result_fields(config)) for config in configs}) == len(texts)
    for text, config in zip(texts, configs, strict=True):
        assert config.model_dump(mode="json")["policy"] == text
        assert SamplingConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"top": 17}, r"top \(17\) must be smaller than passages \(17\)"),
        ({"passages": 1, "gold": "all"}, "gold: all needs passages of at least 2"),
        ({"passages": 8, "policy": "quantiles"}, "more bins than places to fill"),
        ({"policy": "window(first=9, last=3)"}, r"first \(9\) must be at least 1 and not exceed last \(3\)"),
        ({"policy": "importance(tau=0)"}, "tau is 0; it must be > 0"),
        ({"policy": "importance(uniform=0)"}, "never be drawn"),
        ({"policy": "windw"}, "did you mean 'window'"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SamplingConfig(**fields)  # type: ignore[arg-type]
