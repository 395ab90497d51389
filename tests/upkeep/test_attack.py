"""The commit protocol under attack, on a real HTTP S3 server: writers that race, a network that loses, processes that die.

Whatever happens, readers see whole versions only, nothing that was committed is lost, no passage is there twice, the same
command run again completes, and gc leaves exactly the live objects.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess

import boto3
import pytest

from raydistill.errors import StorageError
from raydistill.index.publish import IndexVersion, current_version, load_version
from raydistill.index.segment import Segment
from raydistill.storage.collect import Policy, collect
from raydistill.storage.verify import verify
from tests.storage.fault_proxy import FaultProxy
from tests.upkeep.root_world import PASSAGES, build_index, index_fingerprint, keys

WRITERS = 16
FAULTS = ("throttle", "reset", "deaf", "cut")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Real processes that start at once: forks of a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.upkeep.root_world"])
    return context


def write(variables: dict[str, str], root: str, content: str, segments: int, noise: float, in_parts: bool) -> None:
    """What a writer's process does; `in_parts` uploads even small segments in parts, as large ones are."""
    os.environ.update(variables)
    if in_parts:
        from raydistill.storage import s3

        s3._ONE_REQUEST = 5_000
    build_index(root, content, segments, noise=noise)


def start_writer(
    processes: ForkServerContext,
    endpoint: str,
    root: str,
    content: str,
    segments: int = 2,
    noise: float = 0.0,
    in_parts: bool = False,
) -> ForkServerProcess:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED")
    variables = {"AWS_ENDPOINT_URL": endpoint, **{name: os.environ[name] for name in (*names, "RAYDISTILL_CACHE_DIR")}}
    process = processes.Process(target=write, args=(variables, root, content, segments, noise, in_parts))
    process.start()
    return process


def check_whole(version: IndexVersion) -> None:
    """Assert that a version can be read to the last byte and holds every passage once."""
    ids = []
    for number, entry in enumerate(version.segments):
        segment = Segment(version.fetch(entry))
        assert entry.first_passage == number * PASSAGES
        ids += [segment.passage_id(row) for row in range(segment.passages)]
    assert version.open_statistics()
    assert len(ids) == len(set(ids)) == version.passages == PASSAGES * len(version.segments)


class Reader:
    """A thread that searches for half an index as long as the attack goes on."""

    def __init__(self, root: str) -> None:
        self.problems: list[BaseException] = []
        self.seen: list[int] = []
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._ended.is_set():
            try:
                version = current_version(self._root, "passages")
                check_whole(version)
                self.seen.append(version.version)
            except BaseException as problem:
                self.problems.append(problem)
                return

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
        assert self.problems == []
        assert self.seen == sorted(self.seen), "an older version came back"


def live_keys(root: str) -> set[str]:
    """Return the keys that all versions, found one by one, need, and CURRENT."""
    live = {"indexes/passages/CURRENT"}
    number = 1
    while True:
        try:
            version = load_version(root, "passages", number)
        except StorageError:
            return live
        work = version.fingerprint[:16]
        live |= {f"indexes/passages/manifests/{number:08d}.json", str(version.metadata["statistics"]["key"])}
        live |= {f"indexes/passages/statistics/{work}/receipts/statistics.json"}
        for entry in version.segments:
            live |= {entry.key, f"indexes/passages/receipts/{work}/{entry.name}.json"}
        number += 1


def race(
    processes: ForkServerContext, endpoint: str, root: str, proxy: FaultProxy, contents: int, segments: int, seed: int
) -> None:
    chance = random.Random(seed)

    def fault(method: str, path: str) -> str:
        return chance.choice(FAULTS) if chance.random() < 0.1 else "pass"

    proxy.fault = fault
    build_index(root, "before", segments)
    with Reader(root).reading(), Reader(root).reading():
        writers = [
            start_writer(processes, proxy.url, root, f"content {number % contents}", segments, noise=number / 100)
            for number in range(WRITERS)
        ]
        for writer in writers:
            writer.join(timeout=300)
        assert [writer.exitcode for writer in writers] == [0] * WRITERS
    faults = [fault for _, _, fault in proxy.seen if fault != "pass"]
    assert len(faults) > 20
    versions = [load_version(root, "passages", number) for number in range(1, contents + 2)]
    wanted = {index_fingerprint(content) for content in ("before", *(f"content {number}" for number in range(contents)))}
    assert {version.fingerprint for version in versions} == wanted
    with pytest.raises(StorageError, match="has no version"):
        load_version(root, "passages", contents + 2)
    assert current_version(root, "passages") == versions[-1]
    for version in versions:
        check_whole(version)
    assert verify(root).damages == []
    collect(root, Policy(keep_versions=100, grace_seconds=0), delete=True)
    assert set(keys(root)) == live_keys(root)


