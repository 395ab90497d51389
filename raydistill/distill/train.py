"""The training stage on Ray Train: workers, checkpoints in the run root, resume by resubmission, export.

Checkpoints lie under {root}/runs/{run}/training/{fingerprint}. Submitting the same configuration again continues from
the newest one; a finished student is an artifact of kind "student" whose parts are the files of a Hugging Face folder.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raydistill import errors
from raydistill.actor_pool import require_resources
from raydistill.config import DistillConfig
from raydistill.distill.stream import CandidateStream
from raydistill.encoders.documents import MODEL_FILES, load_tokenizer
from raydistill.errors import ConfigError, CorruptObjectError, DataError, RaydistillError, TrainingError
from raydistill.index.publish import IndexVersion
from raydistill.model_source import model_identity
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.folders import put_folder
from raydistill.storage.store import open_store

FORMAT_VERSION = 1
_POLL_SECONDS = 1.0


def student_artifact(config: DistillConfig, candidates: Artifact) -> Artifact:
    """Return the artifact that training this configuration on these candidates gives, finished or not."""
    inputs = {
        "candidates": candidates.fingerprint,
        "model": model_identity(config.student.model, config.student.revision, MODEL_FILES, "student.model"),
    }
    settings = {"student": config.student, "train": config.train}
    return Artifact(config.root, "student", config.run, fingerprint("student", FORMAT_VERSION, settings, inputs))


def train(config: DistillConfig, candidates: Artifact, index: IndexVersion) -> Artifact:
    """Train the student and export it; returns at once when this very training is finished already.

    Raises ResourceError when the cluster cannot hold the workers, TrainingError when training fails for good.
    """
    student = student_artifact(config, candidates)
    if student.find_manifest() is not None:
        return student
    require_resources(config.train.workers, "train")
    board = ray.remote(num_cpus=0)(_ProgressBoard).remote()
    settings = {
        "config": config.model_dump(mode="json"),
        "candidates": candidates.to_json(),
        "index": index.to_json(),
        "student": student.to_json(),
        "training_prefix": training_prefix(config, student),
    }
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"settings": json.dumps(settings), "board": board},
        scaling_config=ScalingConfig(
            num_workers=config.train.workers.actors,
            use_gpu=config.train.workers.gpus > 0,
            resources_per_worker=_worker_resources(config),
        ),
        torch_config=TorchConfig(backend="nccl" if config.train.workers.gpus > 0 else "gloo"),
        run_config=RunConfig(
            name=student.fingerprint[:16],
            storage_path=_train_storage(config),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with _shown_progress(board):
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
    names = sorted(ArtifactWriter(student).finished())
    if "config.json" not in names:
        raise TrainingError(f"training ended without an exported student in {student.uri}; submit the same job again")
    ArtifactWriter(student).commit(names, {"candidates": candidates.fingerprint, "index_version": index.version})
    return student


def training_prefix(config: DistillConfig, student: Artifact) -> str:
    """Return the key prefix, relative to the run root, of checkpoints and metrics of a training."""
    return f"runs/{config.run}/training/{student.fingerprint[:16]}"


def training_records(config: DistillConfig, student: Artifact) -> list[dict[str, float]]:
    """Return the logged records of a training, in order of steps; [] when there are none (yet)."""
    store = open_store(config.root)
    keys = [info.key for info in store.list(f"{training_prefix(config, student)}/metrics/")]
    lines = [line for key in keys for line in store.read(key).decode().splitlines()]
    by_step = {record["step"]: record for record in map(json.loads, lines)}
    return [by_step[step] for step in sorted(by_step)]


def _worker_resources(config: DistillConfig) -> dict[str, float]:
    workers = config.train.workers
    return {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}


def _train_storage(config: DistillConfig) -> str:
    root = config.root.removeprefix("file://")
    return f"{root}/runs/{config.run}/training"


def _training_error(error: Exception) -> RaydistillError:
    """Find the worker's own sentence in Ray Train's report of a failed run."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause = getattr(failure, "cause", None) or failure.__cause__ or failure
        if isinstance(cause, RaydistillError):
            return cause
    return TrainingError(f"training failed: {str(error).strip().splitlines()[-1] if str(error).strip() else error!r}")


class _ProgressBoard:
    """Where rank 0 writes how far it is, and the driver reads it."""

    def __init__(self) -> None:
        self._state: tuple[int, int, str] = (0, 0, "")
        self._failure: tuple[str, str] | None = None

    def write(self, step: int, steps: int, note: str) -> None:
        self._state = (step, steps, note)

    def read(self) -> tuple[int, int, str]:
        return self._state

    def fail(self, kind: str, message: str) -> None:
        self._failure = (kind, message)

    def failure(self) -> tuple[str, str] | None:
        return self._failure


