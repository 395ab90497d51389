"""One flipped bit in any kind of object is noticed by whoever reads it first, and by verify."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raydistill.distill.checkpoints import Catalogue, Checkpoint, write_state, write_tensors
from raydistill.errors import CorruptObjectError, TrainingError
from raydistill.index.forward import ForwardVectors
from raydistill.index.publish import IndexVersion, IndexWriter, current_version, load_version
from raydistill.index.search import open_searcher
from raydistill.index.segment_header import read_header
from raydistill.storage.artifacts import ArtifactWriter
from raydistill.storage.store import open_store
from raydistill.storage.verify import verify
from raydistill.teachers.cache import GenerationCache
from tests.upkeep.root_world import ENGINE, artifact_at, everything, key_of

Read = Callable[[str, IndexVersion], object]


def _vectors(root: str, version: IndexVersion) -> object:
    return ForwardVectors(version).vectors(np.arange(version.passages))


def _generations(root: str, version: IndexVersion) -> object:
    """A damaged part of this cache is dropped and counted, and does not stop the run."""
    store = open_store(root)
    key = key_of(root, "cache/teachers")
    content = store.read(key)
    if GenerationCache(root, ENGINE).damaged:
        store.replace(key, content)
        raise CorruptObjectError(key)
    return None


def _part(root: str, version: IndexVersion) -> object:
    artifact = artifact_at(root, "done")
    return artifact.fetch(artifact.part("shard-1"))


# kind -> (pieces of its key, who reads it)
KINDS: dict[str, tuple[tuple[str, ...], Read]] = {
    "segment": (("indexes/passages/segments/NEWEST", "s1"), lambda root, version: open_searcher(version)),
    "head of a segment": (("indexes/passages/segments/NEWEST", "s1"), _vectors),
    "statistics": (("indexes/passages/statistics/NEWEST", ".safetensors"), lambda root, version: version.open_statistics()),
    "index manifest": (("manifests/00000002",), lambda root, version: load_version(root, "passages", 2)),
    "CURRENT": (("passages/CURRENT",), lambda root, version: current_version(root, "passages")),
    "receipt of a segment": (
        ("indexes/passages/receipts/NEWEST", "s0"),
        lambda root, version: IndexWriter(root, "passages", version.fingerprint).finished(),
    ),
    "receipt of statistics": (
        ("indexes/passages/statistics/NEWEST", "receipts"),
        lambda root, version: IndexWriter(root, "passages", version.fingerprint).find_statistics(),
    ),
    "artifact manifest": (("candidates/done", "_manifest"), lambda root, version: artifact_at(root, "done").manifest()),
    "Parquet part": (("candidates/done", "shard-1", ".parquet"), _part),
    "receipt of a part": (
        ("candidates/unfinished", "_receipts"),
        lambda root, version: ArtifactWriter(artifact_at(root, "unfinished")).finished(),
    ),
    "teacher cache": (("cache/teachers",), _generations),
}


def flips(content: bytes, number: int, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield the content with one bit flipped, at `number` places spread over it (or its first `end` bytes), all bits."""
    size = min(len(content), end or len(content))
    for turn, place in enumerate(np.unique(np.linspace(0, size - 1, number).astype(int))):
        flipped = bytearray(content)
        flipped[place] ^= 1 << turn % 8
        yield int(place), bytes(flipped)


@pytest.mark.parametrize("kind", KINDS)
def test_first_read_notices(root: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_flipped(root, kind, 40 if root.startswith("file") else 2, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_first_read_notices_at_many_places(root: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_flipped(root, kind, 1000 if root.startswith("file") else 20, tmp_path, monkeypatch)


def read_flipped(root: str, kind: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = everything(root)
    pieces, read = KINDS[kind]
    key, store = key_of(root, *(piece.replace("NEWEST", version.fingerprint[:16]) for piece in pieces)), open_store(root)
    content, end = store.read(key), None
    if kind == "head of a segment":
        header = read_header(content[: 1 << 16], Path(key))
        end = min(section.start for section in header.sections.values())
    for place, flipped in flips(content, number, end):
        monkeypatch.setenv("RAYDISTILL_CACHE_DIR", str(folder / f"cache-{place}"))
        store.replace(key, flipped)
        with pytest.raises(CorruptObjectError, match=key):
            read(root, version)
    store.replace(key, content)
    monkeypatch.setenv("RAYDISTILL_CACHE_DIR", str(folder / "cache-of-the-sound-one"))
    read(root, version)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_notices(kind: str, tmp_path: Path) -> None:
    root = f"file://{tmp_path}/runs"
    version = everything(root)
    key = key_of(root, *(piece.replace("NEWEST", version.fingerprint[:16]) for piece in KINDS[kind][0]))
    store = open_store(root)
    content = store.read(key)
    for _, flipped in flips(content, 8):
        store.replace(key, flipped)
        assert [damage.key for damage in verify(root).damages] == [key]
    store.replace(key, content)
    assert verify(root).damages == []


def test_a_resumed_training_notices(tmp_path: Path) -> None:
    shapes = {f"parameter/{writer}": (20,) for writer in range(2)}
    folder = tmp_path / "checkpoint_000001"
    folder.mkdir()
    parts = [write_tensors(folder, writer, [(f"parameter/{writer}", torch.randn(20))]) for writer in range(2)]
    write_state(folder, "training", "f" * 64, Catalogue.joined(parts), {"step": 3})
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for _, flipped in flips(content, 100):
            path.write_bytes(flipped)
            with pytest.raises(TrainingError, match=f"{path.name} (is damaged|does not have the SHA-256)"):
                Checkpoint(folder, "training", "f" * 64, shapes)
        path.write_bytes(content)
    assert Checkpoint(folder, "training", "f" * 64, shapes).state == {"step": 3}
