"""The teach stage on Ray: one artifact a teacher, resumable part by part, the same whatever its workers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistill.config import PoolConfig, RecordedTeacherConfig, TransformersTeacherConfig
from raydistill.conversations.records import Conversation, ConversationalQuery, ConversationSet, Turn
from raydistill.errors import DataError, ResourceError, TeacherError
from raydistill.storage.artifacts import Artifact, ArtifactWriter
from raydistill.storage.parts import Part
from raydistill.teachers.engines import engine_identity
from raydistill.teachers.pool import RewriteWorker, rewrites_artifact, teach
from raydistill.teachers.rewriting import REWRITE_SCHEMA
from raydistill.teachers.tasks import task

FINGERPRINT = "f" * 64
LEARNT = "who built it?"


@pytest.fixture
def queries() -> list[ConversationalQuery]:
    """Ten queries of two conversations, one of them longer than the tiny model's positions."""
    long = Turn("b<::>5", 5, "and " + "why " * 60 + "so?", "")
    conversations = [
        Conversation(
            name, tuple(Turn(f"{name}<::>{n}", n, f"{name} question {n}?", f"answer {n}") for n in range(1, turns + 1))
        )
        for name, turns in (("a", 5), ("b", 4))
    ]
    conversations[1] = Conversation("b", (*conversations[1].turns, long))
    return list(ConversationSet(tuple(conversations), {}, FINGERPRINT).queries())


def recorded(path: Path, texts: dict[str, str]) -> RecordedTeacherConfig:
    path.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()))
    return RecordedTeacherConfig(name="recorded", rewrites=str(path))


def generating(model: str, **changes: Any) -> TransformersTeacherConfig:
    settings = {"prompt": "plain-v1", "dtype": "float32", "max_new_tokens": 20, "turns_per_task": 4, **changes}
    return TransformersTeacherConfig(name="tiny", model=model, **settings)


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    table = pa.concat_tables(pq.read_table(artifact.fetch(part)) for part in artifact.manifest().parts)
    assert table.schema.equals(REWRITE_SCHEMA)
    return table.to_pylist()


def test_two_teachers_give_a_row_a_query_in_order(
    ray_cluster: None, queries: list[ConversationalQuery], trained_causal: str, tmp_path: Path, s3_root: str
) -> None:
    root = s3_root
    texts = {"a<::>1": "Rewrite: a question 1?", "a<::>2": "I cannot rewrite this.", "z<::>1": "not asked for"}
    for teacher in (recorded(tmp_path / "r.jsonl", texts), generating(trained_causal)):
        artifact = teach(teacher, queries, FINGERPRINT, root)
        assert artifact == rewrites_artifact(teacher, FINGERPRINT, root)
        made = rows(artifact)
        assert [row["query_id"] for row in made] == [query.query_id for query in queries]
        assert all(row["text"].strip() for row in made)
        for row, query in zip(made, queries, strict=True):
            assert row["failure"] is None or row["text"] == query.question
        counts = artifact.manifest().metadata["counts"]
        assert counts["queries"] == len(queries)
        assert counts["failed"] == sum(row["failure"] is not None for row in made)
        if teacher.name == "recorded":
            assert (counts["failed.missing"], counts["failed.refusal"]) == (8, 1)
            assert (made[0]["text"], made[0]["failure"]) == ("a question 1?", None)
        else:
            assert made[-1]["failure"] == "engine_error"
            assert "do not fit the model's 128 positions" in made[-1]["raw"]
            assert {(row["text"], row["failure"]) for row in made[:-1]} == {(LEARNT, None)}
            assert all(row["prompt_tokens"] > 0 for row in made[:-1])


