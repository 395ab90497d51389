"""What no retry can mend ends a training in its own sentence, whether it meets every worker or one that others wait for."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import ray.cloudpickle
from ray.train import CheckpointUploadMode

from raydistill.config import WorkerConfig
from raydistill.distill.fitting import Training, Uploads, Worker, fit
from raydistill.errors import ConfigError

# The workers cannot import a test module: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _fail(failing: tuple[int, ...], worker: Worker) -> None:
    import torch

    if worker.place.rank in failing:
        raise ConfigError("student.model: this machine has no such folder")
    torch.distributed.monitored_barrier(timeout=timedelta(seconds=60))


@pytest.mark.parametrize(("failing", "retries"), [pytest.param((0, 1), 0, marks=pytest.mark.slow), ((1,), 3)])
def test_a_worker_that_cannot_go_on_ends_the_training_with_its_sentence(
    ray_cluster: None, tmp_path: Path, failing: tuple[int, ...], retries: int
) -> None:
    training = Training("train", _fail, failing, WorkerConfig(actors=2, cpus=1), f"{tmp_path}/failing", retries)
    with pytest.raises(ConfigError, match="this machine has no such folder"):
        fit(training)


def test_a_checkpoint_waits_for_its_upload_while_the_one_before_is_on_its_way(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    uploads = Uploads()
    assert uploads.mode(first, at_once=False) is CheckpointUploadMode.ASYNC
    assert uploads.mode(second, at_once=False) is CheckpointUploadMode.SYNC
    second.rmdir()
    assert uploads.mode(third, at_once=False) is CheckpointUploadMode.ASYNC
    assert Uploads().mode(first, at_once=True) is CheckpointUploadMode.SYNC