def test_sixteen_writers_race_on_a_network_that_loses(processes: ForkServerContext, s3_endpoint: str, s3_root: str) -> None:
    proxy = FaultProxy(s3_endpoint)
    try:
        race(processes, s3_endpoint, s3_root, proxy, contents=4, segments=1, seed=1)
    finally:
        proxy.close()


@pytest.mark.slow
@pytest.mark.parametrize(("contents", "seed"), [(1, 2), (16, 3), (8, 4), (4, 5)])
def test_sixteen_writers_race_for_long(
    processes: ForkServerContext, s3_endpoint: str, s3_root: str, contents: int, seed: int
) -> None:
    proxy = FaultProxy(s3_endpoint)
    try:
        race(processes, s3_endpoint, s3_root, proxy, contents, segments=5, seed=seed)
    finally:
        proxy.close()


class Killer:
    """Kills a process by SIGKILL at its n-th request: before the server hears of it, or after it was carried out."""

    def __init__(self, proxy: FaultProxy, at: int, after: bool) -> None:
        self._at = at
        self._after = after
        self._count = 0
        self._lock = threading.Lock()
        self._process: int | None = None
        self._started = threading.Event()
        proxy.fault, proxy.done = self._fault, self._done

    def aim(self, process: int | None) -> None:
        self._process = process
        self._started.set()

    def _fault(self, method: str, path: str) -> str:
        with self._lock:
            self._count += 1
            fatal = self._count >= self._at
        if not fatal:
            return "pass"
        if self._after and self._count == self._at:
            return "deaf"
        self._kill()
        return "reset"

    def _done(self, method: str, path: str) -> None:
        if self._after and self._count >= self._at:
            self._kill()

    def _kill(self) -> None:
        self._started.wait(10)
        if self._process is not None:
            os.kill(self._process, signal.SIGKILL)


def crash_everywhere(
    processes: ForkServerContext, endpoint: str, bucket: str, start: int, step: int, in_parts: bool
) -> None:
    """Kill a writer at every `step`-th request of its build and commit, from request `start` on, before and after the
    server carries it out, and look at what is left each time."""
    client = boto3.client("s3", endpoint_url=endpoint)
    expected = f"{bucket}/expected"
    build_index(expected, "first", 1)
    build_index(expected, "second")
    left = set(keys(expected))
    proxy = FaultProxy(endpoint)
    try:
        counted = f"{bucket}/counted"
        build_index(counted, "first", 1)
        writer = start_writer(processes, proxy.url, counted, "second", in_parts=in_parts)
        writer.join(120)
        assert writer.exitcode == 0
        requests = len(proxy.seen)
        assert requests > 25
        for after in (False, True):
            for at in range(start, requests + 1, step):
                root = f"{bucket}/{'after' if after else 'before'}-{at}"
                first = build_index(root, "first", 1)
                killer = Killer(proxy, at, after)
                writer = start_writer(processes, proxy.url, root, "second", in_parts=in_parts)
                killer.aim(writer.pid)
                writer.join(120)
                if writer.exitcode == 0:  # its last requests depend on what came before
                    assert at > requests - 5
                else:
                    assert writer.exitcode == -signal.SIGKILL
                current = current_version(root, "passages")
                check_whole(current)
                assert current == first or (current.version == 2 and current.fingerprint == index_fingerprint("second"))
                check_whole(load_version(root, "passages", 1))
                assert verify(root).damages == []

                second = build_index(root, "second")
                assert second.version == 2
                assert current_version(root, "passages") == second
                check_whole(second)
                with pytest.raises(StorageError, match="has no version 3"):
                    load_version(root, "passages", 3)
                collect(root, Policy(keep_versions=2, grace_seconds=0), delete=True)
                assert set(keys(root)) == left
        uploads = client.list_multipart_uploads(Bucket=bucket.split("/")[2])
        assert not uploads.get("Uploads")
    finally:
        proxy.close()


def test_a_writer_killed_at_any_request_loses_nothing(processes: ForkServerContext, s3_endpoint: str, s3_root: str) -> None:
    crash_everywhere(processes, s3_endpoint, s3_root, start=3, step=9, in_parts=False)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, 7))
@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])
def test_a_writer_killed_at_every_request_loses_nothing(
    processes: ForkServerContext, s3_endpoint: str, s3_root: str, start: int, in_parts: bool
) -> None:
    crash_everywhere(processes, s3_endpoint, s3_root, start, step=6, in_parts=in_parts)
