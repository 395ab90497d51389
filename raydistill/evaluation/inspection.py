"""One turn under the glass: what every teacher made of it, what students make of it, and what each finds and why. Pure.

A term of a query is told by where it comes from: said in the question, said earlier in the conversation, or added, when the
text has no such token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.index.explain import explain
from raydistill.index.search_result import SearchResult

Origin = Literal["question", "history", "added"]
_MATCHES = 8


class PassageSource(Protocol):
    """What finds passages and shows them."""

    def search(self, queries: SparseBatch, k: int) -> SearchResult:
        """Return the k best passages of each query."""

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        """Return the passages' vectors."""

    def shown(self, passages: NDArray[np.int64]) -> list[tuple[str, str | None]]:
        """Return the passages' ids and texts."""


@dataclass(frozen=True)
class View:
    """A way to search for a turn.

    Attributes:
        name: a teacher, a student, or a baseline.
        text: what was encoded.
        note: what is to be known of it, such as why a rewrite failed; "" for nothing.
        encode: texts -> query vectors.
        vocabulary: names of the terms.
        said: text -> ids of the terms that it holds itself.
    """

    name: str
    text: str
    note: str
    encode: Callable[[Sequence[str]], SparseBatch]
    vocabulary: Sequence[str]
    said: Callable[[str], set[int]]


@dataclass(frozen=True)
class WeightedTerm:
    """A term of a query vector, its weight, and where it comes from."""

    term: str
    weight: float
    origin: Origin


@dataclass(frozen=True)
class Found:
    """A passage that was found: its rank, id, score, judgement (None: not judged), text, and (term, contribution) pairs,
    largest first."""

    rank: int
    passage_id: str
    score: float
    grade: int | None
    text: str | None
    matches: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Inspected:
    """What came of a view: its terms, heaviest first, what it found, and the rank of the first relevant passage among
    `depth` (None where there is none)."""

    name: str
    text: str
    note: str
    terms: tuple[WeightedTerm, ...]
    found: tuple[Found, ...]
    first_relevant: int | None
    depth: int


def inspect(
    view: View,
    question: str,
    history: Sequence[tuple[str, str]],
    source: PassageSource,
    grades: Mapping[str, int],
    k: int = 5,
    depth: int = 100,
) -> Inspected:
    """Encode, search and explain.

    Args:
        question: the last utterance.
        history: (question, answer) pairs, oldest first.
        grades: judged passages of the turn.
        k: passages that are shown.
        depth: to which the first relevant passage is looked for.
    """
    vector = view.encode([view.text])
    terms, weights = vector.row(0)
    asked = view.said(question)
    before = set().union(*(view.said(utterance) for pair in history for utterance in pair)) if history else set()
    ordered = np.lexsort((terms, -weights))
    told = tuple(
        WeightedTerm(
            view.vocabulary[term], float(weight), "question" if term in asked else "history" if term in before else "added"
        )
        for term, weight in zip(terms[ordered].tolist(), weights[ordered].tolist(), strict=True)
    )
    result = source.search(vector, max(k, depth))
    numbers = result.passages[0][result.passages[0] >= 0]
    scores = result.scores[0][: len(numbers)]
    every = [passage_id for passage_id, _ in source.shown(numbers)] if grades else []
    first = next((rank for rank, passage in enumerate(every, start=1) if grades.get(passage, 0) > 0), None)
    top = numbers[:k]
    vectors = source.vectors(top)
    found = []
    for place, (passage_id, text) in enumerate(source.shown(top)):
        heaviest = explain(terms, weights, *vectors.row(place)).heaviest(_MATCHES)
        found.append(
            Found(
                rank=place + 1,
                passage_id=passage_id,
                score=float(scores[place]),
                grade=grades.get(passage_id),
                text=text,
                matches=tuple((view.vocabulary[term], value) for term, value in heaviest),
            )
        )
    return Inspected(view.name, view.text, view.note, told, tuple(found), first, depth)
