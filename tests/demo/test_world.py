"""The generated world: the same for a seed, another for another seed, and true to itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydistill.config import ConversationSource
from raydistill.conversations.passages import read_passages
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import Passage
from raydistill.demo.dialogue import Dialogue, Exchange, make_dialogues
from raydistill.demo.run import demo_config, prepare_demo
from raydistill.demo.world import World, WorldSize, generate, make_world

SMALL = WorldSize(entities=60, train_conversations=30, test_conversations=12)
FILES = ("corpus.jsonl", "conversations.jsonl", "qrels.tsv")


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(5, SMALL)


@pytest.fixture(scope="module")
def dialogues(world: World) -> tuple[Dialogue, ...]:
    return make_dialogues(world, SMALL)


def exchanges(dialogues: tuple[Dialogue, ...]) -> list[Exchange]:
    return [exchange for dialogue in dialogues for exchange in dialogue.exchanges]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        generate(11, tmp_path / name, SMALL)
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_another_seed_is_another_world(world: World) -> None:
    other = make_world(6, SMALL)
    names = {entity.name for entity in world.entities}
    shared = names & {entity.name for entity in other.entities}
    assert len(shared) < 0.1 * len(names)
    assert not {passage.text for passage in world.passages} & {passage.text for passage in other.passages}
    questions = {exchange.rewrite for exchange in exchanges(make_dialogues(world, SMALL))}
    others = {exchange.rewrite for exchange in exchanges(make_dialogues(other, SMALL))}
    assert len(questions & others) < 0.05 * len(questions)


def test_every_gold_passage_names_the_entity_and_states_the_answer(world: World) -> None:
    texts = {passage.passage_id: f"{passage.title}\n{passage.text}".lower() for passage in world.passages}
    assert world.gold
    for fact, passages in world.gold.items():
        name = world.entities[fact[0]].name.lower()
        assert passages
        for passage in passages:
            assert name in texts[passage]
            assert world.values[fact].lower() in texts[passage]


def test_self_contained_questions_and_answers_refer_to_the_gold_fact(world: World, dialogues: tuple[Dialogue, ...]) -> None:
    texts = {passage.passage_id: f"{passage.title}\n{passage.text}".lower() for passage in world.passages}
    names = sorted((entity.name.lower() for entity in world.entities), key=len, reverse=True)
    for exchange in exchanges(dialogues):
        asked = next(name for name in names if name in exchange.rewrite.lower())
        assert all(asked in texts[passage] for passage in exchange.gold)
        assert exchange.value.lower() in exchange.answer.lower()


def test_follow_up_questions_leave_the_name_out_and_need_the_history(world: World, dialogues: tuple[Dialogue, ...]) -> None:
    names = {entity.name.lower() for entity in world.entities}
    dependent = [
        (dialogue, depth)
        for dialogue in dialogues
        for depth, exchange in enumerate(dialogue.exchanges)
        if not any(name in exchange.question.lower() for name in names)
    ]
    assert len(dependent) > 0.4 * len(exchanges(dialogues))
    for dialogue, depth in dependent:
        said = " ".join(f"{past.question} {past.answer}" for past in dialogue.exchanges[:depth]).lower()
        entity = next(
            name for name in sorted(names, key=len, reverse=True) if name in dialogue.exchanges[depth].rewrite.lower()
        )
        assert entity in said


def test_unanswerable_turns_exist_and_have_no_judgement(world: World, tmp_path: Path) -> None:
    generate(world.seed, tmp_path, SMALL)
    unanswerable = {e.query_id for e in exchanges(make_dialogues(world, SMALL)) if not e.value}
    judged = {line.split("\t")[0] for line in (tmp_path / "qrels.tsv").read_text().splitlines()[1:]}
    turns = sum(len(json.loads(line)["turns"]) for line in (tmp_path / "conversations.jsonl").read_text().splitlines())
    assert unanswerable
    assert not unanswerable & judged
    assert len(unanswerable) + len(judged) == turns


def test_the_product_reads_the_files(tmp_path: Path) -> None:
    world = generate(5, tmp_path, SMALL)
    with (tmp_path / "corpus.jsonl").open("rb") as stream:
        passages = list(read_passages(stream, "corpus.jsonl", "jsonl"))
    assert [p.passage_id for p in passages if isinstance(p, Passage)] == [p.passage_id for p in world.passages]
    for split, count in (("train", SMALL.train_conversations), ("test", SMALL.test_conversations)):
        source = ConversationSource(
            conversations=str(tmp_path / "conversations.jsonl"), qrels=str(tmp_path / "qrels.tsv"), split=split
        )
        read = read_conversations(source, "mtrag", 0)
        assert len(read.conversations) == count
        assert all(4 <= len(conversation.turns) <= 9 for conversation in read.conversations)
        assert {passage for grades in read.qrels.values() for passage in grades} <= {p.passage_id for p in world.passages}


def test_the_moves_of_a_conversation_all_occur(dialogues: tuple[Dialogue, ...]) -> None:
    assert {"open", "stay", "follow", "return", "switch", "parallel"} == {e.move for e in exchanges(dialogues)}


def test_preparing_twice_leaves_the_files_alone_and_another_seed_replaces_them(tmp_path: Path) -> None:
    config = prepare_demo(tmp_path / "data", str(tmp_path / "root"), 3, SMALL)
    corpus = tmp_path / "data" / "corpus.jsonl"
    first, written = corpus.read_bytes(), corpus.stat().st_mtime_ns
    assert prepare_demo(tmp_path / "data", str(tmp_path / "root"), 3, SMALL) == config
    assert corpus.stat().st_mtime_ns == written
    prepare_demo(tmp_path / "data", str(tmp_path / "root"), 4, SMALL)
    assert corpus.read_bytes() != first


def test_the_configuration_points_at_the_data_and_at_the_shipped_models(tmp_path: Path) -> None:
    config = demo_config(tmp_path / "data", f"file://{tmp_path}/root", 3)
    assert config.data.corpus == (str(tmp_path / "data" / "corpus.jsonl"),)
    assert config.root == f"file://{tmp_path}/root"
    assert [teacher.engine for teacher in config.teachers] == ["transformers", "transformers"]
    assert config.student.model.startswith("package:raydistill/")
