"""`raydistill gc`: what is live stays, what is dead goes, what is young waits, and nobody ever sees half of anything."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from raydistill.cli import main
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import CorruptObjectError, StorageError
from raydistill.index.commit import commit_change
from raydistill.index.publish import IndexVersion, current_version, load_version, make_current, put_manifest
from raydistill.index.search import open_searcher
from raydistill.storage.artifacts import ArtifactWriter
from raydistill.storage.collect import Policy, collect
from raydistill.storage.store import open_store
from raydistill.storage.verify import verify
from tests.index import change_world
from tests.storage.fault_proxy import FaultProxy
from tests.upkeep.root_world import (
    artifact_at,
    build_index,
    everything,
    index_fingerprint,
    key_of,
    keys,
    make_artifact,
    parquet,
)

DAY = 86400.0
AT_ONCE = Policy(keep_versions=1, grace_seconds=0)


def version_numbers(root: str) -> list[int]:
    prefix = "indexes/passages/manifests/"
    return [int(key[len(prefix) : -len(".json")]) for key in keys(root) if key.startswith(prefix)]


def make_old(root: str, pieces: Iterable[str], seconds: float = 10 * DAY) -> None:
    """Let the objects of a local root whose keys contain one of the pieces have been written that long ago."""
    folder = Path(root.removeprefix("file://"))
    then = time.time() - seconds
    for path in folder.rglob("*"):
        if path.is_file() and any(piece in str(path.relative_to(folder)) for piece in pieces):
            os.utime(path, (then, then))


def test_exactly_the_live_objects_stay(root: str, tmp_path: Path) -> None:
    """What stays is what a root holds in which nothing else ever happened."""
    everything(root)
    lost = ArtifactWriter(artifact_at(root, "done"))
    open_store(root).put_if_absent(f"{lost.artifact.prefix}/shard-0-0123abcd.parquet", parquet(5))  # of a racer that lost
    build_index(root, "third", segments=3)
    open_store(root).replace("_probe/left-by-a-crash", b"x")
    open_store(root).replace("indexes/passages/README", b"a stranger")

    before = keys(root)
    planned = collect(root, AT_ONCE)
    assert keys(root) == before
    sizes = {info.key: info.size for info in open_store(root).list("")}
    removed = collect(root, AT_ONCE, delete=True)
    assert removed == planned
    gone = set(before) - set(keys(root))
    assert sum(objects for objects, _ in removed.removed.values()) == len(gone)
    assert sum(size for _, size in removed.removed.values()) == sum(sizes[key] for key in gone)

    other = f"file://{tmp_path}/expected"
    build_index(other, "third", segments=3)
    make_artifact(other, "done")
    manifest = "indexes/passages/manifests/00000003.json"
    expected = [key for key in keys(other) if "manifests" not in key]
    untouched = [key for key in before if key.startswith(("cache/", "runs/"))]
    assert keys(root) == sorted([*expected, manifest, "indexes/passages/README", *untouched])
    assert verify(root).damages == []
    assert collect(root, AT_ONCE, delete=True).removed == {}


def test_unfinished_work_is_as_old_as_its_newest_object(tmp_path: Path) -> None:
    root = f"file://{tmp_path}/runs"
    make_artifact(root, "unfinished", commit=False)
    make_old(root, ["shard-0"])
    policy = Policy(2, DAY)
    found = collect(root, policy, delete=False)
    assert found.removed == {}
    assert sum(objects for objects, _ in found.young.values()) == 4
    assert len(ArtifactWriter(artifact_at(root, "unfinished")).finished()) == 2
    make_old(root, ["shard-1"])
    assert sum(objects for objects, _ in collect(root, policy).removed.values()) == 4


@pytest.mark.parametrize(
    ("moves", "keep", "left"),
    [
        ([], 1, [5]),
        ([], 3, [3, 4, 5]),
        ([2], 1, [2, 5]),  # rolled back: the current one and the newest
        ([3], 2, [2, 3, 4, 5]),  # and one to go back to from either
        ([1, 4], 1, [4, 5]),
        ([2, 5], 2, [2, 4, 5]),  # 2 is what was current before
        ([2, 4, 2, 5], 3, [2, 3, 4, 5]),
    ],
)
def test_versions_that_one_may_want_to_go_back_to_stay(tmp_path: Path, moves: list[int], keep: int, left: list[int]) -> None:
    root = f"file://{tmp_path}/runs"
    versions = [build_index(root, f"content {number}", segments=1) for number in range(5)]
    for number in moves:
        make_current(versions[number - 1], older=True)
    collect(root, Policy(keep, 0), delete=True)
    assert version_numbers(root) == left
    assert current_version(root, "passages").version == (moves or [5])[-1]
    assert verify(root).damages == []


def test_a_version_stays_while_readers_may_still_hold_it(tmp_path: Path) -> None:
    root = f"file://{tmp_path}/runs"
    for number in range(4):
        build_index(root, f"content {number}", segments=1)
    make_old(root, [""])
    # All four were current until a moment ago, says CURRENT.
    collect(root, Policy(1, DAY), delete=False)
    assert collect(root, Policy(1, DAY)).removed == {}
    document = open_store(root).read("indexes/passages/CURRENT")
    assert document.count(b'"until"') == 3
    assert collect(root, Policy(1, 0)).removed != {}


def test_a_version_that_was_superseded_a_moment_ago_stays_though_it_was_never_current(tmp_path: Path) -> None:
    root = f"file://{tmp_path}/runs"
    for number in range(3):
        build_index(root, f"content {number}", segments=1)
    open_store(root).delete("indexes/passages/CURRENT")
    make_current(load_version(root, "passages", 3))
    make_old(root, ["00000001.json", "00000002.json", "segments", "statistics", "receipts"])
    assert [what for _, what in collect(root, Policy(1, DAY)).removed].count("old versions") == 1
    make_old(root, ["00000003.json"])
    removed = collect(root, Policy(1, DAY), delete=True, settle_seconds=0).removed
    assert removed["indexes/passages/", "old versions"][0] == 2
    assert version_numbers(root) == [3]


def test_a_version_stays_while_candidates_hold_its_passage_numbers(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = build_index(root, "first", segments=1)
    build_index(root, "second", segments=1)
    third = build_index(root, "third", segments=1)
    writer = ArtifactWriter(artifact_at(root, "mined"))
    writer.put_part("shard-0", parquet(5), ".parquet", rows=5)
    writer.commit(["shard-0"], {"index": first.to_json()})  # as mining does
    assert main(["gc", root, "--keep-versions", "1", "--grace", "0", "--delete"]) == 0
    assert "version 1 of passages is kept for 1 artifacts that hold its passage numbers" in " ".join(
        capsys.readouterr().out.split()
    )
    assert version_numbers(root) == [1, third.version]
    assert verify(root).damages == []
    open_store(root).delete(f"{writer.artifact.prefix}/_manifest.json")
    collect(root, AT_ONCE, delete=True)
    assert version_numbers(root) == [third.version]
    assert not any("artifacts" in key for key in keys(root))


def test_an_index_that_was_changed_keeps_what_its_versions_share(root: str) -> None:
    def live(*versions: IndexVersion) -> set[str]:
        named = set().union(*(version.object_keys for version in versions))
        manifests = {f"indexes/passages/manifests/{version.version:08d}.json" for version in versions}
        return named | manifests | {"indexes/passages/CURRENT"}

    def held() -> set[str]:
        return {key for key in keys(root) if "/receipts/" not in key}

    names = [f"p{number}" for number in range(10)]
    base = change_world.build(root, change_world.random_vectors(names, 1))
    appended = change_world.apply(base, "append", change_world.random_vectors(["new", "newer"], 2))
    deleted = change_world.apply(appended, "delete", None, ["p1", "p2", "p5"])
    assert any("tombstones" in key for key in deleted.object_keys)
    open_store(root).put_if_absent("indexes/passages/tombstones/0123456789abcdef-0123456789abcdef.safetensors", b"lost")

    collect(root, Policy(3, 0), delete=True)
    assert held() == live(base, appended, deleted)
    compacted = commit_change(root, "passages", change_world.compaction(deleted, full=20))
    assert compacted.object_keys.isdisjoint(base.object_keys - {str(base.metadata["statistics"]["key"])})
    collect(root, Policy(2, 0), delete=True)
    assert held() == live(deleted, compacted)
    collect(root, AT_ONCE, delete=True)
    assert held() == live(compacted)
    assert verify(root).damages == []
    assert current_version(root, "passages") == compacted
    assert open_searcher(compacted).search(SparseBatch.from_rows([{0: 1.0}], change_world.TERMS), 20)


def test_what_dead_writers_had_begun_is_removed(root: str, s3_endpoint: str) -> None:
    everything(root)
    if root.startswith("s3"):
        bucket = root.split("/")[2]
        client = boto3.client("s3", endpoint_url=s3_endpoint)
        client.create_multipart_upload(Bucket=bucket, Key="runs/artifacts/x/half")
        client.create_multipart_upload(Bucket=bucket, Key="elsewhere/half")
    else:
        (Path(root.removeprefix("file://")) / "artifacts" / ".raydistill-0123.tmp").write_bytes(b"half")
        assert collect(root, Policy(2, DAY)).young["artifacts/", "unfinished uploads"] == (1, 4)
    assert len(list(open_store(root).leftovers())) == 1
    collect(root, Policy(2, 0), delete=True)
    assert list(open_store(root).leftovers()) == []
    if root.startswith("s3"):
        assert [each["Key"] for each in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["elsewhere/half"]


def test_a_damaged_manifest_stops_it(root: str) -> None:
    everything(root)
    store, before = open_store(root), keys(root)
    for key in ("indexes/passages/manifests/00000002.json", "indexes/passages/CURRENT", key_of(root, "done", "_manifest")):
        content = store.read(key)
        store.replace(key, content.replace(b"2", b"3", 1))
        with pytest.raises(CorruptObjectError, match=key):
            collect(root, AT_ONCE, delete=True)
        store.replace(key, content)
        assert {each for each in before if "indexes" in each} <= set(keys(root))


def test_nothing_at_all_cannot_be_kept() -> None:
    with pytest.raises(StorageError, match="at least 1 version"):
        Policy(0, 3600)


def test_stopped_anywhere_it_leaves_nothing_half_and_can_be_run_again(s3_root: str, fault_proxy: FaultProxy) -> None:
    everything(s3_root)
    left = [0]

    def fault(method: str, path: str) -> str:
        if method != "DELETE" or "_probe" in path:
            return "pass"
        left[0] -= 1
        return "pass" if left[0] >= 0 else "deny"

    fault_proxy.fault = fault
    stops = 0
    for allowed in range(100):
        left[0] = 1 + allowed % 3
        try:
            collect(s3_root, AT_ONCE, delete=True)
            break
        except StorageError:
            stops += 1
        assert verify(s3_root).damages == []
        assert current_version(s3_root, "passages").version == 2
    assert stops > 2
    fault_proxy.fault = lambda method, path: "pass"
    assert collect(s3_root, AT_ONCE).removed == {}


def test_a_commit_that_has_read_its_receipts_wins_against_gc(s3_root: str, fault_proxy: FaultProxy) -> None:
    """The work is older than the grace period, and is committed between the receipts' and the objects' removal."""
    make_artifact(s3_root, "late", commit=False)
    writer = ArtifactWriter(artifact_at(s3_root, "late"))
    committing: list[bool] = []

    def fault(method: str, path: str) -> str:
        if method == "PUT" and "_manifest.json" in path:  # the receipts have been read
            committing.append(True)
            fault_proxy.fault = meanwhile
            collect_first_half()
        return "pass"

    def collect_first_half() -> None:
        with pytest.raises(StorageError, match="access denied"):
            collect(s3_root, AT_ONCE, delete=True)

    def meanwhile(method: str, path: str) -> str:
        return "deny" if method == "DELETE" and ".parquet" in path and "shard" in path else "pass"

    fault_proxy.fault = fault
    manifest = writer.commit(["shard-0", "shard-1"], {})
    assert committing == [True]
    fault_proxy.fault = lambda method, path: "pass"
    assert not any("_receipts" in key for key in keys(s3_root))
    assert collect(s3_root, AT_ONCE, delete=True).removed == {}
    assert [writer.artifact.fetch(part).stat().st_size for part in manifest.parts] == [part.size for part in manifest.parts]


def test_a_version_whose_segments_were_removed_meanwhile_is_not_published(root: str) -> None:
    first = build_index(root, "first")
    build_index(root, "second")
    taken_over = replace(first, version=3, fingerprint=index_fingerprint("third"))
    collect(root, AT_ONCE, delete=True)
    with pytest.raises(StorageError, match=r"was not published: .*segments/.* is gone.*run the same again"):
        put_manifest(taken_over)
    assert version_numbers(root) == [2]


def test_the_command_is_a_dry_run_unless_told_otherwise(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    everything(root)
    before = keys(root)
    assert main(["gc", root, "--keep-versions", "1"]) == 0
    printed = capsys.readouterr().out
    assert "kept: too young" in printed
    assert "0 objects, 0 bytes to remove" in printed
    assert main(["gc", root, "--keep-versions", "1", "--grace", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("to remove") > 1
    assert "old versions" in printed
    assert keys(root) == before
    assert main(["gc", root, "--keep-versions", "1", "--grace", "0", "--delete"]) == 0
    assert version_numbers(root) == [2]
    assert main(["gc", root, "--keep-versions", "0"]) == 1
    assert main(["gc", f"{root}/mistyped"]) == 1
    assert "holds nothing at all; check the root" in capsys.readouterr().err


def test_versions_are_listed_and_one_is_gone_back_to(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    second = everything(root)
    assert main(["versions", root, "passages"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if second.fingerprint[:16] in line]
    assert len(rows) == 1
    size = sum(segment.size for segment in second.segments) + int(second.metadata["statistics"]["size"])
    assert {"2", "current", "120", f"{size:,}"} <= set(rows[0].replace("│", " ").split())

    assert main(["rollback", root, "passages", "--to", "1"]) == 0
    assert "version 1 of passages is current (120 passages); it was version 2" in capsys.readouterr().out
    assert current_version(root, "passages").version == 1
    assert main(["rollback", root, "passages", "--to", "2"]) == 0
    assert current_version(root, "passages").version == 2
    open_store(root).delete(load_version(root, "passages", 1).segments[0].key)
    assert main(["rollback", root, "passages", "--to", "1"]) == 1
    assert "cannot become current" in capsys.readouterr().err
    assert current_version(root, "passages").version == 2
    assert main(["rollback", root, "passages", "--to", "9"]) == 1
    assert main(["versions", root, "nothing"]) == 1
