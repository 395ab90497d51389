"""A node that is about to be taken away: training writes a checkpoint at once and goes on from it on another node.

The cluster needs a driver of its own, so the test runs this file as a program.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.own_driver import told_by

PREEMPTION_S = 60.0
"""Notice that the node gets; the test takes it away as soon as the checkpoint is there."""
WITHOUT_CHECKPOINTS = 100_000


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_checkpoint_is_written_before_the_node_goes_and_training_ends_on_another(
    tiny_encoder: str, tmp_path: Path
) -> None:
    told = told_by(__file__, str(tmp_path), tiny_encoder, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")
    assert told["accepted"], "the cluster must take the notice"
    assert told["checkpoints"] > 0, "the notice must lead to a checkpoint: none is due"
    assert told["starts"][0] == 0
    assert len(told["starts"]) == 2
    assert told["starts"][1] > 0, "the second start is from the checkpoint that the notice led to"
    assert told["steps"] == list(range(1, told["steps"][-1] + 1))


class Busy:
    """Holds a CPU."""

    def is_here(self) -> bool:
        """Answer, which shows that it has started."""
        return True


def main(folder: Path, encoder: str) -> None:
    """Train on one of two nodes, announce that it goes, take it away, and print what happened."""
    import ray
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raydistill.distill.train import train, training_records
    from tests.distill.conftest import build_index, put_candidates
    from tests.distill.test_train import config

    root = folder / "root"
    root.mkdir()
    mined = (put_candidates(str(root)), build_index(str(root)))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    first, second = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    # Until the first node goes the second one is busy, so that training begins on the first.
    there = NodeAffinitySchedulingStrategy(second.node_id, soft=False)
    busy = ray.remote(num_cpus=1, scheduling_strategy=there)(Busy).remote()
    ray.get(busy.is_here.remote())
    found: dict[str, Any] = {"checkpoints": 0, "accepted": False}

    def checkpoints() -> int:
        snapshots = root.glob("runs/tiny/training/*/checkpoint_manager_snapshot.json")
        return sum(snapshot.read_text().count("checkpoint_dir_name") for snapshot in snapshots)

    def take_away() -> None:
        while not list(root.glob("runs/tiny/training/*")):
            time.sleep(0.1)
        time.sleep(15)  # until the worker trains; a notice before that counts as well
        ray.kill(busy)
        client = GcsClient(address=cluster.address)
        deadline_ms = int(1000 * (time.time() + PREEMPTION_S))
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        found["accepted"] = client.drain_node(first.node_id, reason, "the machine is taken away", deadline_ms)[0]
        end = time.monotonic() + PREEMPTION_S
        while not checkpoints() and time.monotonic() < end:
            time.sleep(0.1)
        found["checkpoints"] = checkpoints()
        cluster.remove_node(first, allow_graceful=False)

    thread = threading.Thread(target=take_away, daemon=True)
    thread.start()
    settings = config(mined, encoder, epochs=400, checkpoint_steps=WITHOUT_CHECKPOINTS, max_failures=0)
    student = train(settings, *mined)
    thread.join(timeout=30)
    told = {
        **found,
        "starts": sorted(int(path.stem) for path in root.glob("runs/tiny/training/*/metrics/*.jsonl")),
        "steps": [int(record["step"]) for record in training_records(settings, student)],
    }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
