"""The metrics of an evaluation say what the runs say."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from raydistill.evaluation.summary import Metrics, best_system, best_values, ordered_systems

Make = Callable[..., Metrics]


def test_means_intervals_and_depths_fit_together(make_metrics: Make) -> None:
    metrics = make_metrics()
    assert metrics["queries"] == 24
    for system in metrics["systems"]:
        for name, interval in system["measures"].items():
            assert interval["low"] <= interval["mean"] <= interval["high"]
            weighted = sum(at["queries"] * at["measures"][name]["mean"] for at in system["by_depth"]) / 24
            assert weighted == pytest.approx(interval["mean"])
        assert sum(at["queries"] for at in system["by_depth"]) == 24
        assert all(at["queries"] >= 5 for at in system["by_depth"])
        assert system["total_ms"]["p50"] >= max(system["encode_ms"]["p50"], system["search_ms"]["p50"])
        assert system["missing"] == []
        assert system["judged"] == pytest.approx(1 / 3)


def test_the_student_is_compared_with_every_other_system_and_measure(make_metrics: Make) -> None:
    metrics = make_metrics()
    pairs = {(each["system"], each["measure"]) for each in metrics["comparisons"]}
    others = {system["name"] for system in metrics["systems"]} - {"student"}
    assert pairs == {(system, measure) for system in others for measure in metrics["measures"]}
    means = {system["name"]: system["measures"] for system in metrics["systems"]}
    for each in metrics["comparisons"]:
        gap = means["student"][each["measure"]]["mean"] - means[each["system"]][each["measure"]]["mean"]
        assert each["difference"]["mean"] == pytest.approx(gap)
        assert each["p_holm"] >= each["p_value"]
    ahead = next(each for each in metrics["comparisons"] if (each["system"], each["measure"]) == ("last turn", "nDCG@3"))
    assert ahead["p_holm"] < 0.05
    assert ahead["wins"] > ahead["losses"]


def test_examples_are_where_student_and_best_teacher_differ(make_metrics: Make) -> None:
    metrics = make_metrics()
    examples = metrics["examples"]
    assert examples["teacher"] == best_system(metrics, "teacher")["name"]
    assert examples["best"]
    assert examples["worst"]
    for turn in examples["best"]:
        assert turn["student"] > turn["teacher"]
        assert (turn["student_rank"], turn["teacher_rank"]) == (1, 3)
        assert turn["rewrite"] == f"{examples['teacher']} on {turn['question']}"
    assert all(turn["student"] < turn["teacher"] for turn in examples["worst"])


def test_agreement_is_symmetric_and_complete_with_itself(make_metrics: Make) -> None:
    agreement = make_metrics()["teachers"]["agreement"]
    overlap = np.array(agreement["overlap"])
    assert agreement["names"] == ["mistral", "t5"]
    np.testing.assert_allclose(overlap, overlap.T)
    np.testing.assert_allclose(overlap, 0.3)  # the three passages both retrieve, of ten


def test_best_values_and_order(make_metrics: Make) -> None:
    metrics = make_metrics()
    assert best_values(metrics)["nDCG@3"] == max(system["measures"]["nDCG@3"]["mean"] for system in metrics["systems"])
    assert [system["role"] for system in ordered_systems(metrics)] == ["baseline"] * 2 + ["teacher"] * 2 + ["student"]


def test_an_evaluation_without_student_or_teachers(make_metrics: Make) -> None:
    metrics = make_metrics(roles=("baseline",))
    assert metrics["examples"] is None
    assert metrics["comparisons"] == []
    assert best_system(metrics, "teacher") is None


def test_metrics_are_json_and_the_same_each_time(make_metrics: Make) -> None:
    assert json.loads(json.dumps(make_metrics())) == make_metrics()
