"""Input files: patterns, decompression, fingerprints."""

from __future__ import annotations

import bz2
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from fault_proxy import FaultProxy

from raydistill.errors import StorageError
from raydistill.storage.files import input_files, input_fingerprint, open_input, read_input
from raydistill.storage.store import open_store


def zstandard(content: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard,
}


def test_patterns_expand_in_order(root: str) -> None:
    store = open_store(root)
    for key in ("c/part-2.jsonl", "c/part-1.jsonl", "c/part-1.tsv", "c/.hidden", "c/sub/part-3.jsonl", "c/[x].jsonl"):
        store.put_if_absent(key, b"x")
    assert input_files([f"{root}/c/part-*"]) == [f"{root}/c/part-{end}" for end in ("1.jsonl", "1.tsv", "2.jsonl")]
    assert input_files([f"{root}/c/*.jsonl"]) == [f"{root}/c/{name}.jsonl" for name in ("[x]", "part-1", "part-2")]
    overlapping = input_files([f"{root}/c/part-2.jsonl", f"{root}/c/part*"])
    assert overlapping == [f"{root}/c/part-{end}" for end in ("2.jsonl", "1.jsonl", "1.tsv")]
    assert input_files([f"{root}/c/[x].jsonl"]) == [f"{root}/c/[x].jsonl"]


@pytest.mark.parametrize("pattern", ["c/none-*", "c/none.jsonl", "c", "none/*"])
def test_a_pattern_without_files_is_named(root: str, pattern: str) -> None:
    open_store(root).put_if_absent("c/part", b"x")
    with pytest.raises(StorageError, match="no such file"):
        input_files([f"{root}/{pattern}"])


def test_patterns_that_cannot_work_are_explained(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="last component"):
        input_files([f"{tmp_path}/*/part"])
    with pytest.raises(StorageError, match="no absolute path"):
        input_files(["corpus/*"])


@pytest.mark.parametrize("suffix", COMPRESS)
def test_files_are_decompressed_by_suffix(root: str, suffix: str) -> None:
    lines = [f"line {number} {os.urandom(20).hex()}\n".encode() for number in range(20_000)]
    compress = COMPRESS[suffix]
    # Two streams one after another, as `cat a.gz b.gz` and parallel compressors write them.
    content = compress(b"".join(lines[:15_000])) + compress(b"".join(lines[15_000:]))
    open_store(root).put_if_absent(f"corpus.jsonl{suffix}", content)
    uri = f"{root}/corpus.jsonl{suffix}"
    with open_input(uri) as stream:
        assert stream.readline() == lines[0]
        assert list(stream) == lines[1:]
    assert read_input(uri) == b"".join(lines)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    content = COMPRESS[suffix](os.urandom(300_000))
    half = len(content) // 2
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(content[:half] if damage == "cut" else b"not compressed at all" + content[21:])
    with pytest.raises(StorageError, match=rf"{path} cannot be decompressed .*fetch it again"):
        read_input(str(path))


def test_absent_files_are_named(root: str) -> None:
    with pytest.raises(StorageError, match="none"):
        read_input(f"{root}/none.jsonl")
    with pytest.raises(StorageError, match="none"):
        input_fingerprint([f"{root}/none.jsonl"])


def test_a_stream_from_s3_survives_broken_connections(s3_root: str, fault_proxy: FaultProxy) -> None:
    content = os.urandom(3_000_000)
    open_store(s3_root).put_if_absent("corpus.gz", gzip.compress(content))
    fault_proxy.first("GET", "corpus.gz", "cut", times=2)
    assert read_input(f"{s3_root}/corpus.gz") == content


def test_fingerprints_follow_names_content_and_order(root: str) -> None:
    store = open_store(root)
    for key in ("a/one", "b/one", "a/two"):
        store.put_if_absent(key, b"same")
    store.put_if_absent("c/one", b"diff")
    one, moved, two, changed = (f"{root}/{key}" for key in ("a/one", "b/one", "a/two", "c/one"))
    assert input_fingerprint([one]) == input_fingerprint([moved])
    several = {input_fingerprint(uris) for uris in ([one], [two], [changed], [one, two], [two, one])}
    assert len(several) == 5
