"""Pools of actors: receipts, errors that travel as sentences, and shards that kill their worker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from typing import Any

import pytest
import ray
from pydantic import ValidationError

from raydistill.actor_pool import map_shards, places_on, require_resources
from raydistill.config import PoolConfig, TrainConfig, WorkerConfig
from raydistill.errors import DataError, ResourceError
from tests.conftest import TOLD, free_port
from tests.small_world import environment


class Doubler:
    """Doubles a number; refuses one, dies of another."""

    def __init__(self, refused: int = -1, deadly: int = -1) -> None:
        if refused == 0:
            raise DataError("the constructor refuses 0; ask for another")
        self._refused, self._deadly = refused, deadly

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        if spec["n"] == self._refused:
            raise DataError(f"file.txt:{spec['n']} is bad; correct the line")
        if spec["n"] == self._deadly:
            os._exit(1)
        return {"n": 2 * spec["n"]}


SPECS = [{"n": n} for n in range(1, 6)]


def test_workers_of_a_local_cluster_have_its_variables_and_the_driver_has_them_no_longer(ray_cluster: None) -> None:
    names = (*TOLD, "HF_HUB_DISABLE_TELEMETRY")
    assert {os.environ.get(name) for name in names} == {None}
    told = ray.get(ray.remote(lambda: [os.environ.get(name) for name in names]).remote())
    assert told == [*TOLD.values(), "1"]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_a_sentence_and_no_wait_for_ray(scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{free_port()}"
    said = _refusal(address)
    assert f"ResourceError: no Ray cluster could be joined at {address} ([Errno" in said
    assert "refused); start one" in said


def test_a_cluster_that_cannot_be_joined_is_a_sentence() -> None:
    assert "ResourceError: no Ray cluster could be joined at no (Invalid address format: no); start one" in _refusal("no")


def _refusal(address: str) -> str:
    join = "import raydistill.actor_pool as pool, raydistill.config as config; "
    join += f"pool.connect(config.RayConfig(address={address!r}))"
    done = subprocess.run([sys.executable, "-c", join], env=environment(), capture_output=True, text=True, check=False)
    return done.stderr


def test_every_shard_gives_its_receipt(ray_cluster: None) -> None:
    receipts = list(map_shards(SPECS, Doubler, {}, WorkerConfig(actors=2), "index"))
    assert sorted(receipt["n"] for receipt in receipts) == [2, 4, 6, 8, 10]
    assert list(map_shards([], Doubler, {}, WorkerConfig(), "index")) == []


class Teller:
    """A worker that counts tokens."""

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        return {"counters": {"prompt_tokens": spec["n"], "failed": 0}}


def test_what_parts_count_stands_where_prometheus_looks(ray_cluster: None) -> None:
    list(map_shards([{"n": 30}, {"n": 12}], Teller, {}, WorkerConfig(), "teachers[telling]"))
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        exported = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        lines = [line for line in exported.splitlines() if "raydistill_stage_counts" in line and "telling" in line]
        if any('count="prompt_tokens"' in line and line.endswith(" 42.0") for line in lines):
            break
        time.sleep(0.5)
    else:
        raise AssertionError(f"42 tokens were counted, exported is {lines}")
    assert not any('count="failed"' in line for line in lines), "nothing failed"


@pytest.mark.parametrize(("refused", "sentence"), [(3, "file.txt:3 is bad"), (0, "the constructor refuses 0")])
def test_an_error_of_a_worker_arrives_as_it_was_raised(ray_cluster: None, refused: int, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        list(map_shards(SPECS, Doubler, {"refused": refused}, WorkerConfig(), "index"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_that_kills_its_worker_again_and_again_ends_the_stage(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match="a worker of stage index died 5 times"):
        list(map_shards(SPECS, Doubler, {"deadly": 4}, WorkerConfig(), "index"))


def test_actors_that_no_node_can_hold_are_refused(ray_cluster: None) -> None:
    with pytest.raises(ResourceError, match="together 3 CPU, but the cluster has 2"):
        require_resources(WorkerConfig(actors=3), "index")
    with pytest.raises(ResourceError, match="together 1 GPU, but the cluster has 0"):
        require_resources(WorkerConfig(gpus=1), "train")


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "places"),
    [
        (4, 0, {"cpus": 1.5}, 2),
        (1, 0, {"cpus": 0.1}, 10),
        (16, 2, {"gpus": 1}, 2),
        (3, 8, {"gpus": 1}, 3),
        (16, 3, {"gpus": 2}, 1),
        (16, 2, {"gpus": 0.25}, 8),
        (16, 2, {"gpus": 0.6}, 2),  # together 1.2 GPUs of 2, yet a third would find 0.4 on either
    ],
)
def test_an_actor_shares_one_gpu_and_never_two(cpus: float, gpus: float, workers: dict[str, float], places: int) -> None:
    assert places_on(cpus, gpus, WorkerConfig(**workers)) == places


def test_a_pool_begins_with_what_the_cluster_has(ray_cluster: None) -> None:
    pool = PoolConfig(actors=5, min_actors=1)
    with pytest.raises(ResourceError, match="asks for 5 actors"):
        require_resources(PoolConfig(actors=5), "index")
    receipts = list(map_shards(SPECS, Doubler, {}, pool, "index"))
    assert sorted(receipt["n"] for receipt in receipts) == [2, 4, 6, 8, 10]


def test_impossible_pools_are_refused_where_they_are_written() -> None:
    with pytest.raises(ValidationError, match="min_actors is 3, more than actors"):
        PoolConfig(actors=2, min_actors=3)
    with pytest.raises(ValidationError, match="whole GPUs or a fraction of one"):
        WorkerConfig(gpus=1.5)
    with pytest.raises(ValidationError, match="min_actors"):
        TrainConfig(workers={"actors": 2, "min_actors": 1})
