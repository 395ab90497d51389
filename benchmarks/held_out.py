"""Held-out turns searched with the student, the recorded teachers and the baselines, in the same index."""

from __future__ import annotations

from raydistill.conversations.records import ConversationSet
from raydistill.evaluation.evaluate import evaluate
from raydistill.pipeline import Chain
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.pool import teach


def evaluate_on(turns: ConversationSet, chain: Chain) -> Artifact:
    """Return the evaluation of a chain's student on these turns; trains it if it is not trained yet.

    Recorded teachers alone stand beside it: a chain does not teach its held-out turns, since others would be paid for them.
    """
    rewrites = recorded_rewrites(turns, chain)
    return evaluate(
        chain.settled, list(turns.queries()), turns.qrels, rewrites, chain.index(), chain.train(), chain.config.root
    )


def recorded_rewrites(turns: ConversationSet, chain: Chain) -> dict[str, Artifact]:
    """Return teacher -> its rewrites of these turns, of a chain's recorded teachers."""
    queries, root = list(turns.queries()), chain.config.root
    recorded = [teacher for teacher in chain.config.teachers if teacher.engine == "recorded"]
    return {teacher.name: teach(teacher, queries, turns.fingerprint, root) for teacher in recorded}
