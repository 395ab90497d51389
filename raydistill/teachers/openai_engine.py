"""The engine that asks an OpenAI-compatible endpoint over HTTP: many prompts in flight, within its limits, patient with its
failures. What requests and answers say lives in `openai_protocol`.

The API key is read from the environment by whoever makes the engine. It goes into one header and nowhere else; an endpoint
that repeats it in a message has it struck out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import aiohttp
import numpy as np

from raydistill.errors import ConfigError
from raydistill.teachers.engine import Choices, ChoosingStoppedError, EngineStoppedError, Failure, Generation, Sampling
from raydistill.teachers.openai_protocol import (
    PATHS,
    EndpointError,
    PromptError,
    TransientError,
    Wording,
    check_status,
    choices_of,
    estimated_tokens,
    generation_of,
    model_names,
)
from raydistill.teachers.rate_limit import RateLimit

logger = logging.getLogger("raydistill")
_LONGEST_WAIT_S = 60.0
_LONGEST_ASKED_WAIT_S = 600.0
_CHECK_S = 10.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How much is asked of an endpoint at a time, and how long and how often.

    Attributes:
        concurrency: requests in flight at most.
        requests_per_minute, tokens_per_minute: None for no limit; prompt and answer count.
        connect_timeout_s: to be connected.
        answer_timeout_s: to have a whole answer.
        retries: further tries of a request that failed in passing.
        first_wait_s: before the second try, on average three quarters of it; doubled each time, up to a minute.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 120.0
    retries: int = 5
    first_wait_s: float = 1.0


class Clock(Protocol):
    """What tells the time and waits."""

    def now(self) -> float:
        """Return the time in seconds since some start."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait without holding up the event loop."""
        await asyncio.sleep(seconds)


