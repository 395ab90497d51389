"""Running a Ray Train job to its end from the driver: progress, Ctrl-C, and failures as the sentences they were.

What the workers of a training do is in `train` and `document_train`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.train.torch import TorchTrainer

from raydistill import errors
from raydistill.errors import ConfigError, CorruptObjectError, DataError, RaydistillError, TrainingError
from raydistill.progress import track

_POLL_SECONDS = 1.0


class ProgressBoard:
    """Where rank 0 writes how far it is and workers why they cannot go on, and the driver reads it; a Ray actor."""

    def __init__(self) -> None:
        self._state: tuple[int, int, str] = (0, 0, "")
        self._failure: tuple[str, str] | None = None

    def write(self, step: int, steps: int, note: str) -> None:
        """Take the step reached, the number of all steps, and a short note."""
        self._state = (step, steps, note)

    def read(self) -> tuple[int, int, str]:
        """Return what was written last."""
        return self._state

    def fail(self, kind: str, message: str) -> None:
        """Take the type and the sentence of an error that no retry can mend."""
        self._failure = (kind, message)

    def failure(self) -> tuple[str, str] | None:
        """Return what `fail` was told; None when nothing failed."""
        return self._failure


def start_board() -> Any:
    """Return the handle of a new board."""
    return ray.remote(num_cpus=0)(ProgressBoard).remote()


def reporting_failures(work: Callable[[dict[str, Any]], None], loop_config: dict[str, Any]) -> None:
    """Run a training worker's `work(loop_config)`; loop_config holds the "board".

    A wrong configuration and a diverged loss meet every worker alike and would meet every retry: they are handed to the
    driver as data and the worker ends, where an exception would have Ray Train start the group again.
    """
    try:
        work(loop_config)
    except (ConfigError, TrainingError, DataError, CorruptObjectError) as error:
        ray.get(loop_config["board"].fail.remote(type(error).__name__, str(error)))


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
            raise _training_error(error) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)
    failure = ray.get(board.failure.remote())
    if failure is not None:
        raise getattr(errors, failure[0])(failure[1])


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
