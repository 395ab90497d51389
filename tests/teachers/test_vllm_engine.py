"""What can be tested of the vllm engine without vLLM: its version check, its arguments, and the reading of its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from raydistill.config import PoolConfig, TransformersTeacherConfig, VllmTeacherConfig
from raydistill.errors import TeacherError
from raydistill.teachers.engine import Failure, Generation, Sampling
from raydistill.teachers.engines import engine_identity
from raydistill.teachers.vllm_engine import (
    VllmEngine,
    engine_arguments,
    generation_of,
    installed_vllm,
    require_vllm,
    sampling_arguments,
)


@dataclass
class Completion:
    """The fields of vllm.CompletionOutput that are read."""

    text: str
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class Answer:
    """The fields of vllm.RequestOutput that are read."""

    prompt_token_ids: list[int]
    outputs: list[Completion] = field(default_factory=list)


@pytest.mark.parametrize("version", ["0.29.0", "0.29.1rc2", "0.33", "1.0.0"])
def test_versions_from_the_oldest_on_will_do(version: str) -> None:
    require_vllm(version)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [(None, r"vllm >= 0\.29, which is not installed here; pip install"), ("0.11.2", r"0\.11\.2 is installed; pip install")],
)
def test_a_missing_or_old_package_is_named_with_the_fix(version: str | None, sentence: str) -> None:
    with pytest.raises(TeacherError, match=sentence):
        require_vllm(version)


@pytest.mark.skipif(installed_vllm() is not None, reason="vLLM is installed")
def test_without_the_package_the_engine_says_so_before_it_loads_anything() -> None:
    with pytest.raises(TeacherError, match="the engine vllm needs the package vllm"):
        VllmEngine("no/such-model")


def test_a_model_over_several_gpus_takes_ray_and_further_arguments_win() -> None:
    one = engine_arguments("m", "c0ffee", "auto", 1, {})
    assert (one["distributed_executor_backend"], one["tensor_parallel_size"]) == (None, 1)
    assert one["enable_prefix_caching"] is True
    four = engine_arguments("m", None, "bfloat16", 4, {"max_model_len": 4096, "enable_prefix_caching": False})
    assert (four["distributed_executor_backend"], four["tensor_parallel_size"], four["dtype"]) == ("ray", 4, "bfloat16")
    assert (four["max_model_len"], four["enable_prefix_caching"]) == (4096, False)


def test_sampling_is_translated_and_beams_are_refused() -> None:
    assert sampling_arguments(Sampling(9), False) == {"max_tokens": 9, "temperature": 0.0}
    drawn = sampling_arguments(Sampling(9, 1, 0.7, 0.9, 3), True)
    assert drawn == {"max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["\n"]}
    with pytest.raises(TeacherError, match="no beam search"):
        sampling_arguments(Sampling(num_beams=2), False)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", Generation(" hi", 3, 2, "stop")),
        ("length", Generation(" hi", 3, 2, "length")),
        ("abort", Generation("", 0, 0, "error", Failure.ENGINE_ERROR, "generation ended by 'abort'")),
        (None, Generation("", 0, 0, "error", Failure.ENGINE_ERROR, "generation ended by None")),
    ],
)
def test_an_answer_keeps_its_text_counts_and_reason(reason: str | None, expected: Generation) -> None:
    assert generation_of(Answer([1, 2, 3], [Completion(" hi", [4, 5], reason)])) == expected


def test_vllm_shares_no_generation_with_transformers_and_none_between_quantisations() -> None:
    settings: dict[str, Any] = {"name": "t", "model": "a/model"}
    vllm, quantised = VllmTeacherConfig(**settings), VllmTeacherConfig(**settings, engine_args={"quantization": "fp8"})
    parallel = VllmTeacherConfig(**settings, tensor_parallel_size=4)
    identities = [engine_identity(each) for each in (vllm, quantised, TransformersTeacherConfig(**settings))]
    assert len(set(identities)) == 3
    assert engine_identity(parallel) == identities[0]


def test_gpus_are_asked_for_by_tensor_parallel_size_alone() -> None:
    with pytest.raises(ValidationError, match="takes tensor_parallel_size whole GPUs; leave it out"):
        VllmTeacherConfig(name="t", model="m", workers=PoolConfig(gpus=1))
