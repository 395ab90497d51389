"""The training examples of a document encoder on Ray: passages' own sentences and recorded turns, with passages for each.

A first stage, BM25 over the same vocabulary, retrieves the passages that are hard to tell apart from the right one. The
right one is known for a sentence (its own passage) and for a judged turn. Scores of recorded runs are kept as they are
for the passages that the run lists, and are absent (NaN) elsewhere; the other teachers score in the training loop.

Parts of the artifact (kind "document-examples"), Parquet of schema EXAMPLES:
    own-{corpus part}      sentences of one part of the corpus
    run-{number:03d}       the turns of one recorded run
Numbers of passages are those of the first-stage index: rows of the corpus, in order.

Memory: a worker holds one part's examples (queries x depth x 12 bytes), the training turns, and maps the first stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.actor_pool import map_shards
from raydistill.config import (
    DistillConfig,
    DocumentTrainingConfig,
    IndexConfig,
    LearnedDocumentsConfig,
    LexicalDocumentsConfig,
    StudentConfig,
)
from raydistill.conversations.records import ConversationalQuery, Passage, Turn
from raydistill.distill.document_examples import RecordedQuery, own_queries, recorded_queries
from raydistill.encoders.documents import document_encoder_settings, load_document_encoder
from raydistill.errors import DataError
from raydistill.evaluation.runs import read_run
from raydistill.index.candidates import parquet_bytes, queries_fingerprint, query_table
from raydistill.index.corpus import passage_parts
from raydistill.index.passage_files import passage_batches
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint
from raydistill.storage.files import input_fingerprint
from raydistill.teachers.recorded import read_recorded

_FORMAT_VERSION = 1
EXAMPLES = pa.schema(
    [
        ("text", pa.string()),
        ("gold", pa.list_(pa.int64())),
        ("passages", pa.list_(pa.int64())),
        ("recorded", pa.list_(pa.float32())),
    ]
)
"""recorded: scores parallel to passages, NaN where the run does not list one; null for sentences."""


def first_stage(index: IndexConfig) -> IndexConfig:
    """Return the configuration of the first-stage index beside an index."""
    return index.model_copy(update={"name": f"{index.name}-first-stage", "documents": LexicalDocumentsConfig()})


def recorded_query_ids(training: DocumentTrainingConfig) -> set[str]:
    """Return the ids of the queries that the recorded runs list, of test turns too. Raises as `read_run`."""
    return {query_id for run in training.runs for query_id in read_run(run.run).rankings}


def examples_artifact(config: DistillConfig, turns: Sequence[ConversationalQuery], gold: Any, corpus: Artifact) -> Artifact:
    """Return the address of what `make_examples` makes, committed or not.

    Args:
        config: with index.documents of kind learned.
        turns: from `document_examples.training_turns`.
        gold: query id -> passage id -> grade.
        corpus: the corpus artifact; it need not be there yet.
    """
    training = _documents(config).training
    settings = {
        "first_stage": document_encoder_settings(first_stage(config.index).documents, config.student),
        "runs": [{"queries": run.queries} for run in training.runs],
        "own_queries": training.own_queries,
        "depth": training.negatives_depth,
        "seed": training.seed,
    }
    inputs = {"corpus": corpus.fingerprint, "turns": queries_fingerprint(turns, gold)}
    for number, run in enumerate(training.runs):
        inputs[f"run/{number}"] = input_fingerprint([run.run, *([run.rewrites] if run.rewrites else [])])
    name = fingerprint("document-examples", _FORMAT_VERSION, settings, inputs)
    return Artifact(config.root, "document-examples", config.index.name, name)


def make_examples(
    config: DistillConfig, turns: Sequence[ConversationalQuery], gold: Any, corpus: Artifact, stage: IndexVersion
) -> Artifact:
    """Return the artifact of training examples, making what of it is missing; arguments as for `examples_artifact`.

    manifest.metadata: {"first_stage": the version's JSON, "own": sentences, "recorded": turns over all runs}.

    Raises:
        DataError: a run lists a passage that the corpus does not have, or none of the training turns.
        ResourceError: the cluster can never hold index.workers.
    """
    artifact = examples_artifact(config, turns, gold, corpus)
    if artifact.find_manifest() is not None:
        return artifact
    training, writer = _documents(config).training, ArtifactWriter(artifact)
    parts = passage_parts(corpus.manifest())
    share = training.own_queries / max(1, sum(part.rows for part in parts))
    first = np.cumsum([0, *(part.rows for part in parts)]).tolist()
    specs: list[dict[str, Any]] = [
        {"name": f"own-{part.name}", "part": part.to_json(), "first": number, "share": share}
        for part, number in zip(parts, first[:-1], strict=True)
        if share
    ]
    specs += [{"name": f"run-{number:03d}", "run": number} for number in range(len(training.runs))]
    finished = writer.finished()
    missing = [spec for spec in specs if spec["name"] not in finished]
    arguments = {
        "corpus": corpus,
        "stage": stage,
        "turns": _store_turns(turns, gold, config),
        "writer": writer,
        "training": training,
        "student": config.student,
        "threads": max(1, int(config.index.workers.cpus)),
    }
    workers = config.index.workers.model_copy(update={"gpus": 0.0})
    with track("examples", len(specs), "parts") as advance:
        advance(len(specs) - len(missing))
        for _ in map_shards(missing, _ExampleMaker, arguments, workers, "index"):
            advance(1)
    finished = writer.finished()
    own, recorded = (
        sum(finished[spec["name"]].rows for spec in specs if ("run" in spec) is is_run) for is_run in (False, True)
    )
    if not own + recorded:
        raise DataError("neither the corpus nor the runs of index.documents.training give a single training query")
    metadata = {"first_stage": stage.to_json(), "own": own, "recorded": recorded}
    writer.commit([spec["name"] for spec in specs], metadata)
    return artifact


def _documents(config: DistillConfig) -> LearnedDocumentsConfig:
    documents = config.index.documents
    assert isinstance(documents, LearnedDocumentsConfig)
    return documents


def _store_turns(turns: Sequence[ConversationalQuery], gold: Any, config: DistillConfig) -> Artifact:
    inputs = {"queries": queries_fingerprint(turns, gold)}
    artifact = Artifact(config.root, "document-turns", config.index.name, fingerprint("document-turns", 1, {}, inputs))
    if artifact.find_manifest() is None:
        writer = ArtifactWriter(artifact)
        writer.put_part("turns", parquet_bytes(query_table(turns, gold)), ".parquet", rows=len(turns))
        writer.commit(["turns"], {})
    return artifact


class _ExampleMaker:
    """Makes the examples of one part of the corpus, or of one recorded run."""

    def __init__(
        self,
        corpus: Artifact,
        stage: IndexVersion,
        turns: Artifact,
        writer: ArtifactWriter,
        training: DocumentTrainingConfig,
        student: StudentConfig,
        threads: int,
    ) -> None:
        self._corpus = corpus
        self._turns = turns
        self._writer = writer
        self._training = training
        self._searcher = open_searcher(stage, threads=threads)
        self._encoder = load_document_encoder(LexicalDocumentsConfig(), student, stage.open_statistics())

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        rows = self._recorded(int(spec["run"])) if "run" in spec else self._own(spec)
        table = pa.Table.from_pylist(rows, schema=EXAMPLES)
        self._writer.put_part(spec["name"], parquet_bytes(table), ".parquet", rows=len(table))
        return {"examples": len(table)}

    def _own(self, spec: dict[str, Any]) -> list[dict[str, Any]]:
        path, first = self._corpus.fetch(Part.from_json(spec["part"])), int(spec["first"])
        passages: Iterator[Passage] = chain.from_iterable(passage_batches(path))
        found = list(own_queries(passages, float(spec["share"]), self._training.seed))
        retrieved = self._retrieved([text for _, text in found])
        return [
            {"text": text, "gold": [first + position], "passages": _union([first + position], numbers), "recorded": None}
            for (position, text), numbers in zip(found, retrieved, strict=True)
        ]

    def _recorded(self, number: int) -> list[dict[str, Any]]:
        run = self._training.runs[number]
        turns, gold = _read_turns(self._turns)
        rewrites = read_recorded([run.rewrites]) if run.rewrites else {}
        found = recorded_queries(turns, gold, read_run(run.run).rankings, run.queries, rewrites)
        if not found:
            raise DataError(
                f"{run.run}: none of its queries is a turn of data.train (with a text of form {run.queries}); check that "
                "run, rewrites and conversations belong together, or leave the run out"
            )
        numbers = self._numbers(found, run.run)
        retrieved = self._retrieved([one.text for one in found])
        return [self._recorded_row(one, numbers, others) for one, others in zip(found, retrieved, strict=True)]

    def _numbers(self, found: Sequence[RecordedQuery], uri: str) -> dict[str, int]:
        """Return the number of every passage that the queries name, without those that the corpus lost to quarantine."""
        listed = {passage_id for one in found for passage_id in one.scores}
        names = sorted(listed.union(*(one.gold for one in found)))
        numbers = dict(zip(names, self._searcher.find(names).tolist(), strict=True))
        unknown = sorted(name for name in listed if numbers[name] < 0)
        if len(unknown) > self._corpus.manifest().metadata["quarantined"]:
            raise DataError(
                f"{uri}: passage {unknown[0]!r} is not in the corpus ({len(unknown)} such); check that the run was made on "
                "data.corpus, or leave it out"
            )
        return {name: number for name, number in numbers.items() if number >= 0}

    def _recorded_row(self, one: RecordedQuery, numbers: dict[str, int], retrieved: NDArray[np.int64]) -> dict[str, Any]:
        gold = [numbers[name] for name in one.gold if name in numbers]
        scores = {numbers[name]: score for name, score in one.scores.items() if name in numbers}
        passages = _union([*gold, *scores], retrieved)
        return {
            "text": one.text,
            "gold": sorted(gold),
            "passages": passages,
            "recorded": [scores.get(passage, float("nan")) for passage in passages],
        }

    def _retrieved(self, texts: list[str]) -> list[NDArray[np.int64]]:
        found = self._searcher.search(self._encoder.encode_queries(texts), self._training.negatives_depth).passages
        return [numbers[numbers >= 0] for numbers in found]


def _union(known: Sequence[int], retrieved: NDArray[np.int64]) -> list[int]:
    return sorted({*known, *retrieved.tolist()})


def _read_turns(stored: Artifact) -> tuple[list[ConversationalQuery], dict[str, list[str]]]:
    """Return the training turns and their gold passages' ids, from the form of `candidates.QUERIES`."""
    turns: list[ConversationalQuery] = []
    gold: dict[str, list[str]] = {}
    for part in stored.manifest().parts:
        for row in pq.read_table(stored.fetch(part)).to_pylist():
            history = tuple(
                Turn(f"{row['query_id']}/{number}", number, turn["question"], turn["answer"])
                for number, turn in enumerate(row["history"], start=1)
            )
            turns.append(
                ConversationalQuery(row["query_id"], row["conversation_id"], row["depth"], row["question"], history)
            )
            gold[row["query_id"]] = row["gold_ids"]
    return turns, gold
