"""A training worker that is killed: Ray Train starts the workers again, and what comes out is what would have come out."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from raydistill.distill.train import train, training_records
from raydistill.storage.folders import fetch_folder
from tests.distill.test_train import Mined, config


def training_workers() -> list[int]:
    """Process ids of the Ray Train workers of this process's own cluster."""
    parents: dict[int, int] = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                found.append(int(folder.name))

    def is_ours(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == os.getpid():
                return True
        return False

    return [process for process in found if is_ours(process)]


def kill_one_after_a_checkpoint(root: Path, killed: list[int]) -> None:
    """Kill a worker once Ray Train has registered a checkpoint; add its process id to `killed`."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for snapshot in root.glob("runs/tiny/training/*/checkpoint_manager_snapshot.json"):
            workers = training_workers()
            if workers and "checkpoint_" in snapshot.read_text():
                os.kill(workers[-1], signal.SIGKILL)
                killed.append(workers[-1])
                return
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing_that_comes_out(
    ray_cluster: None, mined: Mined, tiny_encoder: str, tmp_path: Path
) -> None:
    layout = {"workers": {"actors": 2, "cpus": 1}, "zero_stage": 1, "epochs": 40, "checkpoint_steps": 20, "max_failures": 2}
    settings = config(mined, tiny_encoder, **layout)
    root, killed = Path(mined[0].root), []
    killer = threading.Thread(target=kill_one_after_a_checkpoint, args=(root, killed), daemon=True)
    killer.start()
    student = train(settings, *mined)
    killer.join(timeout=10)
    assert len(killed) == 1
    starts = sorted(int(path.stem) for path in root.glob("runs/tiny/training/*/metrics/*.jsonl"))
    assert len(starts) == 2
    assert starts[0] == 0
    assert starts[1] > 0, "the workers must go on from a checkpoint"
    records = training_records(settings, student)
    parameters = load_file(fetch_folder(student, tmp_path / "killed") / "model.safetensors")

    for folder in (root / "artifacts" / "student", root / "runs"):
        shutil.rmtree(folder)
    undisturbed = train(settings, *mined)
    assert undisturbed == student
    wanted = training_records(settings, undisturbed)
    assert [each["step"] for each in records] == [each["step"] for each in wanted]
    assert [each["loss"] for each in records] == [each["loss"] for each in wanted]
    found = load_file(fetch_folder(undisturbed, tmp_path / "undisturbed") / "model.safetensors")
    assert found.keys() == parameters.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(parameters[name], value, err_msg=name)
