"""Versions that follow from one another: racing writers lose nothing, crashes are made good, roll-backs are respected."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from change_world import apply, build, change, compaction, random_vectors

from raydistill.errors import CorruptObjectError, DataError, StorageError
from raydistill.index import commit
from raydistill.index.changes import PassageChange
from raydistill.index.commit import commit_change
from raydistill.index.publish import IndexVersion, current_version, load_version, make_current, version_numbers
from raydistill.index.search import open_searcher
from raydistill.storage.store import open_store

FIRST = [f"p{number}" for number in range(10)]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh run root on each kind of store."""
    return f"file://{tmp_path}/runs" if request.param == "local" else str(request.getfixturevalue("s3_root"))


def live_ids(version: IndexVersion) -> set[str]:
    searcher = open_searcher(version)
    ids = searcher.passage_ids(np.arange(version.passages))
    return {each for each, number in zip(ids, searcher.find(ids), strict=True) if number >= 0}


def outcome(made: PassageChange, base: IndexVersion) -> IndexVersion | Exception:
    try:
        return commit_change(base.root, base.name, made)
    except (DataError, StorageError) as error:
        return error


def lineage(version: IndexVersion) -> list[int]:
    numbers = [version.version]
    while "base" in version.metadata:
        version = load_version(version.root, version.name, version.metadata["base"])
        numbers.append(version.version)
    return numbers


def test_no_change_of_racing_writers_is_lost(root: str) -> None:
    base = build(root, random_vectors(FIRST, 0))
    changes = [change(base, "append", random_vectors([f"n{writer}-{n}" for n in range(3)], writer)) for writer in range(6)]
    changes += [change(base, "delete", ids=[f"p{writer}"]) for writer in range(3)]
    changes.append(change(base, "replace", random_vectors(["p5", "p6"], 77)))
    with ThreadPoolExecutor(len(changes)) as pool:
        made = list(pool.map(lambda each: outcome(each, base), changes))
    assert not [each for each in made if isinstance(each, Exception)]
    current = current_version(root, "passages")
    expected = {f"n{writer}-{n}" for writer in range(6) for n in range(3)} | set(FIRST) - {"p0", "p1", "p2"}
    assert live_ids(current) == expected
    assert current.live == len(expected)
    # One version a change, each made on the one before: no writer left anything behind that was never current.
    assert lineage(current) == list(range(11, 0, -1)) == version_numbers(root, "passages")[::-1]


def test_of_writers_that_append_the_same_id_one_wins_and_the_others_are_told(root: str) -> None:
    base = build(root, random_vectors(FIRST, 0))
    changes = [change(base, "append", random_vectors(["same", f"own{writer}"], writer)) for writer in range(5)]
    with ThreadPoolExecutor(len(changes)) as pool:
        made = list(pool.map(lambda each: outcome(each, base), changes))
    refused = [each for each in made if isinstance(each, DataError)]
    assert len(refused) == 4
    assert all("1 of 2 passages to append" in str(each) and "'same'" in str(each) for each in refused)
    assert len(live_ids(current_version(root, "passages"))) == 12


def test_twins_that_make_the_same_change_make_it_once(root: str) -> None:
    base = build(root, random_vectors(FIRST, 0))
    made = change(base, "append", random_vectors(["a", "b"], 1))
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda each: outcome(each, base), [made] * 4))
    assert {each.version for each in versions if isinstance(each, IndexVersion)} == {2}
    assert live_ids(current_version(root, "passages")) == {*FIRST, "a", "b"}


def test_compaction_and_changes_race_without_loss(root: str) -> None:
    base = build(root, random_vectors(FIRST, 0), rows=2)
    compacting = compaction(base, full=6)
    changes = [change(base, "delete", ids=[f"p{n}"]) for n in range(3)] + [change(base, "append", random_vectors(["a"], 1))]

    def run(each: Callable[[IndexVersion], IndexVersion | None]) -> IndexVersion:
        return commit_change(root, "passages", each)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(run, [changes[0], compacting, *changes[1:]]))
    current = current_version(root, "passages")
    assert live_ids(current) == {*FIRST, "a"} - {"p0", "p1", "p2"}
    assert max(segment.passages for segment in current.segments) == 6


def test_passages_deleted_while_a_compaction_ran_stay_deleted(root: str) -> None:
    base = apply(build(root, random_vectors(FIRST, 0), rows=2), "delete", ids=["p1"])
    compacting = compaction(base, full=20)
    apply(base, "delete", ids=["p4", "p9", "p0"])
    after = commit_change(root, "passages", compacting)
    assert [segment.passages for segment in after.segments] == [9]
    assert (after.live, after.deleted) == (6, 3)
    assert live_ids(after) == set(FIRST) - {"p0", "p1", "p4", "p9"}
    assert after.metadata["compaction"] == {
        "base": 3,
        "segments_before": 5,
        "segments_after": 1,
        "passages_dropped": 1,
        "left_out": 0,
    }
    again = commit_change(root, "passages", compacting)
    assert again == after, "its segments are gone, so there is nothing left to do"


