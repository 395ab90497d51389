"""`raydistill synthesize` as users type it: a model behind HTTP, a real index, conversations that a run can train on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydistill.cli import main
from raydistill.config import ConversationSource
from raydistill.config_loading import load_config
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationSet
from raydistill.pipeline import Chain
from tests.animal_world import tiny_student, write_corpus
from tests.synthesis.scripted import written
from tests.teachers.endpoint import MODEL, Endpoint, said, serving, status


@pytest.fixture(scope="module")
def run_file(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run with an index over the animals' passages."""
    folder = tmp_path_factory.mktemp("run")
    write_corpus(folder / "corpus.jsonl.gz")
    (folder / "encoder").mkdir()
    tiny_student(folder / "encoder")
    (folder / "root").mkdir()
    turn = {"turn_id": 1, "query_id": "c<::>1", "user": "where does the otter live", "agent": ""}
    (folder / "conversations.jsonl").write_text(
        json.dumps({"conversation_id": "c", "split": "train", "turns": [turn]}) + "\n"
    )
    (folder / "good.jsonl").write_text(json.dumps({"_id": "c<::>1", "text": "where does the otter live"}) + "\n")
    conversations = {"conversations": str(folder / "conversations.jsonl")}
    tree = {
        "run": "animals",
        "root": str(folder / "root"),
        "data": {"corpus": [str(folder / "corpus.jsonl.gz")], "train": conversations, "test": conversations},
        "teachers": [{"engine": "recorded", "name": "good", "rewrites": str(folder / "good.jsonl")}],
        "student": {"model": str(folder / "encoder"), "text": {"max_tokens": 64}},
        "index": {"name": "animals", "documents": {"kind": "lexical"}, "passages_per_segment": 7},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    Chain(load_config(str(path))).index()
    return path


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(lambda prompt, before: said(written(prompt))) as served:
        yield served


def synthesis(run_file: Path, url: str, **fields: Any) -> Path:
    # A model of its own a data set: what another one wrote is no answer of it.
    identity = fields.get("dataset", "made")
    tree = {
        "dataset": "made",
        "run": str(run_file),
        "llm": {"engine": "openai", "base_url": url, "model": MODEL, "identity": identity, "retries": 0},
        "conversations": 6,
        "turns": 3,
        "conversations_per_task": 2,
        "min_words": 5,
        "kinds": {"question": 1},
        **fields,
    }
    path = run_file.parent / f"{tree['dataset']}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def read(run_file: Path, dataset: str) -> ConversationSet:
    uri = str(run_file.parent / "root" / "datasets" / dataset / "train.json")
    return read_conversations(ConversationSource(conversations=uri, reader="prepared"), "mtrag", 0)


def test_what_is_written_can_be_trained_on(run_file: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    config = synthesis(run_file, endpoint.url)
    assert main(["synthesize", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "6 conversations with 18 turns" in shown
    assert "datasets/made/train.json" in shown
    found = read(run_file, "made")
    queries = list(found.queries())
    assert [query.query_id for query in queries[:3]] == ["made-0_1", "made-0_2", "made-0_3"]
    assert [query.depth for query in queries[:3]] == [1, 2, 3]
    for query in queries:
        ((passage_id, grade),) = found.qrels[query.query_id].items()
        assert grade == 1
        assert query.topic == passage_id
        assert passage_id.split("/")[0] in query.rewrite
        follows = bool(query.history) and query.history[-1].topic == passage_id
        assert (query.question == query.rewrite) is not follows
        assert all(turn.answer for turn in query.history)
    asked = len(endpoint.bodies)
    assert main(["synthesize", "--config", str(config)]) == 0
    assert len(endpoint.bodies) == asked


def test_more_conversations_cost_only_what_is_new(run_file: Path, endpoint: Endpoint) -> None:
    first = synthesis(run_file, endpoint.url, dataset="grown", topic_switch=0.0)
    assert main(["synthesize", "--config", str(first)]) == 0
    asked = [body["messages"][0]["content"] for body in endpoint.bodies]
    assert main(["synthesize", "--config", str(first), "conversations=8"]) == 0
    added = [body["messages"][0]["content"] for body in endpoint.bodies[len(asked) :]]
    assert added
    assert not set(added) & set(asked)


def test_turns_that_are_not_found_again_are_left_out_and_counted(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def vague(prompt: str, before: int) -> Any:
        text = written(prompt)
        return said("is it true that the animal does something?" if text.startswith("is it true that the moose") else text)

    with serving(vague) as endpoint:
        config = synthesis(run_file, endpoint.url, dataset="vague", conversations=18, turns=1, depth=3)
        assert main(["synthesize", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "15 conversations with 15 turns" in shown
    assert "not_found" in shown
    golds = {passage_id for grades in read(run_file, "vague").qrels.values() for passage_id in grades}
    assert not any(passage_id.startswith("moose") for passage_id in golds)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kinds": {"question": 0}}, "kinds: every weight is 0"),
        ({"kinds": {"riddle": 1}}, "riddle"),
        ({"turns": 0}, "turns"),
        ({"min_words": 5000}, "no passage of run animals has 5000 words; lower min_words"),
        ({"run": "/nowhere/run.yaml"}, "there is no configuration file /nowhere/run.yaml"),
    ],
)
def test_a_mistake_is_a_sentence(run_file, endpoint, capsys, fields, sentence):
    config = synthesis(run_file, endpoint.url, dataset="wrong", **fields)
    assert main(["synthesize", "--config", str(config)]) == 1
    assert sentence in capsys.readouterr().err
    assert endpoint.bodies == []


def test_settings_that_only_rewriting_has_are_refused(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = synthesis(run_file, "http://127.0.0.1:9/v1")
    assert main(["synthesize", "--config", str(config), "llm.history_turns=3"]) == 1
    assert "llm.history_turns is set, and only rewriting has it; leave it out" in capsys.readouterr().err


def test_a_model_that_answers_nothing_leaves_nothing_behind(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda prompt, before: status(500, "broken")) as broken:
        config = synthesis(run_file, broken.url, dataset="broken")
        assert main(["synthesize", "--config", str(config)]) == 1
    assert "llm could answer none of" in capsys.readouterr().err
    with serving(lambda prompt, before: said(written(prompt))) as mended:
        config = synthesis(run_file, mended.url, dataset="broken")
        assert main(["synthesize", "--config", str(config)]) == 0
    with serving(lambda prompt, before: said("I'm sorry, I cannot do that.")) as refusing:
        config = synthesis(run_file, refusing.url, dataset="refused")
        assert main(["synthesize", "--config", str(config)]) == 1
    assert "not one of 6 conversations came out (failed.question.refusal 6)" in capsys.readouterr().err
