"""Conversations written turn by turn by a model that writes by rule: what follows what, and what ends a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from raydistill.conversations.records import Passage
from raydistill.synthesis.planning import Plan, PlannedTurn
from raydistill.synthesis.writing import ConversationWriter
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engine import Sampling
from tests.synthesis.scripted import Scripted, Words, written

PASSAGES = {
    each.passage_id: each
    for each in (
        Passage("otter/food", "the otter eats fish and small roots", "otter"),
        Passage("lynx/home", "the lynx lives in the forest near water", "lynx"),
    )
}
PLAN = Plan(
    7,
    (PlannedTurn(0, "question"), PlannedTurn(0, "keywords"), PlannedTurn(1, "question")),
    ("otter/food", "lynx/home"),
)


class FoundAt:
    """Finds a passage where a function says."""

    def __init__(self, rank: Callable[[str], int | None]) -> None:
        self._rank = rank

    def ranks(self, queries: Sequence[str], passage_ids: Sequence[str]) -> list[int | None]:
        return [self._rank(passage_id) for passage_id in passage_ids]


def writer(tmp_path: Path, engine: Scripted, rank: Callable[[str], int | None] | None = None) -> ConversationWriter:
    cache = GenerationCache(str(tmp_path), EngineIdentity("scripted", ""))
    finder = FoundAt(rank) if rank is not None else None
    return ConversationWriter(engine, Words(), 500, cache, Sampling(), finder)


def test_turns_follow_each_other_within_a_topic_and_begin_anew_at_another(tmp_path: Path) -> None:
    writing = writer(tmp_path, Scripted(), lambda passage_id: 3)
    (turns,) = writing.write([PLAN], PASSAGES)
    assert [turn.standalone for turn in turns] == [
        "is it true that the otter eats fish and small roots?",
        "otter eats fish and small roots",
        "is it true that the lynx lives in the forest near water?",
    ]
    assert [turn.passage_id for turn in turns] == ["otter/food", "otter/food", "lynx/home"]
    # The first turn of a topic is said in full; the keywords have nothing to leave out.
    assert [turn.message for turn in turns] == [turn.standalone for turn in turns]
    assert [turn.answer for turn in turns] == ["it eats fish and small roots", "it eats fish and small roots", ""]
    assert [turn.rank for turn in turns] == [3, 3, 3]
    assert writing.counters["turns"] == 3
    assert writing.counters["conversations"] == 1


def test_within_a_topic_the_user_leaves_out_what_is_clear(tmp_path: Path) -> None:
    plan = Plan(0, (PlannedTurn(0, "question"),) * 2, ("otter/food",))
    engine = Scripted()
    (turns,) = writer(tmp_path, engine).write([plan], PASSAGES)
    assert turns[1].standalone == "is it true that the otter eats fish and small roots?"
    assert turns[1].message == "is it true that it eats fish and small roots?"
    follow = next(prompt for prompt in engine.prompts if "wants to know" in prompt)
    assert f"user: {turns[0].message}\nsystem: {turns[0].answer}\n" in follow
    assert any('something else than these: "is it true' in prompt for prompt in engine.prompts)
    assert [turn.rank for turn in turns] == [0, 0]


def test_a_turn_whose_passage_is_not_found_ends_the_conversation(tmp_path: Path) -> None:
    writing = writer(tmp_path, Scripted(), lambda passage_id: None if passage_id == "lynx/home" else 1)
    (turns,) = writing.write([PLAN], PASSAGES)
    assert len(turns) == 2
    assert writing.counters["not_found"] == 1


def test_what_the_model_does_not_write_ends_or_is_said_in_full(tmp_path: Path) -> None:
    def refuses(request: str) -> Callable[[str], str]:
        return lambda prompt: "I'm sorry, I cannot do that." if request in prompt else written(prompt)

    plan = Plan(0, (PlannedTurn(0, "question"),) * 2, ("otter/food",))
    for request, turns, counter in (
        ("Write one question", 0, "failed.question.refusal"),
        ("Question:", 1, "failed.answer.refusal"),
        ("wants to know", 2, "failed.message.refusal"),
    ):
        writing = writer(tmp_path / request, Scripted(refuses(request)))
        (found,) = writing.write([plan], PASSAGES)
        assert len(found) == turns
        assert writing.counters[counter] == 1
    assert found[1].message == found[1].standalone


def test_nothing_is_paid_twice_and_one_conversation_does_not_touch_another(tmp_path: Path) -> None:
    other = Plan(8, (PlannedTurn(0, "question"),), ("lynx/home",))
    together = writer(tmp_path / "a", Scripted()).write([PLAN, other], PASSAGES)
    again = Scripted()
    writing = writer(tmp_path / "a", again)
    assert writing.write([other], PASSAGES) == together[1:]
    assert writing.write([PLAN], PASSAGES) == together[:1]
    assert again.prompts == []
    assert writing.counters["cached"] == writing.counters["prompts"]
    assert writing.write([], PASSAGES) == []
