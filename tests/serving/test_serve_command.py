"""`raydistill serve` as users type it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydistill.cli import main
from raydistill.serving.client import SearchClient, ServiceError
from tests.conftest import free_port
from tests.serving.conftest import World
from tests.serving.inspected_run import write_run
from tests.small_world import environment


def arguments(animals: World, *overrides: str) -> list[str]:
    return ["serve", "--root", animals.root, "--index", "animals", "--student", animals.student.uri, *overrides]


def test_a_dry_run_shows_what_would_be_served_and_how(animals: World, capsys: pytest.CaptureFixture[str]) -> None:
    rerank = "rerank={model: 'package:raydistill/demo/models/encoder'}"
    assert main([*arguments(animals, "http.port=8123", "fan_out.workers.actors=3"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for word in ("18 passages in 3 segments", animals.student.uri, "port: 8123", "actors: 3", "rerank: null"):
        assert word in shown
    assert main([*arguments(animals, rerank), "--dry-run"]) == 1
    assert "rerank.model: 'package:raydistill/demo/models/encoder' is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("http.prot=1", "http.prot: there is no such field; did you mean 'port'?"),
        ("http.port=99999", "http.port: input should be less than or equal to 65535"),
        ("fan_out.versions=1", "fan_out.versions: input should be greater than or equal to 2"),
        ("port", "must have the form section.field=value"),
    ],
)
def test_a_mistake_is_a_sentence(animals: World, override: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(animals, override), "--dry-run"]) == 1
    assert sentence.lower() in capsys.readouterr().err.lower()


def test_the_run_of_the_page_is_checked_before_anything_starts(
    animals: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(animals, tmp_path)
    assert main([*arguments(animals, f"inspect.run={run}"), "--dry-run"]) == 0
    assert f"run: {run}" in capsys.readouterr().out
    assert main([*arguments(animals, f"inspect.run={tmp_path}/none.yaml"), "--dry-run"]) == 1
    assert f"there is no configuration file {tmp_path}/none.yaml" in capsys.readouterr().err
    other = tmp_path / "other.yaml"
    other.write_text(run.read_text().replace(str(animals.folder / "encoder"), "package:raydistill/demo/models/encoder"))
    assert main([*arguments(animals, f"inspect.run={other}"), "--dry-run"]) == 1
    assert "take the run that the index belongs to" in capsys.readouterr().err


def test_a_missing_index_is_named(animals: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--root", str(tmp_path), "--index", "none", "--student", animals.student.uri]) == 1
    assert f"{tmp_path}/indexes/none holds no published index" in capsys.readouterr().err


@pytest.mark.slow  # the service itself is tested by test_service
@pytest.mark.timeout(400)
def test_the_command_serves_until_it_is_interrupted(animals: World, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    small = ["ray.local_cpus=1", "replicas.workers.cpus=0.5", "fan_out.workers.cpus=0.5"]
    command = [sys.executable, "-m", "raydistill.cli", *arguments(animals, f"http.port={port}", *small)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream, cwd=tmp_path)
    try:
        client = SearchClient(f"http://127.0.0.1:{port}", timeout_s=10)
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                found = client.search(["where does the otter live"], k=2)
                break
            except ServiceError:
                time.sleep(0.3)
        assert len(found.passages) == 2
        # Not SIGINT: a test run in the background of a shell hands down that it is ignored.
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 130
    finally:
        process.kill()
        process.wait(timeout=30)
    with pytest.raises(ServiceError):
        client.version()
    assert "Traceback" not in log.read_text()
