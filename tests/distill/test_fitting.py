"""What no retry can mend ends a training in its own sentence, whether it meets every worker or one that others wait for."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import ray.train
from ray.train import CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raydistill.distill.fitting import fit, reporting_failures, start_board
from raydistill.distill.train import _Uploads
from raydistill.errors import ConfigError

# The workers cannot import a test module: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _fail(loop_config: dict[str, Any]) -> None:
    import torch

    if ray.train.get_context().get_world_rank() in loop_config["failing"]:
        raise ConfigError("student.model: this machine has no such folder")
    torch.distributed.monitored_barrier(timeout=timedelta(seconds=60))


def _work(loop_config: dict[str, Any]) -> None:
    reporting_failures(_fail, loop_config)


@pytest.mark.parametrize(("failing", "retries"), [((0, 1), 0), ((1,), 3)])
def test_a_worker_that_cannot_go_on_ends_the_training_with_its_sentence(
    ray_cluster: None, tmp_path: Path, failing: tuple[int, ...], retries: int
) -> None:
    board = start_board()
    trainer = TorchTrainer(
        _work,
        train_loop_config={"board": board, "failing": failing},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(name="failing", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=retries)),
    )
    with pytest.raises(ConfigError, match="this machine has no such folder"):
        fit(trainer, board, "train")


def test_a_checkpoint_waits_for_its_upload_while_the_one_before_is_on_its_way(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    uploads = _Uploads()
    assert uploads.mode(first, at_once=False) is CheckpointUploadMode.ASYNC
    assert uploads.mode(second, at_once=False) is CheckpointUploadMode.SYNC
    second.rmdir()
    assert uploads.mode(third, at_once=False) is CheckpointUploadMode.ASYNC
    assert _Uploads().mode(first, at_once=True) is CheckpointUploadMode.SYNC
