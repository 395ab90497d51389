"""What a model is asked, within its budget, and what is made of what it writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.synthesis.wording import (
    answer_prompt,
    ask_prompt,
    follow_prompt,
    parse_answer,
    parse_message,
    parse_question,
)
from raydistill.teachers.engine import Failure

PASSAGE = " ".join(f"word{n}" for n in range(400))


def words(prompt: str) -> int:
    return len(prompt.split())


@given(st.integers(120, 600))
def test_a_passage_is_cut_to_the_budget_and_what_is_asked_is_not(budget: int) -> None:
    for prompt in (ask_prompt("keywords", PASSAGE, (), budget, words), answer_prompt("who?", PASSAGE, budget, words)):
        assert words(prompt) <= budget
        assert "word0 word1" in prompt
        assert budget < 500 or "word399" in prompt
    assert answer_prompt("who built the mill?", PASSAGE, budget, words).endswith("Question: who built the mill?\n")


def test_what_was_asked_of_a_passage_before_is_not_to_be_asked_again() -> None:
    assert "something else than" not in ask_prompt("question", "a b", (), 999, words)
    assert 'something else than these: "who?"; "when?"' in ask_prompt("question", "a b", ("who?", "when?"), 999, words)


def test_the_oldest_turns_give_way_to_the_budget_and_the_last_one_stays() -> None:
    history = [(f"q{n}", "long " * 50) for n in range(4)]
    prompt = follow_prompt("and then?", history, 180, words)
    assert "q3" in prompt
    assert "q0" not in prompt
    assert "q3" in follow_prompt("and then?", history, 1, words)


@pytest.mark.parametrize(
    ("raw", "text", "failure"),
    [
        ("Question: Who built the old mill?", "Who built the old mill?", None),
        ("<think>hm</think>\nold mill builder name", "old mill builder name", None),
        ("What does the passage say about mills?", "", Failure.CHATTY),
        ("I'm sorry, I cannot do that.", "", Failure.REFUSAL),
        ("mill", "", Failure.TOO_SHORT),
        ("", "", Failure.EMPTY),
    ],
)
def test_a_question_stands_alone(raw: str, text: str, failure: Failure | None) -> None:
    found = parse_question(raw, "stop")
    assert (found.text, found.failure) == (text, failure)


def test_a_message_may_be_a_single_word_and_an_answer_a_whole_paragraph() -> None:
    assert parse_message("why?", "Why was the mill built?", "stop").text == "why?"
    assert parse_message("", "Why was the mill built?", "stop").failure is Failure.EMPTY
    long = "It was built by monks. " * 20
    assert parse_answer(long, "stop").text == long.strip()
    assert parse_answer("It was bui", "length").failure is Failure.TRUNCATED
    assert parse_answer("I cannot answer that.", "stop").failure is Failure.REFUSAL
    assert parse_answer(" \n ", "stop").failure is Failure.EMPTY
