"""The room's one module on Ray Train: a training is run to its end, and its workers get what Ray Train has for them.

On the driver: progress, Ctrl-C, and failures as the sentences they were. In a worker: its place, checkpoints, notices of
preemption. What the workers of a training do is in `train` and `document_train`.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException

from raydistill import errors
from raydistill.config import WorkerConfig
from raydistill.distill.board import ProgressBoard
from raydistill.errors import ConfigError, CorruptObjectError, DataError, RaydistillError, TrainingError
from raydistill.progress import track

logger = logging.getLogger("raydistill")

_POLL_SECONDS = 1.0
_STEPS_BETWEEN_PREEMPTION_CHECKS = 8
_AGREEMENT_SECONDS = 10.0
"""How long a worker that cannot go on waits for the others to say the same, which most reasons make them do at once."""
_DASHBOARD_SECONDS = 10
"""How long a dashboard may take to answer."""


@dataclass(frozen=True)
class Training:
    """A training as Ray Train is to run it.

    Attributes:
        title: shown beside its progress.
        work: what every worker runs, from the settings and its `Worker`; a function of a module that workers can import.
        settings: whatever `work` needs, picklable.
        workers: their number and what each reserves. fewest: the number that it goes on with at least when nodes are lost;
            None insists on all.
        place: where its checkpoints lie: a folder or s3://, whose last part is the training's name.
        max_failures: worker failures after which it gives up; -1 never does.
    """

    title: str
    work: Callable[[Any, Worker], None]
    settings: Any
    workers: WorkerConfig
    place: str
    max_failures: int
    fewest: int | None = None


class Worker:
    """What a training has of Ray Train in one of its workers.

    Attributes:
        place: rank, number of workers and device.
    """

    def __init__(self, board: Any, gpus: float) -> None:
        import torch

        from raydistill.distill.engine import Workplace

        context = ray.train.get_context()
        device = ray.train.torch.get_device() if gpus > 0 else torch.device("cpu")
        self.place = Workplace(context.get_world_rank(), context.get_world_size(), device)
        self._board = board
        self._uploads = Uploads()
        self._questions = 0

    def show(self, step: int, steps: int, note: str) -> None:
        """Tell the driver how far the training is."""
        self._board.write.remote(step, steps, note)

    def warn(self, sentence: str) -> None:
        """Have the driver say something: a worker's own log reaches nobody."""
        self._board.warn.remote(sentence)

    def check_precision(self, precision: str, field: str) -> None:
        """Warn where a precision only makes this worker's device slower."""
        from raydistill.encoders.precision import emulates_bf16, slow_precision

        slow = slow_precision(precision, self.place.device, emulates_bf16(), field)
        if slow is not None:
            self.warn(slow)

    def resume(self, restore: Callable[[Path], None]) -> None:
        """Call `restore` with the folder of the newest checkpoint, where there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as found:
                restore(Path(found))

    def checkpoint(self, step: int, save: Callable[[Path], None], at_once: bool = False) -> None:
        """Have `save` write a checkpoint into a folder and upload it, while training goes on; `at_once` waits for it.

        All workers call it alike.
        """
        written = Path(tempfile.mkdtemp(prefix="raydistill-checkpoint-"))
        save(written)
        ray.train.report(
            {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(str(written)),
            checkpoint_upload_mode=self._uploads.mode(written, at_once),
            delete_local_checkpoint_after_upload=True,
        )

    def is_preempted(self) -> bool:
        """Ask now and then whether a node of this training is about to go; all workers call it alike."""
        # Ray's question is a collective of its own, a few milliseconds: not at every step.
        self._questions += 1
        return self._questions % _STEPS_BETWEEN_PREEMPTION_CHECKS == 0 and ray.train.get_preemption_info() is not None


class Uploads:
    """Decides which checkpoints of a worker are uploaded while training goes on.

    At most one is on its way at a time: where storage is slower than training, training waits, and neither local disk
    fills with checkpoints nor do the best parameters (see training_files) run ahead of what can be resumed from.
    """

    def __init__(self) -> None:
        self._last: Path | None = None

    def mode(self, written: Path, at_once: bool) -> CheckpointUploadMode:
        """Return how to upload the checkpoint in a local folder, which its upload deletes; `at_once`: wait for it."""
        # Ray uploads in order, so what is uploaded synchronously comes after all before it.
        waits = at_once or (self._last is not None and self._last.exists())
        self._last = written
        return CheckpointUploadMode.SYNC if waits else CheckpointUploadMode.ASYNC


def _run_worker(loop_config: dict[str, Any]) -> None:
    """Run a training in one of its workers.

    A wrong configuration and a diverged loss meet every worker alike and would meet every retry: they are handed to the
    driver as data and the worker ends, where an exception would have Ray Train start the group again. What meets one
    worker only (a model folder that its machine lacks, a damaged local file) is raised as well, for the others wait in a
    collective for that worker: the exception ends them, and a group that is started again ends at once.
    """
    board, workers = loop_config["board"], loop_config["workers"]
    if ray.get(board.failure.remote()) is not None:
        return
    try:
        import torch

        if workers.gpus == 0:
            os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(max(1, int(workers.cpus)))
        loop_config["work"](loop_config["settings"], Worker(board, workers.gpus))
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


def fit(training: Training) -> None:
    """Run a training to its end, from its newest checkpoint, showing its progress.

    Raises:
        RaydistillError: what a worker raised or reported, as it said it; TrainingError for anything else.
        KeyboardInterrupt: on Ctrl-C.
    """
    storage, _, name = training.place.rpartition("/")
    workers = training.workers
    # Where the driver is, as Ray Train's controller: the loss of a worker's node must not end the training.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressBoard).remote()
    trainer = (TorchTrainer if _is_known_to_its_dashboard(board) else _TrainerWithoutCleaner)(
        _run_worker,
        train_loop_config={"work": training.work, "settings": training.settings, "workers": workers, "board": board},
        scaling_config=ScalingConfig(
            num_workers=workers.actors if training.fewest is None else (training.fewest, workers.actors),
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if workers.gpus > 0 else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=storage.removeprefix("file://"),
            failure_config=FailureConfig(max_failures=training.max_failures),
            # To resume from; what is worth keeping is kept apart (see training_files).
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with _shown_progress(board, training.title):
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


class _TrainerWithoutCleaner(TorchTrainer):
    """Ray Train without the actor that frees the workers' places once the controller is dead.

    That actor asks the cluster's dashboard whether the controller lives. A cluster without one names the default address
    all the same (127.0.0.1:8265), and where the dashboard of another cluster of the machine answers there, which knows no
    such controller, the workers are killed in the middle of their training.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()
        return [each for each in made if not isinstance(each, PlacementGroupCleanerCallback)]


def _is_known_to_its_dashboard(actor: Any) -> bool:
    """Return whether what answers at the address of this cluster's dashboard knows an actor of this cluster."""
    try:
        found = get_actor(actor._actor_id.hex(), address=ray.get_runtime_context().gcs_address, timeout=_DASHBOARD_SECONDS)
    except (RayStateApiException, RuntimeError, ValueError, OSError):
        return False
    return found is not None


def _reported(board: Any) -> RaydistillError | None:
    """Return the error that a worker told the board; None where none did."""
    try:
        failure = ray.get(board.failure.remote())
    except RayActorError:  # killed, so that it can tell nothing
        return None
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
        steps = shown = told = 0
        while not stop.wait(_POLL_SECONDS) and not steps:
            _, steps, _ = ray.get(board.read.remote())
        # A training that ends at once has no steps to show, and may have warned.
        with track(title, steps, "steps") if steps else nullcontext(lambda *_: None) as advance:
            while True:
                ended = not steps or stop.wait(_POLL_SECONDS)
                step, _, note = ray.get(board.read.remote())
                advance(step - shown, note)
                shown = step
                for sentence in ray.get(board.warnings.remote(told)):
                    logger.warning("%s: %s", title, sentence)
                    told += 1
                if ended:
                    return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