class Crash(BaseException):
    """What a kill leaves: nothing of ours is run after it."""


@pytest.mark.parametrize("helper", ["the same command", "another writer", "a build"])
def test_a_writer_that_dies_before_current_moves_has_made_its_change(
    root: str, helper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build(root, random_vectors(FIRST, 0))
    made = change(base, "append", random_vectors(["a", "b"], 1))

    def dies(*_: object) -> bool:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(commit, "_move", dies)
        with pytest.raises(Crash):
            commit_change(root, "passages", made)
    assert current_version(root, "passages") == base, "readers see it whole or not at all"
    assert version_numbers(root, "passages") == [1, 2]
    if helper == "another writer":
        assert lineage(apply(base, "append", random_vectors(["c"], 2))) == [3, 2, 1]
    elif helper == "a build":
        build(root, random_vectors(["x"], 3))  # which replaces everything
        assert live_ids(current_version(root, "passages")) == {"x"}
        return
    version = commit_change(root, "passages", made)
    assert version == current_version(root, "passages")
    assert live_ids(version) == {*FIRST, "a", "b"} | ({"c"} if helper == "another writer" else set())
    assert version.passages == len(live_ids(version)), "nothing is there twice"


def test_a_roll_back_between_the_two_steps_is_respected_and_the_change_made_on_it(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(root, random_vectors(FIRST, 0))
    second = apply(first, "append", random_vectors(["bad"], 1))
    made, move = change(second, "append", random_vectors(["good"], 2)), commit._move

    def rolled_back(head: commit.Head, version: IndexVersion) -> bool:
        monkeypatch.setattr(commit, "_move", move)
        make_current(first, older=True)
        return move(head, version)

    monkeypatch.setattr(commit, "_move", rolled_back)
    version = commit_change(root, "passages", made)
    assert version == current_version(root, "passages")
    assert live_ids(version) == {*FIRST, "good"}
    assert lineage(version) == [4, 1]
    assert lineage(apply(version, "delete", ids=["p3"])) == [5, 4, 1], "the version that was passed over stays aside"


def test_a_build_that_comes_between_is_changed_if_encoded_alike_and_else_refused(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build(root, random_vectors(FIRST, 0))
    made, put = change(base, "append", random_vectors(["a"], 2)), commit.put_manifest

    def built_before(version: IndexVersion) -> IndexVersion:
        monkeypatch.setattr(commit, "put_manifest", put)
        build(root, random_vectors(["x", "y"], 3))
        return put(version)

    monkeypatch.setattr(commit, "put_manifest", built_before)
    assert live_ids(commit_change(root, "passages", made)) == {"x", "y", "a"}
    build(root, random_vectors(["z"], 4), impacts="f16")
    with pytest.raises(StorageError, match=r"not encoded like the passages to append.*submit the same command again"):
        commit_change(root, "passages", made)
    assert live_ids(current_version(root, "passages")) == {"z"}


def test_an_older_version_keeps_its_passages_and_numbers(root: str) -> None:
    first = build(root, random_vectors(FIRST, 0))
    before = open_searcher(first)
    second = apply(first, "replace", random_vectors(["p2", "p7"], 5))
    third = apply(second, "delete", ids=["p2"])
    assert open_searcher(load_version(root, "passages", 1)).find(FIRST).tolist() == list(range(10))
    after = open_searcher(third)
    assert after.find(["p2", "p7", "p8"]).tolist() == [-1, 11, 8]
    everything = np.arange(10)
    for name in ("indptr", "term_ids", "weights"):
        np.testing.assert_array_equal(getattr(after.vectors(everything), name), getattr(before.vectors(everything), name))


def test_a_damaged_tombstone_is_noticed_and_never_ignored(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDISTILL_CACHE_DIR", str(tmp_path / "cache"))
    version = apply(build(root, random_vectors(FIRST, int(tmp_path.stat().st_ino))), "delete", ids=["p1", "p5"])
    tombstone = version.segments[0].tombstone
    assert tombstone is not None
    store = open_store(root)
    content = store.read(tombstone.key)
    store.replace(tombstone.key, content[:-4] + b"\x03" + content[-3:])
    with pytest.raises(CorruptObjectError, match=tombstone.key):
        open_searcher(version)
    store.delete(tombstone.key)
    for path in (tmp_path / "cache").glob("??/*"):
        path.unlink()
    with pytest.raises(StorageError, match=tombstone.key):
        open_searcher(version)
