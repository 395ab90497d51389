"""What each teacher is worth, and which combination of them: every way to rank the mined candidates, measured.

The candidates of a query hold the exact score of every teacher for everything that any of them retrieves, so each teacher
alone ranks exactly as its own search does, and a combination ranks the union. What no teacher has among its own top
`score.top_k` is not ranked; deeper than the measures look, that changes nothing.

A scorer alone ranks only what it read; and a combination leaves out what one of its members did not score, so with scorers
look at measures no deeper than they read.

Pure: candidates are read from their artifact, nothing is searched. Memory: systems x judged turns x depth x 12 bytes (20,
2,500 and 100: 60 MB). Systems, in this order:

    X                   each teacher alone
    mean … feedback     each combination of all (`teachers.combine`); feedback goes by the scores' margin
    mean without X      all but one, where there are more than two
    best by gold        for every query the teacher whose ranking is best by the judgements: what a perfect choice would
                        give, not something that can be had without them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.config import EvaluateConfig
from raydistill.errors import DataError
from raydistill.evaluation.comparison import ComparedRuns, compare_runs
from raydistill.evaluation.measures import Scores
from raydistill.evaluation.runs import Qrels, Run
from raydistill.index.candidates import candidate_scores
from raydistill.index.lookup import find_passages, passage_names
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.combine import COMBINATIONS, Combiner

Kind = Literal["teacher", "combination", "left out", "bound"]
BY_GOLD = "best by gold"
EXPLAINED = (
    "The baseline is the single teacher that is best on these very turns. best by gold: for every turn the ranking that the "
    "judgements like best, a bound for any choice."
)
_Ranking = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]
"""(scores [T, C], relevant [C]) -> one score a candidate, NaN where it has none."""
_Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Passage numbers, best first, and their scores."""


def ablation(candidates: Artifact, index: IndexVersion, qrels: Qrels, config: EvaluateConfig) -> ComparedRuns:
    """Measure every ranking of a candidates artifact on its judged turns, each tested against the best single teacher.

    Args:
        candidates: what mining made of the turns.
        index: the version it was mined from.
        qrels: query id -> passage id -> grade; judged turns that are not among the candidates count 0.
        config: measures, samples and seed count.

    Raises DataError when no turn of the candidates is judged.
    """
    teachers = list(candidates.manifest().metadata["teachers"])
    systems = _systems(teachers)
    judged = {query_id: grades for query_id, grades in qrels.items() if grades}
    numbers = _numbers(index, judged)
    best_passages: dict[str, dict[str, _Ranked]] = {name: {} for name, _, _ in systems}
    for part in candidates.manifest().parts:
        table = pq.read_table(candidates.fetch(part), columns=["query_id", "passages", "scores"])
        for row, query_id in enumerate(table.column("query_id").to_pylist()):
            if query_id not in judged:
                continue
            passages, scores = candidate_scores(table, row)
            wanted = [numbers[passage] for passage, grade in judged[query_id].items() if grade > 0]
            relevant = np.isin(passages, wanted)
            for name, _, ranking in systems:
                best_passages[name][query_id] = _ranked(passages, ranking(scores, relevant), config.depth)
    if not best_passages[teachers[0]]:
        raise DataError(f"none of the turns in {candidates.uri} is judged; check that the qrels belong to them")
    kinds = {name: kind for name, kind, _ in systems}

    def best_teacher(measure: str, scores: Mapping[str, Scores]) -> str:
        return max(teachers, key=lambda name: scores[name].means()[measure])

    return compare_runs(list(_runs(best_passages, index)), judged, config, best_teacher, kinds)


def _systems(teachers: Sequence[str]) -> list[tuple[str, Kind, _Ranking]]:
    systems: list[tuple[str, Kind, _Ranking]] = [(name, "teacher", _alone(row)) for row, name in enumerate(teachers)]
    if len(teachers) == 1:
        return systems
    systems += [(how, "combination", _without_gold(Combiner(how))) for how in COMBINATIONS]
    if len(teachers) > 2:
        systems += [(f"mean without {name}", "left out", _all_but(row)) for row, name in enumerate(teachers)]
    return [*systems, (BY_GOLD, "bound", Combiner("feedback"))]


def _alone(row: int) -> _Ranking:
    return lambda scores, _: scores[row]


def _all_but(row: int) -> _Ranking:
    return lambda scores, _: Combiner()(np.delete(scores, row, axis=0))


def _without_gold(combiner: Combiner) -> _Ranking:
    return lambda scores, _: combiner(scores)


def _numbers(index: IndexVersion, judged: Qrels) -> dict[str, int]:
    passages = sorted({passage for grades in judged.values() for passage in grades})
    return dict(zip(passages, find_passages(index, passages).tolist(), strict=True))


def _ranked(passages: NDArray[np.int64], scores: NDArray[np.float32], depth: int) -> _Ranked:
    """Return the best `depth` candidates and their scores; equal ones in the order of their numbers, as search has them."""
    kept = np.flatnonzero(~np.isnan(scores))
    order = kept[np.argsort(-scores[kept], kind="stable")][:depth]
    return passages[order], scores[order]


def _runs(best_passages: Mapping[str, Mapping[str, _Ranked]], index: IndexVersion) -> Iterator[Run]:
    found = [passages for of_query in best_passages.values() for passages, _ in of_query.values()]
    numbers = np.unique(np.concatenate(found))
    names = np.array(passage_names(index, numbers), dtype=object)
    for system, of_query in best_passages.items():
        rankings = {
            query_id: tuple(zip(names[np.searchsorted(numbers, passages)].tolist(), scores.tolist(), strict=True))
            for query_id, (passages, scores) in of_query.items()
        }
        yield Run(system, rankings)
