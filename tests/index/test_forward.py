"""Forward vectors alone: equal to those of a whole index, fetched without postings, verified section by section."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydistill.encoders.batch import SparseBatch
from raydistill.errors import CorruptObjectError, DataError
from raydistill.index.forward import ForwardVectors, document_share
from raydistill.index.publish import IndexVersion, IndexWriter
from raydistill.index.search import open_searcher
from raydistill.index.segment import Impacts, Segment, write_segment
from raydistill.storage.artifacts import fingerprint
from raydistill.storage.store import open_store

VOCABULARY = 300
SIZES = (400, 250, 0, 150)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh run root on each kind of store."""
    return f"file://{tmp_path}/runs" if request.param == "local" else str(request.getfixturevalue("s3_root"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty object cache."""
    monkeypatch.setenv("RAYDISTILL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def publish(root: str, folder: Path, impacts: Impacts = "f16", seed: int = 0) -> IndexVersion:
    random = np.random.default_rng(seed)
    writer = IndexWriter(root, "passages", fingerprint("index", 1, {"impacts": impacts, "seed": seed}, {}))
    for number, size in enumerate(SIZES):
        dense = random.random((size, VOCABULARY)) * (random.random((size, VOCABULARY)) < 0.2)
        path = folder / f"{number}.seg"
        write_segment(path, SparseBatch.from_dense(dense), [f"{number}-{row}" for row in range(size)], impacts)
        writer.put_segment(f"s{number}", path, passages=size, postings=int((dense > 0).sum()))
    return writer.commit([f"s{number}" for number in range(len(SIZES))], VOCABULARY, {})


def forward_arrays(segment: Segment) -> tuple[np.ndarray, ...]:
    return segment.row_offsets, segment.term_highs, segment.term_lows, segment.impacts


@pytest.mark.parametrize("impacts", ["f32", "f16", "u8"])
def test_vectors_equal_those_of_the_whole_index_to_the_bit(root: str, tmp_path: Path, cache: Path, impacts: Impacts) -> None:
    version = publish(root, tmp_path, impacts)
    asked = np.random.default_rng(1).integers(0, sum(SIZES), 500)
    expected, found = open_searcher(version).vectors(asked), ForwardVectors(version).vectors(asked)
    assert found.vocabulary_size == expected.vocabulary_size
    for name in ("indptr", "term_ids", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert len(ForwardVectors(version).vectors(np.zeros(0, dtype=np.int64))) == 0
    with pytest.raises(DataError, match="passage number 800 is not in the index"):
        ForwardVectors(version).vectors(np.array([800]))


def test_only_the_forward_sections_of_the_segments_asked_for_are_fetched(s3_root: str, tmp_path: Path, cache: Path) -> None:
    version = publish(s3_root, tmp_path)
    vectors = ForwardVectors(version)
    assert not cache.exists(), "opening fetches nothing"
    vectors.vectors(np.array([3, 399, 700]))
    touched = [Segment(tmp_path / "0.seg"), Segment(tmp_path / "3.seg")]
    forward = [array.nbytes for each in touched for array in forward_arrays(each)]
    heads = [min(version.segments[number].size, 1 << 16) for number in (0, 3)]
    fetched = [path.stat().st_size for path in cache.glob("??/*") if path.name != ".lock"]
    assert sorted(fetched) == sorted(forward + heads)
    vectors.vectors(np.arange(400))
    assert len([path for path in cache.glob("??/*") if path.name != ".lock"]) == len(fetched)


def test_a_damaged_section_or_header_is_noticed_and_damage_elsewhere_does_not_matter(
    root: str, tmp_path: Path, cache: Path
) -> None:
    version = publish(root, tmp_path, seed=7)
    entry, store = version.segments[0], open_store(root)
    content = store.read(entry.key)
    segment = Segment(tmp_path / "0.seg")

    def damaged(array: np.ndarray) -> bytes:
        start = content.rindex(array.tobytes()) + array.nbytes - 1
        assert start > 1 << 16, "beyond the header's part of the file"
        return content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]

    store.replace(entry.key, damaged(segment.posting_impacts))
    ForwardVectors(version).vectors(np.array([5]))
    with pytest.raises(CorruptObjectError, match=entry.key):
        version.fetch(entry)
    store.replace(entry.key, damaged(segment.impacts))
    for path in cache.glob("??/*"):
        path.unlink()
    with pytest.raises(CorruptObjectError, match=entry.key):
        ForwardVectors(version).vectors(np.array([5]))
    store.replace(entry.key, content[:9] + b"#" + content[10:])
    for path in cache.glob("??/*"):
        path.unlink()
    with pytest.raises(CorruptObjectError, match=entry.key):
        ForwardVectors(version).vectors(np.array([5]))


def test_the_document_share_is_that_of_the_vectors(root: str, tmp_path: Path, cache: Path) -> None:
    version = publish(root, tmp_path)
    everything = open_searcher(version).vectors(np.arange(sum(SIZES))).to_dense()
    share = document_share(version)
    assert share.dtype == np.float32
    np.testing.assert_allclose(share, (everything > 0).mean(axis=0), rtol=1e-6)
