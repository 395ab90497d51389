"""The fan-out on a real Ray cluster: equal to one searcher, whatever dies or is published meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from raydistill.config import DataConfig, FanOutConfig, IndexConfig, StudentConfig
from raydistill.errors import CorruptObjectError, DataError, ResourceError, StorageError
from raydistill.index.build import build_index
from raydistill.index.corpus import prepare_corpus
from raydistill.index.fan_out import FanOut, Snapshot
from raydistill.index.publish import IndexVersion, load_version, make_current
from raydistill.index.search import Searcher, open_searcher
from raydistill.index.search_result import SearchResult
from tests.index.made_versions import VOCABULARY, made_rows, publish_version
from tests.small_world import small_world

CONFIG = FanOutConfig.model_validate({"workers": {"actors": 3, "cpus": 0.25}})
QUERIES = made_rows(7, 40)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"


@pytest.fixture
def version(root: str, tmp_path: Path) -> IndexVersion:
    return publish_version(root, tmp_path, 1, (70, 1, 130, 90, 40))


@pytest.fixture
def open_fan_out(ray_cluster: None) -> Iterator[Callable[..., FanOut]]:
    """Return a function that makes fan-outs, ended after the test."""
    made: list[FanOut] = []

    def make(version: IndexVersion, config: FanOutConfig = CONFIG) -> FanOut:
        made.append(FanOut(version, config))
        return made[-1]

    yield make
    for each in made:
        each.close()


def assert_equal(found: SearchResult, expected: SearchResult) -> None:
    np.testing.assert_array_equal(found.passages, expected.passages)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (found.passages.dtype, found.scores.dtype) == (expected.passages.dtype, expected.scores.dtype)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within 120 s"
        time.sleep(0.05)


@contextmanager
def readers(read: Callable[[], None], count: int = 4) -> Iterator[Callable[[], int]]:
    """Have threads read until the block ends, then raise what any of them raised; yields a count of the reads so far."""
    stop, errors, done = threading.Event(), [], [0] * count

    def run(number: int) -> None:
        try:
            while not stop.is_set():
                read()
                done[number] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(done)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("k", [1, 10, 330, 1000])
def test_search_equals_one_searcher_over_all_segments(open_fan_out, version, k):
    fan_out = open_fan_out(version)
    assert len(set(fan_out.snapshot.groups)) == 3
    assert_equal(fan_out.search(QUERIES, k), open_searcher(version).search(QUERIES, k))


def test_everything_else_equals_one_searcher_too(open_fan_out, version):
    snapshot, searcher = open_fan_out(version).snapshot, open_searcher(version)
    rng = np.random.default_rng(3)
    numbers = rng.integers(0, version.passages, 200)
    found, expected = snapshot.vectors(numbers), searcher.vectors(numbers)
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.term_ids, expected.term_ids)
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert snapshot.passage_ids(numbers) == searcher.passage_ids(numbers)
    assert [hit.passage_id for hit in snapshot.hits(numbers)] == searcher.passage_ids(numbers)
    ids = [*searcher.passage_ids(numbers), "unknown", ""]
    np.testing.assert_array_equal(snapshot.find(ids), searcher.find(ids))
    asked = [rng.integers(0, version.passages, 9) for _ in range(len(QUERIES))]
    for ours, theirs in zip(snapshot.scores(QUERIES, asked), searcher.scores(QUERIES, asked), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(snapshot.vectors(np.zeros(0, dtype=np.int64))) == 0
    with pytest.raises(DataError, match="passage number 331 is not in the index"):
        snapshot.vectors(np.array([331]))


def test_a_large_batch_goes_through_the_object_store(open_fan_out, version):
    queries = made_rows(8, 3000)
    assert queries.weights.nbytes > 64 * 1024
    assert_equal(open_fan_out(version).search(queries, 5), open_searcher(version).search(queries, 5))


def test_more_actors_than_segments_leave_some_without_work(open_fan_out, root, tmp_path):
    version = publish_version(root, tmp_path, 1, (20,))
    fan_out = open_fan_out(version)
    assert_equal(fan_out.search(QUERIES, 3), open_searcher(version).search(QUERIES, 3))
    assert sorted(each.segments for each in fan_out.health()) == [0, 0, 1]


def test_segments_come_from_s3_through_the_local_cache(open_fan_out, s3_root, tmp_path):
    version = publish_version(s3_root, tmp_path, 1, (50, 60, 70))
    assert_equal(open_fan_out(version).search(QUERIES, 20), open_searcher(version).search(QUERIES, 20))


def test_an_actor_killed_in_mid_load_loses_no_answer(open_fan_out, version):
    fan_out, expected = open_fan_out(version), open_searcher(version).search(QUERIES, 10)
    before = {each.group: each.pid for each in fan_out.health()}
    assert all(each.serving for each in fan_out.health())

    with readers(lambda: assert_equal(fan_out.search(QUERIES, 10), expected)) as reads:
        for group in (0, 1):
            seen = reads()
            wait_until(lambda seen=seen: reads() > seen + 8, "reading")
            os.kill(before[group], signal.SIGKILL)
            wait_until(
                lambda group=group: fan_out.health()[group].serving and fan_out.health()[group].pid != before[group],
                "a new actor",
            )
        seen = reads()
        wait_until(lambda: reads() > seen + 8, "reading on")
    after = {each.group: each for each in fan_out.health()}
    assert after[2].pid == before[2]
    assert after[0].queries > 0


def test_an_actor_that_ray_gave_up_is_replaced(open_fan_out, version):
    import ray

    fan_out, expected = open_fan_out(version), open_searcher(version).search(QUERIES, 10)
    ray.kill(fan_out._actors._handles[1], no_restart=True)
    assert_equal(fan_out.search(QUERIES, 10), expected)
    wait_until(lambda: all(each.serving for each in fan_out.health()), "a new actor")


def test_versions_switch_during_load_without_an_error_or_a_mixed_answer(open_fan_out, root, tmp_path):
    sizes = [(70, 1, 130), (30, 200), (500,), (90, 90, 90, 90, 90), (64, 64)]
    versions = [publish_version(root, tmp_path, content, each) for content, each in enumerate(sizes)]
    make_current(versions[0], older=True)
    expected = {each.version: open_searcher(each).search(QUERIES, 10) for each in versions}
    ids = {each.version: open_searcher(each).passage_ids(expected[each.version].passages[0, :3]) for each in versions}
    fan_out = open_fan_out(versions[0])
    seen: set[int] = set()

    def read() -> None:
        snapshot: Snapshot = fan_out.snapshot
        number = snapshot.version.version
        found = snapshot.search(QUERIES, 10)
        assert_equal(found, expected[number])
        assert snapshot.passage_ids(found.passages[0, :3]) == ids[number]
        seen.add(number)

    with readers(read) as reads:
        for each in [*versions[1:], *versions[:3]]:
            make_current(each, older=True)
            assert fan_out.refresh()
            assert fan_out.version == each
            assert not fan_out.refresh()
            before = reads()
            wait_until(lambda before=before: reads() > before + 4, "reading")
    assert seen == {each.version for each in versions}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_index_is_built_anew_and_switched_while_readers_search_for_a_minute(open_fan_out, root, tmp_path):
    """The index stage itself, in the cluster that is searched, again and again with other impacts."""
    corpus = DataConfig.model_validate(
        {
            "corpus": [str(small_world(tmp_path / "data") / "corpus.jsonl")],
            "train": {"conversations": "/unused"},
            "test": {"conversations": "/unused"},
        }
    )
    student = StudentConfig(model="package:raydistill/demo/models/encoder")

    def publish(k1: float) -> IndexVersion:
        fields = {"name": "world", "documents": {"kind": "lexical", "k1": k1}, "passages_per_segment": 150}
        config = IndexConfig.model_validate(fields)
        return build_index(
            config, student, prepare_corpus(corpus, 150, config.workers, f"{tmp_path}/root"), f"{tmp_path}/root"
        )

    (tmp_path / "root").mkdir()
    first = publish(0.5)
    queries = open_searcher(first).vectors(np.arange(0, first.passages, 7))
    expected = {first.version: open_searcher(first).search(queries, 10)}
    fan_out = open_fan_out(first, FanOutConfig.model_validate({"workers": {"actors": 2, "cpus": 0.25}}))
    assert len(set(fan_out.snapshot.groups)) == 2

    def read() -> None:
        snapshot = fan_out.snapshot
        assert_equal(snapshot.search(queries, 10), expected[snapshot.version.version])

    with readers(read) as reads:
        until, number = time.monotonic() + 60, 1
        while time.monotonic() < until:
            number += 1
            version = publish(0.5 + 0.1 * number)
            expected[version.version] = open_searcher(version).search(queries, 10)
            assert fan_out.refresh()
            seen = reads()
            wait_until(lambda seen=seen: reads() > seen + 8, "reading")
    assert number > 2
    assert fan_out.version.version == number


def test_a_pinned_version_outlives_any_number_of_switches(open_fan_out, root, tmp_path):
    versions = [publish_version(root, tmp_path, content, (40, 50)) for content in range(4)]
    fan_out = open_fan_out(versions[0])
    pinned = fan_out.snapshot
    for each in versions[1:]:
        fan_out.refresh(each)
    assert_equal(pinned.search(QUERIES, 10), open_searcher(versions[0]).search(QUERIES, 10))
    assert max(len(each.versions) for each in fan_out.health()) == CONFIG.versions
    assert_equal(fan_out.search(QUERIES, 10), open_searcher(versions[3]).search(QUERIES, 10))


def test_a_new_version_that_is_damaged_leaves_the_old_one_in_place(open_fan_out, root, tmp_path, version):
    fan_out = open_fan_out(version)
    damaged = publish_version(root, tmp_path, 2, (60, 60))
    path = damaged.fetch(damaged.segments[1])
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptObjectError, match=damaged.segments[1].key):
        fan_out.refresh()
    assert fan_out.version == version
    assert_equal(fan_out.search(QUERIES, 10), open_searcher(version).search(QUERIES, 10))


def test_a_version_made_anew_under_its_number_is_not_taken_for_the_old_one(open_fan_out, root, tmp_path, version):
    import shutil

    shutil.rmtree(tmp_path / "root" / "indexes")
    publish_version(root, tmp_path, 5, (60,))
    assert load_version(root, "made", 1).fingerprint != version.fingerprint
    with pytest.raises(StorageError, match="is no longer the version that was searched"):
        open_fan_out(version)


def test_what_cannot_work_is_told_in_a_sentence(open_fan_out, version):
    with pytest.raises(ResourceError, match=r"fan_out\.workers asks for 40 actors, together 40 CPU, but the cluster has 2"):
        open_fan_out(version, FanOutConfig.model_validate({"workers": {"actors": 40, "cpus": 1}}))
    fan_out = open_fan_out(version)
    with pytest.raises(DataError, match="k is 0; ask for at least one passage"):
        fan_out.search(QUERIES, 0)
    with pytest.raises(DataError, match=rf"queries are over 5 terms but the index over {VOCABULARY}"):
        fan_out.search(type(QUERIES).from_rows([{1: 1.0}], 5), 3)


def test_a_cache_that_cannot_hold_a_group_is_refused(open_fan_out, s3_root, tmp_path, monkeypatch):
    from raydistill.index.segment_group import Holding, SegmentGroup

    version = publish_version(s3_root, tmp_path, 1, (50, 60))
    monkeypatch.setenv("RAYDISTILL_CACHE_BYTES", "1000")
    group = SegmentGroup(threads=1, versions=2)
    with pytest.raises(ResourceError, match=r"raise RAYDISTILL_CACHE_BYTES, or spread the index over more actors"):
        group.open(Holding(version.root, version.name, 1, version.fingerprint, (0, 1)))


def test_a_batch_is_searched_like_its_queries(open_fan_out, version):
    fan_out = open_fan_out(version)
    searcher: Searcher = open_searcher(version)
    for row in range(3):
        assert_equal(fan_out.search(QUERIES.select([row]), 4), searcher.search(QUERIES.select([row]), 4))
