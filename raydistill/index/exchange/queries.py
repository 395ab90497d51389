"""Query vectors for other engines: read from mined candidates, encoded from texts, or from JSON lines; written in the form
in which an engine takes queries.

    jsonl        {"id": "q1", "vector": {"1037": 1.25}}
    tsv          q1<TAB>1037 1037 2003          Anserini -topicReader TsvString: a term stands as often as its weight says
    bmp          q1: 1037 1037 2003             BMP's query file; BMP scales weights above 32 down to 32
    opensearch   {"query": {"neural_sparse": {FIELD: {"query_tokens": {"1037": 1.25}}}}}       a line is a body of _search
    qdrant       {"query": {"indices": [1037], "values": [1.25]}, "using": FIELD}              one of /points/query

In tsv and bmp a weight is weight * scale, rounded, at least 1; by default each query's largest weight becomes 32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.conversations.rows import BadRow, RowError, identifier, json_object, numbered_lines, required_text
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.exchange.quantise import Quantisation
from raydistill.index.exchange.vector_rows import VectorReader
from raydistill.storage.artifacts import Artifact, Manifest
from raydistill.storage.files import open_input
from raydistill.storage.hashing import unsealed
from raydistill.storage.store import open_store

QueryFormat = Literal["jsonl", "tsv", "bmp", "opensearch", "qdrant"]
REPEATED = ("tsv", "bmp")
"""Formats in which a term is repeated as often as its weight says."""
_MOST = 32


def stored_rewrites(uri: str, teacher: str | None, vocabulary_size: int) -> tuple[list[str], SparseBatch]:
    """Return the ids and vectors of a teacher's rewrites from a candidates artifact; queries it has none of are left out.

    Args:
        uri: of the artifact, …/artifacts/candidates/NAME.
        teacher: None takes the only one.

    Raises DataError when there is no such teacher, StorageError when there is no such artifact.
    """
    store = open_store(uri)
    manifest = Manifest.from_json(unsealed(store.read("_manifest.json"), f"{store.root}/_manifest.json"))
    teachers = list(manifest.metadata.get("teachers", []))
    if teacher is None and len(teachers) == 1:
        teacher = teachers[0]
    if teacher not in teachers:
        raise DataError(f"{uri} has rewrites of {', '.join(teachers) or 'nobody'}, not of {teacher!r}; name one of them")
    artifact = Artifact(store.root.rpartition("/artifacts/")[0], manifest.kind, manifest.name, manifest.fingerprint)
    place = teachers.index(teacher)
    ids: list[str] = []
    rows: list[dict[int, float]] = []
    for part in manifest.parts:
        table = pq.read_table(artifact.fetch(part), columns=["query_id", "rewrite_terms", "rewrite_weights"])
        for query_id, terms, weights in zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True):
            if terms[place] is not None:
                ids.append(query_id)
                rows.append(dict(zip(terms[place], weights[place], strict=True)))
    return ids, SparseBatch.from_rows(rows, vocabulary_size)


def encoded_texts(uri: str, encoder: str) -> tuple[list[str], SparseBatch]:
    """Return the ids and query vectors of texts, JSON lines {"_id", "text"}, by an encoder's folder.

    A student reads a conversation in the form it was trained with (see `raydistill.conversations.text`): give it such texts.
    """
    from raydistill.encoders.checkpoint import load_student

    ids, texts = [], []
    with open_input(uri) as stream:
        for line in numbered_lines(stream, uri):
            try:
                if isinstance(line, BadRow):
                    raise RowError(line.reason)
                record = json_object(line.text)
                ids.append(identifier(record, "_id"))
                texts.append(required_text(record, "text"))
            except RowError as error:
                raise DataError(f"{line.place}: {error}; correct the line") from None
    return ids, load_student(Path(encoder)).encoder().encode_queries(texts)


def read_queries(uri: str, vocabulary_size: int, names: Sequence[str] | None) -> tuple[list[str], SparseBatch]:
    """Return the ids and vectors of queries from JSON lines {"id", "vector"}. Raises DataError for a bad line."""
    reader = VectorReader(vocabulary_size, None if names is None else {name: term for term, name in enumerate(names)})
    ids: list[str] = []
    batches = []
    with open_input(uri) as stream:
        for some, vectors, refused in reader.json_lines(stream, uri):
            if refused:
                raise DataError(f"{refused[0].place}: {refused[0].reason}; correct the line")
            ids += some
            batches.append(vectors)
    return ids, SparseBatch.concatenate(batches)


def query_lines(
    ids: Sequence[str],
    vectors: SparseBatch,
    names: Sequence[str],
    kind: QueryFormat,
    field: str,
    scale: float | None,
) -> Iterator[str]:
    """Yield one line a query.

    Args:
        names: of the terms, by id.
        field: the vector field (opensearch) or the named vector (qdrant).
        scale: of the weights, for the formats that repeat terms; None lets each query's largest weight become 32.
    """
    for row, query_id in enumerate(ids):
        terms, weights = vectors.row(row)
        decimals = [float(f"{weight:.9g}") for weight in weights.tolist()]
        named = [names[term] for term in terms.tolist()]
        if kind in REPEATED:
            counts = _repetitions(weights, scale)
            text = " ".join(np.repeat(np.array(named, dtype=object), counts).tolist())
            yield f"{query_id}: {text}\n" if kind == "bmp" else f"{query_id}\t{text}\n"
        elif kind == "qdrant":
            body = {"query": {"indices": terms.tolist(), "values": decimals}, "using": field}
            yield json.dumps(body) + "\n"
        else:
            vector = dict(zip(named, decimals, strict=True))
            body = {"id": query_id, "vector": vector}
            if kind == "opensearch":
                body = {"query": {"neural_sparse": {field: {"query_tokens": vector}}}}
            yield json.dumps(body, ensure_ascii=False) + "\n"


def _repetitions(weights: NDArray[np.float32], scale: float | None) -> NDArray[np.int32]:
    if scale is not None:
        return Quantisation(scale, 2**31 - 1).apply(weights)
    return Quantisation(_MOST / float(weights.max(initial=1e-30)), _MOST).apply(weights)
