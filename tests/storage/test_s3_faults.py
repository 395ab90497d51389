"""What S3 does to its users: throttling, broken connections, lost answers, missing buckets, bad credentials."""

from __future__ import annotations

import os
import time
from pathlib import Path

import boto3
import pytest
from fault_proxy import FaultProxy

from raydistill.errors import StorageError
from raydistill.storage import s3
from raydistill.storage.s3 import S3Store

PART = 5 << 20


def uploads_in_progress(endpoint: str, root: str) -> int:
    bucket = root.removeprefix("s3://").split("/")[0]
    answer = boto3.client("s3", endpoint_url=endpoint).list_multipart_uploads(Bucket=bucket)
    return len(answer.get("Uploads", []))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_ONE_REQUEST", 1000)
    monkeypatch.setattr(s3, "_PART", PART)


def test_throttling_is_waited_for(s3_root: str, fault_proxy: FaultProxy) -> None:
    store = S3Store(s3_root)
    fault_proxy.first("PUT", "key", "throttle", times=2)
    assert store.put_if_absent("key", b"content")
    fault_proxy.first("GET", "key", "throttle", times=2)
    assert store.read("key") == b"content"
    assert [fault for _, _, fault in fault_proxy.seen].count("throttle") == 4


def test_lasting_throttling_is_a_sentence(s3_root: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store(s3_root)
    monkeypatch.setattr("raydistill.storage.s3_requests._LONGEST_PAUSE_SECONDS", 0.01)
    fault_proxy.fault = lambda method, path: "throttle"
    with pytest.raises(StorageError, match=r"key: the store still refuses after 10 tries .*fewer actors"):
        store.put_if_absent("key", b"content")


def test_missing_rights_and_missing_features_are_not_retried(s3_root: str, fault_proxy: FaultProxy) -> None:
    store = S3Store(s3_root)
    for fault, sentence in (
        ("deny", "access denied .*s3:PutObject"),
        ("lack", "lacks what raydistill needs .*If-None-Match"),
    ):
        fault_proxy.seen.clear()
        fault_proxy.first("PUT", "key", fault)
        with pytest.raises(StorageError, match=sentence):
            store.put_if_absent("key", b"content")
        assert len(fault_proxy.seen) == 1


def test_a_listing_goes_over_all_pages(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PAGE", 2)
    store = S3Store(s3_root)
    keys = [f"a/{number}" for number in range(5)]
    for key in keys:
        store.put_if_absent(key, b"x")
    assert [info.key for info in store.list("a/")] == keys


@pytest.mark.parametrize("fault", ["reset", "deaf", "refuse"])
def test_a_put_without_an_answer_is_settled(s3_root: str, fault_proxy: FaultProxy, fault: str) -> None:
    store = S3Store(s3_root)
    fault_proxy.first("PUT", "key", fault)
    assert store.put_if_absent("key", b"ours")
    assert store.read("key") == b"ours"
    assert not store.put_if_absent("key", b"theirs")


@pytest.mark.parametrize("fault", ["reset", "deaf", "refuse"])
def test_a_swap_without_an_answer_is_settled(s3_root: str, fault_proxy: FaultProxy, fault: str) -> None:
    store = S3Store(s3_root)
    assert store.put_if_absent("key", b"before")
    found = store.info("key")
    assert found is not None
    fault_proxy.first("PUT", "key", fault)
    assert store.compare_and_swap("key", b"after", found.etag)
    assert store.read("key") == b"after"


def test_a_swap_lost_without_an_answer_is_lost(s3_root: str, fault_proxy: FaultProxy) -> None:
    store = S3Store(s3_root)
    assert store.put_if_absent("key", b"before")
    found = store.info("key")
    assert found is not None
    assert store.compare_and_swap("key", b"theirs", found.etag)
    fault_proxy.first("PUT", "key", "deaf")
    assert not store.compare_and_swap("key", b"ours", found.etag)
    assert store.read("key") == b"theirs"


def test_a_download_goes_on_where_the_connection_broke(s3_root: str, fault_proxy: FaultProxy, tmp_path: Path) -> None:
    store = S3Store(s3_root)
    content = os.urandom(3_000_000)
    assert store.put_if_absent("key", content)
    fault_proxy.first("GET", "key", "cut", times=2)
    store.download("key", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert sum(method == "GET" and "key" in path for method, path, _ in fault_proxy.seen) == 3


def test_a_section_is_fetched_alone_and_goes_on_where_the_connection_broke(
    s3_root: str, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    store = S3Store(s3_root)
    content = os.urandom(3_000_000)
    assert store.put_if_absent("key", content)
    fault_proxy.first("GET", "key", "cut", times=2)
    store.download_range("key", 500_001, 1_500_000, tmp_path / "section")
    assert (tmp_path / "section").read_bytes() == content[500_001:2_000_001]
    assert sum(method == "GET" and "key" in path for method, path, _ in fault_proxy.seen) == 3


def test_a_stream_does_not_mix_two_versions(s3_root: str, fault_proxy: FaultProxy) -> None:
    store = S3Store(s3_root)
    store.replace("key", b"a" * 3_000_000)
    fault_proxy.first("GET", "key", "cut")
    with store.open("key") as stream:
        stream.read(1000)
        store.replace("key", b"b" * 3_000_000)
        with pytest.raises(StorageError, match="was replaced while it was being read"):
            stream.read()


def test_a_small_object_that_moves_while_the_connection_breaks_is_read_anew(s3_root: str, fault_proxy: FaultProxy) -> None:
    """Else a reader of CURRENT would fail now and then while others publish."""
    store = S3Store(s3_root)
    store.replace("key", b"a" * 3_000)
    moved: list[str] = []

    def fault(method: str, path: str) -> str:
        if method == "GET" and "key" in path and not moved:
            moved.append(path)
            return "cut"
        return "pass"

    def done(method: str, path: str) -> None:
        if method == "GET" and len(moved) == 1:
            moved.append(path)
            store.replace("key", b"b" * 3_000)

    fault_proxy.fault, fault_proxy.done = fault, done
    assert store.read("key") == b"b" * 3_000


def test_large_objects_go_in_parts(s3_root: str, s3_endpoint: str, small_parts: None, tmp_path: Path) -> None:
    store = S3Store(s3_root)
    source = tmp_path / "large"
    source.write_bytes(os.urandom(2 * PART + 123))
    assert store.put_if_absent("large", source)
    assert store.read("large") == source.read_bytes()
    assert store.put_if_absent("large", source)
    assert not store.put_if_absent("large", b"x" * PART)
    assert uploads_in_progress(s3_endpoint, s3_root) == 0


def test_a_large_object_that_comes_second_is_refused_and_its_upload_ended(
    s3_root: str, s3_endpoint: str, small_parts: None, fault_proxy: FaultProxy
) -> None:
    store, theirs = S3Store(s3_root), b"t" * (PART + 1)

    def they_come_between(method: str, path: str) -> str:
        if method == "POST" and "uploadId=" in path:
            fault_proxy.fault = lambda method, path: "pass"
            boto3.client("s3", endpoint_url=s3_endpoint).put_object(
                Bucket=store.bucket, Key=f"{store.prefix}/large", Body=theirs
            )
        return "pass"

    fault_proxy.fault = they_come_between
    assert not store.put_if_absent("large", b"o" * (PART + 1))
    assert store.read("large") == theirs
    assert uploads_in_progress(s3_endpoint, s3_root) == 0


@pytest.mark.parametrize("fault", ["reset", "deaf", "refuse"])
def test_a_large_object_without_an_answer_is_settled(
    s3_root: str, s3_endpoint: str, small_parts: None, fault_proxy: FaultProxy, fault: str
) -> None:
    store, content = S3Store(s3_root), os.urandom(PART + 1)
    fault_proxy.first("POST", "uploadId=", fault)
    assert store.put_if_absent("large", content)
    assert store.read("large") == content
    assert uploads_in_progress(s3_endpoint, s3_root) == 0


def test_a_missing_bucket_is_named(s3_endpoint: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: the bucket no-such-bucket does not exist; create it"):
        S3Store("s3://no-such-bucket/x")


def test_an_impossible_bucket_name_is_explained(s3_endpoint: str) -> None:
    with pytest.raises(StorageError, match="no usable S3 address"):
        S3Store("s3://Not_A Bucket!/x")


def test_an_endpoint_that_does_not_answer_is_named_soon(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"http://127.0.0.1:9 did not answer in 3 tries .*AWS_ENDPOINT_URL"):
        S3Store("s3://bucket/x")
    assert time.monotonic() - started < 10


def test_missing_credentials_are_named(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"no usable credentials .*AWS_ACCESS_KEY_ID"):
        S3Store("s3://bucket/x")
