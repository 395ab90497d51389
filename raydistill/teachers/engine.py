"""What a teacher engine is: prompts in, generations out. No Ray here; `teachers/pool.py` runs engines in actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from raydistill.errors import TeacherError


class Failure(StrEnum):
    """Why a prompt has no usable text. The value is what is stored."""

    EMPTY = "empty"
    TOO_SHORT = "too_short"
    REFUSAL = "refusal"
    CHATTY = "chatty"
    TRUNCATED = "truncated"
    ENGINE_ERROR = "engine_error"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    INCOMPLETE = "incomplete"
    UNREADABLE = "unreadable"
    NO_LOG_PROBABILITIES = "no_log_probabilities"
    MISSING = "missing"

    @property
    def is_of_engine(self) -> bool:
        """Whether the engine could not answer at all, so that the text is not to blame and nothing is kept."""
        return self in _OF_ENGINE


_OF_ENGINE = frozenset({Failure.ENGINE_ERROR, Failure.SERVER_ERROR, Failure.TIMEOUT, Failure.INCOMPLETE, Failure.UNREADABLE})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine decodes; every field is part of the cache key."""

    max_new_tokens: int = 64
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer of an engine.

    Attributes:
        text: decoded text without the prompt ("" on failure).
        prompt_tokens, generated_tokens: counts, 0 when unknown.
        finish_reason: "stop", "length", "refusal" (the server says that the model or a filter refused) or "error".
        failure: None when the engine answered; parsing may still refuse the text.
        detail: the engine's error message, "" otherwise.
    """

    text: str
    prompt_tokens: int
    generated_tokens: int
    finish_reason: str
    failure: Failure | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Choices:
    """How probable each option is as the next token after each prompt.

    Attributes:
        log_probabilities: float64 [n_prompts, n_options]; NaN where the engine does not say.
        failures: one a prompt; None where at least one option has a value.
    """

    log_probabilities: Any
    failures: tuple[Failure | None, ...]


class EngineStoppedError(TeacherError):
    """An engine that cannot go on. `generations` holds one a prompt; what it still answered is among them, to be kept."""

    def __init__(self, message: str, generations: Sequence[Generation]) -> None:
        super().__init__(message)
        self.generations = tuple(generations)


class ChoosingStoppedError(TeacherError):
    """An engine that cannot go on choosing. What it still answered is among `choices`, to be kept."""

    def __init__(self, message: str, choices: Choices) -> None:
        super().__init__(message)
        self.choices = choices


class EngineDiedError(TeacherError):
    """An engine that is lost with whatever it held; another one may do what it could not."""


class Engine(Protocol):
    """A language model that answers batches of prompts, in order, one Generation a prompt whatever happens to it."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        """Return one Generation a prompt, in order. A prompt that fails alone yields a failed Generation; only a dead
        engine raises TeacherError, as EngineStoppedError when it answered some."""


class ChoosingEngine(Protocol):
    """A language model that says how probable next tokens are."""

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Choices:
        """Return the log-probability of every option, a single token each, after every prompt. A dead engine raises
        TeacherError, as ChoosingStoppedError when it answered some."""
