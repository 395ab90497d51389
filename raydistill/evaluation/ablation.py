"""What each teacher is worth, and which combination of them: every way to rank the mined candidates, measured.

The candidates of a query hold the exact score of every teacher for everything that any of them retrieves, so each teacher
alone ranks exactly as its own search does, and a combination ranks the union. What no teacher has among its own top
`score.top_k` is not ranked; deeper than the measures look, that changes nothing.

Pure: candidates are read from their artifact, nothing is searched. Systems, in this order:

    X                   each teacher alone
    mean … feedback     each combination of all (`teachers.combine`); feedback goes by the scores' margin
    mean without X      all but one, where there are more than two
    best by gold        for every query the teacher whose ranking is best by the judgements: what a perfect choice would
                        give, not something that can be had without them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from raydistill.config import EvaluateConfig
from raydistill.errors import DataError
from raydistill.evaluation import page
from raydistill.evaluation.measures import Scores, score_run
from raydistill.evaluation.plots import Bar, bar_chart
from raydistill.evaluation.runs import Qrels, Run
from raydistill.evaluation.significance import compare, holm, mean_interval
from raydistill.index.candidates import candidate_scores
from raydistill.index.lookup import find_passages, passage_names
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.combine import COMBINATIONS, Combiner

Kind = Literal["teacher", "combination", "left out", "bound"]
BY_GOLD = "best by gold"
_Ranking = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]
"""(scores [T, C], relevant [C]) -> one score a candidate, NaN where it has none."""
_Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Passage numbers, best first, and their scores."""


@dataclass(frozen=True)
class AblationRow:
    """One way to rank.

    Attributes:
        name, kind: see the module.
        measures: name -> {mean, low, high}.
        against_best: name -> {difference {mean, low, high}, p_value, wins, losses, p_holm} against the teacher that is best
            on that measure; empty for it itself.
    """

    name: str
    kind: Kind
    measures: Mapping[str, Mapping[str, float]]
    against_best: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Ablation:
    """All of them: `queries` judged turns were ranked, `best` is the best single teacher by measure."""

    queries: int
    measures: tuple[str, ...]
    best: Mapping[str, str]
    rows: tuple[AblationRow, ...]


def ablation(candidates: Artifact, index: IndexVersion, qrels: Qrels, config: EvaluateConfig) -> Ablation:
    """Measure every ranking of a candidates artifact on its judged turns.

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
    scores_of = {run.name: score_run(run, judged, config.measures) for run in _runs(best_passages, index)}
    best = {measure: max(teachers, key=lambda name: scores_of[name].means()[measure]) for measure in config.measures}
    rows = _rows(systems, scores_of, best, config)
    return Ablation(len(judged), tuple(config.measures), best, rows)


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


def _rows(
    systems: Sequence[tuple[str, Kind, _Ranking]],
    scores: Mapping[str, Scores],
    best: Mapping[str, str],
    config: EvaluateConfig,
) -> tuple[AblationRow, ...]:
    against: dict[str, dict[str, dict[str, Any]]] = {name: {} for name, _, _ in systems}
    for measure in config.measures:
        values = scores[best[measure]].of(measure)
        others = [name for name, _, _ in systems if name != best[measure]]
        found = [compare(scores[name].of(measure), values, config.bootstrap_samples, config.seed) for name in others]
        for name, each, p_holm in zip(others, found, holm([each.p_value for each in found]), strict=True):
            against[name][measure] = {**asdict(each), "p_holm": p_holm}
    return tuple(
        AblationRow(
            name,
            kind,
            {
                measure: asdict(mean_interval(scores[name].of(measure), config.bootstrap_samples, config.seed))
                for measure in config.measures
            },
            against[name],
        )
        for name, kind, _ in systems
    )


def ablation_json(found: Ablation, origin: Mapping[str, Any]) -> bytes:
    """Return everything as readable JSON, with what it was measured on."""
    return (json.dumps({**origin, **asdict(found)}, indent=1, ensure_ascii=False) + "\n").encode()


def console_table(found: Ablation) -> Table:
    """Return the means as a table for a terminal; a star marks p < .05 against the best teacher after correction."""
    table = Table(
        title=f"{found.queries} judged turns; * differs from the best teacher (p < .05, corrected for all rows)",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("ranking", overflow="fold")
    for measure in found.measures:
        table.add_column(measure, justify="right")
    for before, row in zip((None, *found.rows), found.rows, strict=False):
        if before is not None and before.kind != row.kind:
            table.add_section()
        table.add_row(row.name, *(_cell(row, measure) for measure in found.measures))
    return table


def _cell(row: AblationRow, measure: str) -> str:
    star = "*" if row.against_best.get(measure, {}).get("p_holm", 1.0) < 0.05 else " "
    return f"{row.measures[measure]['mean']:.3f}{star}"


def ablation_page(found: Ablation, title: str) -> bytes:
    """Return one self-contained HTML page: a chart a measure, and the table with intervals."""
    colours: dict[Kind, int] = {"teacher": 0, "combination": 1, "left out": 2, "bound": 3}
    charts = []
    for measure in found.measures:
        bars = [
            Bar(row.name, row.measures[measure]["mean"], _cell(row, measure), colours[row.kind], row.kind == "bound")
            for row in found.rows
        ]
        charts.append(page.figure(measure, f"Best teacher: {found.best[measure]}.", bar_chart(measure, bars)))
    rows = []
    for row in found.rows:
        cells = []
        for measure in found.measures:
            value = row.measures[measure]
            cells.append(page.cell(_cell(row, measure), f"[{value['low']:.3f}, {value['high']:.3f}]"))
        rows.append(page.row(row.name, cells))
    text = (
        f"{found.queries} judged turns. Intervals are 95 % bootstrap intervals over turns; * marks a difference from the "
        "best single teacher with p < .05 (paired randomisation test, Holm-corrected over all rows). The best teacher is "
        f"chosen on these very turns. {BY_GOLD}: for every turn the ranking that the judgements like best, a bound for any "
        "choice."
    )
    body = page.section(title, page.grid(charts), page.table(["ranking", *found.measures], rows), text=text)
    return page.page(f"{title} · raydistill", body).encode()
