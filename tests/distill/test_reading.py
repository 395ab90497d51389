"""Batches made ready ahead: the same ones in order, whether a thread or processes make them, and errors at their place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from raydistill.config import SamplingConfig, TextConfig
from raydistill.distill.reading import Prefetch, Reader, ReaderProcesses, ReadyBatch, reading_processes, ready_batches
from raydistill.distill.stream import CandidateStream
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import DataError, TrainingError
from raydistill.index.forward import ForwardVectors
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.combine import Combiner
from tests.distill.test_stream import assert_equal

Mined = tuple[Artifact, IndexVersion]


class VectorsThatBreak(ForwardVectors):
    """Hold the passages of two batches, and no more."""

    asked = 0
    error: type[Exception] = DataError

    def vectors(self, passages: NDArray[np.int64]) -> SparseBatch:
        self.asked += 1
        if self.asked > 2:
            raise self.error("a segment is damaged")
        return super().vectors(passages)


def reader(mined: Mined, encoder: str, vectors: ForwardVectors | None = None) -> Reader:
    candidates, index = mined
    sampling = SamplingConfig(passages=6, top=1, policy="window(first=2, last=30)")
    stream = CandidateStream(candidates, vectors or ForwardVectors(index), sampling, Combiner("mean"), 4, 3, 9)
    return Reader(stream, AutoTokenizer.from_pretrained(encoder), TextConfig(max_tokens=64), (slice(0, 3), slice(3, 4)))


def taken(batches: Any, number: int) -> list[Any]:
    return [next(batches) for _ in range(number)]


def test_processes_make_the_batches_of_a_thread_in_order(mined: Mined, tiny_encoder: str) -> None:
    whole = list(islice(reader(mined, tiny_encoder).stream.batches(3), 9))
    thread = ready_batches(reader(mined, tiny_encoder), 3, 0, "train.readers")
    wanted = taken(thread, 9)
    thread.close()
    assert isinstance(thread, Prefetch)
    processes = ready_batches(reader(mined, tiny_encoder), 3, 2, "train.readers")
    found = taken(processes, 9)
    processes.close()
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert other.batch.depth.tolist() == [query.depth for query in whole[number].queries]
        assert_equal(one.batch, other.batch)
        for pieces in zip(one.tokens, other.tokens, strict=True):
            for left, right in zip(*pieces, strict=True):
                np.testing.assert_array_equal(left, right)
    rows = [mask.sum(axis=1) for _ids, mask in wanted[0].tokens]
    assert [len(each) for each in rows] == [3, 1], "one a micro-batch"
    assert all(each.min() > 2 for each in rows)


def test_a_worker_beyond_the_last_row_gets_a_text_all_the_same(mined: Mined, tiny_encoder: str) -> None:
    whole = reader(mined, tiny_encoder)
    beyond = Reader(whole.stream, whole.tokenizer, whole.text, (slice(4, 4),))
    assert next(beyond.batches(0)).tokens[0][0].shape[0] == 1


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [(DataError, DataError, r"^a segment is damaged$"), (ValueError, RuntimeError, r"ValueError: a segment is damaged\n$")],
)
def test_an_error_in_a_process_comes_at_its_batch_and_stays(
    mined: Mined, tiny_encoder: str, error: type[Exception], kind: type[Exception], message: str
) -> None:
    broken = VectorsThatBreak(mined[1])
    broken.error = error
    batches = ReaderProcesses(reader(mined, tiny_encoder, broken), 0, 1, "train.readers")
    taken(batches, 2)
    for _ in range(2):
        with pytest.raises(kind, match=message):
            next(batches)
    batches.close()
    batches.close()


class LargeBatches(Reader):
    """Batches that no pipe holds at once."""

    def batches(self, first_step: int, every: int = 1) -> Iterator[ReadyBatch]:
        for ready in super().batches(first_step, every):
            large = np.zeros(500_000, dtype=np.int64)
            yield ReadyBatch(ready.batch, ((large, large),))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.timeout(120)
def test_a_process_that_is_killed_while_it_sends_ends_the_training_that_waits_for_it(
    mined: Mined, tiny_encoder: str, number: int
) -> None:
    whole = reader(mined, tiny_encoder)
    large = LargeBatches(whole.stream, whole.tokenizer, whole.text, whole.pieces)
    batches = ReaderProcesses(large, 0, number, "train.readers")
    taken(batches, number)
    waiting = batches.processes[0]
    # Nobody reads, so it comes to stand in the middle of a batch.
    while "pipe_write" not in Path(f"/proc/{waiting}/wchan").read_text():
        time.sleep(0.05)
    os.kill(waiting, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"has ended with status -9 .*train\.readers=0"):
        next(batches)
    batches.close()


def test_a_gpu_has_processes_and_a_cpu_a_thread_unless_told_otherwise() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert reading_processes(None, gpu) > 0
    assert reading_processes(None, cpu) == 0
    for number in (0, 3):
        assert [reading_processes(number, device) for device in (gpu, cpu)] == [number, number]


def test_the_processes_end_when_the_trainer_is_killed(mined: Mined, tiny_encoder: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    trainer = context.Process(target=_train_for_ever, args=(reader(mined, tiny_encoder), theirs))
    trainer.start()
    running = ours.recv()
    trainer.kill()
    trainer.join()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in running):
        assert time.monotonic() < deadline, "a reader outlived its trainer"
        time.sleep(0.2)


def _train_for_ever(read: Reader, told: Connection) -> None:
    batches = ReaderProcesses(read, 0, 2, "train.readers")
    next(batches)
    told.send(batches.processes)
    while True:
        next(batches)


def test_closing_ends_the_processes(mined: Mined, tiny_encoder: str) -> None:
    batches = ReaderProcesses(reader(mined, tiny_encoder), 0, 2, "train.readers")
    next(batches)
    running = batches.processes
    batches.close()
    assert not any(Path(f"/proc/{process}").exists() for process in running)


def test_prefetch_hands_on_items_in_order_and_errors_at_their_place() -> None:
    def source():  # type: ignore[no-untyped-def]
        yield from range(5)
        raise TrainingError("the source broke")

    prefetch = Prefetch(source)
    assert [next(prefetch) for _ in range(5)] == list(range(5))
    with pytest.raises(TrainingError, match="the source broke"):
        next(prefetch)
    prefetch.close()


def test_a_prefetch_of_something_finite_ends_and_stays_ended() -> None:
    prefetch = Prefetch(lambda: iter(range(3)), ahead=1)
    assert list(prefetch) == [0, 1, 2]
    assert list(prefetch) == []
    prefetch.close()


def test_a_prefetch_counts_the_time_its_consumer_stands_waiting() -> None:
    def slow():  # type: ignore[no-untyped-def]
        for number in range(3):
            time.sleep(0.05)
            yield number

    prefetch = Prefetch(slow, ahead=3)
    assert list(prefetch) == [0, 1, 2]
    assert prefetch.waited > 0
    prefetch.close()


def test_closing_a_prefetch_ends_its_thread_though_nobody_reads() -> None:
    prefetch = Prefetch(count)
    assert next(prefetch) == 0
    prefetch.close()
    assert not prefetch._thread.is_alive()
