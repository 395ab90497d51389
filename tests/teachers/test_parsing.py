"""What language models really return for a rewrite, and what is made of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config import ConversationSource
from raydistill.conversations.readers import read_conversations
from raydistill.teachers.engine import Failure
from raydistill.teachers.parsing import ParsedRewrite, parse_rewrite

QUESTION = "And when was it built?"
REWRITE = "When was the Eiffel Tower built?"


@pytest.mark.parametrize(
    "raw",
    [
        REWRITE,
        f"\n\n  {REWRITE}  \nIt was built in 1889.",
        f'"{REWRITE}"',
        f"“{REWRITE}”",
        f'"{REWRITE}',
        f"Rewrite: {REWRITE}",
        f"**Rewritten question:** {REWRITE}",
        f"Sure! Here is the rewritten question:\n\n{REWRITE}",
        f"Here's the standalone query: '{REWRITE}'",
        f"User's question in standalone form: {REWRITE}",
        f"- {REWRITE}",
        f"```\n{REWRITE}\n```",
        f"<think>The user means the Eiffel Tower.\n</think>\n{REWRITE}",
        f"{REWRITE} (Note: I assume that the Eiffel Tower is meant here.)",
        f"{REWRITE} This query is unrelated to the other topics.",
        f'The conversation is about Paris. Therefore, the standalone query would be: "{REWRITE}"',
    ],
)
def test_the_query_is_found(raw: str) -> None:
    parsed = parse_rewrite(raw, QUESTION)
    assert (parsed.text, parsed.failure) == (REWRITE, None)


@pytest.mark.parametrize(
    "query",
    [
        'Who sang "Hello, Goodbye"?',
        "What is the time signature 3:4 called in music?",
        "What happens when the user has the Manager role for a key?",
        "Considering the conversation about Rome, who founded Ostia?",
        "Which query languages does SQL: The Complete Reference cover?",
        "埃菲尔铁塔是什么时候建造的",
        "user experience design principles for mobile applications",
    ],
)
def test_real_queries_are_left_alone(query: str) -> None:
    assert parse_rewrite(query, QUESTION).text == query


@pytest.mark.parametrize(
    ("raw", "failure"),
    [
        ("", Failure.EMPTY),
        (" \n\t\n", Failure.EMPTY),
        ("Eiffel Tower", Failure.TOO_SHORT),
        ("I'm sorry, but I cannot help with that request.", Failure.REFUSAL),
        ("The conversation does not provide enough context to say what is meant.", Failure.REFUSAL),
        ("Here is the rewritten question:", Failure.CHATTY),
        ("The user is asking about the age of a tower.", Failure.CHATTY),
        ("To find out when it was built, follow these steps:", Failure.CHATTY),
        ("The tower was built " + "in the year 1889 " * 12, Failure.CHATTY),
    ],
)
def test_failures_are_typed(raw: str, failure: Failure) -> None:
    parsed = parse_rewrite(raw, QUESTION)
    assert (parsed.text, parsed.failure) == ("", failure)


def test_a_line_cut_by_the_limit_is_truncated_but_a_finished_line_is_not() -> None:
    assert parse_rewrite("When was the Eiffel", QUESTION, "length").failure is Failure.TRUNCATED
    assert parse_rewrite(f"{REWRITE}\nAnd the second", QUESTION, "length").text == REWRITE


@pytest.mark.parametrize("question", ["Clusters", "Thank you!", "I cannot sleep, why?", "The user is asking what?"])
def test_repeating_the_question_is_no_failure_however_short_or_odd(question: str) -> None:
    assert parse_rewrite(question, question).failure is None
    assert parse_rewrite(f'"{question.lower()}"', question).failure is None


@given(st.text(max_size=300), st.text(max_size=60), st.sampled_from(["stop", "length"]))
def test_any_text_gives_one_clean_line_or_a_failure(raw: str, question: str, finish_reason: str) -> None:
    parsed = parse_rewrite(raw, question, finish_reason)
    assert bool(parsed.text) == (parsed.failure is None)
    assert parsed.text == " ".join(parsed.text.split())


@pytest.mark.parametrize("piece", ["query: ", " ", "\n", '"', "(a b c d e f ? ", "<think>", "what? The query is "])
def test_an_endless_answer_is_parsed_in_no_time(piece: str) -> None:
    started = time.monotonic()
    parse_rewrite("x" + piece * 50_000 + "x", QUESTION)
    assert time.monotonic() - started < 5


@given(st.lists(st.sampled_from(["when", "was", "the", "tower", "built", "Paris"]), min_size=3, max_size=30))
def test_parsing_a_parsed_query_again_changes_nothing(words: list[str]) -> None:
    query = parse_rewrite(f'Rewrite: "{" ".join(words)}?"', QUESTION).text
    assert parse_rewrite(query, QUESTION).text == query


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("domain", "teacher", "expected"),
    [
        ("clapnq", "mixtral", {"chatty": 8, "refusal": 1}),
        ("clapnq", "sonnet", {}),
        ("cloud", "mixtral", {"chatty": 4, "refusal": 1}),
        ("cloud", "sonnet_targeted", {}),
        ("govt", "mixtral", {"chatty": 11, "refusal": 1}),
        ("govt", "sonnet", {"refusal": 1}),
        ("govt", "mtrag_official", {}),
    ],
)
def test_failures_in_real_rewrites(shared_data: Path, domain: str, teacher: str, expected: dict[str, int]) -> None:
    folder = shared_data / "mtrag" / domain
    source = ConversationSource(conversations=str(folder / "conversations.jsonl"))
    questions = {query.query_id: query.question for query in read_conversations(source, "mtrag", 0).queries()}
    lines = (folder / "rewrites" / f"{teacher}.jsonl").read_text().splitlines()
    parsed = [parse_rewrite(record["text"], questions[record["_id"]]) for record in map(json.loads, lines)]
    assert Counter(one.failure.value for one in parsed if one.failure) == expected


@pytest.mark.parametrize(
    "raw",
    [
        f"It stands for the Eiffel Tower.\nQuery: {REWRITE}",
        f"It stands for the Eiffel Tower.\n\n**Query:** {REWRITE}\n\nThat is all.",
        f"The query: should name the tower.\nquery: And it?\nQuery: {REWRITE}",
        f"Thoughts.\n- Query:\n{REWRITE}",
        f"<think>Query: no</think>\nQuery: {REWRITE}",
    ],
)
def test_behind_thoughts_the_query_is_on_the_last_marked_line(raw: str) -> None:
    assert parse_rewrite(raw, QUESTION, marker="Query:") == ParsedRewrite(REWRITE, None)


@pytest.mark.parametrize(
    ("raw", "finish_reason", "failure"),
    [
        ("It stands for the Eiffel", "length", Failure.TRUNCATED),
        (f"It stands for the Eiffel Tower.\nQuery: {REWRITE[:12]}", "length", Failure.TRUNCATED),
        ("It stands for the Eiffel Tower.", "stop", Failure.CHATTY),
        ("I cannot rewrite this.", "stop", Failure.REFUSAL),
        ("Thoughts.\nQuery:", "stop", Failure.EMPTY),
        ("", "stop", Failure.EMPTY),
    ],
)
def test_thoughts_without_a_query_are_a_typed_failure(raw: str, finish_reason: str, failure: Failure) -> None:
    assert parse_rewrite(raw, QUESTION, finish_reason, "Query:") == ParsedRewrite("", failure)


def test_what_the_server_calls_a_refusal_is_one() -> None:
    assert parse_rewrite(REWRITE, QUESTION, "refusal") == ParsedRewrite("", Failure.REFUSAL)
