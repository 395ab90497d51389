"""Running a Ray Train job to its end from the driver: progress, Ctrl-C, and failures as the sentences they were.

What the workers of a training do is in `train` and `document_train`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from raydistill import errors
from raydistill.errors import ConfigError, CorruptObjectError, DataError, RaydistillError, TrainingError
from raydistill.progress import track

_POLL_SECONDS = 1.0
_AGREEMENT_SECONDS = 10.0
"""How long a worker that cannot go on waits for the others to say the same, which most reasons make them do at once."""


class ProgressBoard:
    """Where rank 0 writes how far it is and workers why they cannot go on, and the driver reads it; a Ray actor."""

    def __init__(self) -> None:
        self._state: tuple[int, int, str] = (0, 0, "")
        self._failure: tuple[str, str] | None = None
        self._failed = 0

    def write(self, step: int, steps: int, note: str) -> None:
        """Take the step reached, the number of all steps, and a short note."""
        self._state = (step, steps, note)

    def read(self) -> tuple[int, int, str]:
        """Return what was written last."""
        return self._state

    def fail(self, kind: str, message: str) -> None:
        """Take the type and the sentence of a worker's error that no retry can mend; the first one's stays."""
        self._failure = self._failure or (kind, message)
        self._failed += 1

    def failed(self) -> int:
        """Return how many workers called `fail`."""
        return self._failed

    def failure(self) -> tuple[str, str] | None:
        """Return what `fail` was told; None when nothing failed."""
        return self._failure


def start_board() -> Any:
    """Return the handle of a new board."""
    return ray.remote(num_cpus=0)(ProgressBoard).remote()


def reporting_failures(work: Callable[[dict[str, Any]], None], loop_config: dict[str, Any]) -> None:
    """Run a training worker's `work(loop_config)`; loop_config holds the "board".

    A wrong configuration and a diverged loss meet every worker alike and would meet every retry: they are handed to the
    driver as data and the worker ends, where an exception would have Ray Train start the group again. What meets one
    worker only (a model folder that its machine lacks, a damaged local file) is raised as well, for the others wait in a
    collective for that worker: the exception ends them, and a group that is started again ends at once.
    """
    board = loop_config["board"]
    if ray.get(board.failure.remote()) is not None:
        return
    try:
        work(loop_config)
    except (ConfigError, TrainingError, DataError, CorruptObjectError) as error:
        ray.get(board.fail.remote(type(error).__name__, str(error)))
        if not _all_failed(board, ray.train.get_context().get_world_size()):
            raise


def _all_failed(board: Any, workers: int) -> bool:
    """Wait a little for every worker to fail and return whether they did."""
    deadline = time.monotonic() + _AGREEMENT_SECONDS
    while (failed := ray.get(board.failed.remote())) < workers and time.monotonic() < deadline:
        time.sleep(0.2)
    return bool(failed >= workers)


def fit(trainer: TorchTrainer, board: Any, title: str) -> None:
    """Run a trainer to its end, showing its progress under a title.

    Raises:
        RaydistillError: what a worker raised or reported, as it said it; TrainingError for anything else.
        KeyboardInterrupt: on Ctrl-C.
    """
    with _shown_progress(board, title):
        before = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit()
        except SystemExit:
            # Ray Train takes Ctrl-C for itself and exits with status 0.
            raise KeyboardInterrupt from None
        except Exception as error:
            raise _reported(board) or _training_error(error) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)
    reported = _reported(board)
    if reported is not None:
        raise reported


def _reported(board: Any) -> RaydistillError | None:
    """Return the error that a worker told the board; None where none did."""
    failure = ray.get(board.failure.remote())
    return None if failure is None else getattr(errors, failure[0])(failure[1])


def _training_error(error: Exception) -> RaydistillError:
    """Find the worker's own sentence in Ray Train's report of a failed run."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause = getattr(failure, "cause", None) or failure.__cause__ or failure
        if isinstance(cause, RaydistillError):
            return cause
    return TrainingError(f"training failed: {str(error).strip().splitlines()[-1] if str(error).strip() else error!r}")


@contextmanager
def _shown_progress(board: Any, title: str) -> Iterator[None]:
    """Show on the driver what the board says, from a thread, until the block ends."""
    stop = threading.Event()

    def show() -> None:
        steps = 0
        while not stop.wait(_POLL_SECONDS) and not steps:
            _, steps, _ = ray.get(board.read.remote())
        if not steps:
            return
        with track(title, steps, "steps") as advance:
            shown = 0
            while True:
                ended = stop.wait(_POLL_SECONDS)
                step, _, note = ray.get(board.read.remote())
                advance(step - shown, note)
                shown = step
                if ended:
                    return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
