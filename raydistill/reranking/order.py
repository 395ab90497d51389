"""What a second stage does to a result: its query text, and the new order of the first passages. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydistill.config import QueryText
from raydistill.conversations.text import History, full_conversation_text, user_turns_text


def query_text(question: str, history: History, form: QueryText) -> str:
    """Return what of a conversation a cross-encoder reads, newest first."""
    if form == "last turn":
        return " ".join(question.split())
    if form == "all user turns":
        return user_turns_text(question, history)
    if form == "full conversation":
        return full_conversation_text(question, history)
    raise ValueError(f"there is no query text {form!r}")


def reordered(
    scores: NDArray[np.float32], passages: int, read: Sequence[int] | None = None
) -> tuple[list[int], list[float]]:
    """Return the new order of a result, as old places, and a score for each that descends with it.

    The passages that the second stage read come first, by its score, equal ones in their old order; the others follow in
    theirs, each 1 below the one before, so that a run file keeps the order.

    Args:
        scores: float32 [read passages], by the second stage.
        passages: of the whole result.
        read: old places of the passages that were read, ascending; None for the first ones.
    """
    places = list(range(len(scores))) if read is None else list(read)
    best = np.argsort(-scores, kind="stable").tolist()
    order = [places[number] for number in best]
    new = [float(scores[number]) for number in best]
    for place in sorted(set(range(passages)) - set(places)):
        order.append(place)
        new.append(new[-1] - 1.0 if new else 0.0)
    return order, new
