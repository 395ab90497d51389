"""The score stage on Ray: for every query the candidates of all teachers and their exact score by each of them.

The candidates of a query are the union of what every teacher's rewrite retrieves, of what an earlier student retrieves
for the conversation (a further round, as in ANCE, arXiv 2007.00808) and of the gold passages; every teacher scores all of
them from the forward vectors, so that no score is missing or made up. With score.student_encodes_rewrites that student
encodes the rewrites too: each teacher NAME is joined by NAME@student, whose vectors are scaled so that their scores spread
as the teacher's do (students learn at a temperature of their own). What it finds for the conversation is kept in its order,
for draws that want what it still takes for relevant. Parts are in the form of `candidates`. Combination of
teachers and sampling happen when they are read, in `raydistill.distill`.

All teachers' vectors of a part are searched as one batch against all segments; with a GPU (score.workers.gpus) by
`device_search`, whose results are the same.

Memory: the driver holds the queries it was given and one part of them as Parquet; a worker maps the whole index, and
holds what one part retrieves (queries_per_part x T x top_k x 12 bytes), its candidates (queries_per_part x union x
(8 + 4 T) bytes), and one part of one teacher's rewrites. At 1,024 queries, 5 teachers and top 1,000 that is 60 MB and at
most 145 MB; where a student encodes the rewrites too, T counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.actor_pool import map_shards
from raydistill.config import DistillConfig, DocumentsConfig, ScoreConfig, StudentConfig, as_read_by_student
from raydistill.config.sampling import STUDENT_BEST
from raydistill.conversations.records import ConversationalQuery
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.documents import document_encoder_settings, load_document_encoder
from raydistill.errors import DataError
from raydistill.index.candidates import candidate_table, parquet_bytes, queries_fingerprint, query_table
from raydistill.index.corpus import indexed_corpus
from raydistill.index.earlier_student import EarlierStudent, scale_to_teachers
from raydistill.index.publish import IndexVersion
from raydistill.index.search import Searcher, open_searcher
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint
from raydistill.storage.parts import summed_counters
from raydistill.teachers.engine import Failure

if TYPE_CHECKING:
    from raydistill.index.device_search import DeviceSearcher

_FORMAT_VERSION = 2
_STUDENT = "student"
"""Name of the student in counters."""

Qrels = Mapping[str, Mapping[str, int]]
_Vector = tuple[NDArray[np.int32], NDArray[np.float32]]
_Asked = tuple[str, Sequence[int], SparseBatch]
"""Who is asked, for which rows of the part, and the vectors of those."""


def candidates_artifact(
    config: DistillConfig,
    queries: Sequence[ConversationalQuery],
    qrels: Qrels,
    rewrites: Mapping[str, Artifact],
    index: IndexVersion,
    student: Artifact | None = None,
) -> Artifact:
    """Return the address of what `mine_candidates` makes, committed or not. Raises DataError without query or teacher."""
    if not rewrites or not queries:
        raise DataError(f"mining needs at least one query and one teacher; it has {len(queries)} and {len(rewrites)}")
    if student is not None and _STUDENT in rewrites:
        raise DataError(f"a teacher is named {_STUDENT!r}, as the student is in this round's counters; give it another name")
    settings = {
        # Before there is a student, nothing is changed by who would encode what from then on.
        "score": config.score.model_copy(update={"student_encodes_rewrites": _encodes_rewrites(config, student)}),
        "encoder": document_encoder_settings(config.index.documents, config.student),
        "teachers": tuple(rewrites),
    }
    inputs = {"queries": queries_fingerprint(queries, qrels), "index": index.fingerprint}
    inputs |= {f"rewrites/{teacher}": artifact.fingerprint for teacher, artifact in rewrites.items()}
    if student is not None:
        inputs |= {_STUDENT: student.fingerprint, "student_best": str(STUDENT_BEST)}
    name = fingerprint("candidates", _FORMAT_VERSION, settings, inputs)
    return Artifact(config.root, "candidates", config.index.name, name)


def mine_candidates(
    config: DistillConfig,
    queries: Sequence[ConversationalQuery],
    qrels: Qrels,
    rewrites: Mapping[str, Artifact],
    index: IndexVersion,
    student: Artifact | None = None,
) -> Artifact:
    """Return the candidates artifact (kind "candidates"), making what of it is missing.

    A rewrite that failed takes part with its fall-back text. A query that a recorded teacher does not hold at all
    (failure "missing", or no row) has a null list of that teacher; a query that no teacher has is left out and counted.

    manifest.metadata: {"teachers": names in the order of the scores (with score.student_encodes_rewrites and a student all
    teachers, then all as the student reads them), "index": the version's JSON, "counters": sums}.
    Counters: queries, candidates, gold, unknown_gold (judged passages that are not in the corpus), without_rewrite and
    without_candidates (queries left out: no teacher has them, nothing was retrieved nor gold), and for each teacher t
    rewrites.t and gold_found.t (gold passages among its own top k), and the same for t@student. With a student also
    gold_found.student, and student_only (candidates that its vector of the conversation alone retrieved).

    Args:
        config: its sections score, index.documents, student and root count.
        queries: with their histories; every one becomes a row unless it is left out.
        qrels: query id -> passage id -> grade; grades > 0 are gold. May hold more queries than asked.
        rewrites: teacher -> its rewrites artifact; the order is that of the scores.
        index: what is searched.
        student: artifact of an earlier student (see raydistill.distill.train); None for the first round.

    Raises:
        DataError: a judged passage is not in the corpus, and more of them are unknown than rows of the corpus were
            quarantined; or no teacher has a rewrite of any query.
        ResourceError: the cluster can never hold score.workers.
    """
    candidates = candidates_artifact(config, queries, qrels, rewrites, index, student)
    if candidates.find_manifest() is not None:
        return candidates
    writer = ArtifactWriter(candidates)
    stored = _store_queries(queries, qrels, config)
    arguments = {
        "queries": stored,
        "writer": writer,
        "rewrites": dict(rewrites),
        "index": index,
        "documents": config.index.documents,
        "student_config": config.student,
        "student": student,
        "student_encodes_rewrites": _encodes_rewrites(config, student),
        "top_k": config.score.top_k,
        "threads": max(1, int(config.score.workers.cpus)),
        "device": "cuda" if config.score.workers.gpus else "cpu",
    }
    parts = stored.manifest().parts
    _run(parts, writer, arguments, config.score, _lost_rows(index))
    finished = writer.finished()
    if not any(finished[part.name].rows for part in parts):
        raise DataError(f"no teacher ({', '.join(rewrites)}) has a rewrite of any query; check the teachers' files")
    names = [part.name for part in parts]
    counters = summed_counters([finished[name] for name in names])
    teachers = list(rewrites)
    if _encodes_rewrites(config, student):
        teachers += map(as_read_by_student, rewrites)
    writer.commit(names, {"teachers": teachers, "index": index.to_json(), "counters": counters})
    return candidates


def _encodes_rewrites(config: DistillConfig, student: Artifact | None) -> bool:
    return student is not None and config.score.student_encodes_rewrites


def _store_queries(queries: Sequence[ConversationalQuery], qrels: Qrels, config: DistillConfig) -> Artifact:
    """Return the queries as an artifact, one part a shard of mining."""
    rows = config.score.queries_per_part
    inputs = {"queries": queries_fingerprint(queries, qrels)}
    name = fingerprint("queries", _FORMAT_VERSION, {"rows": rows}, inputs)
    artifact = Artifact(config.root, "queries", config.index.name, name)
    if artifact.find_manifest() is not None:
        return artifact
    writer = ArtifactWriter(artifact)
    names = []
    for number, start in enumerate(range(0, len(queries), rows)):
        chosen = queries[start : start + rows]
        names.append(f"{number:05d}")
        writer.put_part(names[-1], parquet_bytes(query_table(chosen, qrels)), ".parquet", rows=len(chosen))
    writer.commit(names, {})
    return artifact


def _lost_rows(index: IndexVersion) -> int:
    """Return how many rows of the index's corpus were quarantined, or deleted since; that many judged passages may be
    unknown."""
    deleted = index.metadata.get("changed", {}).get("deleted", 0)
    return int(indexed_corpus(index).manifest().metadata["quarantined"]) + int(deleted)


def _run(
    parts: Sequence[Part], writer: ArtifactWriter, arguments: dict[str, Any], score: ScoreConfig, lost_rows: int
) -> None:
    finished = writer.finished()
    missing = [part for part in parts if part.name not in finished]
    specs = [{"part": part.to_json(), "lost_rows": lost_rows} for part in missing]
    total = sum(part.rows for part in parts)
    unknown: set[str] = set()
    with track("score", total, "queries") as advance:
        advance(total - sum(part.rows for part in missing))
        for receipt in map_shards(specs, _Miner, arguments, score.workers, "score"):
            unknown.update(receipt["unknown"])
            _check_unknown(sorted(unknown), receipt["query"], lost_rows)
            advance(receipt["queries"])


def _check_unknown(unknown: Sequence[str], query: str, lost_rows: int) -> None:
    if len(unknown) > lost_rows:
        quarantined = f"; only {lost_rows} corpus rows were quarantined or deleted" if lost_rows else ""
        raise DataError(
            f"qrels: passage {unknown[0]!r}, judged relevant for query {query!r}, is not in the corpus "
            f"({len(unknown)} such passages so far{quarantined}); check that data.corpus and the qrels belong together"
        )


class _Miner:
    """Mines one part of the queries."""

    def __init__(
        self,
        queries: Artifact,
        writer: ArtifactWriter,
        rewrites: Mapping[str, Artifact],
        index: IndexVersion,
        documents: DocumentsConfig,
        student_config: StudentConfig,
        student: Artifact | None,
        student_encodes_rewrites: bool,
        top_k: int,
        threads: int,
        device: str,
    ) -> None:
        self._queries = queries
        self._writer = writer
        self._rewrites = [(teacher, artifact, artifact.manifest().parts) for teacher, artifact in rewrites.items()]
        self._top_k = top_k
        self._searcher = open_searcher(index, threads=threads)
        self._engine: Searcher | DeviceSearcher = self._searcher
        if device == "cuda":
            from raydistill.index.device_search import DeviceSearcher

            self._engine = DeviceSearcher(self._searcher, device)
        self._encoder = load_document_encoder(documents, student_config, index.open_statistics(), device)
        self._student = None if student is None else EarlierStudent(student, student_config.trust_remote_code, device)
        self._student_encodes_rewrites = student_encodes_rewrites

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        part = Part.from_json(spec["part"])
        asked = pq.read_table(self._queries.fetch(part))
        texts = {teacher: self._texts(artifact, parts, asked) for teacher, artifact, parts in self._rewrites}
        kept = [
            row for row, query_id in enumerate(_strings(asked, "query_id")) if any(query_id in t for t in texts.values())
        ]
        counters: dict[str, float] = {"without_rewrite": len(asked) - len(kept)}
        queries = asked.take(pa.array(kept, type=pa.int64()))
        gold, unknown, query = self._gold(queries)
        _check_unknown(unknown, query, int(spec["lost_rows"]))
        counters |= {"gold": sum(map(len, gold)), "unknown_gold": len(unknown)}
        passages, scores, vectors, student_best = self._scored(queries, texts, gold, counters)
        table = candidate_table(queries, gold, passages, scores, vectors, student_best)
        table = table.filter(pa.array([len(numbers) > 0 for numbers in passages], type=pa.bool_()))
        counters |= {"candidates": sum(map(len, passages)), "without_candidates": len(queries) - len(table)}
        counters["queries"] = len(table)
        self._writer.put_part(part.name, parquet_bytes(table), ".parquet", rows=len(table), counters=counters)
        return {"queries": part.rows, "unknown": unknown, "query": query}

    def _texts(self, artifact: Artifact, parts: Sequence[Part], queries: pa.Table) -> dict[str, str]:
        """Return query id -> rewrite, for those queries of the table that the teacher has one for."""
        wanted = queries.column("query_id")
        texts: dict[str, str] = {}
        for part in parts:
            table = pq.read_table(artifact.fetch(part), columns=["query_id", "text", "failure"])
            table = table.filter(pc.is_in(table.column("query_id"), value_set=wanted.combine_chunks()))
            for query_id, text, failure in zip(*(_strings(table, name) for name in table.column_names), strict=True):
                if failure != Failure.MISSING.value:
                    texts[query_id] = text
        return texts

    def _gold(self, queries: pa.Table) -> tuple[list[NDArray[np.int64]], list[str], str]:
        """Return the numbers of each query's gold passages, the ids that are unknown, and the first query with one."""
        ids = queries.column("gold_ids").to_pylist()
        flat = [passage_id for of_query in ids for passage_id in of_query]
        numbers = self._searcher.find(flat)
        edges = np.cumsum([0] + [len(of_query) for of_query in ids])
        split = [numbers[start:stop] for start, stop in pairwise(edges.tolist())]
        unknown = sorted({passage_id for passage_id, number in zip(flat, numbers.tolist(), strict=True) if number < 0})
        names = _strings(queries, "query_id")
        first = next((name for name, of_query in zip(names, ids, strict=True) if unknown and unknown[0] in of_query), "")
        return [np.sort(of_query[of_query >= 0]) for of_query in split], unknown, first

    def _scored(
        self,
        queries: pa.Table,
        texts: Mapping[str, Mapping[str, str]],
        gold: Sequence[NDArray[np.int64]],
        counters: dict[str, float],
    ) -> tuple[
        list[NDArray[np.int64]],
        list[list[NDArray[np.float32] | None]],
        list[list[_Vector | None]],
        list[NDArray[np.int64]] | None,
    ]:
        """Return the candidates of every query, and for each teacher their scores and its rewrites' vectors (None where it
        has no rewrite), then the same of the teachers as the student reads them, where it does; and what the student finds
        for each conversation, where there is one."""
        ids = _strings(queries, "query_id")
        asked: list[_Asked] = []
        for teacher, of_query in texts.items():
            held = [row for row, query_id in enumerate(ids) if query_id in of_query]
            asked.append((teacher, held, self._encoder.encode_queries([of_query[ids[row]] for row in held])))
            counters[f"rewrites.{teacher}"] = len(held)
        if self._student is not None and self._student_encodes_rewrites:
            for teacher, rows, _ in list(asked):
                vectors = self._student.of_texts([texts[teacher][ids[row]] for row in rows])
                asked.append((as_read_by_student(teacher), rows, vectors))
        encoded = list(asked)
        if self._student is not None:
            asked.append((_STUDENT, range(len(ids)), self._student.of_conversations(queries)))
        passages, student_best = self._candidates(asked, gold, counters)
        lists = [self._exact(rows, vectors, passages) for _, rows, vectors in encoded]
        by_documents, by_student = lists[: len(texts)], lists[len(texts) :]
        for (teacher, _, _), own, read in zip(encoded[len(texts) :], by_documents, by_student, strict=False):
            for row, (scores, (terms, weights)) in list(read.items()):
                scale = scale_to_teachers(scores, own[row][0], [each[row][0] for each in by_documents if row in each])
                if scale is None:
                    del read[row]
                else:
                    read[row] = scores * scale, (terms, weights * scale)
            counters[f"rewrites.{teacher}"] = len(read)
        columns = [[of_row.get(row) for row in range(len(ids))] for of_row in lists]
        return (
            passages,
            [[found and found[0] for found in column] for column in columns],
            [[found and found[1] for found in column] for column in columns],
            student_best,
        )

    def _exact(
        self, rows: Sequence[int], vectors: SparseBatch, passages: Sequence[NDArray[np.int64]]
    ) -> dict[int, tuple[NDArray[np.float32], _Vector]]:
        """Return for each row the exact scores of its candidates by its vector, and the vector."""
        scores = self._searcher.scores(vectors, [passages[row] for row in rows])
        return {row: (own, vectors.row(number)) for number, (row, own) in enumerate(zip(rows, scores, strict=True))}

    def _candidates(
        self,
        asked: Sequence[_Asked],
        gold: Sequence[NDArray[np.int64]],
        counters: dict[str, float],
    ) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]] | None]:
        """Return the union of what everyone's vectors retrieve and of the gold passages, and the best of what the student's
        retrieve, where it is asked; count what each found.

        All vectors are one batch, so that the index is read once for a part and not once for each teacher.

        Args:
            asked: who, for which queries, by which vectors; the student last.
        """
        found = self._engine.search(SparseBatch.concatenate([vectors for _, _, vectors in asked]), self._top_k).passages
        pools: list[list[NDArray[np.int64]]] = [[numbers] for numbers in gold]
        start, student_best = 0, None
        for who, rows, vectors in asked:
            own = [numbers[numbers >= 0] for numbers in found[start : start + len(vectors)]]
            start += len(vectors)
            known = sum(len(np.unique(np.concatenate(pool))) for pool in pools) if who == _STUDENT else 0
            for row, numbers in zip(rows, own, strict=True):
                pools[row].append(numbers)
            hits = (np.isin(gold[row], numbers).sum() for row, numbers in zip(rows, own, strict=True))
            counters[f"gold_found.{who}"] = int(sum(hits))
            if who == _STUDENT:
                student_best = [numbers[:STUDENT_BEST] for numbers in own]
                counters["student_only"] = sum(len(np.unique(np.concatenate(pool))) for pool in pools) - known
        return [np.unique(np.concatenate(pool)) for pool in pools], student_best


def _strings(table: pa.Table, name: str) -> list[str]:
    return list(table.column(name).to_pylist())
