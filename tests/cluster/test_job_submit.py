"""The job as users submit it: `ray job submit` to a running head, the run root on a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from raydistill.storage.store import open_store
from tests.conftest import free_ports
from tests.small_world import CHECKOUT, arguments, environment, small_world

RAY = str(Path(sys.executable).with_name("ray"))


QUICK_END = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
"""At its end the head would wait half a minute for the actor that watches the job."""
PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
)


@pytest.fixture
def ray_head(s3_endpoint: str, tmp_path: Path) -> Iterator[str]:
    """Dashboard URL of a head node of its own; its jobs and workers inherit the S3 server's address."""
    for attempt in range(3):
        log = tmp_path / f"head-{attempt}.log"
        head, url = _start_head(log)
        # Another process may take a port between our look and Ray's: the head then ends, and others are tried.
        if _answers(f"{url}/api/version", head):
            break
        head.kill()
        head.wait(timeout=60)
    else:
        raise AssertionError(f"no head came up in three tries: {log.read_text()}")
    try:
        yield url
    finally:
        head.terminate()
        head.wait(timeout=60)


def _start_head(log: Path) -> tuple[subprocess.Popen[bytes], str]:
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with log.open("w") as stream:
        head = subprocess.Popen(command, env={**environment(), **QUICK_END}, stdout=stream, stderr=stream)
    return head, f"http://127.0.0.1:{ports['dashboard-port']}"


def _answers(url: str, head: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return True
        except OSError:
            time.sleep(0.3)
    return False


@pytest.mark.timeout(600)
def test_the_chain_runs_as_a_submitted_job_with_its_root_on_s3(ray_head: str, s3_root: str, tmp_path: Path) -> None:
    data = small_world(tmp_path / "data")
    command = [RAY, "job", "submit", "--address", ray_head, "--", sys.executable, str(CHECKOUT / "jobs" / "distill.py")]
    # One teacher and a short training: what is tested is that a job's stages come through, not what they learn.
    teacher = "{engine: transformers, name: tiny, model: 'package:raydistill/demo/models/teacher-small', prompt: plain-v1, "
    teacher += "dtype: float32, max_new_tokens: 24, max_prompt_tokens: 400, turns_per_task: 1024}"
    done = subprocess.run(
        command + arguments(data, s3_root, f"teachers=[{teacher}]", "train.epochs=0.5"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout + done.stderr
    store = open_store(s3_root)
    assert b"<svg" in store.read("runs/small/report.html")
    keys = [info.key for info in store.list("")]
    for kind in ("rewrites", "candidates", "student", "evaluation"):
        assert any(key.startswith(f"artifacts/{kind}/") and key.endswith("_manifest.json") for key in keys), kind
    assert "indexes/demo/CURRENT" in keys
    _assert_secrets_are_nowhere(s3_root)


def _assert_secrets_are_nowhere(root: str) -> None:
    """The credentials of the test server must not have been written into any object."""
    bucket = root.removeprefix("s3://").partition("/")[0]
    client = boto3.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            if item["Key"].endswith((".json", ".yaml", ".jsonl", ".html")):
                body = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                assert b"AWS_SECRET_ACCESS_KEY" not in body, item["Key"]
                assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in body, item["Key"]
