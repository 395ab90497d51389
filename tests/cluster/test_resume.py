"""A driver killed in the middle of training: the same command, with other workers, skips, resumes and completes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydistill.cli import main
from tests.small_world import arguments, environment, small_world


@pytest.mark.timeout(600)
def test_resubmitting_after_a_killed_driver_resumes_training_with_any_workers(tmp_path: Path, ray_cluster: None) -> None:
    data, root = small_world(tmp_path / "data"), tmp_path / "root"
    command = [sys.executable, "-m", "raydistill.cli", "distill"]
    command += arguments(data, str(root), "train.checkpoint_steps=4", "train.log_steps=1", "train.epochs=4")
    log = tmp_path / "first.log"
    with log.open("w") as stream:
        first = subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream, cwd=tmp_path)
    _wait_for_checkpoint(root, first, log)
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=30)
    assert not list(root.glob("artifacts/student/*/_manifest.json"))

    # One worker without shards becomes two with sharded parameters: how it is computed is no part of what is computed.
    other_layout = ["train.workers.actors=2", "train.zero_stage=3", "train.micro_batch=8"]
    second = subprocess.run(
        [*command, *other_layout], env=environment(), capture_output=True, text=True, timeout=400, cwd=tmp_path, check=False
    )
    assert second.returncode == 0, second.stderr[-3000:]
    for stage in ("teach", "index", "score"):
        assert f"{stage}: done already" in second.stderr
    starts = sorted(int(path.stem) for path in root.glob("runs/small/training/*/metrics/*.jsonl"))
    assert starts[0] == 0
    assert len(starts) == 2, "the second run must have started from a checkpoint, not from the beginning"
    assert starts[1] % 4 == 0, "checkpoints are written every 4 steps"
    steps = [record["step"] for record in _records(root)]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))
    assert list(root.glob("artifacts/student/*/_manifest.json"))
    report = json.loads((root / "runs" / "small" / "report.json").read_text())
    student = [system for system in report["evaluation"]["systems"] if system["role"] == "student"]
    assert len(student) == 1
    assert len(report["training"]) == max(steps)
    card = (root / "runs" / "small" / "model-card.md").read_text()
    assert f"| nDCG@10 | {student[0]['measures']['nDCG@10']['mean']:.4g} [" in card

    # Nothing is left to compute, so no cluster is joined: this one does not exist.
    elsewhere = {**environment(), "RAY_ADDRESS": "127.0.0.1:1"}
    third = subprocess.run(command, env=elsewhere, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False)
    assert third.returncode == 0, third.stderr[-3000:]
    for stage in ("teach", "index", "score", "train", "evaluate"):
        assert f"{stage}: done already" in third.stderr

    # What the teachers are worth, once it is known, stands in the report of the finished run.
    assert json.loads((root / "runs" / "small" / "report.json").read_text())["ablation"] is None
    assert main(["ablate", *command[4:]]) == 0
    report = json.loads((root / "runs" / "small" / "report.json").read_text())
    teachers = [row["name"] for row in report["ablation"]["rows"] if row["kind"] == "teacher"]
    assert teachers == list(dict.fromkeys(row["teacher"] for row in report["teaching"]))


def _records(root: Path) -> list[dict[str, float]]:
    paths = sorted(root.glob("runs/small/training/*/metrics/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _wait_for_checkpoint(root: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until Ray Train has registered a checkpoint (its snapshot names one)."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        for snapshot in root.glob("runs/small/training/*/checkpoint_manager_snapshot.json"):
            if "checkpoint_" in snapshot.read_text():
                return
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint within 300 s: {log.read_text()[-3000:]}")
