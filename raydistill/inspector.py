"""What `raydistill inspect` looks at: a turn of a run or typed words, through the run's teachers and students.

Reads what the run has made and computes nothing that it lacks: without rewrites, an index or a student it says so. No Ray:
the segments are opened in this process, mapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.config import DistillConfig
from raydistill.conversations.records import ConversationalQuery, Turn
from raydistill.conversations.text import full_conversation_text, history_pairs, student_text
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.documents import load_document_encoder, load_term_counter
from raydistill.encoders.student_source import open_student
from raydistill.errors import ConfigError, DataError
from raydistill.evaluation.inspection import Inspected, View, inspect
from raydistill.index.build import planned_index
from raydistill.index.corpus import corpus_artifact
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.index.search_result import SearchResult
from raydistill.index.segment_group import Holding, SegmentGroup, corpora_of
from raydistill.pipeline import Chain
from raydistill.storage.artifacts import Artifact

STUDENT, LAST_TURN, FULL_CONVERSATION = "student", "last turn", "full conversation"


@dataclass(frozen=True)
class Inspection:
    """A turn and every view of it: baselines, teachers, students."""

    query: ConversationalQuery
    grades: Mapping[str, int]
    views: tuple[Inspected, ...]


class Inspector:
    """Looks at turns of one run.

    Args:
        config: the run.
        students: further students by name: folders, or addresses of student artifacts; they must share the vocabulary.

    Raises DataError when there is no index yet, ConfigError for a student that is not there or does not fit.
    """

    def __init__(self, config: DistillConfig, students: Mapping[str, str]) -> None:
        self._chain = Chain(config)
        self._config = self._chain.settled
        corpus = corpus_artifact(config.data, config.index.passages_per_segment, config.root)
        index = planned_index(self._config.index, config.student, corpus, config.root)
        if index is None:
            raise DataError(f"run {config.run} has no index yet; run `raydistill index` with the same configuration first")
        self._source = _Source(index)
        self._encoder = load_document_encoder(self._config.index.documents, config.student, index.open_statistics(), "cpu")
        self._counter = load_term_counter(config.student)
        sources = dict(students)
        own = self._own_student(index)
        if own is not None:
            sources = {STUDENT: own.uri, **sources}
        self._students = {name: open_student(source, config.student.trust_remote_code) for name, source in sources.items()}
        for name, student in self._students.items():
            if student.model.vocabulary_size != index.vocabulary_size:
                raise ConfigError(
                    f"the student {name} ({sources[name]}) has {student.model.vocabulary_size} terms and the index "
                    f"{index.vocabulary_size}; take a student that was distilled for this index"
                )

    @property
    def has_own_student(self) -> bool:
        """Whether the run has a finished student."""
        return STUDENT in self._students

    def query_ids(self, name: str) -> list[str]:
        """Return the ids of a set's turns, train, test or validation."""
        found = self._chain.inputs.all().get(name)
        return [] if found is None else [query.query_id for query in found.queries()]

    def turn(self, query_id: str, k: int, depth: int = 100) -> Inspection:
        """Look at a turn of the run. Raises DataError for an unknown id."""
        for name, found in reversed(self._chain.inputs.all().items()):
            query = next((one for one in found.queries() if one.query_id == query_id), None)
            if query is not None:
                return self._look(query, found.qrels.get(query_id, {}), self._rewrites(name, query_id), k, depth)
        known = self.query_ids("test")
        raise DataError(
            f"no turn of the run is called {query_id!r}; the test set has {len(known)}, such as {', '.join(known[:3])}"
        )

    def typed(self, utterances: Sequence[str], k: int, depth: int = 100) -> Inspection:
        """Look at words: utterances of user and system in turn, the last one the user's question.

        Raises DataError for an empty question, or one that would be the system's.
        """
        if not utterances or not utterances[-1].strip():
            raise DataError("there is no question; give the utterances of user and system in turn, the user's question last")
        if len(utterances) % 2 == 0:
            raise DataError(
                f"{len(utterances)} utterances end with the system's; give user, system, … user: an odd number of them"
            )
        turns = tuple(
            Turn(f"typed::{number}", number + 1, asked, told)
            for number, (asked, told) in enumerate(zip(utterances[::2], utterances[1::2], strict=False))
        )
        return self._look(ConversationalQuery("typed", "typed", len(turns) + 1, utterances[-1], turns), {}, {}, k, depth)

    def _look(
        self,
        query: ConversationalQuery,
        grades: Mapping[str, int],
        rewrites: Mapping[str, tuple[str, str]],
        k: int,
        depth: int,
    ) -> Inspection:
        history = history_pairs(query)
        views = [
            self._plain(LAST_TURN, query.question),
            self._plain(FULL_CONVERSATION, full_conversation_text(query.question, history)),
        ]
        views += [self._plain(name, text, note) for name, (text, note) in rewrites.items()]
        for name, student in self._students.items():
            text = student_text(query.question, history, student.text, student.tokenizer.sep_token or "")
            encoder = student.encoder(device="cpu")
            views.append(View(name, text, "", encoder.encode_queries, self._names, self._said))
        seen = [inspect(view, query.question, history, self._source, grades, k, depth) for view in views]
        return Inspection(query, grades, tuple(seen))

    def _plain(self, name: str, text: str, note: str = "") -> View:
        return View(name, text, note, self._encoder.encode_queries, self._names, self._said)

    @cached_property
    def _names(self) -> list[str]:
        return self._encoder.vocabulary()

    def _said(self, text: str) -> set[int]:
        return set(self._counter.counts([text]).term_ids.tolist())

    def _own_student(self, index: IndexVersion) -> Artifact | None:
        rewrites = self._chain.planned_rewrites()["train"]
        student = self._chain.planned_rounds(rewrites, index)[-1].student
        return student if student.find_manifest() is not None else None

    def _rewrites(self, name: str, query_id: str) -> dict[str, tuple[str, str]]:
        """Return teacher -> its rewrite of a turn, and why that is none."""
        found = {}
        for teacher, artifact in self._chain.planned_rewrites().get(name, {}).items():
            manifest = artifact.find_manifest()
            for part in manifest.parts if manifest is not None else ():
                table = pq.read_table(artifact.fetch(part), columns=["query_id", "text", "failure"])
                for row in table.filter(pc.equal(table.column("query_id"), query_id)).to_pylist():
                    found[teacher] = (row["text"], row["failure"] or "")
        return found


class _Source:
    """The passages of an index version, with their texts where the corpus is there."""

    def __init__(self, index: IndexVersion) -> None:
        self._searcher = open_searcher(index)
        everything = tuple(range(len(index.segments)))
        self._holding = Holding(index.root, index.name, index.version, index.fingerprint, everything, corpora_of(index))
        self._group = SegmentGroup(threads=1, versions=1)

    def search(self, queries: SparseBatch, k: int) -> SearchResult:
        return self._searcher.search(queries, k)

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        return self._searcher.vectors(passages)

    def shown(self, passages: NDArray[np.int64]) -> list[tuple[str, str | None]]:
        return [(hit.passage_id, hit.text) for hit in self._group.hits(self._holding, passages)]
