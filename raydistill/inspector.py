"""What `raydistill inspect` looks at: a turn of a run or typed words, through the run's teachers and students.

Reads what the run has made and computes nothing that it lacks: without rewrites, an index or a student it says so. No Ray:
`Inspector` opens the segments in this process, mapped. The service's page shows `RunTurns`, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.config import DistillConfig
from raydistill.conversations.records import ConversationalQuery
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.documents import load_document_encoder, load_term_counter
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.lexical import TermCounter
from raydistill.errors import ConfigError, DataError
from raydistill.evaluation.glass import STUDENT, Glass, Inspection, RunTurn, open_students, typed_turn
from raydistill.index.build import planned_index
from raydistill.index.corpus import corpus_artifact
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.index.search_result import SearchResult
from raydistill.index.segment_group import Holding, SegmentGroup, corpora_of
from raydistill.pipeline import Chain
from raydistill.storage.artifacts import Artifact


class RunTurns:
    """The turns of a run, with what its teachers made of them; opened when something is asked, so that it can be sent."""

    def __init__(self, config: DistillConfig) -> None:
        self._config = config

    @cached_property
    def chain(self) -> Chain:
        """The run's chain."""
        return Chain(self._config)

    def check(self, index: IndexVersion) -> None:
        """Raise what a look at the run over an index would raise: a missing input, document encoder or tokenizer."""
        vocabulary = self.encoder(index).vocabulary_size
        if vocabulary != index.vocabulary_size:
            raise ConfigError(
                f"run {self._config.run} has documents of {vocabulary} terms, and {index.uri} is over "
                f"{index.vocabulary_size}; take the run that the index belongs to"
            )
        self.counter()
        self.queries("test")

    def encoder(self, index: IndexVersion) -> SparseEncoder:
        """Return the document encoder that the run's rewrites are searched with."""
        documents = self.chain.settled.index.documents
        return load_document_encoder(documents, self._config.student, index.open_statistics(), "cpu")

    def counter(self) -> TermCounter:
        """Return what tells the terms that a text holds itself."""
        return load_term_counter(self._config.student)

    def queries(self, name: str) -> list[ConversationalQuery]:
        """Return a set's turns, train, test or validation."""
        found = self.chain.inputs.all().get(name)
        return [] if found is None else list(found.queries())

    def find(self, query_id: str) -> RunTurn:
        """Return a turn. Raises DataError for an unknown id."""
        for name, found in reversed(self.chain.inputs.all().items()):
            query = next((one for one in found.queries() if one.query_id == query_id), None)
            if query is not None:
                return RunTurn(query, found.qrels.get(query_id, {}), self._rewrites(name, query_id))
        known = self.queries("test")
        raise DataError(
            f"no turn of the run is called {query_id!r}; the test set has {len(known)}, such as "
            f"{', '.join(query.query_id for query in known[:3])}"
        )

    def _rewrites(self, name: str, query_id: str) -> dict[str, tuple[str, str]]:
        found = {}
        for teacher, artifact in self.chain.planned_rewrites().get(name, {}).items():
            manifest = artifact.find_manifest()
            for part in manifest.parts if manifest is not None else ():
                table = pq.read_table(artifact.fetch(part), columns=["query_id", "text", "failure"])
                for row in table.filter(pc.equal(table.column("query_id"), query_id)).to_pylist():
                    found[teacher] = (row["text"], row["failure"] or "")
        return found


class Inspector:
    """Looks at turns of one run.

    Args:
        config: the run.
        students: further students by name: folders, or addresses of student artifacts; they must share the vocabulary.

    Raises DataError when there is no index yet, ConfigError for a student that is not there or does not fit.
    """

    def __init__(self, config: DistillConfig, students: Mapping[str, str]) -> None:
        self._turns = RunTurns(config)
        chain = self._turns.chain
        corpus = corpus_artifact(config.data, config.index.passages_per_segment, config.root)
        index = planned_index(chain.settled.index, config.student, corpus, config.root)
        if index is None:
            raise DataError(f"run {config.run} has no index yet; run `raydistill index` with the same configuration first")
        self._source = _Source(index)
        sources = dict(students)
        own = _own_student(chain, index)
        self.has_own_student = own is not None
        """Whether the run has a finished student."""
        if own is not None:
            sources = {STUDENT: own.uri, **sources}
        opened = open_students(sources, index.vocabulary_size, config.student.trust_remote_code)
        self._glass = Glass(opened, self._turns.encoder(index), self._turns.counter())

    def turn(self, query_id: str, k: int, depth: int = 100) -> Inspection:
        """Look at a turn of the run. Raises DataError for an unknown id."""
        return self._glass.look(self._turns.find(query_id), self._source, k, depth)

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
        history = list(zip(utterances[:-1:2], utterances[1::2], strict=True))
        return self._glass.look(typed_turn(history, utterances[-1]), self._source, k, depth)


def _own_student(chain: Chain, index: IndexVersion) -> Artifact | None:
    rewrites = chain.planned_rewrites()["train"]
    student = chain.planned_rounds(rewrites, index)[-1].student
    return student if student.find_manifest() is not None else None


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
