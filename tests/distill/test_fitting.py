"""What no retry can mend ends a training in its own sentence, whether it meets every worker or one that others wait for; and
the dashboard of another cluster ends none."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
import ray.cloudpickle
from ray.train import CheckpointUploadMode

from raydistill.config import WorkerConfig
from raydistill.distill.board import ProgressBoard
from raydistill.distill.fitting import Training, Uploads, Worker, _is_known_to_its_dashboard, fit
from raydistill.errors import ConfigError
from tests.conftest import free_port
from tests.own_driver import told_by

# The workers cannot import a test module: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _fail(failing: tuple[int, ...], worker: Worker) -> None:
    import torch

    if worker.place.rank in failing:
        raise ConfigError("student.model: this machine has no such folder")
    torch.distributed.monitored_barrier(timeout=timedelta(seconds=60))


# That of one worker alone waits for the others, and the group is started again to hear that it is over.
@pytest.mark.parametrize(("failing", "retries"), [((0, 1), 0), pytest.param((1,), 3, marks=pytest.mark.slow)])
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


@contextmanager
def dashboard(*actors: dict[str, object], port: int = 0) -> Iterator[str]:
    """Serve what a dashboard answers that knows these actors and no others; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = {"result": True, "data": {"result": {"result": list(actors)}}}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_only_a_dashboard_that_knows_our_actors_is_ours(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    assert ray.get(board.read.remote()) == (0, 0, "")
    with dashboard() as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        assert not _is_known_to_its_dashboard(board)
    assert not _is_known_to_its_dashboard(board), "nobody answers there any more"
    known = {"actor_id": board._actor_id.hex(), "class_name": "ProgressBoard", "state": "ALIVE", "job_id": "01"}
    known |= {"name": None, "node_id": None, "pid": None, "ray_namespace": None}
    with dashboard(known) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        assert _is_known_to_its_dashboard(board)


@pytest.mark.slow  # what decides it has a test of its own
@pytest.mark.timeout(300)
def test_a_training_goes_on_when_the_dashboard_of_another_cluster_comes_up(tmp_path: Path) -> None:
    assert told_by(__file__, str(tmp_path)) == {"ended": True}


def _train_for_seconds(started: Path, worker: Worker) -> None:
    started.touch()
    time.sleep(8)  # time enough for Ray Train to ask a dashboard about its controller, which it does every second
    worker.show(1, 1, "")


def main(folder: Path) -> None:
    """Train, with nobody at the dashboard's address at first, and then one who knows no actor of this cluster."""
    from raydistill.actor_pool import connect
    from raydistill.config import RayConfig

    port, started = free_port(), folder / "started"
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"

    def come_up() -> None:
        while not started.exists():
            time.sleep(0.1)
        with dashboard(port=port):
            time.sleep(60)

    threading.Thread(target=come_up, daemon=True).start()
    connect(RayConfig(local_cpus=2))
    fit(Training("train", _train_for_seconds, started, WorkerConfig(actors=1, cpus=1), f"{folder}/long", 0))
    ray.shutdown()
    print(json.dumps({"ended": True}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
