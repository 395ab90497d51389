"""The cache of immutable objects on a machine's disk."""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydistill.errors import CorruptObjectError, StorageError
from raydistill.storage.cache import LocalCache, default_cache
from raydistill.storage.local import LocalStore
from raydistill.storage.s3 import S3Store


def put(store: S3Store | LocalStore, key: str, content: bytes) -> tuple[str, int, str]:
    assert store.put_if_absent(key, content)
    return key, len(content), hashlib.sha256(content).hexdigest()


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("??/*") if path.name != ".lock"}


def test_an_s3_object_is_downloaded_once(s3_root: str, tmp_path: Path) -> None:
    store, cache = S3Store(s3_root), LocalCache(tmp_path / "cache", 10_000)
    entry = put(store, "key", b"content")
    path = cache.fetch(store, *entry)
    assert path.read_bytes() == b"content"
    store.delete("key")
    assert cache.fetch(store, *entry) == path


def test_a_local_object_is_not_copied(tmp_path: Path) -> None:
    store, cache = LocalStore(str(tmp_path / "runs")), LocalCache(tmp_path / "cache", 10_000)
    entry = put(store, "folder/key", b"content")
    assert cache.fetch(store, *entry) == tmp_path / "runs" / "folder" / "key"
    assert not (tmp_path / "cache").exists()


def test_damage_in_the_store_is_named_and_not_kept(root: str, tmp_path: Path) -> None:
    store = LocalStore(root) if root.startswith("file") else S3Store(root)
    key, size, digest = put(store, "key", b"content")
    store.replace("key", b"cOntent")
    for _ in range(2):
        with pytest.raises(CorruptObjectError, match=rf"{root}/key does not have"):
            LocalCache(tmp_path / "cache", 10_000).fetch(store, key, size, digest)
    assert files_in(tmp_path / "cache") == set()


def test_damage_after_first_use_is_noticed(tmp_path: Path) -> None:
    store, cache = LocalStore(str(tmp_path / "runs")), LocalCache(tmp_path / "cache", 10_000)
    entry = put(store, "key", b"content")
    path = cache.fetch(store, *entry)
    path.write_bytes(b"cOntent")
    with pytest.raises(CorruptObjectError):
        cache.fetch(store, *entry)


def test_a_damaged_copy_is_downloaded_again(s3_root: str, tmp_path: Path) -> None:
    store, cache = S3Store(s3_root), LocalCache(tmp_path / "cache", 10_000)
    entry = put(store, "key", b"content")
    cache.fetch(store, *entry).write_bytes(b"cOntent")
    assert cache.fetch(store, *entry).read_bytes() == b"content"


def test_a_deleted_local_object_is_explained(tmp_path: Path) -> None:
    store, cache = LocalStore(str(tmp_path / "runs")), LocalCache(tmp_path / "cache", 10_000)
    entry = put(store, "key", b"content")
    store.delete("key")
    with pytest.raises(StorageError, match="key does not exist though a manifest names it"):
        cache.fetch(store, *entry)


def test_what_was_used_longest_ago_makes_room(s3_root: str, tmp_path: Path) -> None:
    store, cache = S3Store(s3_root), LocalCache(tmp_path / "cache", 3000, grace_seconds=0)
    entries = [put(store, f"key-{number}", os.urandom(1000)) for number in range(4)]
    for entry in entries[:3]:
        cache.fetch(store, *entry)
        time.sleep(0.02)
    cache.fetch(store, *entries[0])
    cache.fetch(store, *entries[3])
    assert files_in(tmp_path / "cache") == {entries[number][2] for number in (0, 2, 3)}


def test_an_evicted_file_stays_mapped(s3_root: str, tmp_path: Path) -> None:
    store, cache = S3Store(s3_root), LocalCache(tmp_path / "cache", 1000, grace_seconds=0)
    content = os.urandom(1000)
    with cache.fetch(store, *put(store, "first", content)).open("rb") as stream:
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    cache.fetch(store, *put(store, "second", os.urandom(900)))
    assert hashlib.sha256(content).hexdigest() not in files_in(tmp_path / "cache")
    assert view[:] == content


def test_what_was_just_fetched_is_not_evicted_before_it_is_opened(s3_root: str, tmp_path: Path) -> None:
    store, cache = S3Store(s3_root), LocalCache(tmp_path / "cache", 1000)
    paths = [cache.fetch(store, *put(store, f"key-{number}", os.urandom(1000))) for number in range(3)]
    assert all(path.exists() for path in paths)


def test_files_of_dead_downloads_are_removed_in_time(s3_root: str, tmp_path: Path) -> None:
    store, cache = S3Store(s3_root), LocalCache(tmp_path / "cache", 10_000)
    (tmp_path / "cache" / "aa").mkdir(parents=True)
    old, young = tmp_path / "cache" / "aa" / ".old.tmp", tmp_path / "cache" / "aa" / ".young.tmp"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    cache.fetch(store, *put(store, "key", b"content"))
    assert (old.exists(), young.exists()) == (False, True)


_FETCH = """
import sys
from pathlib import Path
from raydistill.storage.cache import LocalCache
from raydistill.storage.s3 import S3Store
root, folder, *entries = sys.argv[1:]
cache, store = LocalCache(Path(folder), 250_000, grace_seconds=0.5), S3Store(root)
for _ in range(3):
    for entry in entries:
        key, size, digest = entry.split(",")
        assert len(cache.fetch(store, key, int(size), digest).read_bytes()) == int(size)
"""


def test_processes_share_a_cache_that_is_too_small(s3_root: str, tmp_path: Path) -> None:
    store = S3Store(s3_root)
    entries = [",".join(map(str, put(store, f"key-{number}", os.urandom(100_000)))) for number in range(6)]
    command = [sys.executable, "-c", _FETCH, s3_root, str(tmp_path / "cache")]
    orders = [entries[start:] + entries[:start] for start in range(4)]
    workers = [subprocess.Popen([*command, *order], stderr=subprocess.PIPE, text=True) for order in orders]
    for worker in workers:
        _, problems = worker.communicate(timeout=120)
        assert worker.returncode == 0, problems


def test_the_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYDISTILL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RAYDISTILL_CACHE_BYTES", "2e9")
    assert (default_cache().directory, default_cache().max_bytes) == (tmp_path, 2_000_000_000)
    monkeypatch.setenv("RAYDISTILL_CACHE_BYTES", "a lot")
    with pytest.raises(StorageError, match="RAYDISTILL_CACHE_BYTES is 'a lot'"):
        default_cache()
