"""A driver killed while its teacher writes: the same call goes on, and the rewrites are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.storage.artifacts import Artifact
from tests.small_world import environment
from tests.teachers.endpoint import Endpoint, prompt_of, said, serving

TURNS, A_TASK = 24, 4
SCRIPT = f"""
import json, sys
from raydistill.actor_pool import connect
from raydistill.config import OpenAiTeacherConfig, RayConfig
from raydistill.conversations.records import Conversation, ConversationSet, Turn
from raydistill.teachers.pool import teach

connect(RayConfig(local_cpus=2))
turns = tuple(Turn(f"a<::>{{n}}", n, f"a question {{n}}?", f"answer {{n}}") for n in range(1, {TURNS + 1}))
queries = list(ConversationSet((Conversation("a", turns),), {{}}, "f" * 64).queries())
settings = {{"name": "remote", "model": "tiny", "identity": "tiny", "turns_per_task": {A_TASK}, "concurrency": 2}}
teacher = OpenAiTeacherConfig(base_url=sys.argv[1], **settings)
print(json.dumps(teach(teacher, queries, "f" * 64, sys.argv[2]).to_json()))
"""


def driver(url: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, url, str(root)], env=environment(), stdout=subprocess.PIPE, text=True
    )


def finished(url: str, root: Path) -> list[dict[str, Any]]:
    process = driver(url, root)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    artifact = Artifact.from_json(json.loads(output.splitlines()[-1]))
    rows: list[dict[str, Any]] = pa.concat_tables(
        pq.read_table(artifact.fetch(part)) for part in artifact.manifest().parts
    ).to_pylist()
    return rows


def asked(endpoint: Endpoint) -> list[str]:
    return [prompt_of(body) for body in endpoint.bodies]


def test_a_killed_driver_pays_at_most_what_was_under_way_once_more(tmp_path: Path) -> None:
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
        assert finished(undisturbed.url, tmp_path / "undisturbed") == rows
    assert [row["query_id"] for row in rows] == [f"a<::>{n}" for n in range(1, TURNS + 1)]
