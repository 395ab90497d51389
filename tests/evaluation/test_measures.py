"""Every judged query counts, whatever the run says about it; published scores are reproduced."""

from __future__ import annotations

import csv
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.errors import DataError
from raydistill.evaluation.measures import depth_bins, judged_share, means_by_depth, score_run, top_overlap, turn_depths
from raydistill.evaluation.runs import Run, read_run

QRELS = {"q1": {"a": 1}, "q2": {"b": 1, "c": 2}, "q3": {"d": 1}}
RUN = Run("r", {"q1": (("a", 2.0), ("x", 1.0)), "q2": (("x", 3.0), ("c", 2.0)), "q3": (("d", 1.0),), "other": (("a", 1.0),)})


def test_values_by_hand() -> None:
    scores = score_run(RUN, QRELS, ["RR", "R@2", "nDCG@2"])
    assert scores.query_ids == ("q1", "q2", "q3")
    ideal = 2.0 + 1.0 / math.log2(3)
    np.testing.assert_allclose(scores.values, [[1, 1, 1], [0.5, 0.5, 2 / math.log2(3) / ideal], [1, 1, 1]])
    assert scores.missing == ()


def test_a_lost_shard_lowers_the_mean_and_is_listed() -> None:
    whole = score_run(RUN, QRELS, ["RR"])
    lost = score_run(Run("r", {query: RUN.rankings[query] for query in ("q2",)}), QRELS, ["RR"])
    assert whole.means()["RR"] == pytest.approx(2.5 / 3)
    assert lost.means()["RR"] == pytest.approx(0.5 / 3)
    assert lost.missing == ("q1", "q3")
    empty = score_run(Run("r", {"q1": ()}), QRELS, ["RR", "nDCG@3"])
    assert empty.means() == {"RR": 0.0, "nDCG@3": 0.0}
    assert empty.missing == ("q1", "q2", "q3")


def test_a_query_without_relevant_passage_counts_as_zero() -> None:
    scores = score_run(RUN, {**QRELS, "other": {"a": 0}}, ["RR", "nDCG@2", "R@2"])
    assert scores.values[3].tolist() == [0.0, 0.0, 0.0]


def test_the_same_measure_under_two_names() -> None:
    scores = score_run(RUN, QRELS, ["nDCG@2", "NDCG@2", "RR"])
    np.testing.assert_array_equal(scores.of("nDCG@2"), scores.of("NDCG@2"))
    assert scores.of("nDCG@2").sum() > 0


def test_no_judgement_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="no judged query"):
        score_run(RUN, {}, ["RR"])


def test_judged_share_counts_what_was_retrieved() -> None:
    assert judged_share(RUN, QRELS, 10) == pytest.approx(3 / 5)
    assert judged_share(RUN, QRELS, 1) == pytest.approx(2 / 3)
    assert judged_share(Run("r", {}), QRELS, 10) == 0.0


@given(st.lists(st.integers(1, 15), min_size=1, max_size=80), st.integers(1, 12))
def test_depth_bins_partition_the_queries_in_order(depths: list[int], minimum: int) -> None:
    bins = depth_bins(depths, minimum)
    rows = np.concatenate([found.rows for found in bins])
    assert sorted(rows.tolist()) == list(range(len(depths)))
    assert all(len(found.rows) >= minimum for found in bins) or len(bins) == 1
    assert all(left.last < right.first for left, right in pairwise(bins))
    values = np.asarray(depths, dtype=np.float64)
    weighted = sum(mean * len(found.rows) for mean, found in zip(means_by_depth(values, bins), bins, strict=True))
    assert weighted == pytest.approx(values.sum())


def test_depth_labels() -> None:
    assert [found.label for found in depth_bins([1] * 5 + [2] * 5 + [3] * 3 + [4] * 3 + [9], 5)] == ["1", "2", "3–9"]


def test_turn_depths_name_a_query_without_conversation() -> None:
    assert turn_depths(["a"], {"a": 3}) == [3]
    with pytest.raises(DataError, match="the first is 'b'"):
        turn_depths(["a", "b"], {"a": 3})


def test_overlap_of_two_runs() -> None:
    other = Run("o", {"q1": (("a", 2.0), ("y", 1.0)), "q2": (("x", 3.0), ("c", 2.0))})
    assert top_overlap(RUN, other, ["q1", "q2", "q3"], 2) == pytest.approx((0.5 + 1.0 + 0.0) / 3)


def _published(path: Path) -> list[float]:
    with path.open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["collection"] == "all")
    return [float(value) for name in ("nDCG", "Recall") for value in json.loads(row[name])]


@pytest.mark.real_data
@pytest.mark.parametrize("collection", ["clapnq", "cloud"])
def test_published_scores_of_every_run_are_reproduced(shared_data: Path, collection: str) -> None:
    from raydistill.conversations.qrels import read_qrels

    folder = shared_data / "mtrag" / collection
    qrels = read_qrels(str(folder / "qrels.tsv"))
    measures = [f"{name}@{cutoff}" for name in ("nDCG", "R") for cutoff in (1, 3, 5, 10)]
    runs = sorted((folder / "runs").glob("*.trec"))
    assert len(runs) == 12
    for path in runs:
        scores = score_run(read_run(str(path)), qrels, measures)
        published = _published(path.with_suffix("").with_suffix(".published.csv"))
        np.testing.assert_allclose(list(scores.means().values()), published, rtol=0, atol=5.1e-6, err_msg=path.name)
