"""Artifacts: a stage's output exists when its manifest does, and holds what the receipts say."""

from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raydistill.config import IndexConfig, PoolConfig, TextConfig, WorkerConfig
from raydistill.errors import CorruptObjectError, StorageError
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Manifest, Part, fingerprint
from raydistill.storage.hashing import sealed, unsealed
from raydistill.storage.store import open_store


def artifact_at(root: str) -> Artifact:
    return Artifact(root, "candidates", "clapnq", fingerprint("candidates", 1, {"top_k": 10}, {"index": "abc"}))


def test_fingerprints_follow_the_settings_that_change_results() -> None:
    base = fingerprint("index", 1, IndexConfig(), {"corpus": "abc"})
    assert len(base) == 64
    assert base == fingerprint("index", 1, IndexConfig(workers=PoolConfig(actors=7, min_actors=2)), {"corpus": "abc"})
    assert base == fingerprint("index", 1, IndexConfig(), {"corpus": "abc"})
    changed = {
        fingerprint("index", 2, IndexConfig(), {"corpus": "abc"}),
        fingerprint("candidates", 1, IndexConfig(), {"corpus": "abc"}),
        fingerprint("index", 1, IndexConfig(impacts="u8"), {"corpus": "abc"}),
        fingerprint("index", 1, IndexConfig(), {"corpus": "abd"}),
        base,
    }
    assert len(changed) == 5


def test_models_inside_plain_structures_count_too() -> None:
    nested = fingerprint("x", 1, {"text": (TextConfig(), 1), "workers": WorkerConfig()}, {})
    assert nested == fingerprint("x", 1, {"workers": WorkerConfig(actors=3), "text": [TextConfig(), 1]}, {})
    assert nested != fingerprint("x", 1, {"workers": WorkerConfig(), "text": [TextConfig(max_tokens=9), 1]}, {})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_settings_without_a_json_form_are_refused(value: object) -> None:
    with pytest.raises(StorageError, match="JSON"):
        fingerprint("x", 1, {"value": value}, {})


def test_a_committed_artifact_tells_what_it_holds(root: str, tmp_path: Path) -> None:
    artifact = artifact_at(root)
    writer = pickle.loads(pickle.dumps(ArtifactWriter(artifact)))
    assert artifact.find_manifest() is None
    with pytest.raises(StorageError, match=r"not complete .*run the stage"):
        artifact.manifest()

    file = tmp_path / "part.parquet"
    file.write_bytes(os.urandom(10_000))
    first = writer.put_part("shard-0", file, ".parquet", rows=3, counters={"failed": 1, "terms": 10})
    writer.put_part("shard-1", b"second", ".parquet", rows=4, counters={"failed": np.int64(2)})
    manifest = writer.commit(["shard-1", "shard-0"], {"teachers": ["a", "b"]})

    assert [part.name for part in manifest.parts] == ["shard-1", "shard-0"]
    assert (manifest.rows, manifest.counters) == (7, {"failed": 3, "terms": 10})
    assert manifest.metadata == {"teachers": ["a", "b"]}
    assert manifest.tool_versions["numpy"] == np.__version__
    found = Artifact.from_json(json.loads(json.dumps(artifact.to_json())))
    assert found.manifest() == manifest == Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert found.part("shard-0") == first == Part.from_json(json.loads(json.dumps(first.to_json())))
    assert found.fetch(first).read_bytes() == file.read_bytes()
    assert artifact.uri == f"{root}/artifacts/candidates/clapnq-{artifact.fingerprint[:16]}"
    with pytest.raises(StorageError, match="no part 'shard-9'"):
        artifact.part("shard-9")


def test_a_part_put_again_is_the_part_that_was_first(root: str) -> None:
    writer = ArtifactWriter(artifact_at(root))
    first = writer.put_part("p", b"first", ".bin", rows=1, counters={"seconds": 1.5})
    assert writer.put_part("p", b"first", ".bin", rows=1, counters={"seconds": 9.9}) == first
    assert writer.put_part("p", b"computed differently", ".bin", rows=1) == first
    assert writer.finished() == {"p": first}


def test_workers_that_race_for_a_part_agree(root: str) -> None:
    writer = ArtifactWriter(artifact_at(root))
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda n: writer.put_part("p", f"worker {n}".encode(), ".bin", rows=n), range(16)))
    assert len(set(map(repr, parts))) == 1
    assert writer.finished() == {"p": parts[0]}
    assert writer.artifact.fetch(parts[0]).read_bytes() == f"worker {parts[0].rows}".encode()


def test_commits_that_race_agree(root: str) -> None:
    writer = ArtifactWriter(artifact_at(root))
    writer.put_part("p", b"x", ".bin", rows=1)
    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(lambda n: writer.commit(["p"], {"writer": n}), range(8)))
    assert len({manifest.operation_id for manifest in manifests}) == 1


