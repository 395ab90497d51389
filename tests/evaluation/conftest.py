"""Material for the evaluation tests: metrics of a made-up comparison, computed by the real code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from raydistill.config import DistillConfig, EvaluateConfig
from raydistill.conversations.records import ConversationalQuery, Turn
from raydistill.evaluation.runs import Run
from raydistill.evaluation.summary import Metrics, RewriteCounts, Role, SystemResult, summarise

QUERIES = 24


def made_queries(question: str = "and where does it live?") -> list[ConversationalQuery]:
    """Return three conversations of eight turns."""
    queries = []
    for conversation in range(3):
        turns = [Turn(f"c{conversation}<::>{depth}", depth, f"{question} {depth}") for depth in range(1, 9)]
        for place, turn in enumerate(turns):
            queries.append(
                ConversationalQuery(turn.query_id, f"c{conversation}", turn.depth, turn.question, tuple(turns[:place]))
            )
    return queries


def made_result(name: str, role: Role, skill: float, terms: int, queries: list[ConversationalQuery]) -> SystemResult:
    """Return a system that ranks the gold passage first for a `skill` share of the queries and third for the others."""
    draw = np.random.default_rng(terms)
    rankings = {}
    for query in queries:
        gold, others = f"gold {query.query_id}".replace(" ", "-"), ["x1", "x2"]
        order = [gold, *others] if draw.random() < skill else [*others, gold]
        rankings[query.query_id] = tuple((passage, 3.0 - rank) for rank, passage in enumerate(order))
    lengths = np.array([terms + query.depth for query in queries], dtype=np.int64)
    cut = np.array([query.depth > 5 for query in queries]) if role == "student" else None
    times = draw.gamma(2.0, 1.0, len(queries))
    texts = [f"{name} on {query.question}" for query in queries]
    return SystemResult(name, role, Run(name, rankings), texts, lengths, lengths * 0.05, lengths * 40, cut, times, times / 2)


@pytest.fixture(scope="session")
def make_metrics() -> Callable[..., Metrics]:
    """Return a function that makes metrics; the names and the question may be anything."""

    def make(question: str = "and where does it live?", teacher: str = "mistral", roles: tuple[str, ...] = ()) -> Metrics:
        queries = made_queries(question)
        results = [
            made_result("last turn", "baseline", 0.2, 8, queries),
            made_result("full conversation", "baseline", 0.1, 90, queries),
            made_result(teacher, "teacher", 0.5, 12, queries),
            made_result("t5", "teacher", 0.4, 11, queries),
            made_result("student", "student", 0.8, 20, queries),
        ]
        kept = [result for result in results if not roles or result.role in roles]
        qrels = {query.query_id: {f"gold-{query.query_id}": 1} for query in queries}
        config = EvaluateConfig(measures=("nDCG@3", "R@2", "RR"), bootstrap_samples=100)
        counts = {teacher: RewriteCounts(24, {"chatty": 2, "truncated": 1}), "t5": RewriteCounts(24, {})}
        return summarise(kept, queries, qrels, config, counts, left_out=4)[0]

    return make


@pytest.fixture
def make_config() -> Callable[..., DistillConfig]:
    """Return a function that makes a valid configuration with one recorded teacher."""

    def make(**fields: Any) -> DistillConfig:
        return DistillConfig.model_validate(
            {
                "run": "trial",
                "root": "/data/root",
                "data": {
                    "corpus": ["/data/corpus.jsonl"],
                    "train": {"conversations": "/data/train.jsonl"},
                    "test": {"conversations": "/data/test.jsonl", "qrels": "/data/qrels.tsv"},
                },
                "teachers": [{"engine": "recorded", "name": "mistral", "rewrites": "/data/mistral.jsonl"}],
                "student": {"model": "some/encoder"},
                **fields,
            }
        )

    return make
