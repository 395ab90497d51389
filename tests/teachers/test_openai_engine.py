"""The openai engine against real HTTP servers: good answers, bad ones, broken ones and none."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.errors import ConfigError, TeacherError
from raydistill.teachers.engine import EngineStoppedError, Failure, Generation, Sampling
from raydistill.teachers.openai_engine import OpenAiEngine, Patience, api_key_of, check_endpoint
from raydistill.teachers.openai_protocol import Api, TransientError, Wording, check_status, estimated_tokens
from raydistill.teachers.rate_limit import RateLimit
from tests.conftest import free_port
from tests.teachers.endpoint import KEY, MODEL, Endpoint, half, nothing, raw, said, serving, status

GREEDY = Sampling()


class VirtualClock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


def engine(url: str, api: Api = "chat", key: str | None = None, extra: dict[str, Any] | None = None, **patience: Any) -> Any:
    wording = Wording(MODEL, api, extra or {})
    return OpenAiEngine(url, wording, Patience(**patience), key, VirtualClock())


def echo(prompt: str, before: int) -> Any:
    return said(f"about {prompt}")


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_answers_come_in_the_order_of_the_prompts_with_their_counts(api: Api) -> None:
    with serving(echo) as endpoint:
        answers = engine(endpoint.url, api).generate(["a", "b", "c"], GREEDY)
    assert answers == [Generation(f"about {prompt}", 7, 3, "stop") for prompt in "abc"]


def test_a_request_says_model_prompt_sampling_and_the_further_fields() -> None:
    with serving(echo) as endpoint:
        engine(endpoint.url).generate(["hi"], Sampling(max_new_tokens=9))
        extra = {"max_tokens": None, "max_completion_tokens": 5, "user": "me"}
        engine(endpoint.url, extra=extra).generate(["hi"], Sampling(temperature=0.5, top_p=0.9, seed=4))
        OpenAiEngine(endpoint.url, Wording(MODEL, "completions", {}, stop_at_newline=True)).generate(["hi"], GREEDY)
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    assert endpoint.bodies == [
        {**chat, "max_tokens": 9, "temperature": 0},
        {**chat, "temperature": 0.5, "top_p": 0.9, "seed": 4, "max_completion_tokens": 5, "user": "me"},
        {"model": MODEL, "prompt": "hi", "max_tokens": 64, "temperature": 0, "stop": ["\n"]},
    ]


def test_requests_are_in_flight_together_and_never_more_than_allowed() -> None:
    arrived = asyncio.Event()

    async def wait_for_the_third(prompt: str) -> Any:
        if endpoint.in_flight == 3:
            arrived.set()
        await arrived.wait()
        await asyncio.sleep(0.01)
        return said(prompt)

    with serving(lambda prompt, before: wait_for_the_third(prompt)) as endpoint:
        answers = engine(endpoint.url, concurrency=3).generate([str(n) for n in range(12)], GREEDY)
    assert [answer.text for answer in answers] == [str(n) for n in range(12)]
    assert endpoint.most_in_flight == 3


@pytest.mark.parametrize(
    ("answer", "failure", "detail"),
    [
        (status(500, "boom"), Failure.SERVER_ERROR, "HTTP 500: boom (3 tries)"),
        (status(503), Failure.SERVER_ERROR, "HTTP 503 (3 tries)"),
        (status(429, "slow down"), Failure.SERVER_ERROR, "HTTP 429: slow down (3 tries)"),
        (raw(b"<html>no</html>"), Failure.UNREADABLE, "the answer is no JSON: '<html>no</html>' (3 tries)"),
        (raw(b""), Failure.UNREADABLE, "the answer is empty (3 tries)"),
        (raw(b'{"choices": []}'), Failure.UNREADABLE, "the answer has no choices: '{\"choices\": []}' (3 tries)"),
        (raw(b'{"choices": [{"message": {"content": 3}}]}'), Failure.UNREADABLE, "the answer's text is no text"),
        (half(reset=False), Failure.INCOMPLETE, "the connection ended in mid-answer"),
        (half(reset=True), Failure.INCOMPLETE, "the connection ended in mid-answer"),
        (nothing, Failure.TIMEOUT, "no answer within 0.4 s (3 tries)"),
    ],
    ids=["500", "503", "429", "garbage", "empty", "no choices", "no text", "half", "reset", "nothing"],
)
def test_a_prompt_that_always_fails_is_tried_again_and_fails_alone(answer: Any, failure: Failure, detail: str) -> None:
    with serving(lambda prompt, before: answer if prompt == "bad" else echo(prompt, before)) as endpoint:
        # Only the server that says nothing is waited for; the others answer at once, however loaded the machine is.
        patience = {"answer_timeout_s": 0.4 if answer is nothing else 60.0, "retries": 2}
        good, bad, other = engine(endpoint.url, **patience).generate(["good", "bad", "other"], GREEDY)
    assert (good.text, other.text) == ("about good", "about other")
    assert (bad.text, bad.finish_reason, bad.failure) == ("", "error", failure)
    assert bad.detail.startswith(detail)
    assert endpoint.asked("bad") == 3


@pytest.mark.parametrize("first", [status(500), status(429), raw(b"{"), half(False), half(True)])
def test_what_fails_in_passing_is_recovered(first: Any) -> None:
    with serving(lambda prompt, before: first if before < 2 else echo(prompt, before)) as endpoint:
        (answer,) = engine(endpoint.url, retries=2).generate(["x"], GREEDY)
    assert answer == Generation("about x", 7, 3, "stop")


def test_a_prompt_that_the_endpoint_cannot_take_is_not_asked_twice() -> None:
    long = status(400, "This model's maximum context length is 8 tokens.")
    with serving(lambda prompt, before: long if prompt == "long" else echo(prompt, before)) as endpoint:
        bad, good = engine(endpoint.url).generate(["long", "short"], GREEDY)
    assert (bad.failure, bad.detail) == (Failure.ENGINE_ERROR, "HTTP 400: This model's maximum context length is 8 tokens.")
    assert good.text == "about short"
    assert endpoint.asked("long") == 1


def test_refused_truncated_and_empty_answers_were_paid_for_and_say_what_they_are() -> None:
    answers = {
        "filter": said("", "content_filter"),
        "refusal": said(None, refusal="I'd rather not."),
        "long": said("and so", "length"),
        "empty": said(None),
    }
    with serving(lambda prompt, before: answers[prompt]) as endpoint:
        made = engine(endpoint.url).generate(list(answers), GREEDY)
    assert [(one.text, one.finish_reason, one.failure) for one in made] == [
        ("", "refusal", None),
        ("I'd rather not.", "refusal", None),
        ("and so", "length", None),
        ("", "stop", None),
    ]
    assert len(endpoint.bodies) == 4


def test_waits_double_with_jitter_and_retry_after_is_honoured_by_all() -> None:
    with serving(lambda prompt, before: status(500)) as endpoint:
        tested = engine(endpoint.url, retries=8)
        tested.generate(["x"], GREEDY)
    longest = [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(tested.clock.waits) == len(longest)
    assert all(most / 2 <= wait <= most for wait, most in zip(tested.clock.waits, longest, strict=True))
    assert tested.clock.waits != [most / 2 for most in longest]

    started: list[tuple[str, float]] = []

    def busy(prompt: str, before: int) -> Any:
        started.append((prompt, tested.clock.time))
        return status(429, headers={"Retry-After": "17"}) if len(started) == 1 else echo(prompt, before)

    with serving(busy) as endpoint:
        tested = engine(endpoint.url, concurrency=1)
        tested.generate(["x", "y"], GREEDY)
    assert started == [("x", 0), ("x", 17), ("y", 17)]


def test_requests_keep_to_the_limits_of_requests_and_tokens_a_minute() -> None:
    started: list[float] = []

    def note(prompt: str, before: int) -> Any:
        started.append(tested.clock.time)
        return said("x", tokens=(20, 10))

    with serving(note) as endpoint:
        tested = engine(endpoint.url, concurrency=1, requests_per_minute=30)
        tested.generate(["a", "b"], GREEDY)
        tested.generate(["c"], GREEDY)
        assert started == [0, 2, 4]
        started.clear()
        tested = engine(endpoint.url, concurrency=1, tokens_per_minute=60)
        tested.generate(["a", "b", "c"], GREEDY)
    # 30 tokens were used, whatever had been reserved: half of the minute's.
    assert started == [0, 30, 60]


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 300)), min_size=1, max_size=60), st.integers(1, 30))
def test_no_minute_starts_more_than_the_limits(asked: list[tuple[float, int]], requests: int) -> None:
    limit, now, tokens_per_minute = RateLimit(requests, 500), 0.0, 500
    starts: list[tuple[float, int]] = []
    for pause, tokens in asked:
        now += pause
        start = limit.reserve(now, tokens)
        assert start >= now
        starts.append((start, tokens))
    for n, (first, _) in enumerate(starts):
        within = [tokens for start, tokens in starts[n:] if start < first + 60 - 1e-6]
        assert len(within) <= requests
        # The last request may need more than what is left; what it takes too much, the next one waits for.
        assert sum(within[:-1]) <= tokens_per_minute


def test_wrong_key_model_or_address_stops_and_keeps_what_was_answered() -> None:
    for answer, detail in (
        (status(401, f"Incorrect API key provided: {KEY}"), r"HTTP 401: Incorrect API key provided: \*\*\*"),
        (status(404, "The model `tiny` does not exist"), "HTTP 404: The model `tiny` does not exist"),
        (status(429, "pay first", code="insufficient_quota"), "HTTP 429: pay first"),
        (status(308, headers={"Location": "http://elsewhere/v1"}), "HTTP 308: it sends on to 'http://elsewhere/v1'"),
    ):
        with serving(
            lambda prompt, before, answer=answer: echo(prompt, before) if prompt == "first" else answer
        ) as endpoint:
            tested = engine(endpoint.url, key=KEY, concurrency=1)
            with pytest.raises(EngineStoppedError, match=detail) as caught:
                tested.generate(["first", "second", "third"], GREEDY)
        first, second, third = caught.value.generations
        assert first.text == "about first"
        assert second.failure == third.failure == Failure.ENGINE_ERROR
        assert not endpoint.asked("third")
        assert KEY not in f"{caught.value} {caught.value.generations}"


def test_an_endpoint_that_fails_on_every_prompt_is_left_in_peace_after_a_while() -> None:
    with serving(lambda prompt, before: status(500)) as endpoint:
        tested = engine(endpoint.url, retries=1, concurrency=4)
        with pytest.raises(EngineStoppedError, match=r"HTTP 500: it failed on many prompts in a row; .* is kept"):
            tested.generate([str(n) for n in range(100)], GREEDY)
    assert 32 <= len(endpoint.bodies) <= 40


def test_nobody_at_the_address_is_a_failure_of_each_prompt() -> None:
    (answer,) = engine(f"http://127.0.0.1:{free_port()}/v1", retries=1).generate(["x"], GREEDY)
    assert answer.failure == Failure.SERVER_ERROR
    assert "the connection failed (ClientConnectorError" in answer.detail


def test_the_key_goes_into_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\n")
    with serving(echo) as endpoint:
        engine(endpoint.url, key=api_key_of("TEACHER_KEY", "teachers.t")).generate(["x"], GREEDY)
        engine(endpoint.url, key=api_key_of(None, "teachers.t")).generate(["x"], GREEDY)
    assert [headers.get("Authorization") for headers in endpoint.headers] == [f"Bearer {KEY}", None]
    assert KEY not in json.dumps(endpoint.bodies)
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ConfigError, match=r"teachers\.t\.api_key_env: the environment variable TEACHER_KEY is not set here"):
        api_key_of("TEACHER_KEY", "teachers.t")


def test_a_key_that_is_repeated_is_struck_out_even_where_the_message_is_cut() -> None:
    with serving(lambda prompt, before: status(400, "." * int(prompt) + KEY)) as endpoint:
        answers = engine(endpoint.url, key=KEY).generate([str(n) for n in (0, 270, 285, 290)], GREEDY)
    assert "***" in answers[0].detail
    assert not any("sk-" in answer.detail for answer in answers)


def test_a_server_that_asks_for_no_wait_is_given_time_all_the_same() -> None:
    with serving(lambda prompt, before: status(429, headers={"Retry-After": "0"})) as endpoint:
        tested = engine(endpoint.url, retries=4)
        tested.generate(["x"], GREEDY)
    assert [most / 2 <= wait <= most for wait, most in zip(tested.clock.waits, [1, 2, 4, 8], strict=True)] == [True] * 4


def test_an_endpoint_is_checked_before_a_run() -> None:
    with serving(echo) as endpoint:
        check_endpoint(endpoint.url, MODEL, KEY, "teachers.t")
        assert endpoint.headers[-1]["Authorization"] == f"Bearer {KEY}"
        with pytest.raises(ConfigError, match=r"teachers\.t\.model: http://127.* has no model 'other'; it has tiny$"):
            check_endpoint(endpoint.url, "other", None, "teachers.t")
        endpoint.models = status(401, "no key")
        with pytest.raises(ConfigError, match=r"teachers\.t\.api_key_env: .*/models refuses the key \(HTTP 401\)"):
            check_endpoint(endpoint.url, MODEL, None, "teachers.t")
        endpoint.models = status(404)
        check_endpoint(endpoint.url, MODEL, None, "teachers.t")
    with pytest.raises(ConfigError, match=r"teachers\.t\.base_url: nobody answers at http://127\.0\.0\.1:\d+/v1/models \("):
        check_endpoint(f"http://127.0.0.1:{free_port()}/v1", MODEL, None, "teachers.t")


def listing(api: Api, pairs: dict[str, float]) -> Any:
    if api == "completions":
        return {"choices": [{"text": "", "logprobs": {"top_logprobs": [pairs]}}]}
    top = [{"token": token, "logprob": value} for token, value in pairs.items()]
    return {"choices": [{"message": {"content": ""}, "logprobs": {"content": [{"top_logprobs": top}]}}]}


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_options_get_the_log_probabilities_that_the_endpoint_lists(api: Api) -> None:
    answers = {
        "both": listing(api, {"yes": math.log(0.5), " yes": math.log(0.25), "no": math.log(0.125), "x": -9.0}),
        "sure": listing(api, {"yes": math.log(0.9999), "Yes": -10.0, "x": -11.0}),
        "one": listing(api, {"yes": math.log(0.9)}),
        "rounded": listing(api, {"yes": 0.0, "Yes": -9999.0}),
        "none": listing(api, {"x": -0.1}),
        "untold": said("yes"),
        "broken": status(500),
    }
    with serving(lambda prompt, before: answers[prompt]) as endpoint:
        chosen = engine(endpoint.url, api, retries=0).choose(list(answers), ["yes", "no"])
    nan = math.nan
    # What is not listed has less than the least of the list and than the list leaves of 1.
    expected = [[math.log(0.75), math.log(0.125)], [math.log(0.9999), -11.0], [math.log(0.9), math.log(0.1)]]
    expected += [[0.0, math.log(1e-6)], [nan, nan], [nan, nan], [nan, nan]]
    np.testing.assert_allclose(chosen.log_probabilities, expected)
    absent = Failure.NO_LOG_PROBABILITIES
    assert chosen.log_probabilities[1, 1] < -11.0, "behind every listed token"
    assert chosen.failures == (None, None, None, None, absent, absent, Failure.SERVER_ERROR)
    asked = {"logprobs": True, "top_logprobs": 20} if api == "chat" else {"logprobs": 5}
    assert all(body["max_tokens"] == 1 and asked.items() <= body.items() for body in endpoint.bodies)


def test_choosing_stops_with_the_endpoint() -> None:
    with serving(lambda prompt, before: status(401, "no")) as endpoint, pytest.raises(TeacherError, match="HTTP 401: no"):
        engine(endpoint.url).choose(["x"], ["yes"])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12.0),
        ("0.5", 0.5),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("x", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    with pytest.raises(TransientError) as caught:
        check_status(429, {"Retry-After": value}, b"", now=100.0)
    assert caught.value.wait_s == seconds


def test_tokens_are_estimated_rather_too_high() -> None:
    assert estimated_tokens("") == 0
    assert estimated_tokens("what is it?") == 4
    assert estimated_tokens("塔") == 1


def test_the_engine_works_inside_a_running_event_loop() -> None:
    async def inside(endpoint: Endpoint) -> list[Generation]:
        made: list[Generation] = engine(endpoint.url).generate(["x"], GREEDY)
        return made

    with serving(echo) as endpoint:
        assert [one.text for one in asyncio.run(inside(endpoint))] == ["about x"]
