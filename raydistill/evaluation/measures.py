"""Effectiveness of a run: any measure of ir_measures, a value for every judged query, means overall and by turn depth.

Nothing is skipped in silence: a judged query that the run says nothing about counts 0 and is listed, so a lost shard
lowers a mean and never raises it. Ties in score are ordered as trec_eval orders them (by passage id, descending).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from numpy.typing import NDArray

from raydistill.errors import DataError
from raydistill.evaluation.runs import Qrels, Run


@dataclass(frozen=True)
class Scores:
    """Per-query effectiveness of one run.

    Attributes:
        measures: names, M of them.
        query_ids: every judged query, in the order of the qrels, Q of them.
        values: float64 [Q, M].
        missing: judged queries without a single retrieved passage, counted as 0.
    """

    measures: tuple[str, ...]
    query_ids: tuple[str, ...]
    values: NDArray[np.float64]
    missing: tuple[str, ...]

    def means(self) -> dict[str, float]:
        """Return the mean of every measure over all judged queries."""
        return dict(zip(self.measures, self.values.mean(axis=0).tolist(), strict=True))

    def of(self, measure: str) -> NDArray[np.float64]:
        """Return the per-query values of one measure, float64 [Q]."""
        return self.values[:, self.measures.index(measure)]


@dataclass(frozen=True)
class DepthBin:
    """Neighbouring turn depths reported together: first and last depth, both included, and the rows that fall in."""

    first: int
    last: int
    rows: NDArray[np.int64]

    @property
    def label(self) -> str:
        """The depth, or the range of depths."""
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


def score_run(run: Run, qrels: Qrels, measures: Sequence[str]) -> Scores:
    """Return the value of every measure for every judged query (every key of `qrels`).

    Args:
        run: passages of queries outside the qrels are ignored.
        qrels: query id -> passage id -> grade.
        measures: ir_measures names, such as nDCG@10, R@100, RR, R(rel=2)@10.

    Raises:
        DataError: the qrels are empty.
        ValueError: an unknown measure name.
    """
    if not qrels:
        raise DataError("there is no judged query to measure; check that the qrels and the conversations belong together")
    parsed = [ir_measures.parse_measure(name) for name in measures]
    query_ids = tuple(qrels)
    row_of = {query_id: row for row, query_id in enumerate(query_ids)}
    column_of = {str(measure): column for column, measure in enumerate(parsed)}
    values = np.zeros((len(query_ids), len(parsed)), dtype=np.float64)
    judged_run = {query_id: run.scores(query_id) for query_id in query_ids if run.rankings.get(query_id)}
    if judged_run:
        grades = {query_id: dict(passages) for query_id, passages in qrels.items()}
        for metric in ir_measures.iter_calc(list(dict.fromkeys(parsed)), grades, judged_run):
            values[row_of[metric.query_id], column_of[str(metric.measure)]] = metric.value
    # A measure asked for twice (nDCG@10 and ndcg@10) was computed once: copy its column.
    values = values[:, [column_of[str(measure)] for measure in parsed]]
    missing = tuple(query_id for query_id in query_ids if query_id not in judged_run)
    return Scores(tuple(measures), query_ids, values, missing)


def judged_share(run: Run, qrels: Qrels, depth: int) -> float:
    """Return the share of the passages in the top `depth`, over all judged queries, that have a judgement.

    A low share says that the measures underrate a system whose results the annotators never saw. Judged@k of ir_measures,
    but weighted by what was retrieved, so that missing queries do not enter; 0 when nothing was retrieved.
    """
    retrieved = judged = 0
    for query_id, grades in qrels.items():
        top = run.top(query_id, depth)
        retrieved += len(top)
        judged += sum(passage_id in grades for passage_id in top)
    return judged / retrieved if retrieved else 0.0


def depth_bins(depths: Sequence[int], minimum: int = 5) -> list[DepthBin]:
    """Return turn depths in ascending order, neighbours merged until each bin holds at least `minimum` queries.

    The last bin takes a remainder that is too small to stand alone. Rows are positions in `depths`.
    """
    array = np.asarray(depths, dtype=np.int64)
    groups: list[list[int]] = []
    held = minimum
    for depth in sorted(set(array.tolist())):
        if held >= minimum:
            groups.append([])
            held = 0
        groups[-1].append(depth)
        held += int(np.count_nonzero(array == depth))
    if len(groups) > 1 and held < minimum:
        groups[-2].extend(groups.pop())
    return [DepthBin(group[0], group[-1], np.flatnonzero((array >= group[0]) & (array <= group[-1]))) for group in groups]


def means_by_depth(values: NDArray[np.float64], bins: Sequence[DepthBin]) -> NDArray[np.float64]:
    """Return the mean over the rows of each bin: float64 [Q] -> [bins], or [Q, M] -> [bins, M]."""
    return np.stack([values[found.rows].mean(axis=0) for found in bins])


def top_overlap(first: Run, second: Run, query_ids: Sequence[str], depth: int = 10) -> float:
    """Return the mean over queries of |A ∩ B| / depth, A and B being the two top `depth` sets; empty sets share 0."""
    shared = [len(set(first.top(query, depth)) & set(second.top(query, depth))) for query in query_ids]
    return float(np.mean(shared)) / depth if shared else 0.0


def turn_depths(query_ids: Sequence[str], depth_of: Mapping[str, int]) -> list[int]:
    """Return the turn depth of every query; DataError names a judged query that is in no conversation."""
    unknown = [query_id for query_id in query_ids if query_id not in depth_of]
    if unknown:
        raise DataError(
            f"{len(unknown)} judged queries are in no conversation, the first is {unknown[0]!r}; check that the qrels and "
            "the conversations belong together"
        )
    return [depth_of[query_id] for query_id in query_ids]
