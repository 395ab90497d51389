"""Batches made ready ahead of training: read, joined with the passages' vectors and tokenised while the device computes.

On a CPU a thread of the worker does it, which costs no memory. A GPU's step is a thousand launches in some milliseconds,
and each would wait for a thread that holds the interpreter: there, processes do it (PyTorch's DataLoader), each every n-th
batch. Either way the batches are the same ones, in order.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from raydistill.config import TextConfig
from raydistill.conversations.text import student_text
from raydistill.distill.stream import CandidateStream, StepBatch
from raydistill.encoders.tokens import pad_id, padded, tokenize
from raydistill.errors import RaydistillError

T = TypeVar("T")
Tokens = tuple[NDArray[np.int64], NDArray[np.int64]]
"""input_ids and attention_mask, [rows, longest]; arrays, which travel between processes without file descriptors."""
_AHEAD = 2


@dataclass(frozen=True)
class ReadyBatch:
    """A global batch, and the token ids of this worker's micro-batches of it."""

    batch: StepBatch
    tokens: tuple[Tokens, ...]


@dataclass(frozen=True)
class Reader:
    """Makes batches ready for one worker; can be sent to a process.

    Attributes:
        stream: global batches.
        tokenizer: the student's. A thread may use it while validation does: settings that are set already change nothing.
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
            yield ReadyBatch(batch, tuple(tokens))


class Ahead(Protocol):
    """Batches without end, made ready ahead; must be closed."""

    def __next__(self) -> ReadyBatch: ...

    def close(self) -> None:
        """Stop working ahead."""


def ready_batches(reader: Reader, first_step: int, processes: int) -> Ahead:
    """Return the batches from a step on, made ready by a thread (0) or by some processes."""
    if processes:
        return ReaderProcesses(reader, first_step, processes)
    return Prefetch(lambda: reader.batches(first_step))


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


class ReaderProcesses:
    """Batches made ready by processes, each every n-th one and `_AHEAD` ahead; an error is raised at its batch's place.

    Memory: a process holds what a stream holds, and its imports (0.4 GiB with the CPU build of torch).
    """

    def __init__(self, reader: Reader, first_step: int, processes: int) -> None:
        seen_by_readers, self._held = multiprocessing.Pipe(duplex=False)
        loader = DataLoader(
            _EveryNth(reader, first_step, seen_by_readers),
            batch_size=None,
            num_workers=processes,
            prefetch_factor=_AHEAD,
            collate_fn=_as_it_is,
            # A forked copy of a process with CUDA, Ray's threads and open connections may hang; a spawned one sometimes
            # aborts at its end, where the interpreter is taken down under the thread that sends.
            multiprocessing_context="forkserver",
            generator=torch.Generator(),  # what it draws must not touch the training's random state
        )
        self._items = iter(loader)
        seen_by_readers.close()

    def __next__(self) -> ReadyBatch:
        try:
            item = next(self._items)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            # Not an error of ours, which would end the run: training starts again from its last checkpoint.
            raise RuntimeError(
                f"a process that makes batches ready has ended, often for want of memory ({error}); train.readers=0 leaves "
                "its work to the training worker"
            ) from error
        if isinstance(item, RaydistillError):
            raise item
        return item

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        return [worker.pid for worker in self._items._workers]  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the processes."""
        self._items._shutdown_workers()  # type: ignore[attr-defined]
        self._held.close()


class _EveryNth(IterableDataset[Any]):
    def __init__(self, reader: Reader, first_step: int, trainer: Connection) -> None:
        self._reader = reader
        self._first_step = first_step
        self._trainer = trainer

    def __iter__(self) -> Iterator[ReadyBatch | RaydistillError]:
        worker = get_worker_info()
        assert worker is not None
        threading.Thread(target=_end_with, args=(self._trainer,), daemon=True).start()
        try:
            yield from self._reader.batches(self._first_step + worker.id, worker.num_workers)
        except RaydistillError as error:  # as it is; the loader would wrap a traceback around it
            yield error


def _end_with(trainer: Connection) -> None:
    """End this process when the trainer's has ended, however it did: the fork server, its parent, would live on with it."""
    with contextlib.suppress(EOFError, OSError):
        trainer.recv_bytes()
    os._exit(1)


def _as_it_is(item: T) -> T:
    return item
