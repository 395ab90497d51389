"""What a client may ask, checked: bodies become requests, or a problem with a status and a sentence. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raydistill.config import HttpConfig
from raydistill.errors import RaydistillError


class RequestError(RaydistillError):
    """A request that cannot be answered.

    Attributes:
        status: HTTP status.
        code: the kind of problem in one word, stable for programs.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def to_json(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": {"code": self.code, "message": str(self)}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation that waits for passages: the last question, and (question, answer) pairs before it, oldest first."""

    question: str
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """k passages for a conversation, with their texts or without; `rerank` false leaves out a second stage."""

    asked: Asked
    k: int
    text: bool
    rerank: bool


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """Why a passage has its score for a conversation."""

    asked: Asked
    passage_id: str


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """A conversation, or a turn of the run by its id, to be looked at with k passages."""

    asked: Asked | None
    query_id: str | None
    k: int


class _TurnBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    answer: str = ""


class _ConversationBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    conversation: list[_TurnBody] | list[str]


class _SearchBody(_ConversationBody):
    k: int = 10
    text: bool = True
    rerank: bool = True


class _ExplainBody(_ConversationBody):
    passage_id: str = Field(min_length=1)


class _InspectBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    conversation: list[_TurnBody] | list[str] | None = None
    query_id: str | None = None
    k: int = 5


def search_request(body: bytes, limits: HttpConfig) -> SearchRequest:
    """Return the request that the body of a POST to /search makes. Raises RequestError, 400, 413 or 422."""
    parsed = _parsed(_SearchBody, body, limits)
    if not 1 <= parsed.k <= limits.k:
        raise RequestError(422, "k_out_of_range", f"k is {parsed.k}; ask for 1 to {limits.k} passages")
    return SearchRequest(_asked(parsed.conversation, limits), parsed.k, parsed.text, parsed.rerank)


def explain_request(body: bytes, limits: HttpConfig) -> ExplainRequest:
    """Return the request that the body of a POST to /explain makes. Raises RequestError, 400, 413 or 422."""
    parsed = _parsed(_ExplainBody, body, limits)
    return ExplainRequest(_asked(parsed.conversation, limits), parsed.passage_id)


def inspect_request(body: bytes, limits: HttpConfig, k: int) -> InspectRequest:
    """Return the request that the body of a POST to /inspect makes, for at most k passages. Raises as `search_request`."""
    parsed = _parsed(_InspectBody, body, limits)
    if (parsed.conversation is None) == (parsed.query_id is None):
        raise RequestError(422, "invalid_body", "send either a conversation or the query_id of a turn of the run")
    if not 1 <= parsed.k <= k:
        raise RequestError(422, "k_out_of_range", f"k is {parsed.k}; ask for 1 to {k} passages")
    asked = None if parsed.conversation is None else _asked(parsed.conversation, limits)
    return InspectRequest(asked, parsed.query_id, parsed.k)


def too_large(limits: HttpConfig) -> RequestError:
    """Return the problem of a body above the limit."""
    return RequestError(413, "body_too_large", f"the body has more than {limits.body_bytes} bytes; send less")


def _parsed(kind: Any, body: bytes, limits: HttpConfig) -> Any:
    if len(body) > limits.body_bytes:
        raise too_large(limits)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _problem(error) from None


def _problem(error: ValidationError) -> RequestError:
    problems = error.errors(include_url=False, include_input=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return RequestError(400, "malformed_json", f"the body is not JSON ({reason}); send one JSON object")
    place = [str(part) for part in first["loc"] if not str(part).startswith("list[")]
    field = ".".join(place)
    if not field:
        return RequestError(422, "invalid_body", 'the body must be a JSON object, such as {"conversation": ["…"], "k": 10}')
    if place[0] == "conversation" and not (first["type"] == "missing" and len(first["loc"]) == 1):
        form = 'a list of {"question", "answer"} turns, or of utterances that take turns, the user first'
        return RequestError(422, "invalid_conversation", f"conversation must be {form}")
    if first["type"] == "extra_forbidden":
        return RequestError(422, "unknown_field", f"{field}: there is no such field; leave it out")
    return RequestError(422, "invalid_field", f"{field}: {first['msg'][0].lower()}{first['msg'][1:]}")


def _asked(conversation: list[_TurnBody] | list[str], limits: HttpConfig) -> Asked:
    """Return the last question and what came before it."""
    utterances: list[str] = []
    for entry in conversation:
        utterances += [entry] if isinstance(entry, str) else [entry.question, entry.answer]
    if conversation and not isinstance(conversation[-1], str) and not utterances.pop() == "":
        raise RequestError(
            422, "answered_conversation", "the last turn has an answer already; leave it out to search for its question"
        )
    if not utterances or not utterances[-1].strip():
        raise RequestError(
            422, "empty_conversation", "the conversation ends without a question; its last one must have words"
        )
    if len(utterances) % 2 == 0:
        raise RequestError(
            422,
            "answered_conversation",
            f"the conversation has {len(utterances)} utterances, so it ends with an answer; the user speaks first and last",
        )
    if len(utterances) > limits.utterances:
        raise RequestError(
            422, "long_conversation", f"the conversation has {len(utterances)} utterances; send at most {limits.utterances}"
        )
    longest = max(map(len, utterances))
    if longest > limits.utterance_characters:
        raise RequestError(
            422,
            "long_utterance",
            f"an utterance has {longest} characters; send at most {limits.utterance_characters} of each",
        )
    *before, question = utterances
    return Asked(question, tuple(zip(before[::2], before[1::2], strict=True)))
