"""Several teachers' scores become one without favouring passages that only some of them scored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raydistill.config import WEIGHTED_COMBINATIONS, Combination
from raydistill.teachers.combine import COMBINATIONS, Combiner, combine

NAN = np.nan
HOWS: list[Combination] = list(COMBINATIONS)
SCORES = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(-100, 100, width=32)
)


def test_simple_combinations() -> None:
    scores = np.array([[1.0, 4.0, 2.0], [3.0, 0.0, 2.0]], dtype=np.float32)
    assert combine(scores, "mean").tolist() == [2, 2, 2]
    assert combine(scores, "max").tolist() == [3, 4, 2]
    assert combine(scores, "min").tolist() == [1, 0, 2]
    assert combine(scores, "mean").dtype == np.float32


def test_z_scores_give_teachers_of_different_scale_equal_weight() -> None:
    small, large = [1.0, 2.0, 3.0], [3000.0, 2000.0, 1000.0]
    assert combine(np.array([small, large]), "zscore_mean") == pytest.approx([0, 0, 0])
    alone = combine(np.array([small]), "zscore_mean")
    assert alone == pytest.approx([-np.sqrt(1.5), 0, np.sqrt(1.5)])


@pytest.mark.parametrize("how", HOWS)
def test_a_teacher_absent_for_the_query_leaves_the_result_to_the_others(how: Combination) -> None:
    present = np.array([[1.0, 4.0, 2.0], [3.0, 0.0, 5.0]])
    with_absent = np.vstack([present[:1], np.full((1, 3), NAN), present[1:]])
    assert combine(with_absent, how) == pytest.approx(combine(present, how))


@pytest.mark.parametrize("how", HOWS)
def test_a_passage_that_a_present_teacher_did_not_score_is_absent_and_moves_no_other(how: Combination) -> None:
    scores = np.array([[1.0, 4.0, 900.0], [3.0, 0.0, NAN]])
    combined = combine(scores, how)
    assert np.isnan(combined).tolist() == [False, False, True]
    assert combined[:2] == pytest.approx(combine(scores[:, :2], how))


@pytest.mark.parametrize("how", HOWS)
def test_without_any_teacher_all_is_absent(how: Combination) -> None:
    assert np.isnan(combine(np.full((2, 3), NAN), how)).all()


@pytest.mark.parametrize("how", HOWS)
def test_queries_of_a_batch_are_combined_apart(how: Combination) -> None:
    generator = np.random.default_rng(0)
    batch = generator.normal(size=(4, 3, 6))
    batch[1, 2] = NAN
    batch[2, 0, 3] = NAN
    np.testing.assert_allclose(combine(batch, how), np.stack([combine(one, how) for one in batch]))


@given(SCORES, st.sampled_from(HOWS), st.randoms())
def test_the_order_of_teachers_does_not_matter(scores: np.ndarray, how: Combination, random: object) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(combine(scores[order], how), combine(scores, how), atol=1e-9)


@given(SCORES, st.floats(0.5, 20), st.floats(-50, 50))
def test_z_scores_ignore_a_teachers_scale_and_origin(scores: np.ndarray, scale: float, shift: float) -> None:
    spread = scores.std(axis=1)
    if ((spread > 0) & (spread < 1e-3)).any():
        return  # a spread near rounding cannot survive a shift
    np.testing.assert_allclose(combine(scores * scale + shift, "zscore_mean"), combine(scores, "zscore_mean"), atol=1e-5)


def test_ranges_and_ranks() -> None:
    scores = np.array([[1.0, 4.0, 2.0, 2.0], [300.0, 0.0, 200.0, 100.0]])
    assert combine(scores, "minmax_mean") == pytest.approx([0.5, 0.5, (1 / 3 + 2 / 3) / 2, (1 / 3 + 1 / 3) / 2])
    # Ranks 4, 1, 2.5, 2.5 and 1, 4, 2, 3.
    expected = [(61 / 64 + 1) / 2, (1 + 61 / 64) / 2, (61 / 62.5 + 61 / 62) / 2, (61 / 62.5 + 61 / 63) / 2]
    assert combine(scores, "rank_fusion") == pytest.approx(expected)


def test_weights_move_means_towards_a_teacher() -> None:
    scores = np.array([[1.0, 4.0, 2.0], [3.0, 0.0, 2.0], [9.0, 9.0, 0.0]])
    assert combine(scores, "mean", [3, 1, 0]) == pytest.approx([1.5, 3, 2])
    scores[0] = NAN
    assert combine(scores, "mean", [3, 1, 0]) == pytest.approx([3, 0, 2])
    scores[1] = NAN  # who is left weighs nothing, and is still all that is known
    assert combine(scores, "mean", [3, 1, 0]) == pytest.approx([9, 9, 0])


@pytest.mark.parametrize("how", WEIGHTED_COMBINATIONS)
def test_a_teacher_that_weighs_nothing_might_as_well_be_absent(how: Combination) -> None:
    scores = np.random.default_rng(0).normal(size=(3, 7)) + np.arange(7)
    alone = scores.copy()
    alone[2] = NAN
    weighted = combine(scores, how, [1, 1, 0])
    assert weighted == pytest.approx(combine(alone, how))
    scores[2, 3] = NAN  # nor does what it lacks make others absent
    assert combine(scores, how, [1, 1, 0]) == pytest.approx(weighted)


@pytest.mark.parametrize("how", WEIGHTED_COMBINATIONS)
def test_equal_weights_change_nothing(how: Combination) -> None:
    scores = np.random.default_rng(1).normal(size=(2, 3, 6))
    np.testing.assert_allclose(combine(scores, how, [2, 2, 2]), combine(scores, how))


def test_whoever_agrees_with_nobody_is_not_heard() -> None:
    scores = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 9.0], [4.0, 3.0, 2.0, 1.0]])
    assert combine(scores, "agreement") == pytest.approx(combine(scores[:2], "agreement"))
    opposed = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert combine(opposed, "agreement") == pytest.approx([0, 0])
    assert combine(scores[:1], "agreement") == pytest.approx(combine(scores[:1], "zscore_mean"))


def test_feedback_takes_the_ranking_that_finds_the_gold_passage() -> None:
    scores = np.zeros((2, 30))
    scores[0, :12] = np.arange(12, 0, -1)  # the more confident one
    scores[1] = np.arange(30)
    relevant = np.zeros(30, dtype=bool)
    assert combine(scores, "feedback", relevant=relevant) == pytest.approx(scores[0])
    relevant[29] = True
    assert combine(scores, "feedback", relevant=relevant) == pytest.approx(scores[1])
    assert combine(scores[None], "feedback", relevant=relevant[None])[0] == pytest.approx(scores[1])
    assert combine(scores, "feedback") == pytest.approx(scores[0])
    relevant[29], relevant[0] = False, True
    scores[1] = scores[0] * 2
    assert combine(scores, "feedback", relevant=relevant) == pytest.approx(scores.mean(axis=0))


def test_a_combiner_shows_gold_only_to_feedback() -> None:
    scores = np.random.default_rng(2).normal(size=(3, 40))
    relevant = np.arange(40) == 3
    assert Combiner("feedback").needs_relevant
    assert not Combiner("mean").needs_relevant
    np.testing.assert_array_equal(Combiner("feedback")(scores, relevant), combine(scores, "feedback", relevant=relevant))
    np.testing.assert_array_equal(Combiner("mean", (1, 2, 3))(scores, relevant), combine(scores, "mean", [1, 2, 3]))


@pytest.mark.parametrize(
    ("how", "weights", "message"),
    [
        ("max", [1, 2], "takes no weights"),
        ("feedback", [1, 2], "takes no weights"),
        ("mean", [1], "2 finite numbers"),
        ("mean", [1, -1], "2 finite numbers"),
        ("mean", [1, NAN], "2 finite numbers"),
    ],
)
def test_weights_that_cannot_count_are_refused(how: Combination, weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine(np.ones((2, 3)), how, weights)


def test_an_unknown_combination_is_refused() -> None:
    with pytest.raises(ValueError, match="no combination 'median'"):
        combine(np.ones((1, 1)), "median")  # type: ignore[arg-type]
