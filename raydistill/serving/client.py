"""A client of the search service: typed answers, finite waits, typed errors. Standard library only.

client = SearchClient("http://127.0.0.1:8000")
for passage in client.search(["When was Blade Runner made?", "It came out in 1982.", "and who directed it?"]).passages:
    print(passage.score, passage.passage_id, passage.text)
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from raydistill.conversations.records import Turn
from raydistill.errors import RaydistillError

Conversation = Sequence[str] | Sequence[Turn]
"""Utterances that take turns, the user first and last; or turns, the last without an answer."""


class ServiceError(RaydistillError):
    """A service that could not be reached in time, or answered with something that is no answer of this service."""


class RefusedError(ServiceError):
    """The service found fault with the request; sending it again will not help.

    Attributes:
        status: HTTP status, 4xx.
        code: the kind of fault, such as k_out_of_range.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class FailedError(ServiceError):
    """The service could not answer now; the same request may succeed later.

    Attributes:
        status: HTTP status, 5xx.
        code: the kind of failure, such as unavailable.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """The index version that an answer comes from."""

    name: str
    version: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class FoundPassage:
    """A passage.

    Attributes:
        score: what the order follows: of the second stage where there is one, else `first_score`.
        text: None where it was not asked for or the corpus is not there.
        first_score: of the index.
    """

    passage_id: str
    score: float
    text: str | None
    first_score: float


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """What a search found, best first; `query_terms` is the number of terms of the query vector."""

    index: ServedVersion
    passages: tuple[FoundPassage, ...]
    query_terms: int
    milliseconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TermContribution:
    """What a term adds to a score: product = query_weight * passage_impact."""

    term: str
    query_weight: float
    passage_impact: float
    product: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a passage has its score; the contributions' products add up to it, the largest first."""

    index: ServedVersion
    passage_id: str
    score: float
    query_terms: int
    contributions: tuple[TermContribution, ...]


class SearchClient:
    """Talks to one service. Any number of threads may use it; each request has a connection of its own.

    Args:
        address: such as http://127.0.0.1:8000, or https.
        timeout_s: seconds to wait for the connection, and for each piece of the answer.
    """

    def __init__(self, address: str, timeout_s: float = 30.0) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServiceError(f"{address!r} is no address of a service; give one such as http://127.0.0.1:8000")
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._address = f"{parts.scheme}://{self._host}{f':{self._port}' if self._port else ''}{self._path}"
        self._timeout_s = timeout_s

    def search(self, conversation: Conversation, k: int = 10, text: bool = True, rerank: bool = True) -> SearchAnswer:
        """Return the k best passages for the conversation's last question; `rerank` False leaves out a second stage.

        Raises ServiceError and its kinds.
        """
        asked = {"conversation": _plain(conversation), "k": k, "text": text, "rerank": rerank}
        found = self._ask("POST", "/search", asked)
        passages = tuple(
            FoundPassage(each["id"], each["score"], each.get("text"), each.get("first_score", each["score"]))
            for each in found["passages"]
        )
        return SearchAnswer(ServedVersion(**found["index"]), passages, found["query_terms"], found["milliseconds"])

    def explain(self, conversation: Conversation, passage_id: str) -> Explanation:
        """Return why a passage has its score for the conversation. Raises RefusedError, code unknown_passage, and others."""
        found = self._ask("POST", "/explain", {"conversation": _plain(conversation), "passage_id": passage_id})
        return Explanation(
            index=ServedVersion(**found["index"]),
            passage_id=found["passage_id"],
            score=found["score"],
            query_terms=found["query_terms"],
            contributions=tuple(TermContribution(**each) for each in found["contributions"]),
        )

    def health(self) -> Mapping[str, Any]:
        """Return the state of the index's actors. Raises FailedError while one of them does not answer."""
        return self._ask("GET", "/health")

    def version(self) -> Mapping[str, Any]:
        """Return what is served: index version, passages, vocabulary."""
        return self._ask("GET", "/version")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_s)
        content = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self._path + path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except TimeoutError:
            raise ServiceError(f"{self._address} did not answer within {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(f"{self._address} could not be asked: {error or type(error).__name__}") from error
        finally:
            connection.close()
        return self._answer(status, answer)

    def _answer(self, status: int, content: bytes) -> Any:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise FailedError(status, "no_json", f"{self._address} answered {status} without a JSON object")
        if status == 200:
            return answer
        problem = answer.get("error") or {}
        message = problem.get("message") or f"{self._address} answered {status}: {answer.get('status', 'no reason given')}"
        kind = RefusedError if 400 <= status < 500 else FailedError
        raise kind(status, problem.get("code", "unknown"), message)


def _plain(conversation: Conversation) -> list[Any]:
    return [
        entry if isinstance(entry, str) else {"question": entry.question, "answer": entry.answer} for entry in conversation
    ]
