"""Index versions: complete or invisible, numbered, and moved forward by compare-and-swap."""

from __future__ import annotations

import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raydistill.errors import CorruptObjectError, StorageError
from raydistill.index import publish
from raydistill.index.publish import IndexVersion, IndexWriter, current_version, find_version, load_version, make_current
from raydistill.storage.store import open_store


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh run root on each kind of store."""
    return f"file://{tmp_path}/runs" if request.param == "local" else str(request.getfixturevalue("s3_root"))


def writer_for(root: str, content: str) -> IndexWriter:
    return IndexWriter(root, "passages", hashlib.sha256(content.encode()).hexdigest())


def build(writer: IndexWriter, folder: Path, names: tuple[str, ...] = ("s0", "s1")) -> IndexVersion:
    for position, name in enumerate(names):
        path = folder / f"{name}.segment"
        path.write_bytes(f"{writer.fingerprint} {name}".encode())
        writer.put_segment(name, path, passages=10 + position, postings=100)
    return writer.commit(names, vocabulary_size=30, metadata={"encoder": "lexical"})


def test_a_published_version_is_found_in_every_way(root: str, tmp_path: Path) -> None:
    writer = pickle.loads(pickle.dumps(writer_for(root, "a")))
    statistics = writer.put_statistics(b"statistics")
    assert writer.find_statistics() == (statistics, b"statistics")
    path = tmp_path / "x.segment"
    path.write_bytes(b"first")
    receipt = writer.put_segment("s1", path, passages=7, postings=70, counters={"empty": 2})
    path.write_bytes(b"second")
    writer.put_segment("s0", path, passages=5, postings=50)
    assert receipt == json.loads(json.dumps(receipt))
    assert (receipt["passages"], receipt["postings"], receipt["counters"]) == (7, 70, {"empty": 2})
    assert set(writer.finished()) == {"s0", "s1"}
    assert writer.finished()["s1"] == receipt

    version = writer.commit(["s1", "s0"], 30, {"encoder": "lexical", "statistics": statistics.to_json()})
    assert [(s.name, s.first_passage, s.passages, s.postings) for s in version.segments] == [
        ("s1", 0, 7, 70),
        ("s0", 7, 5, 50),
    ]
    assert (version.version, version.passages, version.vocabulary_size) == (1, 12, 30)
    assert version.fetch(version.segments[0]).read_bytes() == b"first"
    assert version.open_statistics() == b"statistics"
    assert version == IndexVersion.from_json(json.loads(json.dumps(version.to_json())))
    assert version == find_version(root, "passages", writer.fingerprint) == current_version(root, "passages")
    assert version == load_version(root, "passages", 1)


def test_nothing_is_visible_before_the_commit(root: str, tmp_path: Path) -> None:
    writer = writer_for(root, "a")
    path = tmp_path / "x.segment"
    path.write_bytes(b"x")
    writer.put_segment("s0", path, passages=1, postings=1)
    assert find_version(root, "passages", writer.fingerprint) is None
    assert writer.find_statistics() is None
    with pytest.raises(StorageError, match=r"no published index; run the index stage"):
        current_version(root, "passages")
    with pytest.raises(StorageError, match="has no version 1"):
        load_version(root, "passages", 1)
    with pytest.raises(StorageError, match=r"1 of 2 parts are missing \(s1\)"):
        writer.commit(["s0", "s1"], 30, {})
    assert find_version(root, "passages", writer.fingerprint) is None


def test_the_same_fingerprint_is_one_version_and_another_is_the_next(root: str, tmp_path: Path) -> None:
    first = build(writer_for(root, "a"), tmp_path)
    assert build(writer_for(root, "a"), tmp_path) == first
    second = build(writer_for(root, "b"), tmp_path)
    assert (first.version, second.version) == (1, 2)
    assert current_version(root, "passages") == second
    assert first.fetch(first.segments[0]).read_bytes() != second.fetch(second.segments[0]).read_bytes()


def test_an_old_job_run_again_does_not_bring_the_old_index_back(root: str, tmp_path: Path) -> None:
    first, second = build(writer_for(root, "a"), tmp_path), build(writer_for(root, "b"), tmp_path)
    assert build(writer_for(root, "a"), tmp_path) == first
    assert current_version(root, "passages") == second
    make_current(first, older=True)
    assert current_version(root, "passages") == first
    assert build(writer_for(root, "b"), tmp_path) == second
    assert current_version(root, "passages") == first  # a rollback lasts until something new is published
    third = build(writer_for(root, "c"), tmp_path)
    assert current_version(root, "passages") == third


def test_a_crash_before_current_moved_is_made_good(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(version: IndexVersion) -> None:
        raise KeyboardInterrupt

    build(writer_for(root, "a"), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "make_current", crash)
        with pytest.raises(KeyboardInterrupt):
            build(writer_for(root, "b"), tmp_path)
    assert current_version(root, "passages").version == 1
    assert build(writer_for(root, "b"), tmp_path).version == 2
    assert current_version(root, "passages").version == 2


def test_writers_that_race_publish_each_content_once(root: str, tmp_path: Path) -> None:
    def publish_one(number: int) -> IndexVersion:
        folder = tmp_path / f"writer-{number}"
        folder.mkdir()
        return build(writer_for(root, f"content {number % 4}"), folder)

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(publish_one, range(8)))
    assert sorted({version.version for version in versions}) == [1, 2, 3, 4]
    assert len({version.fingerprint for version in versions}) == 4
    assert all(versions[number] == versions[number + 4] for number in range(4))
    assert current_version(root, "passages").version == 4


def test_a_moved_run_root_still_works(tmp_path: Path) -> None:
    build(writer_for(f"{tmp_path}/old", "a"), tmp_path)
    (tmp_path / "old").rename(tmp_path / "new")
    version = current_version(f"{tmp_path}/new", "passages")
    assert version.fetch(version.segments[1]).is_relative_to(tmp_path / "new")


def test_a_changed_segment_or_manifest_is_noticed(root: str, tmp_path: Path) -> None:
    version = build(writer_for(root, str(tmp_path)), tmp_path)  # content that no other test has cached
    segment, store = version.segments[0], open_store(root)
    content = store.read(segment.key)
    store.replace(segment.key, content[:-1] + b"?")
    with pytest.raises(CorruptObjectError, match=segment.key):
        version.fetch(segment)
    key = "indexes/passages/manifests/00000001.json"
    store.replace(key, store.read(key).replace(b'"passages": 21', b'"passages": 22'))
    with pytest.raises(CorruptObjectError, match=key):
        current_version(root, "passages")
