"""Asking an engine which of some answers it would give, through the cache of what it has been paid for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import TeacherError
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engine import Choices, ChoosingEngine, ChoosingStoppedError, Failure, Generation


@dataclass(frozen=True)
class Chosen:
    """Answers to prompts.

    Attributes:
        log_probabilities: float64 [prompts, options]; NaN where the engine does not say.
        failures: one a prompt, None where at least one option has a value.
        cached: how many came from the cache.
    """

    log_probabilities: NDArray[np.float64]
    failures: tuple[Failure | None, ...]
    cached: int


def cached_choose(
    engine: ChoosingEngine, cache: GenerationCache, prompt_version: str, prompts: Sequence[str], options: Sequence[str]
) -> Chosen:
    """Return the log-probabilities of options after every prompt; only what the cache lacks reaches the engine.

    A prompt that occurs twice is asked once. Failed ones are not kept. What an engine answered before it stopped is kept;
    then TeacherError is raised.
    """
    keys = [choice_key(cache.engine, prompt_version, options, prompt) for prompt in prompts]
    missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if cache.find(key) is None}
    failed: dict[str, Failure | None] = {}
    if missing:
        try:
            made = engine.choose(list(missing.values()), options)
        except ChoosingStoppedError as stopped:
            _keep(cache, missing, stopped.choices)
            raise TeacherError(str(stopped)) from stopped
        failed = dict(zip(missing, made.failures, strict=True))
        _keep(cache, missing, made)
    values = np.full((len(prompts), len(options)), np.nan)
    for place, key in enumerate(keys):
        kept = cache.find(key)
        if kept is not None:
            values[place] = [math.nan if value is None else value for value in json.loads(kept.text)]
    return Chosen(values, tuple(failed.get(key) for key in keys), sum(key not in missing for key in keys))


def choice_key(engine: EngineIdentity, prompt_version: str, options: Sequence[str], prompt: str) -> str:
    """Return the name of a choice before it is made: SHA-256 over everything that decides it, 64 hex characters."""
    parts: list[Any] = ["choice", engine.key, prompt_version, list(options), prompt]
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _keep(cache: GenerationCache, keys: Iterable[str], made: Choices) -> None:
    # The cache keeps generations: the numbers are the text of one.
    rows = zip(keys, made.log_probabilities, made.failures, strict=True)
    cache.add({key: Generation(_text(row), 0, 1, "choice", failure) for key, row, failure in rows})


def _text(row: NDArray[np.float64]) -> str:
    return json.dumps([None if math.isnan(value) else value for value in row.tolist()])
