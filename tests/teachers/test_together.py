"""Several teachers on several sets: at the same time where the cluster has room, each model started once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raydistill.config import OpenAiTeacherConfig, PoolConfig, VllmTeacherConfig
from raydistill.conversations.records import Conversation, ConversationalQuery, ConversationSet, Turn
from raydistill.errors import TeacherError
from raydistill.storage.artifacts import Artifact
from raydistill.teachers import pool
from raydistill.teachers.places import pool_of
from raydistill.teachers.pool import Assignment, rewrites_artifact, teach_all
from tests.teachers.endpoint import MODEL, Endpoint, said, serving, status

SETS = {"train": 5, "test": 3}


def queries(name: str) -> list[ConversationalQuery]:
    turns = tuple(Turn(f"{name}<::>{n}", n, f"{name} question {n}?", "an answer") for n in range(1, SETS[name] + 1))
    return list(ConversationSet((Conversation(name, turns),), {}, name).queries())


def teacher(name: str, endpoint: Endpoint) -> OpenAiTeacherConfig:
    settings = {"api": "completions", "prompt": "plain-v1", "turns_per_task": 2, "retries": 0, "identity": name}
    return OpenAiTeacherConfig(name=name, base_url=endpoint.url, model=MODEL, **settings)


def assignments(*teachers: OpenAiTeacherConfig) -> list[Assignment]:
    return [Assignment(each, queries(name), name) for each in teachers for name in SETS]


def texts(artifact: Artifact) -> list[str]:
    return [row["text"] for part in artifact.manifest().parts for row in pq.read_table(artifact.fetch(part)).to_pylist()]


def of(name: str) -> Callable[[str, int], Any]:
    """An endpoint's answer: who it is, and the question."""
    return lambda prompt, _: said(f"{name} of {prompt.splitlines()[-2].split(': ')[1]}")


def test_teachers_work_at_once_and_each_has_one_pool_for_all_sets(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[str] = []
    map_shards = pool.map_shards

    def counted(*arguments: Any) -> Any:
        pools.append(arguments[-1])
        return map_shards(*arguments)

    monkeypatch.setattr(pool, "map_shards", counted)
    asked: set[str] = set()

    def meets(name: str) -> Callable[[str, int], Any]:
        """Answer nothing until the other teacher has been asked too."""

        async def answer(prompt: str, before: int) -> Any:
            asked.add(name)
            async with asyncio.timeout(120):
                while len(asked) < 2:
                    await asyncio.sleep(0.05)
            return of(name)(prompt, before)

        return answer

    with serving(meets("large")) as large, serving(meets("small")) as small:
        made = teach_all(assignments(teacher("large", large), teacher("small", small)), str(tmp_path))
    wanted = [[f"{name} of {each.question}" for each in queries(own)] for name in ("large", "small") for own in SETS]
    assert [texts(artifact) for artifact in made] == wanted
    assert sorted(pools) == ["teachers[large]", "teachers[small]"]
    assert [artifact.manifest().metadata["counts"]["queries"] for artifact in made] == [5, 3, 5, 3]


def test_what_a_teacher_has_done_is_kept_when_another_fails(ray_cluster: None, tmp_path: Path) -> None:
    def refuses(prompt: str, before: int) -> Any:
        return status(401, "no such key")

    with serving(of("good")) as good, serving(refuses) as bad:
        teach_all(assignments(teacher("good", good))[:1], str(tmp_path))
        assert len(good.bodies) == SETS["train"]
        with pytest.raises(TeacherError, match="HTTP 401: no such key"):
            teach_all(assignments(teacher("good", good), teacher("bad", bad)), str(tmp_path))
    with serving(of("good")) as again, serving(of("mended")) as mended:
        made = teach_all(assignments(teacher("good", again), teacher("mended", mended)), str(tmp_path))
    assert [texts(each) for each in made[:2]] == [[f"good of {each.question}" for each in queries(own)] for own in SETS]
    in_flight = 2  # the task that was under way when the other failed
    assert sum(SETS.values()) <= len(good.bodies) + len(again.bodies) <= sum(SETS.values()) + in_flight


def test_a_pool_holds_what_its_engines_reserve_and_an_endpoint_s_limits() -> None:
    workers = PoolConfig(actors=3, min_actors=1, cpus=2)
    vllm = VllmTeacherConfig(name="v", model="m", tensor_parallel_size=4, workers=workers)
    held = pool_of("teacher v", vllm, workers, lambda stop: None)
    assert (held.workers.gpus, held.workers.cpus, held.workers.fewest_actors, held.packed) == (4.0, 2.0, 3, True)
    settings = {"name": "o", "base_url": "http://host/v1", "model": "m"}
    url = settings["base_url"]
    for limits, limit in (({}, None), ({"requests_per_minute": 9}, url), ({"tokens_per_minute": 9}, url)):
        asked = pool_of("teacher o", OpenAiTeacherConfig(**settings, **limits), workers, lambda stop: None)
        assert (asked.limit, asked.workers, asked.packed) == (limit, workers, False)


def test_a_set_that_is_asked_for_twice_is_written_once(ray_cluster: None, tmp_path: Path) -> None:
    with serving(of("one")) as endpoint:
        twice = [*assignments(teacher("one", endpoint))[:1]] * 2
        made = teach_all(twice, str(tmp_path))
        assert len(endpoint.bodies) == SETS["train"]
        assert made == [rewrites_artifact(twice[0].teacher, "train", str(tmp_path))] * 2
