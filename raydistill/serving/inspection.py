"""What the service's page shows: turns of a run or typed words, looked at through the service's index (`evaluation.glass`).

The run itself comes from outside: whoever starts the service hands it over (`inspector.RunTurns`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raydistill.config import ServeConfig
from raydistill.conversations.records import ConversationalQuery
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.lexical import TermCounter
from raydistill.errors import DataError
from raydistill.evaluation.glass import STUDENT, Glass, RunTurn, open_students, typed_turn
from raydistill.index.fan_out import Snapshot
from raydistill.index.publish import IndexVersion
from raydistill.index.search_result import SearchResult
from raydistill.serving.requests import InspectRequest, RequestError

SETS = ("test", "validation", "train")
MOST_TURNS = 500


class InspectedRun(Protocol):
    """The run whose turns are shown; it is sent to the replicas, so it opens nothing before it is asked."""

    def queries(self, name: str) -> Sequence[ConversationalQuery]:
        """Return the turns of a set; none where the run has no such set."""

    def find(self, query_id: str) -> RunTurn:
        """Return a turn. Raises DataError for an unknown id."""

    def encoder(self, index: IndexVersion) -> SparseEncoder:
        """Return what baselines and rewrites are encoded with."""

    def counter(self) -> TermCounter:
        """Return what tells the terms that a text holds itself."""


class ServedInspection:
    """Looks at turns for one replica. What it needs beside the service is loaded when it is first asked.

    Args:
        config: the service; its `inspect` is set.
        run: the run whose turns can be picked; None for none.
    """

    def __init__(self, config: ServeConfig, run: InspectedRun | None) -> None:
        assert config.inspect is not None
        self._config = config
        self._further = config.inspect.students
        self._run = run
        self._lock = threading.Lock()
        self._glass: Glass | None = None

    def turns(self, name: str, like: str = "") -> list[dict[str, Any]]:
        """Return id, question and depth of the first `MOST_TURNS` turns of a set of the run whose id or question holds some
        words, letters of either case; none without a run."""
        if name not in SETS:
            raise RequestError(404, "unknown_set", f"there is no set {name!r} of turns; there are {', '.join(SETS)}")
        with self._lock:
            every = [] if self._run is None else self._run.queries(name)
        words = like.casefold()
        found = (query for query in every if words in query.query_id.casefold() or words in query.question.casefold())
        return [
            {"query_id": query.query_id, "question": query.question, "depth": query.depth}
            for query in islice(found, MOST_TURNS)
        ]

    def look(self, request: InspectRequest, snapshot: Snapshot) -> Mapping[str, Any]:
        """Return what `Inspection.to_json` gives, with whether a view is a student's.

        Raises RequestError for a turn that is not there.
        """
        turn, glass = self._turn(request), self._opened(snapshot.version)
        found = glass.look(turn, _Source(snapshot), request.k).to_json()
        students = {STUDENT, *self._further}
        return {**found, "views": [{**view, "student": view["name"] in students} for view in found["views"]]}

    def _turn(self, request: InspectRequest) -> RunTurn:
        if request.asked is not None:
            return typed_turn(request.asked.history, request.asked.question)
        if self._run is None:
            raise RequestError(404, "no_run", "the service shows no run; type a conversation, or set inspect.run")
        try:
            with self._lock:
                return self._run.find(str(request.query_id))
        except DataError as error:
            raise RequestError(404, "unknown_turn", str(error)) from None

    def _opened(self, version: IndexVersion) -> Glass:
        with self._lock:
            if self._glass is None:
                sources = {STUDENT: self._config.student, **self._further}
                students = open_students(sources, version.vocabulary_size, self._config.trust_remote_code)
                if self._run is None:
                    counter = TermCounter(students[STUDENT].tokenizer, version.vocabulary_size)
                    self._glass = Glass(students, None, counter)
                else:
                    self._glass = Glass(students, self._run.encoder(version), self._run.counter())
            return self._glass


class _Source:
    """The passages of a version that the fan-out holds."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def search(self, queries: SparseBatch, k: int) -> SearchResult:
        return self._snapshot.search(queries, k)

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        return self._snapshot.vectors(passages)

    def shown(self, passages: NDArray[np.int64]) -> list[tuple[str, str | None]]:
        return [(hit.passage_id, hit.text) for hit in self._snapshot.hits(passages)]
