"""From queries to rewrites: prompt, generate through the cache, parse, retry, fall back. No Ray here; `pool` runs it.

A rewrite that failed is asked for again by sampling (with a seed of its own each time, and another prompt if so wished),
because greedy decoding would repeat itself; if that fails too, the last utterance stands in, and the record says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.storage.artifacts import Artifact
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
        ("alternatives", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class Retry:
    """What is done about a rewrite that failed.

    Attributes:
        tries: at most, after the first.
        temperature, top_p: of sampling.
        template: another prompt; None for the same.
    """

    tries: int = 1
    temperature: float = 0.7
    top_p: float = 0.95
    template: PromptTemplate | None = None


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
    """A question and the (question, answer) pairs before it, oldest first; its own answer and the user's facts, for prompts
    that show them."""

    query_id: str
    question: str
    history: tuple[tuple[str, str], ...]
    answer: str = ""
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One row of a rewrites artifact.

    Attributes:
        text: the rewrite, or the last utterance when there is none.
        failure: why there is none (a value of `Failure`), or None.
        raw: what the model wrote in its last try; the engine's message when it could not answer.
        prompt_tokens, generated_tokens: of all tries and samples together; 0 when unknown.
        alternatives: other rewrites of the same turn that came out, none twice, `text` not among them.
    """

    query_id: str
    text: str
    failure: str | None
    raw: str
    prompt_tokens: int = 0
    generated_tokens: int = 0
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewriter:
    """Rewrites queries with one engine.

    Attributes:
        history_turns: most recent turns shown.
        max_prompt_tokens: budget of a prompt; oldest turns go first.
        sampling: of the first try.
        samples: answers a turn; the first that holds a rewrite counts, the others are its alternatives.
        retry: where no sample holds one.
    """

    engine: Engine
    tokenizer: PromptTokenizer
    cache: GenerationCache
    template: PromptTemplate
    history_turns: int
    max_prompt_tokens: int
    sampling: Sampling
    samples: int = 1
    retry: Retry = Retry()

    def rewrite(self, requests: Sequence[RewriteRequest]) -> tuple[list[Rewrite], dict[str, float]]:
        """Return one row a request, in order, and counters (see `row_counters`, and: cached, retried, recovered)."""
        prompts = [self._prompt(self.template, request) for request in requests]
        made: list[list[Rewrite]] = [[] for _ in requests]
        cached = 0
        for sample in range(self.samples):
            sampling = replace(self.sampling, seed=self.sampling.seed + sample)
            generations, known = self._generate(self.template, prompts, sampling)
            cached += known
            for own, request, generation in zip(made, requests, generations, strict=True):
                own.append(rewrite_row(request, generation, self.template.marker))
        rows = [_joined(own) for own in made]
        failed = [n for n, row in enumerate(rows) if _may_be_retried(row)]
        retried, again = len(failed), failed
        for attempt in range(1, self.retry.tries + 1):
            cached += self._retry(requests, rows, again, attempt)
            again = [n for n in again if _may_be_retried(rows[n])]
        recovered = sum(rows[n].failure is None for n in failed)
        return rows, {**row_counters(rows), "cached": cached, "retried": retried, "recovered": recovered}

    def _retry(self, requests: Sequence[RewriteRequest], rows: list[Rewrite], again: Sequence[int], attempt: int) -> int:
        """Ask once more for some of the rows and put what comes into their place; return how much was cached."""
        template = self.retry.template or self.template
        sampling = Sampling(
            self.sampling.max_new_tokens, temperature=self.retry.temperature, top_p=self.retry.top_p, seed=attempt
        )
        generations, cached = self._generate(template, [self._prompt(template, requests[n]) for n in again], sampling)
        for n, generation in zip(again, generations, strict=True):
            row = rewrite_row(requests[n], generation, template.marker)
            rows[n] = replace(
                row if generation.failure is None else rows[n],
                prompt_tokens=rows[n].prompt_tokens + generation.prompt_tokens,
                generated_tokens=rows[n].generated_tokens + generation.generated_tokens,
            )
        return cached

    def _prompt(self, template: PromptTemplate, request: RewriteRequest) -> str:
        return render_prompt(
            template,
            request.question,
            request.history[max(0, len(request.history) - self.history_turns) :],
            self.max_prompt_tokens,
            self.tokenizer.count_tokens,
            self.tokenizer.as_chat if self.tokenizer.has_chat_template else None,
            request.answer,
            request.facts,
        )

    def _generate(self, template: PromptTemplate, prompts: list[str], sampling: Sampling) -> tuple[list[Generation], int]:
        return cached_generate(self.engine, self.cache, template.name, prompts, sampling)


def _may_be_retried(row: Rewrite) -> bool:
    return row.failure is not None and not Failure(row.failure).is_of_engine


def _joined(samples: Sequence[Rewrite]) -> Rewrite:
    """Return one row of the samples of a turn: the first that holds a rewrite, or the first."""
    good = [row for row in samples if row.failure is None]
    chosen = good[0] if good else samples[0]
    others = dict.fromkeys(row.text for row in good if row.text != chosen.text)
    return replace(
        chosen,
        prompt_tokens=sum(row.prompt_tokens for row in samples),
        generated_tokens=sum(row.generated_tokens for row in samples),
        alternatives=tuple(others),
    )


def rewrite_row(request: RewriteRequest, generation: Generation, marker: str = "") -> Rewrite:
    """Return the row of one generation, the last utterance standing in for a failed one; `marker` as in `parse_rewrite`."""
    if generation.failure is not None:
        failure: Failure | None = generation.failure
        text, raw = "", generation.detail
    else:
        parsed = parse_rewrite(generation.text, request.question, generation.finish_reason, marker)
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


def rewrite_texts(rewrites: Artifact) -> dict[str, str]:
    """Return the rewrites of an artifact that did not fail: query id -> text."""
    texts: dict[str, str] = {}
    for part in rewrites.manifest().parts:
        table = pq.read_table(rewrites.fetch(part), columns=["query_id", "text", "failure"]).to_pydict()
        rows = zip(table["query_id"], table["text"], table["failure"], strict=True)
        texts.update((query_id, text) for query_id, text, failure in rows if failure is None)
    return texts
