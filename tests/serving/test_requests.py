"""What a client may ask: every mistake is a status and a sentence, and nothing is guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config import HttpConfig
from raydistill.serving.requests import Asked, RequestError, explain_request, search_request

LIMITS = HttpConfig(body_bytes=5000, utterances=5, utterance_characters=100, k=20)
words = st.text(min_size=1, max_size=20).filter(str.strip)


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@given(words, st.lists(st.tuples(words, st.text(max_size=20)), max_size=2), st.integers(1, 20), st.booleans())
def test_turns_and_utterances_say_the_same(question, before, k, text):
    turns = [{"question": asked, "answer": answered} for asked, answered in before]
    utterances = [each for pair in before for each in pair]
    expected = Asked(question, tuple(before))
    for conversation in ([*turns, {"question": question}], [*utterances, question]):
        request = search_request(body(conversation=conversation, k=k, text=text), LIMITS)
        assert (request.asked, request.k, request.text) == (expected, k, text)
        assert explain_request(body(conversation=conversation, passage_id="p"), LIMITS).asked == expected


def test_what_is_left_out_has_defaults():
    request = search_request(body(conversation=["where?"]), LIMITS)
    assert (request.k, request.text, request.asked.history) == (10, True, ())


@pytest.mark.parametrize(
    ("content", "status", "code", "sentence"),
    [
        (b"{", 400, "malformed_json", "the body is not JSON (EOF"),
        (b"\xff", 400, "malformed_json", "the body is not JSON"),
        (b"", 400, "malformed_json", "the body is not JSON"),
        (b"[]", 422, "invalid_body", "the body must be a JSON object"),
        (b"x" * 5001, 413, "body_too_large", "more than 5000 bytes"),
        (body(k=3), 422, "invalid_field", "conversation: field required"),
        (body(conversation=[]), 422, "empty_conversation", "without a question"),
        (body(conversation=["where?", "there", " \n"]), 422, "empty_conversation", "without a question"),
        (body(conversation=[{"question": ""}]), 422, "empty_conversation", "without a question"),
        (body(conversation=["where?", "there"]), 422, "answered_conversation", "the user speaks first and last"),
        (body(conversation=[{"question": "a", "answer": "b"}]), 422, "answered_conversation", "has an answer already"),
        (body(conversation="where?"), 422, "invalid_conversation", "conversation must be a list of"),
        (body(conversation=["where?", 3, "a"]), 422, "invalid_conversation", "conversation must be a list of"),
        (body(conversation=["where?", {"question": "a"}]), 422, "invalid_conversation", "conversation must be a list of"),
        (body(conversation=[{"questoin": "a"}]), 422, "invalid_conversation", "conversation must be a list of"),
        (body(conversation=["a"] * 7), 422, "long_conversation", "has 7 utterances; send at most 5"),
        (body(conversation=["a" * 101]), 422, "long_utterance", "has 101 characters; send at most 100"),
        (body(conversation=["a"], k=0), 422, "k_out_of_range", "k is 0; ask for 1 to 20 passages"),
        (body(conversation=["a"], k=21), 422, "k_out_of_range", "k is 21"),
        (body(conversation=["a"], k="10"), 422, "invalid_field", "k: input should be a valid integer"),
        (body(conversation=["a"], k=1.5), 422, "invalid_field", "k: "),
        (body(conversation=["a"], top=5), 422, "unknown_field", "top: there is no such field"),
    ],
)
def test_every_mistake_has_a_status_a_code_and_a_sentence(content, status, code, sentence):
    with pytest.raises(RequestError) as caught:
        search_request(content, LIMITS)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert sentence in str(caught.value)
    assert caught.value.to_json()["error"]["message"] == str(caught.value)


def test_an_explanation_needs_a_passage():
    with pytest.raises(RequestError, match="passage_id: field required"):
        explain_request(body(conversation=["a"]), LIMITS)
    with pytest.raises(RequestError, match="passage_id: string should have at least 1 character"):
        explain_request(body(conversation=["a"], passage_id=""), LIMITS)


@given(st.binary(max_size=200))
def test_no_body_raises_anything_else(content):
    with pytest.raises(RequestError):
        search_request(content, LIMITS)
