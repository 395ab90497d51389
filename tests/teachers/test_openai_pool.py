"""Teachers behind endpoints in the teach stage: the same rows as the model itself, nothing paid twice, kills survived."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from raydistill.config import OpenAiTeacherConfig, PoolConfig
from raydistill.config_loading import validated
from raydistill.conversations.records import Conversation, ConversationalQuery, ConversationSet, Turn
from raydistill.errors import ConfigError, TeacherError
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.engine import Sampling
from raydistill.teachers.engines import check_teacher, engine_identity
from raydistill.teachers.pool import RewriteWorker, rewrites_artifact, teach
from raydistill.teachers.tasks import task
from raydistill.teachers.transformers_engine import ModelTokenizer, TransformersEngine
from tests.teachers.endpoint import KEY, MODEL, prompt_of, said, serving, status

FINGERPRINT = "f" * 64
LEARNT = "who built it?"


@pytest.fixture
def queries() -> list[ConversationalQuery]:
    """Eight queries, the last of them longer than the tiny model's positions."""
    turns = [Turn(f"a<::>{n}", n, f"a question {n}?", f"answer {n}") for n in range(1, 8)]
    turns.append(Turn("a<::>8", 8, "and " + "why " * 60 + "so?", ""))
    return list(ConversationSet((Conversation("a", tuple(turns)),), {}, FINGERPRINT).queries())


def remote(url: str, **changes: Any) -> OpenAiTeacherConfig:
    settings = {"api": "completions", "prompt": "plain-v1", "max_new_tokens": 20, "max_prompt_tokens": 36, **changes}
    return OpenAiTeacherConfig(name="remote", base_url=url, model=MODEL, turns_per_task=2, retry_wait_s=0.01, **settings)


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pa.concat_tables(
        pq.read_table(artifact.fetch(part)) for part in artifact.manifest().parts
    ).to_pylist()
    return table


def work(teacher: OpenAiTeacherConfig, queries: list[ConversationalQuery], root: Path) -> dict[str, Any]:
    """Rewrite queries in this process, as an actor would."""
    artifact = rewrites_artifact(teacher, FINGERPRINT, str(root))
    worker = RewriteWorker(teacher.model_dump(mode="json"), artifact.root, "group", engine_identity(teacher))
    return worker(task(artifact, 0, len(queries), queries, teacher.history_turns))


def test_a_model_behind_an_endpoint_writes_what_it_writes_here(
    ray_cluster: None, queries: list[ConversationalQuery], trained_causal: str, tmp_path: Path
) -> None:
    model = TransformersEngine(
        trained_causal, ModelTokenizer(trained_causal), dtype="float32", stop_at_newline=True, device="cpu"
    )

    def answer(prompt: str, before: int) -> Any:
        (made,) = model.generate([prompt], Sampling(20))
        counts = made.prompt_tokens, made.generated_tokens
        return status(400, made.detail) if made.failure else said(made.text, made.finish_reason, counts)

    with serving(answer) as endpoint:
        artifact = teach(remote(endpoint.url, history_turns=0), queries, FINGERPRINT, str(tmp_path))
    made = rows(artifact)
    assert [row["query_id"] for row in made] == [query.query_id for query in queries]
    assert {(row["text"], row["failure"]) for row in made[:-1]} == {(LEARNT, None)}
    assert (made[-1]["text"], made[-1]["failure"]) == (queries[-1].question, "engine_error")
    assert made[-1]["raw"].startswith("HTTP 400: prompt (")
    assert all(row["prompt_tokens"] > 0 and row["generated_tokens"] > 0 for row in made[:-1])
    assert artifact.manifest().metadata["model"] == MODEL
    assert len(endpoint.bodies) == len(queries)


