"""Query vectors reach engines in their own form, from mined candidates, from texts, and back from JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from published import publish, random_vectors

from raydistill.cli import main
from raydistill.conversations.records import ConversationalQuery
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.candidates import candidate_table, parquet_bytes, query_table
from raydistill.index.exchange.queries import QueryFormat, query_lines, read_queries, stored_rewrites
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint

QUERIES = SparseBatch.from_rows([{1: 2.0, 3: 0.5}, {2: 4.0}], 5)
NAMES = ["a", "b", "c", "d", "e"]


def lines(kind: QueryFormat, scale: float | None = None) -> list[str]:
    return list(query_lines(["q1", "q2"], QUERIES, NAMES, kind, "terms", scale))


def test_terms_are_repeated_as_often_as_their_weights_say() -> None:
    assert lines("tsv", scale=2) == ["q1\tb b b b d\n", "q2\t" + " ".join("c" * 8) + "\n"]
    assert lines("bmp")[0] == "q1: " + " ".join(["b"] * 32 + ["d"] * 8) + "\n"
    assert lines("bmp")[1].split().count("c") == 32


def test_bodies_of_requests() -> None:
    assert json.loads(lines("jsonl")[0]) == {"id": "q1", "vector": {"b": 2.0, "d": 0.5}}
    assert json.loads(lines("opensearch")[1]) == {"query": {"neural_sparse": {"terms": {"query_tokens": {"c": 4.0}}}}}
    assert json.loads(lines("qdrant")[0]) == {"query": {"indices": [1, 3], "values": [2.0, 0.5]}, "using": "terms"}


def test_json_lines_of_queries_come_back(tmp_path: Path) -> None:
    vectors = random_vectors(9, 30, 5, 0.5)
    ids = [f"q{row}" for row in range(30)]
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(query_lines(ids, vectors, NAMES, "jsonl", "", None)))
    back, found = read_queries(str(path), 5, NAMES)
    assert back == ids
    np.testing.assert_array_equal(found.to_dense(), vectors.to_dense())
    path.write_text('{"id": "q", "vector": {"zebra": 1}}\n')
    with pytest.raises(DataError, match=r"queries\.jsonl:1: unknown term: 'zebra'"):
        read_queries(str(path), 5, NAMES)


def stored_candidates(root: str) -> Artifact:
    """Two queries, two teachers; the second teacher has no rewrite of the first query."""
    queries = [ConversationalQuery(f"q{n}", "c", n, "what?", (), "") for n in (1, 2)]
    vectors = [QUERIES.row(row) for row in range(2)]
    numbers, scores = [np.array([0])] * 2, [np.ones(1, dtype=np.float32)] * 2
    table = candidate_table(
        query_table(queries, {}), numbers, numbers, [scores, [None, scores[1]]], [vectors, [None, vectors[1]]]
    )
    artifact = Artifact(root, "candidates", "small", fingerprint("candidates", 1, {}, {}))
    writer = ArtifactWriter(artifact)
    writer.put_part("00000", parquet_bytes(table), ".parquet", rows=2)
    writer.commit(["00000"], {"teachers": ["one", "two"]})
    return artifact


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_stored_rewrites_by_teacher(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = f"file://{tmp_path}/runs" if kind == "local" else str(request.getfixturevalue("s3_root"))
    uri = stored_candidates(root).uri
    ids, vectors = stored_rewrites(uri, "one", 5)
    assert ids == ["q1", "q2"]
    np.testing.assert_array_equal(vectors.to_dense(), QUERIES.to_dense())
    assert stored_rewrites(uri, "two", 5)[0] == ["q2"]
    with pytest.raises(DataError, match="has rewrites of one, two, not of 'three'"):
        stored_rewrites(uri, "three", 5)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"file://{tmp_path}/runs"
    publish(root, tmp_path, [random_vectors(1, 9, 5, 0.5)])
    candidates = stored_candidates(root).uri
    where = ["--root", root, "--index", "small", "--to", str(tmp_path / "q.tsv"), "--format", "tsv", "--scale", "1"]
    assert main(["export-queries", "--candidates", candidates, "--teacher", "two", *where]) == 0
    assert (tmp_path / "q.tsv").read_text() == "q2\t2 2 2 2\n"
    assert "1 queries in" in capsys.readouterr().out


def test_texts_are_encoded_by_a_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from raydistill.encoders.checkpoint import load_student
    from raydistill.model_source import resolve_model

    folder = resolve_model("package:raydistill/demo/models/encoder", "test")
    encoder = load_student(folder).encoder()
    publish(f"file://{tmp_path}/runs", tmp_path, [random_vectors(1, 9, encoder.vocabulary_size, 0.01)])
    (tmp_path / "texts.jsonl").write_text('{"_id": "q1", "text": "where is the river"}\n{"_id": 2, "text": "a king"}\n')
    arguments = ["--texts", str(tmp_path / "texts.jsonl"), "--encoder", folder, "--to", str(tmp_path / "q.jsonl")]
    assert main(["export-queries", *arguments, "--root", str(tmp_path / "runs"), "--index", "small"]) == 0
    ids, vectors = read_queries(str(tmp_path / "q.jsonl"), encoder.vocabulary_size, None)
    assert ids == ["q1", "2"]
    np.testing.assert_array_equal(vectors.to_dense(), encoder.encode_queries(["where is the river", "a king"]).to_dense())
