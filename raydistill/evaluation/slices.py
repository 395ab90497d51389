"""Effectiveness on parts of the turns: by how much was said before, by whether the student read all of it, by whether the
topic changes, by conversation. Pure.

Added to the metrics (`summary`) as "slices", a list of

    name      history, reading, topic or conversation; reading only with a student, topic only where the conversation
              files tell some
    unit      what a label counts
    groups    a list of {label, queries, means {system {measure: mean}}}; those of history ascend, neighbours merged until
              each holds at least five turns; readings are `READING_LABELS` and topics `TOPIC_LABELS`, as far as there are
              turns; conversations are in the order in which their first judged turn comes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.conversations.records import ConversationalQuery
from raydistill.evaluation.measures import Scores, depth_bins

WORD_BOUNDS = (0, 50, 100, 200, 400, 800)
"""Upper bounds of words before the question; more than the last is a group of its own."""


READING_LABELS = ("read whole", "cut")
TOPIC_LABELS = ("first topic", "same topic", "new topic")


def slices(
    queries: Sequence[ConversationalQuery], scores: Mapping[str, Scores], cut: NDArray[np.bool_] | None = None
) -> list[dict[str, Any]]:
    """Return the slices of some turns.

    Args:
        queries: in the order of the scores' rows.
        scores: by system.
        cut: bool [Q], whether the conversation was longer than the student reads; None without a student.
    """
    words = [history_words(query) for query in queries]
    numbers = np.searchsorted(WORD_BOUNDS, words, side="left")
    by_words = [_group(_label(found.first, found.last), found.rows, scores) for found in depth_bins(numbers.tolist())]
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query.conversation_id, []).append(row)
    by_conversation = [_group(name, np.array(own, dtype=np.int64), scores) for name, own in rows.items()]
    made = [{"name": "history", "unit": "words before the question", "groups": by_words}]
    if cut is not None:
        of_reading = dict(zip(READING_LABELS, (np.flatnonzero(~cut), np.flatnonzero(cut)), strict=True))
        by_reading = [_group(label, own, scores) for label, own in of_reading.items() if len(own)]
        made.append({"name": "reading", "unit": "what the student read of the conversation", "groups": by_reading})
    labels = [topic_label(query) for query in queries]
    if any(labels):
        of_label = {label: np.flatnonzero([each == label for each in labels]) for label in TOPIC_LABELS}
        by_topic = [_group(label, own, scores) for label, own in of_label.items() if len(own)]
        made.append({"name": "topic", "unit": "change of topic", "groups": by_topic})
    return [*made, {"name": "conversation", "unit": "conversation", "groups": by_conversation}]


def topic_label(query: ConversationalQuery) -> str:
    """Return which of `TOPIC_LABELS` a turn is, against the last turn before it that has a topic; "" where none is told."""
    if not query.topic:
        return ""
    before = [turn.topic for turn in query.history if turn.topic]
    if not before:
        return TOPIC_LABELS[0]
    return TOPIC_LABELS[1] if before[-1] == query.topic else TOPIC_LABELS[2]


def history_words(query: ConversationalQuery) -> int:
    """Return how many words, by white space, were said before a question, answers included."""
    return sum(len(turn.question.split()) + len(turn.answer.split()) for turn in query.history)


def _label(first: int, last: int) -> str:
    low = 0 if first == 0 else WORD_BOUNDS[first - 1] + 1
    if last >= len(WORD_BOUNDS):
        return f"{low} and more"
    high = WORD_BOUNDS[last]
    return str(low) if low == high else f"{low}–{high}"


def _group(label: str, rows: NDArray[np.int64], scores: Mapping[str, Scores]) -> dict[str, Any]:
    means = {
        system: dict(zip(found.measures, found.values[rows].mean(axis=0).tolist(), strict=True))
        for system, found in scores.items()
    }
    return {"label": label, "queries": len(rows), "means": means}
