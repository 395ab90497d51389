"""The OpenAI protocol as pure functions: bodies of requests, and what answers and errors mean. Sending lives in
`openai_engine`."""

from __future__ import annotations

import email.utils
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raydistill.teachers.engine import Failure, Generation, Sampling

Api = Literal["chat", "completions"]
PATHS: dict[Api, str] = {"chat": "chat/completions", "completions": "completions"}
# The most that the API itself allows.
_TOP_LOG_PROBABILITIES: dict[Api, int] = {"chat": 20, "completions": 5}
_DETAIL_LENGTH = 300
_ROUNDED_PROBABILITY = 1e-6
"""What may be lost of 1 in the sum of a server's rounded probabilities."""
_NO_VALUE = -100.0
"""Some servers write -9999 and the like for a probability of 0."""
_TRY_AGAIN = frozenset({408, 409, 425, 429})
_WRONG_SETTINGS = frozenset({401, 402, 403, 404, 405})


class TransientError(Exception):
    """An answer that another try may better. `wait_s` is what the server asked for, None when it did not say."""

    def __init__(self, failure: Failure, detail: str, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.failure, self.wait_s = failure, wait_s


class PromptError(Exception):
    """The endpoint cannot take this prompt; others it can."""


class EndpointError(Exception):
    """The endpoint will answer nothing: wrong key, model, address, or no money left."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How requests are worded, the same for all of them.

    Attributes:
        extra_body: further fields of every body; null leaves a field out.
        stop_at_newline: ask for one line (completions only: a chat model may begin with an empty one).
    """

    model: str
    api: Api
    extra_body: Mapping[str, Any]
    stop_at_newline: bool = False

    def generation_body(self, prompt: str, sampling: Sampling) -> dict[str, Any]:
        """Return the body of a request for a text."""
        body = self._body(prompt, sampling.max_new_tokens, sampling.temperature)
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.temperature > 0:
            body["seed"] = sampling.seed
        if self.stop_at_newline and self.api == "completions":
            body["stop"] = ["\n"]
        return self._extended(body)

    def choice_body(self, prompt: str) -> dict[str, Any]:
        """Return the body of a request for the log-probabilities of the next token."""
        body, number = self._body(prompt, 1, 0.0), _TOP_LOG_PROBABILITIES[self.api]
        if self.api == "chat":
            return self._extended({**body, "logprobs": True, "top_logprobs": number})
        return self._extended({**body, "logprobs": number})

    def _body(self, prompt: str, max_tokens: int, temperature: float) -> dict[str, Any]:
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.api == "chat" else {"prompt": prompt}
        return {"model": self.model, **asked, "max_tokens": max_tokens, "temperature": temperature}

    def _extended(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**body, **self.extra_body}.items() if value is not None}


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has, rather too many: one every 3 bytes (English has 4 to 5 bytes a token)."""
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / 3)


def check_status(status: int, headers: Mapping[str, str], content: bytes, now: float) -> None:
    """Return for a success; else raise TransientError, PromptError or EndpointError.

    Args:
        now: Unix time in seconds, for a Retry-After that is a date.
    """
    if 200 <= status < 300:
        return
    code, message = _error_of(content)
    detail = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    if 300 <= status < 400:
        raise EndpointError(f"{detail}: it sends on to {headers.get('Location', 'another place')!r}; set base_url to that")
    if status in _WRONG_SETTINGS or code == "insufficient_quota":
        raise EndpointError(detail)
    if status in _TRY_AGAIN or status >= 500:
        raise TransientError(Failure.SERVER_ERROR, detail, _retry_after(headers.get("Retry-After", ""), now))
    raise PromptError(detail)


def generation_of(content: bytes, api: Api) -> Generation:
    """Return the Generation that an answer holds. Raises TransientError when it holds none."""
    body, choice = _choice(content)
    message = choice.get("message") if api == "chat" else choice
    if not isinstance(message, dict):
        raise _unreadable("the answer has no message", content)
    text, refusal = message.get("content" if api == "chat" else "text"), message.get("refusal")
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise _unreadable("the answer's text is no text", content)
    reason = choice.get("finish_reason")
    finish = "refusal" if refusal or reason == "content_filter" else "length" if reason == "length" else "stop"
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Generation(refusal or text or "", _count(counts, "prompt_tokens"), _count(counts, "completion_tokens"), finish)


def choices_of(content: bytes, api: Api, options: Sequence[str]) -> list[float] | None:
    """Return the log-probability of each option as the next token, or None when the server lists none of them. Tokens that
    differ from an option by white space alone count as the option.

    An option that is not listed gets the most that it can have: less than the least likely listed token, and than what the
    listed ones leave of 1. A model that is sure lists variants of one answer, and that the other is missing is the answer.

    Raises TransientError when the answer cannot be read.
    """
    _, choice = _choice(content)
    try:
        given = choice["logprobs"]["content"][0]["top_logprobs"] if api == "chat" else choice["logprobs"]["top_logprobs"][0]
        pairs = [(one["token"], one["logprob"]) for one in given] if api == "chat" else list(given.items())
        listed = [(str(token).strip(), float(value)) for token, value in pairs]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    found = [[value for token, value in listed if token == option.strip()] for option in options]
    if not any(found):
        return None
    bound = _unlisted([value for _, value in listed])
    return [_log_sum(values) if values else bound for values in found]


def model_names(content: bytes) -> list[str]:
    """Return the ids that an answer of `/models` lists; none when it is no such list."""
    try:
        return [str(one["id"]) for one in json.loads(content)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _choice(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        body = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise _unreadable("the answer is no JSON" if content else "the answer is empty", content) from None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _unreadable("the answer has no choices", content)
    return body, choices[0]


def _unreadable(reason: str, content: bytes) -> TransientError:
    begin = _shortened(content.decode("utf-8", "replace"))
    return TransientError(Failure.UNREADABLE, f"{reason}: {begin!r}" if begin else reason)


def _error_of(content: bytes) -> tuple[str, str]:
    """Return (code, message) of an error's body; the message is the body itself where it has another form."""
    text = content.decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except ValueError:
        return "", _shortened(text)
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", _shortened(str(error))
    message = error.get("message") or error.get("detail") or text
    return str(error.get("code") or error.get("type") or ""), _shortened(str(message))


def _retry_after(value: str, now: float) -> float | None:
    """Return how many seconds a Retry-After header asks for: a number, or a date."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def _unlisted(listed: Sequence[float]) -> float:
    """Return a bound on the log-probability of a token that a server does not list beside these."""
    left = max(1.0 - sum(math.exp(min(value, 0.0)) for value in listed), _ROUNDED_PROBABILITY)
    least = min((value for value in listed if value > _NO_VALUE), default=0.0)
    return math.nextafter(min(least, math.log(left)), -math.inf)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top if math.isinf(top) else top + math.log(sum(math.exp(value - top) for value in values))


def _shortened(text: str) -> str:
    return " ".join(text.split())[:_DETAIL_LENGTH]
