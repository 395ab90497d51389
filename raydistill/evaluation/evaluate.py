"""The evaluate stage, on Ray: encode and search the judged test turns with every system, and measure what came back.

Actors encode and search (one query at a time, so that latencies are a single query's) and store Parquet parts; the driver
reads the parts, computes the metrics (`summary`) and commits one artifact of kind "evaluation" with the parts

    {first}-{stop}            Parquet: system, query_id, passages, scores, terms, flops, postings, cut,
                              encode_ms, search_ms
    rerank-{first}-{stop}     the same of the student's second stage, where evaluate.rerank asks for one
    run-{number}-{system}     TREC run of one system
    qrels                     TREC qrels of the judged turns
    per-query                 Parquet: query_id, depth, system, text, and a column a measure
    metrics                   JSON, see `summary`; what `report` shows

All systems search the same index. "last turn", "all user turns", "full conversation" and the teachers' rewrites are encoded
by the document encoder (E_0); the student encodes the conversation as it did in training. A second stage reads the student's
first passages again, as a system of its own; the time that takes is counted as search.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.actor_pool import map_shards
from raydistill.config import DistillConfig, RerankConfig, SeismicEngine
from raydistill.conversations.records import ConversationalQuery
from raydistill.conversations.text import full_conversation_text, history_pairs, user_turns_text
from raydistill.encoders.documents import MODEL_FILES, document_encoder_settings
from raydistill.errors import DataError
from raydistill.evaluation.measures import Scores
from raydistill.evaluation.query_worker import QueryWorker, parquet_bytes
from raydistill.evaluation.rerank_worker import RerankWorker
from raydistill.evaluation.runs import Qrels, Run, trec_qrels_lines, trec_run_lines
from raydistill.evaluation.summary import Metrics, RewriteCounts, Role, SystemResult, summarise
from raydistill.index.approximate import build_approximate
from raydistill.index.publish import IndexVersion
from raydistill.model_source import model_identity
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.parts import Part
from raydistill.teachers.engine import Failure

KIND = "evaluation"
FORMAT_VERSION = 2

LAST_TURN = "last turn"
USER_TURNS = "all user turns"
FULL_CONVERSATION = "full conversation"
STUDENT = "student"
RERANKED = "student, reranked"
BASELINES = (LAST_TURN, USER_TURNS, FULL_CONVERSATION)


@dataclass(frozen=True)
class _System:
    """One system to run: its name in the report, its role, and its text for every judged query, in their order.

    A student's text is a JSON pair [question, history], because its separator is known only with its tokenizer.
    """

    name: str
    role: Role
    texts: tuple[str, ...]


def evaluation_artifact(
    config: DistillConfig,
    queries: Sequence[ConversationalQuery],
    qrels: Qrels,
    rewrites: Mapping[str, Artifact],
    index: IndexVersion,
    student: Artifact,
    root: str,
) -> Artifact:
    """Return the address of the evaluation of these inputs, computed or not."""
    judged = _judged(queries, qrels)
    asked = [[query.query_id, query.depth, query.question, history_pairs(query)] for query in judged]
    data = fingerprint("judged-turns", 1, {"queries": asked, "qrels": [qrels[query.query_id] for query in judged]}, {})
    second = config.evaluate.rerank
    settings = {
        "evaluate": config.evaluate,
        "documents": document_encoder_settings(config.index.documents, config.student),
        "text": config.student.text,
    }
    inputs = {
        "data": data,
        "index": index.fingerprint,
        "student": student.fingerprint,
        **{f"rewrites:{name}": artifact.fingerprint for name, artifact in rewrites.items()},
    }
    if second is not None:
        inputs["reranker"] = model_identity(second.model, second.revision, MODEL_FILES, "evaluate.rerank.model")
    return Artifact(root, KIND, "test", fingerprint(KIND, FORMAT_VERSION, settings, inputs))


def evaluate(
    config: DistillConfig,
    queries: Sequence[ConversationalQuery],
    qrels: Qrels,
    rewrites: Mapping[str, Artifact],
    index: IndexVersion,
    student: Artifact,
    root: str,
) -> Artifact:
    """Measure the student, its teachers and the baselines on the judged turns; return the committed evaluation.

    Args:
        config: `evaluate`, `index.documents` and `student` count.
        queries: all turns of the test conversations; those without judgement are left out and counted.
        qrels: query id -> passage id -> grade; may hold further queries.
        rewrites: teacher name -> artifact of kind "rewrites" that covers the test turns.
        index: what is searched.
        student: artifact of kind "student", one part a file of its Hugging Face folder.
        root: run root.

    Finished parts of an earlier, interrupted call are used; a finished evaluation is returned at once.

    Raises:
        DataError: no turn is judged, or a teacher is named like another system.
        ResourceError: the cluster cannot hold `evaluate.workers`.
    """
    artifact = evaluation_artifact(config, queries, qrels, rewrites, index, student, root)
    if artifact.find_manifest() is not None:
        return artifact
    judged = _judged(queries, qrels)
    texts, counts = _teacher_texts(judged, rewrites)
    systems = _systems(judged, texts)
    parts = _searched_parts(config, ArtifactWriter(artifact), judged, systems, index, student)
    if config.evaluate.rerank is not None:
        parts += _reranked_parts(config.evaluate.rerank, ArtifactWriter(artifact), parts, judged, systems[-1], index)
        systems.append(dataclasses.replace(systems[-1], name=RERANKED, role="reranked"))
    results = _results(artifact, parts, judged, systems)
    own_qrels = {query.query_id: qrels[query.query_id] for query in judged}
    metrics, scores = summarise(results, judged, own_qrels, config.evaluate, counts, left_out=len(queries) - len(judged))
    _commit(ArtifactWriter(artifact), parts, judged, own_qrels, results, metrics, scores)
    return artifact


def load_metrics(evaluation: Artifact) -> Metrics:
    """Return the metrics of an evaluation (structure in `summary`). Raises StorageError when it is not committed."""
    metrics: Metrics = json.loads(evaluation.fetch(evaluation.part("metrics")).read_bytes())
    return metrics


def _judged(queries: Sequence[ConversationalQuery], qrels: Qrels) -> list[ConversationalQuery]:
    judged = [query for query in queries if qrels.get(query.query_id)]
    if not judged:
        raise DataError(
            f"none of the {len(queries)} test turns has a judgement; check that data.test.qrels belongs to "
            "data.test.conversations"
        )
    return judged


def _teacher_texts(
    judged: Sequence[ConversationalQuery], rewrites: Mapping[str, Artifact]
) -> tuple[dict[str, tuple[str, ...]], dict[str, RewriteCounts]]:
    """Return every teacher's rewrites of the judged turns, and its rewrites and failures counted over all turns.

    A judged turn that a teacher's artifact lacks falls back to its question and counts as missing.
    """
    texts, counts = {}, {}
    for name, artifact in rewrites.items():
        wanted = {query.query_id for query in judged}
        found: dict[str, str] = {}
        failures: dict[str, int] = {}
        rows = 0
        for part in artifact.manifest().parts:
            table = pq.read_table(artifact.fetch(part), columns=["query_id", "text", "failure"])
            rows += table.num_rows
            for row in table.to_pylist():
                if row["failure"] is not None:
                    failures[row["failure"]] = failures.get(row["failure"], 0) + 1
                if row["query_id"] in wanted:
                    found[row["query_id"]] = row["text"]
        absent = len(wanted) - len(found)
        if absent:
            failures[Failure.MISSING.value] = failures.get(Failure.MISSING.value, 0) + absent
        texts[name] = tuple(found.get(query.query_id, query.question) for query in judged)
        counts[name] = RewriteCounts(rows + absent, failures)
    return texts, counts


def _systems(judged: Sequence[ConversationalQuery], teachers: Mapping[str, tuple[str, ...]]) -> list[_System]:
    taken = sorted({*BASELINES, STUDENT, RERANKED} & set(teachers))
    if taken:
        raise DataError(f"the teacher name {taken[0]!r} is the name of a system of every evaluation; rename the teacher")
    histories = [history_pairs(query) for query in judged]
    paired = list(zip(judged, histories, strict=True))
    return [
        _System(LAST_TURN, "baseline", tuple(query.question for query in judged)),
        _System(USER_TURNS, "baseline", tuple(user_turns_text(query.question, history) for query, history in paired)),
        _System(
            FULL_CONVERSATION, "baseline", tuple(full_conversation_text(query.question, each) for query, each in paired)
        ),
        *(_System(name, "teacher", texts) for name, texts in teachers.items()),
        _System(STUDENT, "student", tuple(json.dumps([query.question, history]) for query, history in paired)),
    ]


def _searched_parts(
    config: DistillConfig,
    writer: ArtifactWriter,
    judged: Sequence[ConversationalQuery],
    systems: Sequence[_System],
    index: IndexVersion,
    student: Artifact,
) -> list[Part]:
    """Return the parts of all ranges of queries, searching those that are not there yet on Ray."""
    finished = writer.finished()
    width = config.evaluate.queries_per_part
    ranges = [(start, min(start + width, len(judged))) for start in range(0, len(judged), width)]
    done = {name: finished[name] for start, stop in ranges if (name := _part_name(start, stop)) in finished}
    specs = [
        {
            "name": _part_name(start, stop),
            "query_ids": [query.query_id for query in judged[start:stop]],
            "systems": [
                {"name": system.name, "role": system.role, "texts": list(system.texts[start:stop])} for system in systems
            ],
        }
        for start, stop in ranges
        if _part_name(start, stop) not in done
    ]
    engine = config.evaluate.engine
    approximate = None
    if isinstance(engine, SeismicEngine) and specs:
        approximate = build_approximate(index, engine.build, config.evaluate.workers)
    arguments = {
        "writer": writer,
        "index": index,
        "engine": engine,
        "approximate": approximate,
        "documents": config.index.documents,
        "student_config": config.student,
        "student": student,
        "depth": config.evaluate.depth,
        "device": "cuda" if config.evaluate.workers.gpus else "cpu",
    }
    with track("evaluate", len(judged), "turns") as advance:
        advance(sum(part.counters["turns"] for part in done.values()))
        for receipt in map_shards(specs, QueryWorker, arguments, config.evaluate.workers, "evaluate"):
            part = Part.from_json(receipt)
            done[part.name] = part
            advance(part.counters["turns"])
    return [done[_part_name(start, stop)] for start, stop in ranges]


def _reranked_parts(
    config: RerankConfig,
    writer: ArtifactWriter,
    parts: Sequence[Part],
    judged: Sequence[ConversationalQuery],
    student: _System,
    index: IndexVersion,
) -> list[Part]:
    """Return the second stage's parts, one for each part of the first, reading again what is not there yet on Ray."""
    finished = writer.finished()
    done = {name: finished[name] for part in parts if (name := f"rerank-{part.name}") in finished}
    specs, start = [], 0
    for part in parts:
        stop = start + int(part.counters["turns"])
        if f"rerank-{part.name}" not in done:
            query_ids = [query.query_id for query in judged[start:stop]]
            texts = list(student.texts[start:stop])
            name = f"rerank-{part.name}"
            specs.append({"name": name, "part": part.to_json(), "query_ids": query_ids, "texts": texts})
        start = stop
    arguments = {"writer": writer, "index": index, "config": config, "system": student.name, "name": RERANKED}
    with track("rerank", len(judged), "turns") as advance:
        advance(sum(part.counters["turns"] for part in done.values()))
        for receipt in map_shards(specs, RerankWorker, arguments, config.workers, "evaluate.rerank"):
            made = Part.from_json(receipt)
            done[made.name] = made
            advance(made.counters["turns"])
    return [done[f"rerank-{part.name}"] for part in parts]


