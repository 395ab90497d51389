"""Vectors made elsewhere become an index: to the bit, whatever the files' form, with what is wrong left out and told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import publish, random_vectors

from raydistill.cli import main
from raydistill.config import ExportConfig, ImportConfig, RayConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.lexical import LexicalStatistics
from raydistill.errors import DataError
from raydistill.index.exchange.export import export_index
from raydistill.index.exchange.load import import_vectors, refused_rows
from raydistill.index.publish import IndexVersion, current_version
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import Artifact
from raydistill.storage.store import open_store

VOCABULARY = 60
RAY = RayConfig(local_cpus=2)
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/runs" if request.param == "local" else str(request.getfixturevalue("s3_root"))


def load(root: str, *files: str, **settings: Any) -> IndexVersion:
    return import_vectors(ImportConfig(files=files, name="loaded", **settings), root, RAY)


def everything(version: IndexVersion) -> tuple[list[str], SparseBatch]:
    searcher = open_searcher(version)
    numbers = np.arange(version.passages)
    return searcher.passage_ids(numbers), searcher.vectors(numbers)


def assert_same(left: IndexVersion, right: IndexVersion) -> None:
    (ids, vectors), (others, other) = everything(left), everything(right)
    assert ids == others
    assert left.vocabulary_size == right.vocabulary_size
    for name in ("indptr", "term_ids", "weights"):
        np.testing.assert_array_equal(getattr(vectors, name), getattr(other, name))


def write_lines(path: Path, rows: list[Any]) -> str:
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def refused(version: IndexVersion) -> list[tuple[str, str, str]]:
    artifact = Artifact.from_json(version.metadata["import"]["artifact"])
    rows = refused_rows(artifact, artifact.manifest().parts)
    return [(row.place.rpartition("/")[2], row.kind, row.reason) for row in rows]


@pytest.mark.parametrize(("root", "impacts"), [("local", "f32"), ("s3", "f16")], indirect=["root"])
def test_what_is_exported_as_parquet_comes_back_to_the_bit(root: str, tmp_path: Path, impacts: Any) -> None:
    parts = [random_vectors(1, 70, VOCABULARY), random_vectors(2, 33, VOCABULARY)]
    version = publish(root, tmp_path, parts, impacts)
    export_index(version, f"{root}/out", ExportConfig(format="parquet", passages_per_file=40), RAY)
    back = load(root, f"{root}/out/vectors/*", impacts=impacts, passages_per_segment=25)
    assert [segment.passages for segment in back.segments] == [25, 15, 25, 5, 25, 8]
    assert_same(back, version)
    statistics = LexicalStatistics.from_bytes(back.open_statistics() or b"")
    dense = SparseBatch.concatenate(parts).to_dense()
    np.testing.assert_array_equal(statistics.document_frequency, (dense > 0).sum(axis=0))
    assert current_version(root, "loaded") == back
    assert load(root, f"{root}/out/vectors/*", impacts=impacts, passages_per_segment=25) == back


def test_json_lines_come_back_too(tmp_path: Path) -> None:
    root = f"file://{tmp_path}/runs"
    version = publish(root, tmp_path, [random_vectors(1, 70, VOCABULARY)])
    export_index(version, f"{root}/out", ExportConfig(format="jsonl"), RAY)
    assert_same(load(root, f"{root}/out/vectors/*", vocabulary_size=VOCABULARY), version)


def test_strings_are_looked_up_and_terms_may_come_in_any_order(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("paris\nriver\nköln\n")
    lines = write_lines(
        tmp_path / "a.jsonl.gz",
        [{"id": "x", "vector": {"köln": 2, "paris": 0.5}}, {"id": 7, "vector": {}}, {"id": "z", "vector": {"river": 1e-3}}],
    )
    table = {"id": ["q"], "terms": [["river", "paris"]], "weights": [[1.5, 2.5]]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    version = load(f"file://{tmp_path}/runs", lines, str(tmp_path / "b.parquet"), terms=str(words), impacts="f32")
    ids, vectors = everything(version)
    assert ids == ["x", "7", "z", "q"]
    expected = [[0.5, 0, 2], [0, 0, 0], [0, 1e-3, 0], [2.5, 1.5, 0]]
    np.testing.assert_array_equal(vectors.to_dense(), np.array(expected, dtype=np.float32))


def test_bad_rows_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    root = f"file://{tmp_path}/runs"
    rows: list[Any] = [
        {"id": "good", "vector": {"3": 1.0}},
        '{"id": "nan", "vector": {"1": NaN}}',
        {"id": "zero", "vector": {"1": 1.0, "2": 0.0}},
        {"id": "negative", "vector": {"1": -1.0}},
        {"id": "tiny", "vector": {"1": 1e-60}},
        {"id": "huge", "vector": {"1": 1e60}},
        {"id": "outside", "vector": {"10": 1.0}},
        {"id": "word", "vector": {"river": 1.0}},
        {"id": "good", "vector": {"2": 1.0}},
        {"vector": {"2": 1.0}},
        {"id": "text", "vector": {"2": "1"}},
        {"id": "twice", "vector": {"2": 1.0, "02": 1.0}},
        "{",
        {"id": "last", "vector": {"9": 1.0}},
    ]
    lines = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a\.jsonl:2: weight not finite .* '1' has the weight nan .* raise max_bad_rows"):
        load(root, lines, vocabulary_size=10)
    version = load(root, lines, vocabulary_size=10, max_bad_rows=12)
    assert everything(version)[0] == ["good", "last"]
    assert version.metadata["import"]["refused"] == {
        "weight not finite and > 0": 5,
        "unknown term": 2,
        "repeated id": 1,
        "bad id": 1,
        "repeated term": 1,
        "malformed row": 2,
    }
    assert ("a.jsonl:9", "repeated id", "repeats the id 'good' of an earlier row") in refused(version)
    with pytest.raises(DataError, match="12 such rows"):
        load(root, lines, vocabulary_size=10, max_bad_rows=11)


def test_bad_rows_of_parquet_too(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array(["a", "b", "c", "a", None, "f", "g"]),
            "term_ids": pa.array([[3, 1], [2], [99], [1], [1], [1, 1], []], pa.list_(pa.int64())),
            "weights": pa.array([[1.0, 2.0], [float("inf")], [1.0], [1.0], [1.0], [1.0, 1.0], []], pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    ragged = pa.table({"id": ["h", "i", "j"], "term_ids": [[1, 2], None, [4]], "weights": [[1.0], [1.0], [1.0]]})
    pq.write_table(ragged, tmp_path / "b.parquet")
    files = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    version = load(f"file://{tmp_path}/runs", *files, vocabulary_size=10, max_bad_rows=7)
    ids, vectors = everything(version)
    assert ids == ["a", "g", "j"]
    assert [row.tolist() for row in vectors.row(0)] == [[1, 3], [2.0, 1.0]]
    places = {place: kind for place, kind, _ in refused(version)}
    assert places == {
        "a.parquet: row 1": "weight not finite and > 0",
        "a.parquet: row 2": "unknown term",
        "a.parquet: row 3": "repeated id",
        "a.parquet: row 4": "bad id",
        "a.parquet: row 5": "repeated term",
        "b.parquet: row 0": "malformed row",
        "b.parquet: row 1": "malformed row",
    }


def test_an_id_in_two_files_is_an_error(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / f"{name}.jsonl", [{"id": "same", "vector": {"1": 1.0}}]) for name in "ab"]
    with pytest.raises(DataError, match=r"a\.jsonl .* and in .*b\.jsonl"):
        load(f"file://{tmp_path}/runs", *files, vocabulary_size=10)


def test_files_that_do_not_say_what_their_terms_are_over(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [{"id": "x", "vector": {"1": 1.0}}])
    with pytest.raises(DataError, match="set vocabulary_size, or terms"):
        load(f"file://{tmp_path}/runs", lines)
    pq.write_table(pa.table({"id": ["q"], "vector": [[1.0]]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="has the columns id, vector"):
        load(f"file://{tmp_path}/runs", str(tmp_path / "b.parquet"), vocabulary_size=3)


def test_a_stopped_import_goes_on_to_the_same_segments(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "vector": {str(n % 9): 1.0 + n}} for n in range(50)]
    lines = write_lines(tmp_path / "a.jsonl", rows)
    settings = {"vocabulary_size": 10, "passages_per_segment": 20}
    root = f"file://{tmp_path}/runs"
    whole = load(root, lines, **settings)
    store = open_store(root)
    kept, lost = whole.segments[0], whole.segments[1]
    artifact = Artifact.from_json(whole.metadata["import"]["artifact"])
    receipts = f"indexes/loaded/receipts/{whole.fingerprint[:16]}"
    for key in (
        f"{artifact.prefix}/_manifest.json",
        f"{artifact.prefix}/_receipts/00000-00000.json",
        "indexes/loaded/manifests/00000001.json",
        "indexes/loaded/CURRENT",
        f"{receipts}/{lost.name}.json",
        lost.key,
    ):
        assert store.info(key) is not None, key
        store.delete(key)
    before = store.info(kept.key)
    again = load(root, lines, **settings)
    assert store.info(kept.key) == before
    assert again.segments == whole.segments


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [{"id": "x", "vector": {"1": 1.0}}, {"id": "y", "vector": {"1": 0}}])
    where = ["--from", lines, "--to", str(tmp_path / "runs"), "--index", "mine"]
    assert main(["import-vectors", *where, "vocabulary_size=4", "max_bad_rows=1"]) == 0
    printed = capsys.readouterr().out
    assert "1 passages over 4 terms in 1 segments" in printed
    assert "rows left out: 1 weight not finite and > 0" in printed
    assert current_version(str(tmp_path / "runs"), "mine").passages == 1