@contextmanager
def _shown_progress(board: Any) -> Iterator[None]:
    """Show on the driver what the board says, from a thread, until the block ends."""
    stop = threading.Event()

    def show() -> None:
        steps = 0
        while not stop.wait(_POLL_SECONDS) and not steps:
            _, steps, _ = ray.get(board.read.remote())
        if not steps:
            return
        with track("train", steps, "steps") as advance:
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


class _Recorder:
    """Keeps the records of rank 0 and writes them to the run root at every checkpoint."""

    def __init__(self, config: DistillConfig, prefix: str, board: Any, steps: int, first_step: int) -> None:
        self._store = open_store(config.root)
        self._prefix = prefix
        self._board = board
        self._steps = steps
        self._log_steps = config.train.log_steps
        self._first_step = first_step
        self._records: list[dict[str, float]] = []
        board.write.remote(first_step, steps, "")

    def log(self, record: dict[str, float]) -> None:
        step = int(record["step"])
        if step % self._log_steps == 0 or step == self._steps:
            self._records.append(record)
        note = f"loss {record['loss']:.3f} L0 {record['l0']:.0f}"
        self._board.write.remote(step, self._steps, note)

    def store_records(self) -> None:
        # One object a start, rewritten as it grows: it has one writer, and a resumed run begins another.
        lines = "".join(json.dumps(record) + "\n" for record in self._records)
        self._store.replace(f"{self._prefix}/metrics/{self._first_step:08d}.jsonl", lines.encode())


def _train_worker(loop_config: dict[str, Any]) -> None:
    """Entry of every training worker.

    A wrong configuration and a diverged loss meet every worker alike and would meet every retry: they are handed to the
    driver as data and the worker ends, where an exception would have Ray Train start the group again.
    """
    try:
        _train(loop_config)
    except (ConfigError, TrainingError, DataError, CorruptObjectError) as error:
        ray.get(loop_config["board"].fail.remote(type(error).__name__, str(error)))


def _train(loop_config: dict[str, Any]) -> None:
    import torch

    settings = json.loads(loop_config["settings"])
    config = DistillConfig.model_validate(settings["config"])
    torch.set_num_threads(max(1, int(config.train.workers.cpus)))
    if config.train.workers.gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"

    from raydistill.distill.loop import Hooks, Trainer, Workplace
    from raydistill.index.search import open_searcher

    context = ray.train.get_context()
    device = ray.train.torch.get_device() if config.train.workers.gpus > 0 else torch.device("cpu")
    place = Workplace(context.get_world_rank(), context.get_world_size(), device)
    student = config.student
    tokenizer = load_tokenizer(student.model, student.revision, student.trust_remote_code, "student.model")
    stream = CandidateStream(
        candidates=Artifact.from_json(settings["candidates"]),
        searcher=open_searcher(IndexVersion.from_json(settings["index"])),
        sampling=config.train.sampling,
        combination=config.train.objective.combine,
        global_batch=config.train.global_batch,
        seed=config.train.seed,
        shuffle_buffer=config.train.shuffle_buffer,
    )
    trainer = Trainer(config.student, config.train, stream, tokenizer, place)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.restore(Path(folder))
    recorder = None
    if place.rank == 0:
        recorder = _Recorder(config, settings["training_prefix"], loop_config["board"], trainer.steps, trainer.step)

    def log(record: dict[str, float]) -> None:
        if recorder is not None:
            recorder.log(record)

    def save_checkpoint(step: int, current: Trainer) -> None:
        with tempfile.TemporaryDirectory() as folder:
            current.save(Path(folder))
            if recorder is not None:
                recorder.store_records()
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    trainer.run(Hooks(log=log, checkpoint=save_checkpoint))
    model = trainer.full_model()
    if model is not None:
        _export(config, model, tokenizer, Artifact.from_json(settings["student"]))


def _export(config: DistillConfig, model: Any, tokenizer: Any, student: Artifact) -> None:
    """Put the student's Hugging Face folder into the run root, one part a file."""
    from raydistill.distill.model_card import model_card
    from raydistill.encoders.checkpoint import save_student

    with tempfile.TemporaryDirectory() as folder:
        save_student(model, tokenizer, Path(folder), config.student.text, model_card(config))
        put_folder(ArtifactWriter(student), Path(folder))