def _part_name(start: int, stop: int) -> str:
    return f"{start:08d}-{stop:08d}"


def _results(
    artifact: Artifact, parts: Sequence[Part], judged: Sequence[ConversationalQuery], systems: Sequence[_System]
) -> list[SystemResult]:
    rows: dict[str, dict[str, dict[str, Any]]] = {system.name: {} for system in systems}
    ids: dict[str, str] = {}  # systems retrieve the same passages over and over: keep one string of each
    for part in parts:
        for row in pq.read_table(artifact.fetch(part)).to_pylist():
            row["passages"] = [ids.setdefault(passage_id, passage_id) for passage_id in row["passages"]]
            rows[row["system"]][row["query_id"]] = row
    results = []
    for system in systems:
        found = [rows[system.name][query.query_id] for query in judged]
        rankings = {row["query_id"]: tuple(zip(row["passages"], row["scores"], strict=True)) for row in found}
        results.append(
            SystemResult(
                name=system.name,
                role=system.role,
                run=Run(system.name, rankings),
                texts=system.texts,
                terms=np.array([row["terms"] for row in found], dtype=np.int64),
                flops=np.array([row["flops"] for row in found], dtype=np.float64),
                postings=_all_known([row["postings"] for row in found]),
                cut=_all_known([row["cut"] for row in found]),
                encode_ms=np.array([row["encode_ms"] for row in found], dtype=np.float64),
                search_ms=np.array([row["search_ms"] for row in found], dtype=np.float64),
            )
        )
    return results