class OpenAiEngine:
    """Generates with the model behind an endpoint."""

    def __init__(
        self,
        base_url: str,
        wording: Wording,
        patience: Patience | None = None,
        api_key: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            base_url: up to and with the version, such as http://host:8000/v1.
            api_key: sent as bearer token; None sends none.
            clock: of rate limits and waits between tries; None for the machine's.
        """
        self.base_url = base_url.rstrip("/")
        self.wording = wording
        self.patience = patience or Patience()
        self.clock = clock or SystemClock()
        self._api_key = api_key
        self._limit = RateLimit(self.patience.requests_per_minute, self.patience.tokens_per_minute)
        self._failed_in_a_row = 0

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        """Return one Generation a prompt, in order; a prompt that fails alone becomes a failed Generation.

        Raises EngineStoppedError when the endpoint refuses the key or the model, or fails on many prompts in a row.
        """
        requests = [
            _Request(self.wording.generation_body(prompt, sampling), estimated_tokens(prompt) + sampling.max_new_tokens)
            for prompt in prompts
        ]
        made, stopped = self._answers(requests, lambda content: generation_of(content, self.wording.api))
        generations = [_failed(one) if isinstance(one, _Failed) else one for one in made]
        if stopped:
            raise EngineStoppedError(stopped, generations)
        return generations

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Choices:
        """Return the log-probabilities of options, each a token of the model. The endpoint lists the most probable tokens,
        20 for chat and 5 for completions; see `choices_of` for options that are not among them.

        A prompt without any is NO_LOG_PROBABILITIES. Raises ChoosingStoppedError where `generate` raises EngineStoppedError.
        """
        api = self.wording.api
        requests = [_Request(self.wording.choice_body(prompt), estimated_tokens(prompt) + 1) for prompt in prompts]
        made, stopped = self._answers(requests, lambda content: choices_of(content, api, options))
        values = np.full((len(prompts), len(options)), np.nan)
        failures: list[Failure | None] = []
        for row, one in zip(values, made, strict=True):
            if isinstance(one, _Failed):
                failures.append(one.failure)
            elif one is None:
                failures.append(Failure.NO_LOG_PROBABILITIES)
            else:
                row[:] = one
                failures.append(None)
        choices = Choices(values, tuple(failures))
        if stopped:
            raise ChoosingStoppedError(stopped, choices)
        return choices

    def _answers(self, requests: Sequence[_Request], read: Callable[[bytes], T]) -> tuple[list[T | _Failed], str | None]:
        """Send all requests; return what `read` makes of each answer, or its failure; and why the engine stopped, if so."""
        batch = _Batch(self, read)
        made = _run(batch.answers(requests))
        return made, batch.stopped

    def redacted(self, content: bytes) -> bytes:
        """Return an answer without the API key in it, before anything is cut out of it."""
        return content.replace(self._api_key.encode(), b"***") if self._api_key else content

    def session(self) -> aiohttp.ClientSession:
        """Return a new HTTP session; only inside an event loop."""
        return _session(self._api_key, self.patience.connect_timeout_s, self.patience.answer_timeout_s)

    async def start(self, tokens: int) -> None:
        """Wait until the rate limit lets a request start."""
        now = self.clock.now()
        wait = self._limit.reserve(now, tokens) - now
        if wait > 0:
            await self.clock.sleep(wait)

    def done(self, unused_tokens: int) -> None:
        """Note a request that was answered."""
        self._failed_in_a_row = 0
        self._limit.correct(unused_tokens)

    def given_up(self) -> bool:
        """Note a prompt that was given up; return whether it was one too many without an answer in between."""
        self._failed_in_a_row += 1
        return self._failed_in_a_row >= 2 * max(8, self.patience.concurrency)

    def hold(self, seconds: float) -> None:
        """Let no request start for a while."""
        self._limit.hold(self.clock.now() + seconds)


@dataclass(frozen=True, slots=True)
class _Request:
    body: Mapping[str, Any]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Failed:
    failure: Failure
    detail: str


class _Batch:
    """Requests that are sent together, within one event loop."""

    def __init__(self, engine: OpenAiEngine, read: Callable[[bytes], Any]) -> None:
        self.stopped: str | None = None
        self._engine, self._read = engine, read
        self._url = f"{engine.base_url}/{PATHS[engine.wording.api]}"

    async def answers(self, requests: Sequence[_Request]) -> list[Any]:
        gate = asyncio.Semaphore(self._engine.patience.concurrency)
        async with self._engine.session() as session:
            return list(await asyncio.gather(*(self._answer(session, gate, request) for request in requests)))

    async def _answer(self, session: aiohttp.ClientSession, gate: asyncio.Semaphore, request: _Request) -> Any:
        async with gate:
            for attempt in range(self._engine.patience.retries + 1):
                await self._engine.start(request.tokens)
                if self.stopped:
                    return _Failed(Failure.ENGINE_ERROR, "not asked: the endpoint had stopped answering")
                try:
                    return await self._attempt(session, request)
                except EndpointError as error:
                    self._stop(str(error), "correct base_url, model or key, and resubmit; what it answered is kept")
                    return _Failed(Failure.ENGINE_ERROR, str(error))
                except PromptError as error:
                    self._engine.done(request.tokens)
                    return _Failed(Failure.ENGINE_ERROR, str(error))
                except TransientError as error:
                    failed = _Failed(error.failure, str(error))
                    if attempt < self._engine.patience.retries:
                        await self._wait(attempt, error)
            if self._engine.given_up():
                self._stop(
                    failed.detail, "it failed on many prompts in a row; resubmit when it is up; what it answered is kept"
                )
            tries = self._engine.patience.retries + 1
            return _Failed(failed.failure, f"{failed.detail} ({tries} tries)")

    async def _attempt(self, session: aiohttp.ClientSession, request: _Request) -> Any:
        answering = False
        try:
            async with session.post(self._url, data=json.dumps(request.body), allow_redirects=False) as response:
                answering = True
                content = self._engine.redacted(await response.read())
        except aiohttp.ConnectionTimeoutError:
            limit = self._engine.patience.connect_timeout_s
            raise TransientError(Failure.TIMEOUT, f"no connection within {limit:g} s") from None
        except TimeoutError:
            raise TransientError(Failure.TIMEOUT, f"no answer within {self._engine.patience.answer_timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            if answering:
                raise TransientError(Failure.INCOMPLETE, f"the connection ended in mid-answer ({_name(error)})") from None
            raise TransientError(Failure.SERVER_ERROR, f"the connection failed ({_name(error)})") from None
        check_status(response.status, response.headers, content, time.time())
        made = self._read(content)
        used = made.prompt_tokens + made.generated_tokens if isinstance(made, Generation) else 0
        self._engine.done(request.tokens - used if used else 0)
        return made

    async def _wait(self, attempt: int, error: TransientError) -> None:
        """Wait before another try: longer each time, or as long as the server asked for, together with all others."""
        longest = min(self._engine.patience.first_wait_s * 2**attempt, _LONGEST_WAIT_S)
        if error.wait_s is not None:
            self._engine.hold(min(error.wait_s, _LONGEST_ASKED_WAIT_S))
            if error.wait_s >= longest:
                return
        await self._engine.clock.sleep(longest * random.uniform(0.5, 1.0))

    def _stop(self, detail: str, fix: str) -> None:
        self.stopped = f"{self._url} ({self._engine.wording.model}): {detail}: {fix}"


def api_key_of(variable: str | None, field: str) -> str | None:
    """Return the API key that an environment variable of this process holds; None when no variable is named.

    `field` is the configuration section that named it, for messages.

    Raises ConfigError when it is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"{field}.api_key_env: the environment variable {variable} is not set here; set it where the job is "
            "submitted and on every node, or leave api_key_env out for an endpoint without a key"
        )
    return key


def check_endpoint(base_url: str, model: str, api_key: str | None, field: str) -> None:
    """Ask the endpoint for its models, which costs nothing; `field` as for `api_key_of`.

    Raises ConfigError when nobody answers, the key is refused, or the model is not among those it lists. An endpoint that
    lists none is believed.
    """
    url = f"{base_url.rstrip('/')}/models"

    async def ask() -> tuple[int, bytes]:
        async with _session(api_key, _CHECK_S, _CHECK_S) as session, session.get(url, allow_redirects=False) as response:
            return response.status, await response.read()

    try:
        status, content = _run(ask())
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        reason = f"no answer within {_CHECK_S:g} s" if isinstance(error, asyncio.TimeoutError) else _name(error)
        raise ConfigError(
            f"{field}.base_url: nobody answers at {url} ({reason}); start the server, or correct the address"
        ) from None
    if status in (401, 403):
        raise ConfigError(
            f"{field}.api_key_env: {url} refuses the key (HTTP {status}); correct the variable's value, or name one"
        )
    names = model_names(content) if status == 200 else []
    if names and model not in names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ConfigError(f"{field}.model: {base_url} has no model {model!r}; it has {shown}")


def _session(api_key: str | None, connect_s: float, answer_s: float) -> aiohttp.ClientSession:
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    # The gate bounds the connections; proxies are those of the environment.
    return aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=answer_s, sock_connect=connect_s),
        connector=aiohttp.TCPConnector(limit=0),
        trust_env=True,
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, from a thread with a running event loop (an asynchronous actor's) too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _failed(failed: _Failed) -> Generation:
    return Generation("", 0, 0, "error", failed.failure, failed.detail)


def _name(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())
