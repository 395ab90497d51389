"""A driver killed while its teacher writes: the same call goes on, and the rewrites are those of an undisturbed run.

This file is also the program of the drivers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistill.actor_pool import connect
from raydistill.config import OpenAiTeacherConfig, RayConfig
from raydistill.conversations.records import Conversation, ConversationalQuery, ConversationSet, Turn
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.pool import teach
from tests.small_world import arguments, environment, small_world
from tests.teachers.endpoint import MODEL, Endpoint, prompt_of, said, serving

TURNS, A_TASK = 24, 4
FINGERPRINT = "f" * 64


def assignment(url: str) -> tuple[OpenAiTeacherConfig, list[ConversationalQuery], str]:
    turns = tuple(Turn(f"a<::>{n}", n, f"a question {n}?", f"answer {n}") for n in range(1, TURNS + 1))
    queries = list(ConversationSet((Conversation("a", turns),), {}, FINGERPRINT).queries())
    settings = {"model": "tiny", "identity": "tiny", "turns_per_task": A_TASK, "concurrency": 2}
    return OpenAiTeacherConfig(name="remote", base_url=url, **settings), queries, FINGERPRINT


def driver(url: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, url, str(root)], env=environment(), stdout=subprocess.PIPE, text=True)


def finished(url: str, root: Path) -> list[dict[str, Any]]:
    process = driver(url, root)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return rows_of(Artifact.from_json(json.loads(output.splitlines()[-1])))


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.concat_tables(
        pq.read_table(artifact.fetch(part)) for part in artifact.manifest().parts
    ).to_pylist()
    return rows


def asked(endpoint: Endpoint) -> list[str]:
    return [prompt_of(body) for body in endpoint.bodies]


def test_a_killed_driver_pays_at_most_what_was_under_way_once_more(tmp_path: Path, ray_cluster: None) -> None:
    reached = threading.Event()

    def answer(prompt: str, before: int) -> Any:
        if f"question {TURNS // 2}?" in prompt.splitlines()[-1] and not before:
            reached.set()
        return said(f"a rewrite of {prompt.splitlines()[-1]}")

    with serving(answer) as endpoint:
        first = driver(endpoint.url, tmp_path / "killed")
        assert reached.wait(timeout=240)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        before = len(asked(endpoint))
        rows = finished(endpoint.url, tmp_path / "killed")
        every = asked(endpoint)
    assert before >= TURNS // 2 - A_TASK
    assert len(set(every)) == TURNS
    assert len(every) <= TURNS + A_TASK
    with serving(answer) as undisturbed:
        assert rows_of(teach(*assignment(undisturbed.url), str(tmp_path / "undisturbed"))) == rows
    assert [row["query_id"] for row in rows] == [f"a<::>{n}" for n in range(1, TURNS + 1)]


@pytest.mark.slow  # test_side_by_side interrupts pools in this process
def test_an_interrupt_ends_teachers_that_work_at_once_and_joins_no_other_cluster(tmp_path: Path, ray_cluster: None) -> None:
    def once() -> Callable[[str, int], Any]:
        """Answer the first prompt, so that a part is done, and hang at the next."""
        asked: list[str] = []

        async def answer(prompt: str, before: int) -> Any:
            asked.append(prompt)
            if len(asked) > 1:
                await asyncio.sleep(300)
            return said("a rewrite")

        return answer

    with serving(once()) as one, serving(once()) as other:
        settings = [
            {
                "name": name,
                "engine": "openai",
                "base_url": endpoint.url,
                "model": MODEL,
                "concurrency": 1,
                "turns_per_task": 1,
            }
            for name, endpoint in (("one", one), ("other", other))
        ]
        words = arguments(small_world(tmp_path / "data"), str(tmp_path / "root"), f"teachers={json.dumps(settings)}")
        process = subprocess.Popen(
            [sys.executable, "-m", "raydistill.cli", "teach", *words],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background of a shell hands down that an interrupt is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            deadline = time.monotonic() + 240
            while not all(len(endpoint.bodies) > 1 for endpoint in (one, other)):
                assert process.poll() is None, process.communicate()[1][-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=90)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "one, teacher other: the cluster has room for them at once" in told
    assert told.splitlines()[-1] == "interrupted; submit the same command again to continue"


if __name__ == "__main__":
    connect(RayConfig(local_cpus=2))
    print(json.dumps(teach(*assignment(sys.argv[1]), sys.argv[2]).to_json()))
