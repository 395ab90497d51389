"""What a document encoder may learn from: sentences of passages, recorded scores of training turns, and no test turn."""

from __future__ import annotations

import pytest

from raydistill.conversations.records import Conversation, ConversationSet, Passage, Turn
from raydistill.distill.document_examples import chosen_share, own_queries, own_query, recorded_queries, training_turns
from raydistill.errors import DataError


def conversations(*ids: str, turns: int = 3) -> ConversationSet:
    found = tuple(
        Conversation(
            name, tuple(Turn(f"{name}<::>{n}", n, f"question {n} of {name}", "an answer") for n in range(1, turns + 1))
        )
        for name in ids
    )
    return ConversationSet(found, {}, "0" * 64)


def test_a_conversation_that_is_measured_on_is_refused() -> None:
    with pytest.raises(DataError, match=r"conversation 'b' is in data\.train and in data\.test"):
        training_turns(conversations("a", "b"), {"data.test": conversations("b", "c")}, {"a<::>1"})
    with pytest.raises(DataError, match=r"in data\.validation"):
        training_turns(conversations("a"), {"data.test": conversations("c"), "data.validation": conversations("a")}, ())


def test_a_single_shared_turn_is_refused_too() -> None:
    borrowed = Conversation("z", (Turn("a<::>2", 1, "question", ""),))
    with pytest.raises(DataError, match=r"turn 'a<::>2' is in data\.train and in data\.test"):
        training_turns(conversations("a"), {"data.test": ConversationSet((borrowed,), {}, "0" * 64)}, ())


def test_recorded_scores_of_other_turns_are_never_read() -> None:
    rankings = {"a<::>2": (("p1", 3.0), ("p2", 1.0)), "b<::>1": (("p9", 8.0),)}
    turns = training_turns(conversations("a"), {"data.test": conversations("b")}, rankings)
    found = recorded_queries(turns, {"a<::>2": ["p2"]}, rankings, "last_turn", {})
    assert [(one.query_id, one.text, one.gold, one.scores) for one in found] == [
        ("a<::>2", "question 2 of a", ("p2",), {"p1": 3.0, "p2": 1.0})
    ]


def test_conversations_that_no_run_knows_change_nothing_for_documents() -> None:
    recorded = {"a<::>1", "a<::>3", "b<::>1"}
    alone = training_turns(conversations("a"), {"data.test": conversations("b")}, recorded)
    assert [turn.query_id for turn in alone] == ["a<::>1", "a<::>3"]
    assert training_turns(conversations("x", "a", "y"), {"data.test": conversations("b")}, recorded) == alone


def test_a_run_is_read_with_the_text_it_was_made_with() -> None:
    turns = list(conversations("a").queries())
    rankings = {turn.query_id: (("p1", 1.0),) for turn in turns}
    by_form = {
        form: [one.text for one in recorded_queries(turns, {}, rankings, form, {"a<::>3": "rewritten", "a<::>1": ""})]
        for form in ("last_turn", "user_turns", "rewrites")
    }
    assert by_form["last_turn"] == [f"question {n} of a" for n in (1, 2, 3)]
    assert by_form["user_turns"][2] == "question 3 of a\nquestion 2 of a\nquestion 1 of a"
    assert by_form["rewrites"] == ["rewritten"]


def test_a_passage_asks_with_one_of_its_own_sentences() -> None:
    passage = Passage("p", "Lizards. The tuatara lives on islands of New Zealand. It grows very slowly indeed!", "Lizards")
    asked = {own_query(passage, seed) for seed in range(40)}
    sentences = {"The tuatara lives on islands of New Zealand.", "It grows very slowly indeed!"}
    assert asked == sentences | {f"Lizards {sentence}" for sentence in sentences}


def test_a_passage_without_a_sentence_asks_nothing() -> None:
    assert own_query(Passage("p", "Two words. And three more."), 0) is None


def test_which_passages_ask_depends_on_id_and_seed_only() -> None:
    passages = [Passage(f"p{n}", f"This is sentence number {n} of many.") for n in range(2000)]
    chosen = [position for position, _ in own_queries(iter(passages), 0.25, 3)]
    assert 400 < len(chosen) < 600
    later = [1000 + position for position, _ in own_queries(iter(passages[1000:]), 0.25, 3)]
    assert [position for position in chosen if position >= 1000] == later
    assert chosen != [position for position, _ in own_queries(iter(passages), 0.25, 4)]
    assert all(0 <= chosen_share(passage.passage_id, 3) < 1 for passage in passages)
