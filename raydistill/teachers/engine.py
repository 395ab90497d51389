"""What a teacher engine is: prompts in, generations out. No Ray here; `teachers/pool.py` runs engines in actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Failure(str, Enum):
    """Why a prompt has no usable text. The value is what is stored."""

    EMPTY = "empty"
    TOO_SHORT = "too_short"
    REFUSAL = "refusal"
    CHATTY = "chatty"
    TRUNCATED = "truncated"
    ENGINE_ERROR = "engine_error"
    MISSING = "missing"


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
        finish_reason: "stop", "length" or "error".
        failure: None when the engine answered; parsing may still refuse the text.
        detail: the engine's error message, "" otherwise.
    """

    text: str
    prompt_tokens: int
    generated_tokens: int
    finish_reason: str
    failure: Failure | None = None
    detail: str = ""


class Engine(Protocol):
    """A language model that answers batches of prompts, in order, one Generation a prompt whatever happens to it."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        """Return one Generation a prompt, in order. A prompt that fails alone yields a failed Generation; only a dead
        engine raises TeacherError."""
