"""A node that dies under a fan-out: its actors come up on another one, and no search is lost.

The cluster needs a driver of its own, so the test runs this file as a program.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TOLD
from tests.own_driver import told_by

QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "health_check_timeout_ms": 500,
}


@pytest.mark.timeout(500)
def test_the_actors_of_a_lost_node_come_up_on_another_and_no_search_is_lost(tmp_path: Path) -> None:
    told = told_by(__file__, str(tmp_path))
    assert len(set(told["before"])) == 2, "the groups must begin on two nodes"
    assert told["lost"] in told["before"]
    assert told["lost"] not in told["after"]
    assert [told["variable"]] == [*TOLD.values()]
    assert told["errors"] == []
    assert told["wrong"] == 0
    assert told["searches_after"] > 10


def main(folder: Path) -> None:
    """Search on a head without CPUs and two nodes, lose one of them, and print what happened."""
    import ray
    from ray.cluster_utils import Cluster

    from raydistill.actor_pool import connect
    from raydistill.config import FanOutConfig, RayConfig
    from raydistill.index.fan_out import FanOut
    from raydistill.index.search import open_searcher
    from tests.index.made_versions import made_rows, publish_version

    version = publish_version(f"file://{folder}/root", folder, 1, (60, 70, 80, 90))
    queries = made_rows(7, 20)
    expected = open_searcher(version).search(queries, 10)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK})
    nodes = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)]
    connect(RayConfig(address=cluster.address, env_vars=TOLD))
    variable = ray.get(ray.remote(lambda: os.environ.get(*TOLD)).remote())
    fan_out = FanOut(version, FanOutConfig.model_validate({"workers": {"actors": 2, "cpus": 1}}))
    before = [each.node for each in fan_out.health()]
    errors: list[str] = []
    counts = {"searches": 0, "wrong": 0}
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                found = fan_out.search(queries, 10)
            except Exception as error:
                errors.append(repr(error))
                return
            counts["searches"] += 1
            same = np.array_equal(found.passages, expected.passages) and np.array_equal(found.scores, expected.scores)
            counts["wrong"] += not same

    reader = threading.Thread(target=read)
    reader.start()
    while counts["searches"] < 10:
        time.sleep(0.05)
    lost = nodes[1].node_id
    cluster.remove_node(nodes[1], allow_graceful=False)
    deadline = time.monotonic() + 200
    while not errors and time.monotonic() < deadline:
        health = fan_out.health()
        if all(each.serving and each.node != lost for each in health):
            break
        time.sleep(0.5)
    seen = counts["searches"]
    while not errors and counts["searches"] < seen + 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    reader.join()
    told = {
        "variable": variable,
        "before": before,
        "lost": lost,
        "after": [each.node for each in fan_out.health()],
        "errors": errors,
        "wrong": counts["wrong"],
        "searches_after": counts["searches"] - seen,
    }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
