"""Turns looked at through baselines, teachers and students, wherever they are searched: in this process or by a service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from raydistill.conversations.records import ConversationalQuery, Turn
from raydistill.conversations.text import full_conversation_text, history_pairs, student_text
from raydistill.encoders.checkpoint import Student
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.lexical import TermCounter
from raydistill.encoders.student_source import open_student
from raydistill.errors import ConfigError
from raydistill.evaluation.inspection import Inspected, PassageSource, View, inspect

STUDENT, LAST_TURN, FULL_CONVERSATION = "student", "last turn", "full conversation"
TYPED = "typed"


@dataclass(frozen=True)
class Inspection:
    """A turn and every view of it: baselines, teachers, students."""

    query: ConversationalQuery
    grades: Mapping[str, int]
    views: tuple[Inspected, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "query_id": self.query.query_id,
            "history": [[turn.question, turn.answer] for turn in self.query.history],
            "question": self.query.question,
            "grades": dict(self.grades),
            "views": [asdict(view) for view in self.views],
        }


@dataclass(frozen=True)
class RunTurn:
    """A turn of a run: its judged passages, and teacher -> (its rewrite, why that is none)."""

    query: ConversationalQuery
    grades: Mapping[str, int]
    rewrites: Mapping[str, tuple[str, str]]


def typed_turn(history: Sequence[tuple[str, str]], question: str) -> RunTurn:
    """Return a turn that was typed: nothing is judged, and nobody has rewritten it."""
    turns = tuple(Turn(f"{TYPED}::{number}", number + 1, asked, told) for number, (asked, told) in enumerate(history))
    return RunTurn(ConversationalQuery(TYPED, TYPED, len(turns) + 1, question, turns), {}, {})


class Glass:
    """What turns are looked at through: students, and an encoder for baselines and rewrites, all searched in one place.

    Args:
        students: by name; they share one vocabulary.
        encoder: the document encoder; None leaves out baselines and rewrites.
        counter: tells which terms a text holds itself.
    """

    def __init__(self, students: Mapping[str, Student], encoder: SparseEncoder | None, counter: TermCounter) -> None:
        self._encoder = encoder
        self._counter = counter
        self._students = {name: (student, student.encoder(device="cpu")) for name, student in students.items()}

    @cached_property
    def _names(self) -> list[str]:
        encoders = [self._encoder, *(encoder for _, encoder in self._students.values())]
        return next(encoder for encoder in encoders if encoder is not None).vocabulary()

    def look(self, turn: RunTurn, source: PassageSource, k: int, depth: int = 100) -> Inspection:
        """Look at a turn: k passages of each view, and the first relevant one among `depth`."""
        query, history = turn.query, history_pairs(turn.query)
        views = []
        for name, (student, encoder) in self._students.items():
            text = student_text(query.question, history, student.text, student.tokenizer.sep_token or "")
            views.append(View(name, text, "", encoder.encode_queries, self._names, self._said))
        if self._encoder is not None:
            texts = {
                LAST_TURN: (query.question, ""),
                FULL_CONVERSATION: (full_conversation_text(query.question, history), ""),
                **turn.rewrites,
            }
            encode = self._encoder.encode_queries
            views = [View(name, *told, encode, self._names, self._said) for name, told in texts.items()] + views
        seen = [inspect(view, query.question, history, source, turn.grades, k, depth) for view in views]
        return Inspection(query, turn.grades, tuple(seen))

    def _said(self, text: str) -> set[int]:
        return set(self._counter.counts([text]).term_ids.tolist())


def open_students(sources: Mapping[str, str], vocabulary_size: int, trust_remote_code: bool) -> dict[str, Student]:
    """Return loaded students by name. Raises ConfigError for one that is not there or has another vocabulary."""
    opened = {name: open_student(source, trust_remote_code) for name, source in sources.items()}
    for name, student in opened.items():
        if student.model.vocabulary_size != vocabulary_size:
            raise ConfigError(
                f"the student {name} ({sources[name]}) has {student.model.vocabulary_size} terms and the index "
                f"{vocabulary_size}; take a student that was distilled for this index"
            )
    return opened
