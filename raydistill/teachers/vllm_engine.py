"""The engine that runs a model with vLLM's offline `LLM`: continuous batching, prefix caching, tensor parallelism over Ray
actors. The package is an extra and imported when the engine is made; its place on the cluster is `engine_actor`'s business.

Written against the API of vLLM 0.29, which Ray 2.60 pins. It needs an NVIDIA GPU, and has not been run on one so far; what
does not need vLLM (the version check, arguments, placement, replacement of a dead engine) is tested.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from raydistill.errors import TeacherError
from raydistill.model_source import resolve_model
from raydistill.teachers.engine import Choices, EngineDiedError, Failure, Generation, Sampling
from raydistill.teachers.transformers_engine import ModelTokenizer, load_error, option_ids, unanswerable

OLDEST_VERSION = (0, 29)
_INSTALL = "pip install 'raydistill[vllm]' on every node, best in an environment of its own, since vLLM pins its own torch"


def require_vllm(installed: str | None) -> None:
    """Raise TeacherError unless the installed version (None: there is none) is one that this engine was written for."""
    oldest = ".".join(map(str, OLDEST_VERSION))
    if installed is None:
        raise TeacherError(f"the engine vllm needs the package vllm >= {oldest}, which is not installed here; {_INSTALL}")
    numbers = tuple(int(part) for part in installed.split(".")[:2] if part.isdigit())
    if numbers < OLDEST_VERSION:
        raise TeacherError(f"the engine vllm needs the package vllm >= {oldest}, and {installed} is installed; {_INSTALL}")


def installed_vllm() -> str | None:
    """Return the version of the installed package, without importing it."""
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return None


def engine_arguments(
    model: str, revision: str | None, dtype: str, tensor_parallel_size: int, further: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of vllm.LLM; `further` ones replace any of them."""
    return {
        "model": model,
        "revision": revision,
        "tokenizer_revision": revision,
        "dtype": dtype,
        "tensor_parallel_size": tensor_parallel_size,
        # With "ray", the workers take the bundles of the placement group that this process runs in.
        "distributed_executor_backend": "ray" if tensor_parallel_size > 1 else None,
        # The instruction and a conversation's earlier turns begin many prompts.
        "enable_prefix_caching": True,
        **further,
    }


def sampling_arguments(sampling: Sampling, stop_at_newline: bool) -> dict[str, Any]:
    """Return the arguments of vllm.SamplingParams. Raises TeacherError for beams, which it does not have."""
    if sampling.num_beams > 1:
        raise TeacherError("the engine vllm has no beam search; leave num_beams out, or take the engine transformers")
    drawn = {"top_p": sampling.top_p, "seed": sampling.seed} if sampling.temperature > 0 else {}
    stop = {"stop": ["\n"]} if stop_at_newline else {}
    return {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, **drawn, **stop}


class VllmEngine:
    """Generates with one model."""

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        stop_at_newline: bool = False,
        trust_remote_code: bool = False,
        further: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model.

        Args:
            tensor_parallel_size: above 1, this process must run in a placement group with as many bundles of one GPU.
            further: arguments of vllm.LLM.

        Raises TeacherError when vLLM is missing or too old, or the model cannot be loaded.
        """
        require_vllm(installed_vllm())
        if tensor_parallel_size > 1:
            # An actor without GPUs of its own is shown none by Ray, and vLLM would take the machine for one without.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        self.tokenizer = ModelTokenizer(model, revision, trust_remote_code)
        self.stop_at_newline = stop_at_newline
        try:
            import vllm
            from vllm.exceptions import VLLMClientError
            from vllm.v1.engine.exceptions import EngineDeadError

            settings = {"trust_remote_code": trust_remote_code, **(further or {})}
            arguments = engine_arguments(
                resolve_model(model, "teachers.model"), revision, dtype, tensor_parallel_size, settings
            )
            self._llm: Any = vllm.LLM(**arguments)
        except Exception as error:
            raise load_error(model, revision, error) from error
        self._parameters: Any = vllm.SamplingParams
        self._wrong_prompt: tuple[type[Exception], ...] = (VLLMClientError, ValueError)
        self._dead: type[Exception] = EngineDeadError
        self._positions: int = self._llm.model_config.max_model_len

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        """Return one Generation a prompt, in order; a prompt that is empty, too long or fails alone becomes a failed one.

        Raises EngineDiedError when vLLM's engine is lost.
        """
        ids = [self.tokenizer.token_ids(prompt) for prompt in prompts]
        answers = [unanswerable(len(each), sampling.max_new_tokens, self._positions, shares_positions=True) for each in ids]
        waiting = [n for n, answer in enumerate(answers) if answer is None]
        made = self._answers(
            [ids[n] for n in waiting], self._parameters(**sampling_arguments(sampling, self.stop_at_newline))
        )
        for n, output in zip(waiting, made, strict=True):
            answers[n] = output if isinstance(output, Generation) else generation_of(output)
        return [answer for answer in answers if answer is not None]

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Choices:
        """Return the log-probability of every option, a single token each, after every prompt. Raises as `generate`, and
        TeacherError for an option of several tokens."""
        tokens = option_ids(self.tokenizer, options)
        parameters = self._parameters(max_tokens=1, temperature=0.0, logprob_token_ids=tokens)
        values = np.full((len(prompts), len(options)), np.nan)
        failures: list[Failure | None] = []
        made = self._answers([self.tokenizer.token_ids(prompt) for prompt in prompts], parameters)
        for row, output in zip(values, made, strict=True):
            if isinstance(output, Generation):
                failures.append(output.failure)
                continue
            listed = output.outputs[0].logprobs[0]
            row[:] = [listed[token].logprob if token in listed else np.nan for token in tokens]
            failures.append(Failure.NO_LOG_PROBABILITIES if np.isnan(row).all() else None)
        return Choices(values, tuple(failures))

    def _answers(self, ids: list[list[int]], parameters: Any) -> list[Any]:
        """Return a vllm.RequestOutput, or a failed Generation, a prompt; a batch that is refused is split down to the prompt
        at fault."""
        if not ids:
            return []
        try:
            outputs: list[Any] = self._llm.generate([{"prompt_token_ids": each} for each in ids], parameters, use_tqdm=False)
            return outputs
        except self._dead as error:
            raise EngineDiedError(f"vLLM's engine died ({error})") from error
        except self._wrong_prompt as error:
            if len(ids) == 1:
                return [Generation("", 0, 0, "error", Failure.ENGINE_ERROR, " ".join(str(error).split()))]
        half = len(ids) // 2
        return self._answers(ids[:half], parameters) + self._answers(ids[half:], parameters)


def generation_of(output: Any) -> Generation:
    """Return the Generation of a vllm.RequestOutput with one completion."""
    (completion,) = output.outputs
    if completion.finish_reason not in ("stop", "length"):
        detail = f"generation ended by {completion.finish_reason!r}"
        return Generation("", 0, 0, "error", Failure.ENGINE_ERROR, detail)
    return Generation(
        completion.text, len(output.prompt_token_ids), len(completion.token_ids), str(completion.finish_reason)
    )
