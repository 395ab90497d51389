"""What both kinds of store promise."""

from __future__ import annotations

import os
import pickle
import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.errors import StorageError
from raydistill.storage.local import LocalStore
from raydistill.storage.store import open_store


def test_an_object_reads_as_it_was_put(root: str, tmp_path: Path) -> None:
    store = open_store(root)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(100_000))
    assert store.put_if_absent("a/b.bin", source)
    assert store.put_if_absent("a/empty", b"")
    assert store.read("a/b.bin") == source.read_bytes()
    assert store.read("a/empty") == b""
    store.download("a/b.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    found = store.info("a/b.bin")
    assert found is not None
    assert (found.key, found.size) == ("a/b.bin", 100_000)


def test_a_section_of_an_object_is_read_alone(root: str, tmp_path: Path) -> None:
    store = open_store(root)
    content = os.urandom(5_000)
    assert store.put_if_absent("key", content)
    for start, size in ((0, 5_000), (0, 1), (4_999, 1), (1_234, 2_000)):
        store.download_range("key", start, size, tmp_path / "section")
        assert (tmp_path / "section").read_bytes() == content[start : start + size]
    with pytest.raises(StorageError, match="cut short"):
        store.download_range("key", 4_000, 2_000, tmp_path / "section")
    with pytest.raises(StorageError, match="does not exist"):
        store.download_range("absent", 0, 1, tmp_path / "section")


def test_a_key_is_created_once_and_the_same_bytes_again_count_as_ours(root: str) -> None:
    store = open_store(root)
    assert store.put_if_absent("key", b"ours")
    assert store.put_if_absent("key", b"ours")
    assert not store.put_if_absent("key", b"theirs")
    assert store.read("key") == b"ours"


def test_sixteen_creators_of_one_object_have_one_winner(root: str) -> None:
    store = open_store(root)
    for race in range(3):
        contents = [f"writer {number}".encode() for number in range(16)]
        with ThreadPoolExecutor(16) as pool:
            created = list(pool.map(lambda content, key=f"race-{race}": store.put_if_absent(key, content), contents))
        assert created.count(True) == 1
        assert store.read(f"race-{race}") == contents[created.index(True)]


def test_swaps_that_race_lose_no_update(root: str) -> None:
    store = open_store(root)

    def increment(_: int) -> int:
        tries = 0
        while True:
            tries += 1
            found = store.info("counter")
            value = int(store.read("counter")) if found else 0
            if store.compare_and_swap("counter", str(value + 1).encode(), found.etag if found else None):
                return tries

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(24)))
    assert store.read("counter") == b"24"


def test_a_swap_needs_the_current_etag(root: str) -> None:
    store = open_store(root)
    assert not store.compare_and_swap("key", b"x", '"0123456789abcdef0123456789abcdef"')
    assert store.compare_and_swap("key", b"one", None)
    assert not store.compare_and_swap("key", b"two", None)
    found = store.info("key")
    assert found is not None
    assert store.compare_and_swap("key", b"two", found.etag)
    assert not store.compare_and_swap("key", b"three", found.etag)
    assert store.read("key") == b"two"


def test_absent_objects_have_no_info_and_say_their_uri_when_read(root: str, tmp_path: Path) -> None:
    store = open_store(root)
    assert store.info("nothing/here") is None
    with pytest.raises(StorageError, match="nothing/here does not exist"):
        store.read("nothing/here")
    with pytest.raises(StorageError, match="nothing/here does not exist"):
        store.download("nothing/here", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    store.delete("nothing/here")


def test_replace_and_delete(root: str) -> None:
    store = open_store(root)
    store.replace("log", b"one")
    store.replace("log", b"two")
    assert store.read("log") == b"two"
    store.delete("log")
    assert store.info("log") is None


def test_listing_is_in_order_of_keys_and_shows_objects_only(root: str) -> None:
    store = open_store(root)
    keys = ["a-b", "a/b", "a/b-c/d", "a/b.json", "a0", "ab/c", "b"]
    for key in reversed(keys):
        assert store.put_if_absent(key, key.encode())
    found = store.info("b")
    assert found is not None
    assert store.compare_and_swap("b", b"swapped", found.etag)
    assert [info.key for info in store.list("")] == sorted(keys)
    assert [info.key for info in store.list("a/")] == ["a/b", "a/b-c/d", "a/b.json"]
    assert [info.key for info in store.list("a/b.")] == ["a/b.json"]
    assert [info.key for info in store.list("none/")] == []
    assert {info.key: info.size for info in store.list("a")}["a/b-c/d"] == 7
    assert [info.etag for info in store.list("a-b")] == [info.etag for info in [store.info("a-b")] if info]


@settings(max_examples=50, deadline=None)
@given(
    names=st.sets(st.text(string.ascii_lowercase[:3] + "-./0", min_size=1, max_size=6), max_size=12),
    prefix=st.text("ab-/0", max_size=3),
)
def test_a_local_listing_equals_the_sorted_keys_with_the_prefix(
    names: set[str], prefix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = LocalStore(str(tmp_path_factory.mktemp("listing")))
    keys: list[str] = []
    for name in sorted(names):
        pieces = name.split("/")
        taken = any(key == name or key.startswith(f"{name}/") or name.startswith(f"{key}/") for key in keys)
        if not taken and all(piece not in ("", ".", "..") for piece in pieces):
            store.replace(name, b"x")
            keys.append(name)
    if any(piece in ("", ".", "..") for piece in prefix.split("/")[:-1]):
        return
    assert [info.key for info in store.list(prefix)] == sorted(key for key in keys if key.startswith(prefix))


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../../b", "a/"])
def test_keys_cannot_leave_the_root(root: str, key: str) -> None:
    with pytest.raises(StorageError, match="no valid key"):
        open_store(root).put_if_absent(key, b"x")


def test_a_store_travels_to_another_process_as_its_uri(root: str) -> None:
    store = open_store(root)
    store.put_if_absent("key", b"content")
    packed = pickle.dumps(store)
    assert len(packed) < 500
    assert pickle.loads(packed).read("key") == b"content"


@pytest.mark.parametrize("uri", ["relative/path", "gs://bucket/x", "file://relative", "s3://", ""])
def test_addresses_that_cannot_work_are_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        open_store(uri)


def test_a_crashed_local_writer_leaves_nothing_visible(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    absent = tmp_path / "absent"
    with pytest.raises(StorageError):
        store.put_if_absent("folder/key", absent)
    assert list(store.list("")) == []
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_read_only_folder_is_explained(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(StorageError, match="could not be written"):
        LocalStore(str(blocked)).put_if_absent("a/key", b"x")
