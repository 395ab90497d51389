"""The approximate engine: built from segments without strings, exact in its scores, stored like any artifact."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_segment_search import open_segments, random_batch

from raydistill.config import PoolConfig, SeismicBuildConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import ConfigError, DataError
from raydistill.index.approximate import build_approximate, seismic_artifact
from raydistill.index.changes import with_deleted
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.search import Searcher, open_searcher
from raydistill.index.segment import write_segment
from raydistill.index.seismic import SeismicSearcher, build_seismic, open_approximate, write_input
from raydistill.storage.artifacts import fingerprint

BUILD = SeismicBuildConfig(n_postings=400)
WORKERS = PoolConfig(actors=1, cpus=1)


def need_library() -> None:
    pytest.importorskip("seismic", reason="pyseismic-lsr is not installed; pip install 'raydistill[seismic]'")


def indexed(folder: Path, parts: list[SparseBatch]) -> list[Path | None]:
    paths: list[Path | None] = []
    for number, part in enumerate(parts):
        source, target = folder / f"{number}.bin", folder / f"{number}.seismic"
        write_input(source, [part], len(part))
        build_seismic(source, target, part.vocabulary_size, BUILD)
        paths.append(target)
    return paths


def test_the_input_file_is_what_the_library_documents(tmp_path: Path) -> None:
    batches = [SparseBatch.from_rows([{2: 0.5, 7: 1.5}, {}], 9), SparseBatch.from_rows([{0: 3.0}], 9)]
    write_input(tmp_path / "v.bin", batches, 3)
    words = np.fromfile(tmp_path / "v.bin", dtype="<u4")
    expected = [
        3,
        2,
        2,
        7,
        *np.array([0.5, 1.5], dtype="<f4").view("<u4"),
        0,
        1,
        0,
        *np.array([3.0], dtype="<f4").view("<u4"),
    ]
    assert words.tolist() == [int(word) for word in expected]
    with pytest.raises(DataError, match="should hold 4 passages, and 3 came"):
        write_input(tmp_path / "v.bin", batches, 4)


@pytest.mark.parametrize("vocabulary", [300, 70_000])
def test_scores_are_exact_and_with_generous_settings_nothing_is_missed(tmp_path: Path, vocabulary: int) -> None:
    need_library()
    rng = np.random.default_rng(6)
    terms = np.sort(rng.choice(vocabulary, size=80, replace=False)).astype(np.int32)
    small = [random_batch(rng, rows, 80, 0.2) for rows in (150, 90)]
    parts = [SparseBatch(part.indptr, terms[part.term_ids], part.weights, vocabulary) for part in small]
    asked = random_batch(rng, 20, 80, 0.1)
    queries = SparseBatch(asked.indptr, terms[asked.term_ids], asked.weights, vocabulary)
    exact = Searcher(open_segments(tmp_path, parts))
    searcher = SeismicSearcher(exact, indexed(tmp_path, parts), query_cut=100, heap_factor=0.1)
    wanted, found = exact.search(queries, 10), searcher.search(queries, 10)
    shared = [np.intersect1d(*pair).size for pair in zip(wanted.passages, found.passages, strict=True)]
    assert np.mean(shared) > 9.8
    for row, numbers in enumerate(found.passages):
        kept = numbers[numbers >= 0]
        [scores] = exact.scores(queries.select([row]), [kept])
        np.testing.assert_array_equal(found.scores[row, : len(kept)], scores)
        assert np.all(np.diff(scores) <= 0)


def test_queries_that_the_library_cannot_answer_find_nothing(tmp_path: Path) -> None:
    need_library()
    parts = [SparseBatch.from_rows([{1: 1.0}, {2: 1.0}], 50)]
    searcher = SeismicSearcher(Searcher(open_segments(tmp_path, parts)), indexed(tmp_path, parts), 10, 0.9)
    found = searcher.search(SparseBatch.from_rows([{}, {49: 1.0}, {2: 2.0, 49: 1.0}], 50), 3)
    assert found.passages.tolist() == [[-1] * 3, [-1] * 3, [1, -1, -1]]
    assert found.scores[2, 0] == 2.0


def publish(root: str, folder: Path, parts: list[SparseBatch]) -> IndexVersion:
    writer = IndexWriter(root, "small", fingerprint("index", 1, {}, {}))
    for number, part in enumerate(parts):
        path = folder / f"{number:05d}.seg"
        write_segment(path, part, [f"{number}-{row}" for row in range(len(part))], "f16")
        writer.put_segment(path.stem, path, len(part), part.nnz)
    return writer.commit([f"{number:05d}" for number in range(len(parts))], parts[0].vocabulary_size, {})


@pytest.mark.usefixtures("ray_cluster")
def test_deleted_passages_are_not_in_the_approximate_index(tmp_path: Path) -> None:
    need_library()
    rng = np.random.default_rng(9)
    version = publish(f"file://{tmp_path}/runs", tmp_path, [random_batch(rng, 40, 30, 0.4), random_batch(rng, 3, 30, 0.4)])
    gone = np.array([0, 7, 8, 40, 41, 42])
    changed = replace(version, fingerprint=fingerprint("index", 2, {}, {}), segments=with_deleted(version, gone)[0])
    artifact = build_approximate(changed, BUILD, WORKERS)
    assert [part.size > 0 for part in artifact.manifest().parts] == [True, False]
    found = open_approximate(artifact, open_searcher(changed), 30, 0.1).search(random_batch(rng, 20, 30, 0.4), 43)
    assert np.intersect1d(found.passages, gone).size == 0
    assert np.union1d(found.passages[found.passages >= 0], gone).size > 40


@pytest.mark.usefixtures("ray_cluster")
def test_an_index_version_gets_a_stored_approximate_index(s3_root: str, tmp_path: Path) -> None:
    need_library()
    rng = np.random.default_rng(7)
    parts = [random_batch(rng, 80, 60, 0.3), SparseBatch.from_rows([{}, {}], 60), random_batch(rng, 40, 60, 0.3)]
    version = publish(s3_root, tmp_path, parts)
    artifact = build_approximate(version, BUILD, WORKERS)
    manifest = artifact.manifest()
    assert [(part.name, part.rows, part.size > 0) for part in manifest.parts] == [
        ("00000", 80, True),
        ("00001", 2, False),
        ("00002", 40, True),
    ]
    assert manifest.metadata["build"]["n_postings"] == 400
    assert build_approximate(version, BUILD, WORKERS).manifest() == manifest
    other = seismic_artifact(version, SeismicBuildConfig(n_postings=401))
    assert other.fingerprint != artifact.fingerprint
    exact = open_searcher(version)
    queries = random_batch(rng, 8, 60, 0.2)
    found = open_approximate(artifact, exact, query_cut=60, heap_factor=0.1).search(queries, 5)
    wanted = exact.search(queries, 5)
    assert np.mean(found.passages == wanted.passages) > 0.9


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "seismic", None)
    with pytest.raises(ConfigError, match=r"pip install 'raydistill\[seismic\]'"):
        build_seismic(tmp_path / "a", tmp_path / "b", 10, BUILD)
