"""Batches made ready ahead of training: read, joined with the passages' vectors and tokenised while the device computes.

On a CPU a thread of the worker does it, which needs no second process. A GPU's step is a thousand launches in some
milliseconds, and each would wait for a thread that holds the interpreter: there, processes do it, each every n-th batch.
Either way the batches are the same ones, in order.

Every process has a pipe of its own. The queue that PyTorch's DataLoader shares among its processes never ends for a trainer
when one of them is killed in the middle of a batch: the others hold it open.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from raydistill.config import TextConfig
from raydistill.conversations.text import student_text
from raydistill.distill.stream import CandidateStream, StepBatch
from raydistill.encoders.tokens import pad_id, padded, tokenize
from raydistill.errors import RaydistillError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Tokens = tuple[NDArray[np.int64], NDArray[np.int64]]
"""input_ids and attention_mask, [rows, longest]; arrays, which travel between processes without file descriptors."""
_AHEAD = 2
_OF_A_GPU = 2
"""Processes that make batches ready for a GPU, where the configuration does not say. With four an H100 was slower."""


@dataclass(frozen=True)
class ReadyBatch:
    """A global batch without its queries, and the token ids of this worker's micro-batches of it."""

    batch: StepBatch
    tokens: tuple[Tokens, ...]


@dataclass(frozen=True)
class Reader:
    """Makes batches ready for one worker; can be sent to a process.

    Attributes:
        stream: global batches.
        tokenizer: the student's. A thread may use it while validation does: the first batch sets its truncation before any
            validation, which asks for the same.
        text: the student's text form.
        pieces: rows of a batch that the worker encodes, one slice a micro-batch.
    """

    stream: CandidateStream
    tokenizer: Any
    text: TextConfig
    pieces: tuple[slice, ...]

    def batches(self, first_step: int, every: int = 1) -> Iterator[ReadyBatch]:
        """Yield the batches from an optimizer step on, for ever; of `every` steps the first."""
        separator, padding = self.tokenizer.sep_token or "", pad_id(self.tokenizer)
        for batch in self.stream.batches(first_step, every):
            tokens = []
            for rows in self.pieces:
                # A worker beyond the last row takes part with a text of no consequence.
                queries = batch.queries[rows] or batch.queries[:1]
                texts = [student_text(query.question, query.history, self.text, separator) for query in queries]
                ids, mask = padded(tokenize(self.tokenizer, texts, self.text.max_tokens), padding)
                tokens.append((ids.numpy(), mask.numpy()))
            # Nobody asks for the queries again, and they are most of what a process would have to send.
            yield ReadyBatch(replace(batch, queries=()), tuple(tokens))


class Source(Protocol[T_co]):
    """What makes batches ready; can be sent to a process."""

    def batches(self, first_step: int, every: int = 1) -> Iterator[T_co]:
        """Yield the batches from an optimizer step on, for ever; of `every` steps the first."""
        ...


class Ahead(Protocol[T_co]):
    """Batches without end, made ready ahead; must be closed."""

    def __next__(self) -> T_co: ...

    def close(self) -> None:
        """Stop working ahead."""


def reading_processes(readers: int | None, device: torch.device) -> int:
    """Return how many processes make batches ready for a worker on a device, of so many configured; 0 for a thread."""
    if readers is not None:
        return readers
    return _OF_A_GPU if device.type == "cuda" else 0


def ready_batches(source: Source[T], first_step: int, processes: int, field: str) -> Ahead[T]:
    """Return the batches from a step on, made ready by a thread (0) or by some processes; `field` sets how many."""
    if processes:
        return ReaderProcesses(source, first_step, processes, field)
    return Prefetch(lambda: source.batches(first_step))


class Prefetch(Generic[T]):
    """An iterator that works ahead in a thread, so that training does not wait for reading and joining.

    Args:
        source: makes the iterator; called, and worked through, in the thread.
        ahead: items kept ready; one more is in the making. Memory grows with it.
    """

    def __init__(self, source: Callable[[], Iterator[T]], ahead: int = _AHEAD) -> None:
        self.waited = 0.0
        """Seconds that the consumer has spent waiting for items."""
        self._end: BaseException | None = None
        self._queue: queue.Queue[T | BaseException] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(source,), daemon=True)
        self._thread.start()

    def _fill(self, source: Callable[[], Iterator[T]]) -> None:
        try:
            for item in source():
                if not self._put(item):
                    return
            self._put(StopIteration())
        except BaseException as error:  # handed to the consumer, which raises it
            self._put(error)

    def _put(self, item: T | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._end is not None:
            raise self._end
        started = time.perf_counter()
        item = self._queue.get()
        self.waited += time.perf_counter() - started
        if isinstance(item, BaseException):
            self._end = item
            raise item
        return item

    def close(self) -> None:
        """Stop working ahead and wait for the thread."""
        self._stop.set()
        self._thread.join()


class ReaderProcesses(Generic[T]):
    """Batches made ready by processes, each every n-th one and some ahead; an error is raised at its batch's place.

    They end with the trainer, however it ends: nobody else holds the other end of their pipes.

    Memory: a process holds what a stream holds, `_AHEAD` + 2 batches, and its imports (0.4 GiB with the CPU build of torch).
    """

    def __init__(self, source: Source[T], first_step: int, processes: int, field: str) -> None:
        # A forked copy of a process with CUDA, Ray's threads and open connections may hang; a fork server has none of them.
        context = multiprocessing.get_context("forkserver")
        self._error: Exception | None = None
        self._field = field
        self._turn = 0
        self._readers: list[tuple[Any, Connection]] = []
        for number in range(processes):
            received, sent = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(sent, source, first_step + number, processes), daemon=True)
            process.start()
            sent.close()  # the process alone holds it, so that its end is the end of the pipe
            self._readers.append((process, received))

    def __next__(self) -> T:
        if self._error is not None:
            raise self._error
        process, received = self._readers[self._turn % len(self._readers)]
        self._turn += 1
        item: T | Exception = _received(received, process, self._field)
        if isinstance(item, Exception):
            self._error = item
            raise item
        return item

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process, _ in self._readers]

    def close(self) -> None:
        """End the processes."""
        for process, received in self._readers:
            received.close()
            process.terminate()
        for process, _ in self._readers:
            process.join()


def _received(pipe: Connection, process: Any, field: str) -> Any:
    """Return the next thing that a process sent, or why nothing comes any more."""
    try:
        return pipe.recv()
    except (EOFError, OSError):  # between two batches, or in the middle of one
        process.join()
        # Not an error of ours, which would end the run: training starts again from its last checkpoint.
        return RuntimeError(
            f"a process that makes batches ready has ended with status {process.exitcode} (-9: killed, often for want of "
            f"memory); {field}=0 leaves its work to the training worker"
        )


def _send(pipe: Connection, source: Source[Any], first_step: int, every: int) -> None:
    """What a process does: make every n-th batch ready, and send them until nobody reads on."""
    batches = Prefetch(lambda: source.batches(first_step, every))
    item: Any
    with contextlib.suppress(OSError):  # the trainer closed the pipe, or has ended
        while True:
            try:
                item = next(batches)
            except Exception as error:
                item = error if isinstance(error, RaydistillError) else RuntimeError(traceback.format_exc())
            pipe.send(item)
            if isinstance(item, Exception):
                return
