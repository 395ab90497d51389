"""The single-writer lease, against a real S3 server that ignores conditional writes (rclone serve s3)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydistill.cli import main
from raydistill.errors import StorageError
from raydistill.index.publish import current_version
from raydistill.storage import leased
from raydistill.storage.hashing import sealed
from raydistill.storage.lease import LEASE_KEY, lease_holder, lease_variables, single_writer
from raydistill.storage.probe import check_root
from raydistill.storage.store import LEASE_VARIABLE, open_store, plain_store
from raydistill.storage.verify import verify
from tests.conftest import free_port
from tests.small_world import arguments, environment, small_world
from tests.upkeep.root_world import build_index, keys, make_artifact

SETTLE = 2.0


@pytest.fixture
def blind_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run root in a store that answers conditional writes as if there were no condition."""
    scripts = sysconfig.get_path("scripts")
    rclone = shutil.which("rclone", path=os.pathsep.join([scripts, os.environ["PATH"]]))
    if rclone is None:
        pytest.skip("rclone is not installed; pip install -e '.[dev]'")
    (tmp_path / "served" / "bucket").mkdir(parents=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    served = [rclone, "serve", "s3", str(tmp_path / "served"), "--addr", f"127.0.0.1:{port}", "--auth-key", "name,secret"]
    server = subprocess.Popen(
        [*served, "--config", str(tmp_path / "none"), "--vfs-cache-mode", "off"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(leased, "_seen", {})
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        yield "s3://bucket/runs"
    finally:
        server.terminate()
        server.wait(timeout=10)


def take_over(root: str) -> None:
    """Let another have the lease, as if this process had slept for long."""
    other = {"owner": "other", "purpose": "run other", "host": "elsewhere", "process": 1, "token": 9}
    plain_store(root).replace(LEASE_KEY, sealed(other))


def test_without_a_lease_the_store_is_refused(blind_root: str) -> None:
    with pytest.raises(StorageError, match=r"the store ignores If-None-Match, so two runs .*single_writer: true"):
        check_root(blind_root)
    assert keys(blind_root) == []


def test_one_writer_works_and_leaves_a_sound_root(blind_root: str) -> None:
    check_root(blind_root, single_writer=True)
    with single_writer(blind_root, "test", settle_seconds=SETTLE) as holder:
        assert holder.token == 1
        first = build_index(blind_root, "first")
        assert build_index(blind_root, "first") == first
        second = build_index(blind_root, "second")
        make_artifact(blind_root, "done")
        store = open_store(blind_root)
        assert store.put_if_absent("key", b"ours")
        assert store.put_if_absent("key", b"ours")
        assert not store.put_if_absent("key", b"theirs")
        assert store.read("key") == b"ours"
        found = store.info("key")
        assert found is not None
        assert not store.compare_and_swap("key", b"theirs", '"other"')
        assert not store.compare_and_swap("key", b"theirs", None)
        assert store.compare_and_swap("key", b"swapped", found.etag)
        assert store.read("key") == b"swapped"
    assert plain_store(blind_root).info(LEASE_KEY) is None
    assert lease_variables() == {}
    assert (first.version, second.version) == (1, 2)
    assert current_version(blind_root, "passages") == second
    assert verify(blind_root).damages == []


_SECOND_WRITER = """
import sys
from raydistill.storage.lease import single_writer
with single_writer(sys.argv[1], "second", settle_seconds=2.0):
    print("taken")
"""


def run_second(root: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in environment().items() if name != LEASE_VARIABLE}
    return subprocess.run([sys.executable, "-c", _SECOND_WRITER, root], env=variables, capture_output=True, text=True)


def test_a_second_writer_is_refused_until_the_first_ends(blind_root: str) -> None:
    with single_writer(blind_root, "run one", settle_seconds=SETTLE):
        second = run_second(blind_root)
        assert second.returncode == 1
        assert "has one writer at a time, and its lease is held by run one on" in second.stderr
        assert "s ago; wait until it ends (if that is dead, the lease is free 120 s after" in second.stderr
        build_index(blind_root, "undisturbed")
    assert run_second(blind_root).stdout == "taken\n"


def test_of_several_who_start_at_once_at_most_one_gets_it(blind_root: str) -> None:
    variables = {name: value for name, value in environment().items() if name != LEASE_VARIABLE}
    hold = _SECOND_WRITER.replace('print("taken")', 'print("taken"); import time; time.sleep(8)').replace("2.0", "6.0")
    command = [sys.executable, "-c", hold, blind_root]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, env=variables, **pipes) for _ in range(5)]  # type: ignore[call-overload]
    answers = [run.communicate(timeout=120) for run in runs]
    assert sum(out == "taken\n" for out, _ in answers) <= 1
    refused = [problems for out, problems in answers if not out]
    assert all("has one writer at a time" in problems or "run again when it is faster" in problems for problems in refused)


def test_the_lease_of_a_dead_writer_runs_out(blind_root: str) -> None:
    hold = _SECOND_WRITER.replace('print("taken")', 'print("taken", flush=True); import time; time.sleep(600)')
    command = [sys.executable, "-c", hold, blind_root]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as dead:
        assert dead.stdout is not None
        assert dead.stdout.readline() == "taken\n"
        os.kill(dead.pid, signal.SIGKILL)
    with (
        pytest.raises(StorageError, match=r"held by second .*the lease is free 600 s after"),
        single_writer(blind_root, "heir", seconds=600, settle_seconds=SETTLE),
    ):
        pass
    time.sleep(2)
    with single_writer(blind_root, "heir", seconds=1.0, settle_seconds=SETTLE) as heir:
        assert heir.token == 2


def test_a_living_writer_renews_its_lease(blind_root: str) -> None:
    store = plain_store(blind_root)
    with single_writer(blind_root, "one", seconds=4.0, settle_seconds=SETTLE) as holder:
        taken = store.info(LEASE_KEY)
        assert taken is not None
        for _ in range(300):
            now = store.info(LEASE_KEY)
            assert now is not None
            if now.modified > taken.modified:
                break
            time.sleep(0.2)
        assert now.modified > taken.modified
        assert lease_holder(store) == holder


def test_a_writer_that_lost_its_lease_publishes_nothing_more(blind_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with single_writer(blind_root, "slow", settle_seconds=SETTLE):
        before = build_index(blind_root, "first")
        take_over(blind_root)
        with pytest.raises(StorageError, match=r"was not written, since the lease .* was lost to run other on elsewhere"):
            build_index(blind_root, "second")
        monkeypatch.setattr(leased, "CHECK_SECONDS", 0.0)
        seen = keys(blind_root)
        with pytest.raises(StorageError, match="lost to run other"):
            open_store(blind_root).put_if_absent("part", b"x")
        with pytest.raises(StorageError, match="lost to run other"):
            open_store(blind_root).delete(before.segments[0].key)
        assert keys(blind_root) == seen
    assert current_version(blind_root, "passages") == before
    holder = lease_holder(plain_store(blind_root))
    assert holder is not None
    assert holder.owner == "other", "who lost the lease does not end another's"


def test_workers_write_under_the_lease_of_their_driver(blind_root: str) -> None:
    work = """
import sys
from raydistill.storage.store import open_store
store = open_store(sys.argv[1])
print(type(store).__name__, store.put_if_absent(sys.argv[2], sys.argv[3].encode()))
"""

    def worker(key: str, content: str, variables: dict[str, str]) -> str:
        command = [sys.executable, "-c", work, blind_root, key, content]
        ran = subprocess.run(command, env={**environment(), **variables}, capture_output=True, text=True)
        return ran.stdout + ran.stderr

    with single_writer(blind_root, "driver", settle_seconds=SETTLE):
        variables = lease_variables()
        assert json.loads(variables[LEASE_VARIABLE])["root"] == blind_root
        assert worker("part", "one", variables) == "LeasedStore True\n"
        assert worker("part", "two", variables) == "LeasedStore False\n"
    assert "was lost to nobody known" in worker("late", "three", variables)
    assert keys(blind_root) == ["part"]
    assert open_store(blind_root).read("part") == b"one"


def test_the_chain_takes_it_when_asked_to(
    blind_root: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small_world(tmp_path_factory.mktemp("world"))
    take_over(blind_root)
    assert main(["index", *arguments(data, blind_root, "single_writer=true")]) == 1
    assert "its lease is held by run other on elsewhere" in capsys.readouterr().err


def test_the_commands_that_write_take_it_when_asked_to(blind_root: str, capsys: pytest.CaptureFixture[str]) -> None:
    with single_writer(blind_root, "build", settle_seconds=SETTLE):
        build_index(blind_root, "first", segments=1)
        build_index(blind_root, "second", segments=1)
    assert main(["gc", blind_root, "--grace", "0", "--keep-versions", "1", "--delete"]) == 1
    assert "the store ignores If-None-Match" in capsys.readouterr().err
    assert main(["gc", blind_root, "--grace", "0", "--keep-versions", "1", "--delete", "--single-writer"]) == 0
    assert [key for key in keys(blind_root) if "manifests" in key] == ["indexes/passages/manifests/00000002.json"]
    assert verify(blind_root).damages == []
    assert plain_store(blind_root).info(LEASE_KEY) is None
