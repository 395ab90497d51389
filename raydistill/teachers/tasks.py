"""A teacher's task, a range of queries, as JSON that goes to an actor, and what the actor reads in it. No Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydistill.conversations.records import ConversationalQuery, Turn
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.engine import Failure
from raydistill.teachers.rewriting import Rewrite, RewriteRequest, row_counters
from raydistill.teachers.spending import Decision


def task(
    artifact: Artifact,
    start: int,
    stop: int,
    queries: Sequence[ConversationalQuery],
    history_turns: int,
    decisions: Mapping[str, Decision] | None = None,
) -> dict[str, Any]:
    """Return a range of queries as JSON, every turn of its conversations written once however many histories show it.

    Args:
        artifact: what the range is a part of.
        start, stop: its place among all queries.
        queries: of the range.
        history_turns: most recent turns of history that are shown.
        decisions: query id -> whether it is asked; None, and a query that is not there: it is.
    """
    of = decisions or {}
    unasked = [
        [place, query.query_id, query.question, of[query.query_id].value]
        for place, query in enumerate(queries)
        if of.get(query.query_id, Decision.ASK) is not Decision.ASK
    ]
    queries = [query for query in queries if of.get(query.query_id, Decision.ASK) is Decision.ASK]
    turns: list[list[str]] = []
    numbers: dict[Turn, int] = {}
    rows = []
    for query in queries:
        shown = query.history[max(0, len(query.history) - history_turns) :]
        for turn in shown:
            if turn not in numbers:
                numbers[turn] = len(turns)
                turns.append([turn.question, turn.answer])
        rows.append([query.query_id, query.question, [numbers[turn] for turn in shown], query.answer, list(query.facts)])
    return {
        "artifact": artifact.to_json(),
        "start": start,
        "stop": stop,
        "turns": turns,
        "queries": rows,
        "unasked": unasked,
    }


def with_unasked(
    rows: list[Rewrite], counters: Mapping[str, float], unasked: Sequence[Sequence[Any]]
) -> tuple[list[Rewrite], dict[str, float]]:
    """Return all rows of a range in order, with those that were not asked, and the counters of all."""
    if not unasked:
        return rows, dict(counters)
    waiting = iter(rows)
    told = {
        place: Rewrite(query_id, question, None if kind == Decision.SELF_CONTAINED.value else Failure.MISSING.value, "")
        for place, query_id, question, kind in unasked
    }
    whole = [told[place] if place in told else next(waiting) for place in range(len(rows) + len(told))]
    kinds = [kind for *_, kind in unasked]
    return whole, {**counters, **row_counters(whole), **{kind: kinds.count(kind) for kind in sorted(set(kinds))}}


def requests_of(spec: Mapping[str, Any]) -> list[RewriteRequest]:
    """Return the queries of a task that are asked."""
    turns = [(question, answer) for question, answer in spec["turns"]]
    return [
        RewriteRequest(query_id, question, tuple(turns[n] for n in history), answer, tuple(facts))
        for query_id, question, history, answer, facts in spec["queries"]
    ]
