"""From queries to rewrites: prompt, generate through the cache, parse, retry once, fall back. No Ray here; `pool` runs it.

A rewrite that failed is asked for once more by sampling (temperature 0.7, top-p 0.95, a seed of its own), because greedy
decoding would repeat itself; if that fails too, the last utterance stands in, and the record says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from raydistill.teachers.cache import GenerationCache, cached_generate
from raydistill.teachers.engine import Engine, Failure, Generation, Sampling
from raydistill.teachers.parsing import parse_rewrite
from raydistill.teachers.prompts import PromptTemplate, render_prompt

REWRITE_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("text", pa.string()),
        ("failure", pa.string()),
        ("raw", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("generated_tokens", pa.int32()),
    ]
)
RETRY_TEMPERATURE, RETRY_TOP_P, RETRY_SEED = 0.7, 0.95, 1


class PromptTokenizer(Protocol):
    """What rendering needs of a model's tokenizer."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `as_chat` can be used."""

    def count_tokens(self, prompt: str) -> int:
        """Return the length of a rendered prompt in the model's tokens."""

    def as_chat(self, message: str) -> str:
        """Return a user message in the chat template, ready for the answer."""


@dataclass(frozen=True, slots=True)
class RewriteRequest:
    """A question and the (question, answer) pairs before it, oldest first."""

    query_id: str
    question: str
    history: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One row of a rewrites artifact.

    Attributes:
        text: the rewrite, or the last utterance when there is none.
        failure: why there is none (a value of `Failure`), or None.
        raw: what the model wrote in its last try; the engine's message when it could not answer.
        prompt_tokens, generated_tokens: of all tries together; 0 when unknown.
    """

    query_id: str
    text: str
    failure: str | None
    raw: str
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True)
class Rewriter:
    """Rewrites queries with one engine.

    Attributes:
        history_turns: most recent turns shown.
        max_prompt_tokens: budget of a prompt; oldest turns go first.
        sampling: of the first try.
    """

    engine: Engine
    tokenizer: PromptTokenizer
    cache: GenerationCache
    template: PromptTemplate
    history_turns: int
    max_prompt_tokens: int
    sampling: Sampling

    def rewrite(self, requests: Sequence[RewriteRequest]) -> tuple[list[Rewrite], dict[str, float]]:
        """Return one row a request, in order, and counters (see `row_counters`, and: cached, retried, recovered)."""
        prompts = [self._prompt(request) for request in requests]
        generations, cached = self._generate(prompts, self.sampling)
        rows = [rewrite_row(*pair) for pair in zip(requests, generations, strict=True)]
        again = [n for n, row in enumerate(rows) if row.failure is not None and not Failure(row.failure).is_of_engine]
        retry = replace(self.sampling, temperature=RETRY_TEMPERATURE, top_p=RETRY_TOP_P, num_beams=1, seed=RETRY_SEED)
        second, cached_again = self._generate([prompts[n] for n in again], retry)
        recovered = 0
        for n, generation in zip(again, second, strict=True):
            row = rewrite_row(requests[n], generation)
            recovered += row.failure is None
            rows[n] = replace(
                row if generation.failure is None else rows[n],
                prompt_tokens=rows[n].prompt_tokens + generation.prompt_tokens,
                generated_tokens=rows[n].generated_tokens + generation.generated_tokens,
            )
        made = {"cached": cached + cached_again, "retried": len(again), "recovered": recovered}
        return rows, {**row_counters(rows), **made}

    def _prompt(self, request: RewriteRequest) -> str:
        return render_prompt(
            self.template,
            request.question,
            request.history[max(0, len(request.history) - self.history_turns) :],
            self.max_prompt_tokens,
            self.tokenizer.count_tokens,
            self.tokenizer.as_chat if self.tokenizer.has_chat_template else None,
        )

    def _generate(self, prompts: list[str], sampling: Sampling) -> tuple[list[Generation], int]:
        return cached_generate(self.engine, self.cache, self.template.name, prompts, sampling)


def rewrite_row(request: RewriteRequest, generation: Generation) -> Rewrite:
    """Return the row of one generation, the last utterance standing in for a failed one."""
    if generation.failure is not None:
        failure: Failure | None = generation.failure
        text, raw = "", generation.detail
    else:
        parsed = parse_rewrite(generation.text, request.question, generation.finish_reason)
        text, failure, raw = parsed.text, parsed.failure, generation.text
    return Rewrite(
        request.query_id,
        text or request.question,
        failure.value if failure else None,
        raw,
        generation.prompt_tokens,
        generation.generated_tokens,
    )


def recorded_row(query_id: str, question: str, texts: Mapping[str, str]) -> Rewrite:
    """Return the row of a recorded rewrite, parsed like a fresh one; an id without a text is MISSING."""
    raw = texts.get(query_id)
    if raw is None:
        return Rewrite(query_id, question, Failure.MISSING.value, "")
    parsed = parse_rewrite(raw, question)
    return Rewrite(query_id, parsed.text or question, parsed.failure.value if parsed.failure else None, raw)


def row_counters(rows: Sequence[Rewrite]) -> dict[str, float]:
    """Return counts: queries, failed, failed.{reason} for each reason, prompt_tokens, generated_tokens."""
    counts: dict[str, float] = {
        "queries": len(rows),
        "failed": sum(row.failure is not None for row in rows),
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "generated_tokens": sum(row.generated_tokens for row in rows),
    }
    for row in rows:
        if row.failure:
            counts[f"failed.{row.failure}"] = counts.get(f"failed.{row.failure}", 0) + 1
    return counts


def rewrite_table(rows: Sequence[Rewrite]) -> Any:
    """Return the rows as an Arrow table of REWRITE_SCHEMA."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=REWRITE_SCHEMA)
