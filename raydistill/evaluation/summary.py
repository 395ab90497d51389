"""From what every system retrieved to the numbers of an evaluation: one JSON-able structure, `metrics.json`.

Pure: the Ray stage that retrieves is `evaluate`, the page that shows the numbers is `report`. The structure:

    format          2
    queries         judged turns measured; `left_out`: turns of the test conversations without judgement
    depth           passages retrieved a query; `samples`, `seed`, `confidence`: of the bootstrap
    measures        names; the first is the one that best and worst are chosen by
    systems         a list of {name, role, measures {name: {mean, low, high}}, judged, terms {mean, low, high},
                    flops {…}, postings {…} or null, encode_ms {p50, p99}, search_ms {…}, total_ms {…},
                    missing [query ids], by_depth [...]}
                    by_depth: {label, first, last, queries, measures {name: {mean, low, high}}, terms, flops}
    comparisons     student against each other system and measure: {system, measure, difference {mean, low, high},
                    p_value, p_holm (corrected over the systems of a measure), wins, losses}
    teachers        {rewrites {name: {rows, failures {kind: count}}}, agreement {names, overlap [T][T]}}
    slices          parts of the turns, see `slices`
    examples        {measure, teacher, best [...], worst [...]}: turns on which the student beats or loses to the best
                    teacher, with texts, or null without a student and a teacher
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raydistill.config import EvaluateConfig
from raydistill.conversations.records import ConversationalQuery
from raydistill.evaluation.measures import DepthBin, Scores, depth_bins, judged_share, score_run, top_overlap
from raydistill.evaluation.runs import Qrels, Run
from raydistill.evaluation.significance import compare, holm, mean_interval
from raydistill.evaluation.slices import slices

Role = Literal["baseline", "teacher", "student", "reranked"]
Metrics = dict[str, Any]

FORMAT_VERSION = 2
CONFIDENCE = 0.95
_EXAMPLES = 5
_AGREEMENT_DEPTH = 10


@dataclass(frozen=True)
class SystemResult:
    """What one system did with the judged queries, Q of them, all arrays in the order of the queries.

    Attributes:
        name, role: the system.
        run: what it retrieved.
        texts: the text that was encoded for each query.
        terms: int64 [Q], active terms of the query vector (L0).
        flops: float64 [Q], expected number of terms shared with a random passage (see `sparsity.query_flops`).
        postings: int64 [Q], entries of postings and of forward vectors that the search read; None where an engine does not
            tell. A second stage's are those of the first.
        cut: bool [Q], whether the text was longer than the student reads; None for other systems.
        encode_ms, search_ms: float64 [Q], wall time of the query alone, in milliseconds; a second stage's is in search_ms.
    """

    name: str
    role: Role
    run: Run
    texts: Sequence[str]
    terms: NDArray[np.int64]
    flops: NDArray[np.float64]
    postings: NDArray[np.int64] | None
    cut: NDArray[np.bool_] | None
    encode_ms: NDArray[np.float64]
    search_ms: NDArray[np.float64]


@dataclass(frozen=True)
class RewriteCounts:
    """How many rewrites a teacher made, and how many failed, by kind."""

    rows: int
    failures: Mapping[str, int]


def summarise(
    results: Sequence[SystemResult],
    queries: Sequence[ConversationalQuery],
    qrels: Qrels,
    config: EvaluateConfig,
    rewrites: Mapping[str, RewriteCounts],
    left_out: int = 0,
) -> tuple[Metrics, dict[str, Scores]]:
    """Return the metrics of an evaluation (module docstring) and the per-query scores by system.

    Args:
        results: one a system; at most one with the role "student".
        queries: the judged queries, in the order of the arrays of `results`.
        qrels: judgements of exactly these queries.
        config: measures, samples, seed.
        rewrites: counts by teacher.
        left_out: turns that were not measured because they have no judgement.
    """
    ordered = {query.query_id: qrels[query.query_id] for query in queries}
    bins = depth_bins([query.depth for query in queries])
    scores = {result.name: score_run(result.run, ordered, config.measures) for result in results}
    metrics: Metrics = {
        "format": FORMAT_VERSION,
        "queries": len(queries),
        "left_out": left_out,
        "depth": config.depth,
        "samples": config.bootstrap_samples,
        "seed": config.seed,
        "confidence": CONFIDENCE,
        "measures": list(config.measures),
        "systems": [_system(result, scores[result.name], ordered, bins, config) for result in results],
        "comparisons": _comparisons(results, scores, config),
        "slices": slices(queries, scores, next((each.cut for each in results if each.role == "student"), None)),
        "teachers": {
            "rewrites": {name: {"rows": each.rows, "failures": dict(each.failures)} for name, each in rewrites.items()},
            "agreement": _agreement(results, list(ordered)),
        },
        "examples": _examples(results, scores, queries, ordered, config.measures[0]),
    }
    return metrics, scores


def best_teacher(results: Sequence[SystemResult], scores: Mapping[str, Scores], measure: str) -> SystemResult | None:
    """Return the teacher with the highest mean, the first of equals; None without teachers."""
    teachers = [result for result in results if result.role == "teacher"]
    return max(teachers, key=lambda result: scores[result.name].means()[measure], default=None)


def _system(
    result: SystemResult, scores: Scores, qrels: Qrels, bins: Sequence[DepthBin], config: EvaluateConfig
) -> dict[str, Any]:
    return {
        "name": result.name,
        "role": result.role,
        "measures": {name: _interval(scores.of(name), config) for name in scores.measures},
        "judged": judged_share(result.run, qrels, _AGREEMENT_DEPTH),
        "terms": _interval(result.terms, config),
        "flops": _interval(result.flops, config),
        "postings": None if result.postings is None else _interval(result.postings, config),
        "encode_ms": _percentiles(result.encode_ms),
        "search_ms": _percentiles(result.search_ms),
        "total_ms": _percentiles(result.encode_ms + result.search_ms),
        "missing": list(scores.missing),
        "by_depth": [_at_depth(result, scores, found, config) for found in bins],
    }


def _at_depth(result: SystemResult, scores: Scores, found: DepthBin, config: EvaluateConfig) -> dict[str, Any]:
    return {
        "label": found.label,
        "first": found.first,
        "last": found.last,
        "queries": len(found.rows),
        "measures": {name: _interval(scores.of(name)[found.rows], config) for name in scores.measures},
        "terms": _interval(result.terms[found.rows], config),
        "flops": _interval(result.flops[found.rows], config),
    }


def _interval(values: NDArray[Any], config: EvaluateConfig) -> dict[str, float]:
    return asdict(mean_interval(values, config.bootstrap_samples, config.seed, CONFIDENCE))


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


def _comparisons(
    results: Sequence[SystemResult], scores: Mapping[str, Scores], config: EvaluateConfig
) -> list[dict[str, Any]]:
    students = [result.name for result in results if result.role == "student"]
    others = [result.name for result in results if result.role != "student"]
    rows = []
    for student in students:
        for measure in config.measures:
            values = scores[student].of(measure)
            found = [compare(values, scores[other].of(measure), config.bootstrap_samples, config.seed) for other in others]
            corrected = holm([each.p_value for each in found])
            for other, each, p_holm in zip(others, found, corrected, strict=True):
                rows.append({"student": student, "system": other, "measure": measure, **asdict(each), "p_holm": p_holm})
    return rows


def _agreement(results: Sequence[SystemResult], query_ids: Sequence[str]) -> dict[str, Any]:
    teachers = [result for result in results if result.role == "teacher"]
    overlap = [
        [top_overlap(first.run, second.run, query_ids, _AGREEMENT_DEPTH) for second in teachers] for first in teachers
    ]
    return {"names": [teacher.name for teacher in teachers], "depth": _AGREEMENT_DEPTH, "overlap": overlap}


def _examples(
    results: Sequence[SystemResult],
    scores: Mapping[str, Scores],
    queries: Sequence[ConversationalQuery],
    qrels: Qrels,
    measure: str,
) -> dict[str, Any] | None:
    student = next((result for result in results if result.role == "student"), None)
    teacher = best_teacher(results, scores, measure)
    if student is None or teacher is None:
        return None
    student_values, teacher_values = scores[student.name].of(measure), scores[teacher.name].of(measure)
    difference = student_values - teacher_values
    # Equal differences in the order of the queries, so that the same evaluation always shows the same turns.
    order = np.argsort(-difference, kind="stable")

    def example(row: int) -> dict[str, Any]:
        query = queries[row]
        grades = qrels[query.query_id]
        return {
            "query_id": query.query_id,
            "depth": query.depth,
            "history": [turn.question for turn in query.history[-2:]],
            "question": query.question,
            "rewrite": teacher.texts[row],
            "student": float(student_values[row]),
            "teacher": float(teacher_values[row]),
            "student_rank": _first_relevant_rank(student.run, query.query_id, grades),
            "teacher_rank": _first_relevant_rank(teacher.run, query.query_id, grades),
        }

    best = [example(int(row)) for row in order[:_EXAMPLES] if difference[row] > 0]
    worst = [example(int(row)) for row in order[::-1][:_EXAMPLES] if difference[row] < 0]
    return {"measure": measure, "student": student.name, "teacher": teacher.name, "best": best, "worst": worst}


def _first_relevant_rank(run: Run, query_id: str, grades: Mapping[str, int]) -> int | None:
    ranking = run.rankings.get(query_id, ())
    return next((rank for rank, (passage, _) in enumerate(ranking, start=1) if grades.get(passage, 0) > 0), None)


def systems_with_role(metrics: Metrics, role: str) -> list[Mapping[str, Any]]:
    """Return the systems of a role, in their order."""
    return [system for system in metrics["systems"] if system["role"] == role]


def ordered_systems(metrics: Metrics) -> list[Mapping[str, Any]]:
    """Return all systems: baselines, then teachers, then the student, then its second stage."""
    return [system for role in get_args(Role) for system in systems_with_role(metrics, role)]


def best_system(metrics: Metrics, role: str) -> Mapping[str, Any] | None:
    """Return the system of a role with the highest mean of the first measure, the first of equals; None if there is none."""
    measure = metrics["measures"][0]
    return max(systems_with_role(metrics, role), key=lambda system: system["measures"][measure]["mean"], default=None)


def best_values(metrics: Metrics) -> dict[str, float]:
    """Return the highest mean of every measure over all systems."""
    return {name: max(system["measures"][name]["mean"] for system in metrics["systems"]) for name in metrics["measures"]}
