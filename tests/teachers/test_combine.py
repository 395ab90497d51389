"""Several teachers' scores become one without favouring passages that only some of them scored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raydistill.teachers.combine import Combination, combine

NAN = np.nan
HOWS: list[Combination] = ["mean", "max", "min", "zscore_mean"]
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


def test_an_unknown_combination_is_refused() -> None:
    with pytest.raises(ValueError, match="no combination 'median'"):
        combine(np.ones((1, 1)), "median")  # type: ignore[arg-type]
