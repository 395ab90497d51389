"""Exports hold exactly what the index holds, in the shape their engines read, and go on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ciff_messages import read_ciff
from published import publish, random_vectors, without

from raydistill.cli import main
from raydistill.config import ExportConfig, RayConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError
from raydistill.index.exchange.export import export_index
from raydistill.index.exchange.quantise import Quantisation, quantisation, top_overlap
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.storage.store import open_store

VOCABULARY = 60


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/runs" if request.param == "local" else str(request.getfixturevalue("s3_root"))


@pytest.fixture
def local_version(tmp_path: Path) -> IndexVersion:
    return publish(
        f"file://{tmp_path}/runs", tmp_path, [random_vectors(1, 70, VOCABULARY), random_vectors(2, 33, VOCABULARY)]
    )


def run(version: IndexVersion, to: str, **settings: Any) -> dict[str, Any]:
    return export_index(version, to, ExportConfig(**settings), RayConfig(local_cpus=2))


def stored(version: IndexVersion) -> tuple[list[str], SparseBatch]:
    searcher = open_searcher(version)
    numbers = np.arange(version.passages)
    return searcher.passage_ids(numbers), searcher.vectors(numbers)


def content(to: str, document: dict[str, Any]) -> list[bytes]:
    return [open_store(to).read(part["key"]) for part in document["parts"]]


def dictionaries(batch: SparseBatch) -> list[dict[int, float]]:
    return [dict(zip(*(array.tolist() for array in batch.row(row)), strict=True)) for row in range(len(batch))]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("root", "impacts"), [("local", "f32"), ("s3", "f16"), ("local", "u8")], indirect=["root"])
def test_parquet_holds_the_stored_impacts_to_the_bit(root: str, tmp_path: Path, impacts: Any) -> None:
    version = publish(root, tmp_path, [random_vectors(1, 70, VOCABULARY), random_vectors(2, 33, VOCABULARY)], impacts)
    to = f"{root}/exported"
    done = run(version, to, format="parquet", passages_per_file=40)
    assert [part["rows"] for part in done["parts"]] == [40, 30, 33]
    ids, vectors = stored(version)
    found: list[dict[str, Any]] = []
    for part in content(to, done):
        path = tmp_path / "part.parquet"
        path.write_bytes(part)
        found += pq.read_table(path).to_pylist()
    assert [row["id"] for row in found] == ids
    assert [dict(zip(row["term_ids"], row["weights"], strict=True)) for row in found] == dictionaries(vectors)
    assert run(version, to, format="parquet", passages_per_file=40) == done


@pytest.mark.usefixtures("ray_cluster")
def test_an_export_goes_on_with_the_shards_that_are_missing(local_version: IndexVersion, tmp_path: Path) -> None:
    settings = {"format": "jsonl", "passages_per_file": 20}
    whole = run(local_version, str(tmp_path / "whole"), **settings)
    half = str(tmp_path / "half")
    done = run(local_version, half, **settings)
    store = open_store(half)
    lost, kept = done["parts"][1], done["parts"][0]
    store.delete("export.json")
    store.delete(f"receipts/{lost['name']}.json")
    store.delete(lost["key"])
    before = store.info(kept["key"])
    again = run(local_version, half, **settings)
    assert store.info(kept["key"]) == before
    assert [(p["name"], p["sha256"]) for p in again["parts"]] == [(p["name"], p["sha256"]) for p in whole["parts"]]


@pytest.mark.usefixtures("ray_cluster")
def test_another_export_does_not_mix_into_a_folder(local_version: IndexVersion, tmp_path: Path) -> None:
    run(local_version, str(tmp_path / "to"), format="jsonl")
    with pytest.raises(DataError, match="another index version or other settings"):
        run(local_version, str(tmp_path / "to"), format="qdrant")


@pytest.mark.usefixtures("ray_cluster")
def test_json_lines_name_floats_exactly_and_terms_by_the_given_names(local_version: IndexVersion, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("".join(f"wörd{term}\n" for term in range(VOCABULARY)))
    done = run(local_version, str(tmp_path / "to"), format="jsonl", terms=str(words))
    rows = [json.loads(line) for part in content(str(tmp_path / "to"), done) for line in part.splitlines()]
    ids, vectors = stored(local_version)
    assert [row["id"] for row in rows] == ids
    back = [{int(name[4:]): np.float32(weight) for name, weight in row["vector"].items()} for row in rows]
    assert back == dictionaries(vectors)


@pytest.mark.usefixtures("ray_cluster")
def test_anserini_vectors_are_whole_numbers_of_the_stated_scale(local_version: IndexVersion, tmp_path: Path) -> None:
    to = str(tmp_path / "to")
    done = run(local_version, to, format="anserini")
    quantised = Quantisation(**done["quantisation"])
    rows = [json.loads(line) for part in content(to, done) for line in part.splitlines()]
    ids, vectors = stored(local_version)
    assert quantised.scale == pytest.approx(255 / float(vectors.weights.max()))
    assert [(row["id"], row["content"]) for row in rows] == [(passage, "") for passage in ids]
    expected = [
        {str(term): max(1, round(weight * quantised.scale)) for term, weight in row.items()} for row in dictionaries(vectors)
    ]
    assert [row["vector"] for row in rows] == expected
    assert done["overlap"]["queries"] > 50
    assert 0.9 < done["overlap"]["mean"] <= 1.0
    scaled = run(local_version, str(tmp_path / "scaled"), format="anserini", scale=100, overlap_queries=0)
    assert (scaled["quantisation"]["scale"], scaled["overlap"]) == (100, None)


@pytest.mark.usefixtures("ray_cluster")
def test_opensearch_and_qdrant_bodies(local_version: IndexVersion, tmp_path: Path) -> None:
    ids, vectors = stored(local_version)
    done = run(local_version, str(tmp_path / "os"), format="opensearch", field="terms")
    lines = [json.loads(line) for part in content(str(tmp_path / "os"), done) for line in part.splitlines()]
    assert [line["index"]["_id"] for line in lines[::2]] == ids
    bodies = [{int(term): np.float32(weight) for term, weight in line["terms"].items()} for line in lines[1::2]]
    assert bodies == dictionaries(vectors)
    mapping = json.loads((tmp_path / "os" / "mapping.json").read_text())
    assert mapping["mappings"]["properties"]["terms"]["type"] == "rank_features"

    done = run(local_version, str(tmp_path / "qd"), format="qdrant")
    requests = [json.loads(line) for part in content(str(tmp_path / "qd"), done) for line in part.splitlines()]
    points = [point for request in requests for point in request["points"]]
    assert [point["id"] for point in points] == list(range(len(ids)))
    assert [point["payload"]["passage_id"] for point in points] == ids
    sparse = [point["vector"]["sparse"] for point in points]
    pairs = [dict(zip(each["indices"], map(np.float32, each["values"]), strict=True)) for each in sparse]
    assert pairs == dictionaries(vectors)


@pytest.mark.usefixtures("ray_cluster")
def test_deleted_passages_are_left_out_of_every_format(local_version: IndexVersion, tmp_path: Path) -> None:
    gone = [0, 3, 19, 20, 21, 69, 70, 102]
    changed = without(local_version, gone)
    ids, vectors = stored(local_version)
    kept = [number for number in range(len(ids)) if number not in gone]
    left = vectors.select(kept)

    done = run(changed, str(tmp_path / "jsonl"), format="jsonl", passages_per_file=20)
    rows = [json.loads(line) for part in content(str(tmp_path / "jsonl"), done) for line in part.splitlines()]
    assert done["passages"] == len(kept)
    assert [row["id"] for row in rows] == [ids[number] for number in kept]
    assert [{int(t): np.float32(w) for t, w in row["vector"].items()} for row in rows] == dictionaries(left)

    done = run(changed, str(tmp_path / "ciff"), format="ciff")
    _, lists, records = read_ciff(content(str(tmp_path / "ciff"), done)[0])
    whole = Quantisation(**done["quantisation"]).apply(left.weights).astype(np.float32)
    dense = SparseBatch(left.indptr, left.term_ids, whole, VOCABULARY).to_dense().astype(int)
    found = np.zeros_like(dense)
    for each in lists:
        numbers = np.cumsum([posting.docid for posting in each.postings])
        found[numbers, int(each.term)] = [posting.tf for posting in each.postings]
    np.testing.assert_array_equal(found, dense)
    assert len(lists) == len(np.unique(left.term_ids))
    assert [record.collection_docid for record in records] == [ids[number] for number in kept]
    assert [record.doclength for record in records] == dense.sum(axis=1).tolist()


@pytest.mark.usefixtures("ray_cluster")
def test_names_that_an_engine_would_tear_apart_are_refused(local_version: IndexVersion, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("two words\na.b\n" + "".join(f"w{term}\n" for term in range(VOCABULARY - 2)))
    with pytest.raises(DataError, match="term 0 is 'two words'"):
        run(local_version, str(tmp_path / "a"), format="anserini", terms=str(words))
    with pytest.raises(DataError, match=r"term 1 is 'a\.b'"):
        run(local_version, str(tmp_path / "b"), format="opensearch", terms=str(words))


@pytest.mark.parametrize("root", ["s3"], indirect=True)
@pytest.mark.usefixtures("ray_cluster")
def test_a_ciff_file_is_what_the_protobuf_library_reads(root: str, tmp_path: Path) -> None:
    parts = [random_vectors(1, 300, VOCABULARY), random_vectors(2, 33, VOCABULARY)]
    version = publish(root, tmp_path, parts)
    done = run(version, f"{root}/exported", format="ciff", bits=12)
    [file] = content(f"{root}/exported", done)
    header, lists, records = read_ciff(file)
    ids, vectors = stored(version)
    whole = Quantisation(**done["quantisation"]).apply(vectors.weights)
    dense = SparseBatch(vectors.indptr, vectors.term_ids, whole.astype(np.float32), VOCABULARY).to_dense().astype(int)
    assert whole.max() == 4095
    assert (header.version, header.num_docs, header.total_docs) == (1, 333, 333)
    assert header.num_postings_lists == header.total_postings_lists == len(lists) == len(np.unique(vectors.term_ids))
    assert header.total_terms_in_collection == dense.sum()
    assert header.average_doclength == dense.sum() / 333
    assert [each.term for each in lists] == sorted(each.term for each in lists)
    found = np.zeros_like(dense)
    for each in lists:
        numbers = np.cumsum([posting.docid for posting in each.postings])
        assert np.all(np.diff(numbers) > 0)
        found[numbers, int(each.term)] = [posting.tf for posting in each.postings]
        assert (each.df, each.cf) == (len(numbers), found[:, int(each.term)].sum())
    np.testing.assert_array_equal(found, dense)
    assert [(record.docid, record.collection_docid) for record in records] == list(enumerate(ids))
    assert [record.doclength for record in records] == dense.sum(axis=1).tolist()


@pytest.mark.usefixtures("ray_cluster")
def test_a_pisa_collection_is_the_documented_sequences(local_version: IndexVersion, tmp_path: Path) -> None:
    done = run(local_version, str(tmp_path / "to"), format="pisa")
    folder = tmp_path / "to" / "vectors"
    assert sorted(path.name for path in folder.iterdir()) == sorted(part["name"] for part in done["parts"])
    ids, vectors = stored(local_version)
    whole = Quantisation(**done["quantisation"]).apply(vectors.weights)
    dense = SparseBatch(vectors.indptr, vectors.term_ids, whole.astype(np.float32), VOCABULARY).to_dense().astype(int)
    docs, freqs = (list(_sequences(folder / f"small.{suffix}")) for suffix in ("docs", "freqs"))
    [sizes] = _sequences(folder / "small.sizes")
    terms = (folder / "small.terms").read_text().splitlines()
    assert docs.pop(0).tolist() == [len(ids)]
    assert len(docs) == len(freqs) == len(terms)
    assert terms == sorted(terms)
    found = np.zeros_like(dense)
    for term, numbers, impacts in zip(terms, docs, freqs, strict=True):
        found[numbers, int(term)] = impacts
    np.testing.assert_array_equal(found, dense)
    np.testing.assert_array_equal(sizes, dense.sum(axis=1))
    assert (folder / "small.documents").read_text().splitlines() == ids


def _sequences(path: Path) -> Any:
    numbers = np.fromfile(path, dtype="<u4")
    at = 0
    while at < len(numbers):
        yield numbers[at + 1 : at + 1 + numbers[at]]
        at += 1 + int(numbers[at])


def test_the_overlap_counts_what_coarse_numbers_lose(tmp_path: Path) -> None:
    version = publish(f"file://{tmp_path}/runs", tmp_path, [random_vectors(3, 1500, VOCABULARY, 0.4)])
    searcher = open_searcher(version)
    queries = random_vectors(4, 12, VOCABULARY, 0.2)
    fine, coarse = (top_overlap(searcher, queries, quantisation(3.0, bits, None)) for bits in (16, 2))
    assert (fine.mean, fine.proven) == (1.0, 1.0)
    assert coarse.mean < 0.9
    dense = searcher.vectors(np.arange(1500)).to_dense()
    whole = np.where(dense > 0, np.clip(np.rint(dense.astype(np.float64)), 1, 3), 0)
    shares = []
    for query in queries.to_dense():
        if query.any():
            exact, rounded = (np.lexsort((np.arange(1500), -(matrix @ query)))[:10] for matrix in (dense, whole))
            shares.append(len(np.intersect1d(exact, rounded)) / 10)
    assert coarse.mean == pytest.approx(np.mean(shares))


@pytest.mark.usefixtures("ray_cluster")
def test_the_command_line_exports_the_current_version(
    local_version: IndexVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--root", str(tmp_path / "runs"), "--index", "small", "--to", str(tmp_path / "to")]
    assert main(["export", *where, "--format", "anserini", "bits=10", "overlap_queries=5"]) == 0
    assert "103 passages, 2 files" in capsys.readouterr().out
    assert json.loads((tmp_path / "to" / "export.json").read_text())["quantisation"]["largest"] == 1023
    assert main(["export", *where, "--format", "lucene"]) == 1
    assert "the value is 'lucene'" in " ".join(capsys.readouterr().err.split())


def test_a_scale_for_a_format_of_floats_is_refused() -> None:
    with pytest.raises(ValueError, match="qdrant keeps the impacts"):
        ExportConfig(format="qdrant", scale=100)