def test_a_killed_actor_is_replaced_and_costs_its_batch_once_more_at_most(
    ray_cluster: None, queries: list[ConversationalQuery], tmp_path: Path
) -> None:
    killed: list[int] = []

    def answer(prompt: str, before: int) -> Any:
        async def kill_the_asker(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            killed.append(process_with_port(request.transport.get_extra_info("peername")[1]))
            os.kill(killed[0], signal.SIGKILL)
            return web.json_response(said("too late"))

        if "question 5?" in prompt.splitlines()[-2] and not killed:
            return kill_the_asker
        return said(f"a rewrite of {prompt.splitlines()[-2]}")

    with serving(answer) as endpoint:
        made = rows(teach(remote(endpoint.url, concurrency=2), queries, FINGERPRINT, str(tmp_path / "killed")))
        asked = [prompt_of(body) for body in endpoint.bodies]
        undisturbed = rows(teach(remote(endpoint.url), queries, FINGERPRINT, str(tmp_path / "undisturbed")))
    assert len(killed) == 1
    assert made == undisturbed
    assert len(set(asked)) == len(queries)
    assert len(queries) < len(asked) <= len(queries) + 2


def test_what_was_answered_before_the_key_failed_is_not_asked_again(
    queries: list[ConversationalQuery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    broke: list[bool] = [True]

    def answer(prompt: str, before: int) -> Any:
        if broke[0] and "question 3?" in prompt.splitlines()[-2]:
            return status(401, f"the key {KEY} is used up")
        return said(f"a rewrite of {prompt.splitlines()[-2]}")

    with serving(answer) as endpoint:
        teacher = remote(endpoint.url, concurrency=1, api_key_env="TEACHER_KEY")
        with pytest.raises(TeacherError, match=r"HTTP 401: the key \*\*\* is used up: correct base_url, model or key"):
            work(teacher, queries[:4], tmp_path)
        assert len(endpoint.bodies) == 3
        broke[0] = False
        part = work(teacher, queries[:4], tmp_path)
        assert [endpoint.asked(prompt_of(body)) for body in endpoint.bodies] == [1, 1, 2, 2, 1]
        assert part["counters"]["cached"] == 2
        # Another root of the cache knows nothing; the same one, under another address and the model's own name, everything.
        named = {"identity": "tiny-model", "concurrency": 1}
        work(remote(endpoint.url, **named), queries[:4], tmp_path)
    with serving(answer) as moved:
        work(remote(moved.url, **named), queries[:4], tmp_path)
        assert not moved.bodies
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in stored


def test_failures_are_typed_counted_and_replaced_by_the_last_utterance(
    queries: list[ConversationalQuery], tmp_path: Path
) -> None:
    answers = {1: said("I", "content_filter"), 2: said(""), 3: said("and so it", "length"), 4: status(500)}

    def answer(prompt: str, before: int) -> Any:
        number = int(prompt.splitlines()[-2].rpartition(" ")[2].rstrip("?"))
        return answers.get(number) or said("What is the answer to it?")

    with serving(answer) as endpoint:
        teacher = remote(endpoint.url, retries=1)
        artifact = rewrites_artifact(teacher, FINGERPRINT, str(tmp_path))
        part = work(teacher, queries[:5], tmp_path)
    counters = part["counters"]
    assert counters["failed"] == 4
    failed = {name.removeprefix("failed.") for name in counters if name.startswith("failed.")}
    assert failed == {"refusal", "empty", "truncated", "server_error"}
    (stored,) = (tmp_path / artifact.prefix).glob("*.parquet")
    made = pq.read_table(stored).to_pylist()
    assert [row["text"] for row in made] == [*(query.question for query in queries[:4]), "What is the answer to it?"]


@pytest.mark.parametrize(
    "changes",
    [
        {"extra_body": {"user": "me"}},
        {"api": "chat"},
        {"temperature": 0.5},
        {"identity": "another"},
    ],
    ids=str,
)
def test_what_changes_an_answer_changes_the_address(changes: dict[str, Any], tmp_path: Path) -> None:
    base, other = remote("http://h/v1"), remote("http://h/v1", **changes)
    addresses = {rewrites_artifact(each, FINGERPRINT, str(tmp_path)).fingerprint for each in (base, other)}
    assert len(addresses) == 2


def test_patience_and_a_named_models_address_change_nothing(tmp_path: Path) -> None:
    one = remote("http://h/v1", identity="m", concurrency=3, workers=PoolConfig(actors=2))
    two = remote("http://other/v1", identity="m", retries=1, api_key_env="KEY", requests_per_minute=3)
    assert len({rewrites_artifact(each, FINGERPRINT, str(tmp_path)).fingerprint for each in (one, two)}) == 1
    assert engine_identity(remote("http://h/v1")) != engine_identity(remote("http://other/v1"))


def test_a_missing_key_and_a_dead_address_end_in_a_sentence_before_any_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with serving(lambda prompt, before: said("x")) as endpoint:
        check_teacher(remote(endpoint.url))
        with pytest.raises(ConfigError, match="the environment variable TEACHER_KEY is not set here"):
            check_teacher(remote(endpoint.url, api_key_env="TEACHER_KEY"))
        assert len(endpoint.headers) == 1
    with pytest.raises(ConfigError, match=r"teachers\.remote\.base_url: nobody answers at"):
        check_teacher(remote(endpoint.url))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("base_url", "api.example.org/v1", r"base_url: must be http\(s\)://host"),
        ("base_url", "https://me:secret@example.org/v1", "base_url: must hold no user or password; .*api_key_env"),
        ("api_key_env", "sk-secret", "api_key_env: must be the name of an environment variable, .* never the key itself$"),
    ],
)
def test_a_wrong_setting_is_named_and_a_secret_not_repeated(field: str, value: str, sentence: str) -> None:
    tree = {"name": "t", "base_url": "https://example.org/v1", "model": "m", field: value}
    with pytest.raises(ConfigError, match=sentence) as caught:
        validated(OpenAiTeacherConfig, tree, None, "here")
    assert "secret" not in str(caught.value)


def test_a_limit_is_shared_among_the_actors(tmp_path: Path) -> None:
    from raydistill.teachers.cache import GenerationCache
    from raydistill.teachers.engines import open_rewriter

    teacher = remote("http://h/v1", requests_per_minute=60, tokens_per_minute=900, workers=PoolConfig(actors=3))
    opened: Any = open_rewriter(teacher, GenerationCache(str(tmp_path), engine_identity(teacher))).engine
    assert (opened.patience.requests_per_minute, opened.patience.tokens_per_minute) == (20, 300)


def process_with_port(port: int) -> int:
    """Return the process that holds the local end of a TCP connection to this test's server."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = [line[9] for line in lines if int(line[1].rpartition(":")[2], 16) == port and line[9] != "0"]
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == f"socket:[{inode}]":
                return int(link.parts[2])
        except OSError:
            continue
    raise AssertionError(f"no process holds port {port}")