def _all_known(values: list[Any]) -> NDArray[Any] | None:
    """Return an array of one value a turn; None where a system has none."""
    return None if None in values else np.array(values)


def _commit(
    writer: ArtifactWriter,
    parts: Sequence[Part],
    judged: Sequence[ConversationalQuery],
    qrels: Qrels,
    results: Sequence[SystemResult],
    metrics: Metrics,
    scores: Mapping[str, Scores],
) -> None:
    names = [part.name for part in parts]

    def put(name: str, content: bytes, suffix: str, rows: int) -> None:
        writer.put_part(name, content, suffix, rows=rows)
        names.append(name)

    for number, result in enumerate(results):
        lines = list(trec_run_lines(result.run))
        put(f"run-{number:02d}-{_slug(result.name)}", "".join(lines).encode(), ".trec", len(lines))
    lines = list(trec_qrels_lines(qrels))
    put("qrels", "".join(lines).encode(), ".trec", len(lines))
    table = _per_query_table(judged, results, scores)
    put("per-query", parquet_bytes(table), ".parquet", table.num_rows)
    put("metrics", json.dumps(metrics, indent=1, ensure_ascii=False).encode(), ".json", len(metrics["systems"]))
    means = {
        system["name"]: {name: interval["mean"] for name, interval in system["measures"].items()}
        for system in metrics["systems"]
    }
    writer.commit(names, {"queries": metrics["queries"], "means": means})


def _per_query_table(
    judged: Sequence[ConversationalQuery], results: Sequence[SystemResult], scores: Mapping[str, Scores]
) -> pa.Table:
    columns: dict[str, list[Any]] = {"query_id": [], "depth": [], "system": [], "text": []}
    for result in results:
        columns["query_id"] += [query.query_id for query in judged]
        columns["depth"] += [query.depth for query in judged]
        columns["system"] += [result.name] * len(judged)
        columns["text"] += list(result.texts)
        for name in scores[result.name].measures:
            columns.setdefault(name, []).extend(scores[result.name].of(name).tolist())
    return pa.table(columns)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)
