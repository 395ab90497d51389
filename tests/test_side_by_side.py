"""Pools beside each other: which of them a cluster holds at once, and what becomes of the others when one fails."""

from __future__ import annotations

import logging
import os
import signal
import time
from threading import Barrier, Event, Thread, current_thread
from threading import enumerate as threads

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config import PoolConfig, WorkerConfig
from raydistill.errors import TeacherError
from raydistill.side_by_side import Pool, groups_that_fit, run_pools, until


def pool(name: str, **workers: float) -> Pool:
    return Pool(name, PoolConfig(**workers), lambda stop: None)


def names(groups: list[list[Pool]]) -> list[list[str]]:
    return [[each.name for each in group] for group in groups]


@pytest.mark.parametrize(
    ("nodes", "workers", "groups"),
    [
        ([(2, 0)], [{"cpus": 1}, {"cpus": 1}], [["0", "1"]]),
        ([(2, 0)], [{"cpus": 2}, {"cpus": 1}], [["0"], ["1"]]),
        ([(2, 0)], [{"actors": 4, "min_actors": 1}, {"cpus": 1}], [["0", "1"]]),  # it can begin small
        ([(8, 8)], [{"gpus": 4}, {"gpus": 2}, {"gpus": 2}, {"gpus": 1}], [["0", "1", "2"], ["3"]]),
        ([(8, 4), (8, 4)], [{"gpus": 1, "actors": 4}, {"gpus": 4}], [["0", "1"]]),  # the large one has a node to itself
        ([(8, 4), (8, 4)], [{"gpus": 1, "actors": 6}, {"gpus": 4}], [["0"], ["1"]]),
        ([(4, 1)], [{"gpus": 0.5}, {"gpus": 0.5}], [["0", "1"]]),
        ([(4, 1)], [{"gpus": 0.6}, {"gpus": 0.4}, {"gpus": 0.1}], [["0", "1"], ["2"]]),
        ([(2, 0)], [{"gpus": 1}, {"cpus": 1}], [["0"], ["1"]]),  # what fits nowhere is refused when its turn comes
    ],
)
def test_pools_are_together_where_there_is_room_for_all(nodes, workers, groups) -> None:
    assert names(groups_that_fit([pool(str(n), **each) for n, each in enumerate(workers)], nodes)) == groups


def test_what_could_keep_an_engine_from_its_gpus_or_shares_a_limit_works_at_another_time() -> None:
    def engine(name: str, gpus: float, packed: bool = True) -> Pool:
        return Pool(name, WorkerConfig(gpus=gpus), lambda stop: None, packed=packed)

    nodes = [(16.0, 8.0), (16.0, 8.0)]
    alike = [engine("a", 4), engine("b", 4), pool("c", cpus=1), engine("d", 4, packed=False)]
    assert names(groups_that_fit(alike, nodes)) == [["a", "b", "c", "d"]]
    assert names(groups_that_fit([engine("a", 4), engine("b", 1, packed=False), engine("c", 2)], nodes)) == [
        ["a"],
        ["b"],
        ["c"],
    ]
    limited = [Pool(name, WorkerConfig(), lambda stop: None, limit=limit) for name, limit in ("ax", "bx", "cy", "d-")]
    assert names(groups_that_fit(limited, nodes)) == [["a"], ["b", "c", "d"]]


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2)), max_size=6),
)
def test_every_pool_is_in_one_group_in_order_and_no_group_asks_for_more_than_there_is(nodes, workers) -> None:
    pools = [pool(str(n), actors=actors, cpus=cpus, gpus=gpus) for n, (actors, cpus, gpus) in enumerate(workers)]
    groups = groups_that_fit(pools, nodes)
    assert [each for group in groups for each in group] == pools
    for group in groups:
        if len(group) > 1:
            assert sum(each.workers.actors * each.workers.cpus for each in group) <= sum(cpus for cpus, _ in nodes)
            assert sum(each.workers.actors * each.workers.gpus for each in group) <= sum(gpus for _, gpus in nodes)


def test_pools_that_fit_work_at_the_same_time(ray_cluster: None) -> None:
    meeting = Barrier(2)
    run_pools([Pool(name, WorkerConfig(), lambda stop: meeting.wait(timeout=60) and None) for name in ("a", "b")])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])  # Ctrl-C, and what Ray makes of SIGTERM
def test_an_interrupt_reaches_every_pool(ray_cluster: None, error: type[BaseException]) -> None:
    begun, left = Barrier(3), []

    def works(stop: Event) -> None:
        try:
            begun.wait(60)
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            left.append(current_thread().name)
            raise

    def interrupts(*_: object) -> None:
        raise error

    def sends() -> None:
        begun.wait(60)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupts)
    try:
        sender = Thread(target=sends)
        sender.start()
        with pytest.raises(error):
            run_pools([Pool(name, WorkerConfig(cpus=0.5), works) for name in ("one", "two")])
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(left) == ["one", "two"]
    assert not {"one", "two"} & {thread.name for thread in threads()}


def test_one_that_fails_ends_the_others_after_what_they_are_at_and_the_rest_is_not_started(
    ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    begun, failed, done, started = Event(), Event(), [], []

    def fails(stop: Event) -> None:
        assert begun.wait(timeout=60)
        failed.set()
        raise TeacherError("its model is not there")

    def shards() -> object:
        begun.set()
        yield "first"
        assert failed.wait(timeout=60)
        yield "second"
        raise AssertionError("nobody wants a third")

    def works(stop: Event) -> None:
        for shard in until(stop, shards()):
            done.append(shard)
            if shard == "first":
                assert stop.wait(timeout=60)

    pools = [Pool("large", WorkerConfig(), fails), Pool("small", WorkerConfig(), works)]
    pools.append(Pool("last", WorkerConfig(), lambda stop: started.append("last")))
    with caplog.at_level(logging.INFO, logger="raydistill"), pytest.raises(TeacherError, match="its model is not there"):
        run_pools(pools)
    assert done == ["first"]
    assert not started
    assert "large, small: the cluster has room for them at once" in caplog.messages
    assert any(line.startswith("large failed: its model is not there; the others end") for line in caplog.messages)
