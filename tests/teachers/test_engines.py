"""Settings of teachers that write: what cannot work is refused before anything is asked."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raydistill.config import OpenAiTeacherConfig, TransformersTeacherConfig
from raydistill.errors import ConfigError
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engines import check_prompts, open_rewriter


def teacher(**settings: Any) -> TransformersTeacherConfig:
    return TransformersTeacherConfig(name="t", model="org/m", **settings)


def test_a_prompt_that_makes_the_model_think_needs_room_for_thoughts() -> None:
    check_prompts(teacher(prompt="chain-of-thought-v1", max_new_tokens=256))
    with pytest.raises(ConfigError, match=r"teachers\.t\.max_new_tokens is 64, and with prompt: chain-of-thought-v1 .* 128"):
        check_prompts(teacher(prompt="chain-of-thought-v1"))
    with pytest.raises(ConfigError, match=r"with retry\.prompt: chain-of-thought-v1"):
        check_prompts(teacher(retry={"prompt": "chain-of-thought-v1"}))
    with pytest.raises(ConfigError, match="there is no prompt 'none'"):
        check_prompts(teacher(retry={"prompt": "none"}))


def test_samples_without_temperature_would_be_the_same() -> None:
    with pytest.raises(ValidationError, match="samples is 3 and temperature is 0, so all would be the same"):
        teacher(samples=3)
    assert teacher(samples=3, temperature=0.8).samples == 3


def test_samples_and_retries_reach_the_rewriter(tmp_path: Any) -> None:
    config = OpenAiTeacherConfig(
        name="t",
        base_url="http://h/v1",
        model="m",
        temperature=0.8,
        samples=4,
        max_new_tokens=200,
        retry={"tries": 3, "temperature": 1.1, "prompt": "chain-of-thought-v1"},
    )
    made = open_rewriter(config, GenerationCache(str(tmp_path), EngineIdentity("m", "")))
    assert (made.samples, made.sampling.temperature, made.sampling.max_new_tokens) == (4, 0.8, 200)
    assert made.retry.template is not None
    assert (made.retry.tries, made.retry.temperature, made.retry.template.marker) == (3, 1.1, "Query:")
