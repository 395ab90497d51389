"""Held-out turns searched with the student, the recorded teachers and the baselines, in the same index."""

from __future__ import annotations

from raydistill.conversations.records import ConversationSet
from raydistill.evaluation.evaluate import evaluate
from raydistill.pipeline import Chain
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.pool import teach
from raydistill.teachers.recorded import recorded_rewrites as known_rewrites


def evaluate_on(turns: ConversationSet, chain: Chain) -> Artifact:
    """Return the evaluation of a chain's student on these turns; trains it if it is not trained yet.

    Recorded teachers alone stand beside it: a chain does not teach its held-out turns, since others would be paid for them.
    """
    rewrites = recorded_rewrites(turns, chain)
    return evaluate(
        chain.settled, list(turns.queries()), turns.qrels, rewrites, chain.index(), chain.train(), chain.config.root
    )


def recorded_rewrites(turns: ConversationSet, chain: Chain) -> dict[str, Artifact]:
    """Return teacher -> its rewrites of these turns, of a chain's recorded teachers that have one of any of them."""
    queries, root = list(turns.queries()), chain.config.root
    rewrites = {}
    for teacher in chain.config.teachers:
        if teacher.engine != "recorded":
            continue
        known = known_rewrites(teacher.rewrites, queries)
        # One may teach other turns alone, as the human rewrites of TREC's topics do.
        if known.raw or known.held:
            rewrites[teacher.name] = teach(teacher, queries, turns.fingerprint, root)
    return rewrites