def test_a_half_done_stage_makes_only_the_missing_parts_and_those_out_of_the_cache(
    ray_cluster: None, queries: list[ConversationalQuery], trained_causal: str, tmp_path: Path
) -> None:
    artifact = teach(generating(trained_causal), queries, FINGERPRINT, str(tmp_path))
    complete, counts = rows(artifact), artifact.manifest().metadata["counts"]
    assert counts["cached"] == 0
    folder = tmp_path / artifact.prefix
    (folder / "_manifest.json").unlink()
    (folder / "_receipts" / "queries-000000004-000000008.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "_receipts").iterdir()}
    assert set(ArtifactWriter(artifact).finished()) == {"queries-000000000-000000004", "queries-000000008-000000010"}
    resumed = teach(generating(trained_causal), queries, FINGERPRINT, str(tmp_path))
    assert rows(resumed) == complete
    assert resumed.manifest().metadata["counts"] == {**counts, "cached": 4}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_other_task_sizes_and_batches_change_no_row_and_generate_nothing(
    queries: list[ConversationalQuery], trained_causal: str, tmp_path: Path
) -> None:
    made = {}
    for size, batch_tokens in ((9, 8192), (2, 64)):
        teacher = generating(trained_causal, turns_per_task=size, batch_tokens=batch_tokens)
        artifact = rewrites_artifact(teacher, FINGERPRINT, str(tmp_path))
        worker = RewriteWorker(teacher.model_dump(mode="json"), artifact.root, "group", engine_identity(teacher))
        parts = [
            Part.from_json(worker(task(artifact, start, start + size, queries[start : start + size], teacher.history_turns)))
            for start in range(0, 9 - size + 1, size)
        ]
        tables = [pq.read_table(artifact.fetch(part)).to_pylist() for part in parts]
        made[size] = [row for table in tables for row in table]
        assert sum(part.counters["cached"] for part in parts) == (0 if size == 9 else 8)
    assert made[2] == made[9][:8]


def test_a_finished_artifact_is_returned_without_workers(queries: list[ConversationalQuery], tmp_path: Path) -> None:
    teacher = recorded(tmp_path / "r.jsonl", {"a<::>1": "a question 1?"})
    first = teach(teacher, queries, FINGERPRINT, str(tmp_path / "root"))
    created = first.manifest().operation_id
    assert teach(teacher, queries, FINGERPRINT, str(tmp_path / "root")).manifest().operation_id == created


def test_the_address_follows_content_and_settings_but_not_places_or_workers(trained_causal: str, tmp_path: Path) -> None:
    shutil.copytree(trained_causal, tmp_path / "copy")

    def address(teacher: TransformersTeacherConfig, fingerprint: str = FINGERPRINT) -> str:
        return rewrites_artifact(teacher, fingerprint, "/root").fingerprint

    base = address(generating(trained_causal))
    assert base == address(generating(str(tmp_path / "copy"), turns_per_task=9, workers=PoolConfig(actors=2)))
    others = [address(generating(trained_causal, max_new_tokens=21)), address(generating(trained_causal), "e" * 64)]
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert len({base, *others, address(generating(str(tmp_path / "copy")))}) == 4


def test_a_teacher_that_fails_everywhere_ends_the_stage_with_its_reason(
    ray_cluster: None, queries: list[ConversationalQuery], trained_causal: str, tmp_path: Path
) -> None:
    unanswerable = [queries[-1]] * 2
    with pytest.raises(TeacherError, match=r"teacher tiny could answer none of 2 prompts \(prompt .* positions"):
        teach(generating(trained_causal), unanswerable, FINGERPRINT, str(tmp_path))
    with pytest.raises(TeacherError, match=r"teacher recorded failed on all 1 queries \(refusal 1; first: 'I cannot"):
        teach(recorded(tmp_path / "r.jsonl", {"a<::>1": "I cannot."}), queries[:1], FINGERPRINT, str(tmp_path))


def test_rewrites_that_conversations_hold_are_taken_as_they_are_and_missing_ones_stay_missing(
    queries: list[ConversationalQuery], tmp_path: Path
) -> None:
    held = [replace(query, rewrite=f"Sorry, {query.query_id}") if query.depth == 2 else query for query in queries]
    teacher = RecordedTeacherConfig(name="human", rewrites="conversations")
    made = rows(teach(teacher, held, FINGERPRINT, str(tmp_path)))
    assert {row["query_id"]: row["text"] for row in made if row["failure"] is None} == {
        "a<::>2": "Sorry, a<::>2",
        "b<::>2": "Sorry, b<::>2",
    }
    assert {row["failure"] for row in made} == {None, "missing"}
    with pytest.raises(DataError, match="teacher human: the conversations hold no rewrites of their own"):
        teach(teacher, queries, "e" * 64, str(tmp_path))


def test_the_address_of_recorded_rewrites_follows_the_content_of_every_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text('{"_id": "a<::>1", "text": "x"}\n')
    two.write_text('{"_id": "a<::>2", "text": "y"}\n')

    def address(*places: str) -> str:
        return rewrites_artifact(RecordedTeacherConfig(name="r", rewrites=places), FINGERPRINT, "/root").fingerprint

    first = [address(str(one)), address(str(one), str(two)), address(str(one), "conversations")]
    two.write_text('{"_id": "a<::>2", "text": "z"}\n')
    assert len({*first, address(str(one), str(two))}) == 4
    assert address(str(one)) == first[0]


def test_bad_settings_end_in_a_sentence(
    ray_cluster: None, queries: list[ConversationalQuery], trained_causal: str, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    with pytest.raises(TeacherError, match=r"teacher model .*broken cannot be loaded"):
        teach(generating(str(tmp_path / "broken")), queries, FINGERPRINT, str(tmp_path))
    with pytest.raises(ResourceError, match=r"teachers\[tiny\]\.workers asks for .* GPU"):
        teach(generating(trained_causal, workers=PoolConfig(gpus=1)), queries, FINGERPRINT, str(tmp_path))
    with pytest.raises(DataError, match=r"none of the ids is the id of a query \(queries are named like 'a<::>1', .* 'x'\)"):
        teach(recorded(tmp_path / "r.jsonl", {"x": "y"}), queries, FINGERPRINT, str(tmp_path))