def test_a_crash_between_object_and_receipt_leaves_the_part_undone(root: str) -> None:
    artifact = artifact_at(root)
    writer = ArtifactWriter(artifact)
    assert open_store(root).put_if_absent(f"{artifact.prefix}/p-2cf24dba.bin", b"hello")  # the object, then the crash
    assert writer.finished() == {}
    with pytest.raises(StorageError, match=r"1 of 1 parts are missing \(p\)"):
        writer.commit(["p"], {})
    part = writer.put_part("p", b"hello", ".bin", rows=1)
    assert part.key.endswith("/p-2cf24dba.bin")
    assert writer.commit(["p"], {}).parts == (part,)


def test_a_rerun_makes_only_what_is_missing(root: str) -> None:
    names = [f"shard-{number}" for number in range(5)]
    done = {name: ArtifactWriter(artifact_at(root)).put_part(name, name.encode(), ".bin", rows=1) for name in names[:3]}
    writer = ArtifactWriter(artifact_at(root))
    assert writer.finished() == done
    with pytest.raises(StorageError, match=r"2 of 5 parts are missing \(shard-3, shard-4\); run the stage again"):
        writer.commit(names, {})
    assert writer.artifact.find_manifest() is None
    for name in names[3:]:
        writer.put_part(name, name.encode(), ".bin", rows=1)
    manifest = writer.commit(names, {})
    assert manifest.rows == 5
    assert set(writer.finished()) == set(names)


def test_committing_again_returns_what_is_there_and_other_parts_are_refused(root: str) -> None:
    writer = ArtifactWriter(artifact_at(root))
    for name in ("a", "b"):
        writer.put_part(name, name.encode(), ".bin", rows=1)
    manifest = writer.commit(["a"], {"run": 1})
    assert writer.commit(["a"], {"run": 2}) == manifest
    with pytest.raises(StorageError, match="committed with 1 parts that are not the 2"):
        writer.commit(["a", "b"], {})
    with pytest.raises(StorageError, match="names the part 'a' twice"):
        ArtifactWriter(Artifact(root, "x", "y", "0" * 64)).commit(["a", "a"], {})


def test_a_part_whose_object_was_deleted_is_made_again(root: str) -> None:
    writer = ArtifactWriter(artifact_at(root))
    lost = writer.put_part("p", b"lost", ".bin", rows=1)
    open_store(root).delete(lost.key)
    assert writer.finished() == {}
    again = writer.put_part("p", b"computed differently", ".bin", rows=2)
    assert again.rows == 2
    assert writer.finished() == {"p": again}
    assert writer.commit(["p"], {}).parts == (again,)


def test_one_changed_byte_is_noticed(root: str) -> None:
    artifact = artifact_at(root)
    part = ArtifactWriter(artifact).put_part("p", b"sixteen byte str", ".bin", rows=1)
    open_store(root).replace(part.key, b"sixteen byte sTr")
    with pytest.raises(CorruptObjectError, match=rf"{part.key} does not have the size and SHA-256"):
        artifact.fetch(part)
    with pytest.raises(CorruptObjectError, match=f"{part.key} exists with bytes that do not match its name"):
        ArtifactWriter(artifact).put_part("p", b"sixteen byte str", ".bin", rows=1)


def test_a_changed_manifest_is_noticed(root: str) -> None:
    artifact = artifact_at(root)
    writer = ArtifactWriter(artifact)
    writer.put_part("p", b"x", ".bin", rows=1)
    writer.commit(["p"], {})
    key = f"{artifact.prefix}/_manifest.json"
    open_store(root).replace(key, open_store(root).read(key).replace(b'"rows": 1', b'"rows": 9'))
    with pytest.raises(CorruptObjectError, match=f"{key} was changed after it was written"):
        artifact.manifest()
    open_store(root).replace(key, b'{"rows": ')
    with pytest.raises(CorruptObjectError, match="damaged"):
        artifact.manifest()


def test_a_sealed_document_reads_back() -> None:
    document = {"a": [1, 2.5, None, "ü<::>"], "b": {"c": True}}
    assert unsealed(sealed(document), "uri") == document


@pytest.mark.parametrize("name", ["a/b", "", ".hidden", "_manifest", "dd6b<::>2"])
def test_part_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="no part name"):
        ArtifactWriter(artifact_at(str(tmp_path))).put_part(name, b"x", ".bin", rows=1)


def test_artifacts_need_a_whole_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no fingerprint"):
        Artifact(str(tmp_path), "corpus", "x", "abc")
    with pytest.raises(StorageError, match="cannot name an artifact"):
        Artifact(str(tmp_path), "corpus", "../x", "0" * 64)
