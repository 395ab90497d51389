"""Which engine a configuration asks for, and what identifies it. Opening one loads nothing heavy before the first prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Protocol

from raydistill.config import (
    GeneratingTeacherConfig,
    OpenAiTeacherConfig,
    RecordedTeacherConfig,
    TeacherConfig,
    TransformersTeacherConfig,
    VllmTeacherConfig,
)
from raydistill.errors import ConfigError
from raydistill.model_source import model_identity
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engine import Choices, ChoosingEngine, Engine, Generation, Sampling
from raydistill.teachers.prompts import PromptTemplate, find_template
from raydistill.teachers.rewriting import PromptTokenizer, Retry, Rewriter


def engine_identity(teacher: GeneratingTeacherConfig, field: str | None = None) -> EngineIdentity:
    """Return what decides a teacher's answers beside prompt and sampling. Raises ConfigError when a model is not here.

    `field` is the configuration section, for messages; None: that of a teacher of its name.
    """
    if isinstance(teacher, OpenAiTeacherConfig):
        model = teacher.identity or f"{teacher.base_url} {teacher.model}"
        return EngineIdentity(f"{teacher.api} {model} {json.dumps(teacher.extra_body, sort_keys=True)}", "")
    model = model_identity(teacher.model, teacher.revision, field=f"{field or _section(teacher)}.model")
    if isinstance(teacher, VllmTeacherConfig):
        # Kernels of its own: the same weights may write other words here.
        model = f"vllm {model} {json.dumps(teacher.engine_args, sort_keys=True)}"
    return EngineIdentity(model, teacher.dtype)


def open_rewriter(teacher: GeneratingTeacherConfig, cache: GenerationCache, group_name: str = "teacher") -> Rewriter:
    """Return what rewrites with a teacher's engine. Raises TeacherError or ConfigError when it cannot be opened.

    Args:
        group_name: what the names of placement groups begin with, for engines that have them.
    """
    engine, tokenizer, budget = _opened(teacher, group_name, teacher.max_new_tokens, _section(teacher))
    beams = teacher.num_beams if isinstance(teacher, TransformersTeacherConfig) else 1
    return Rewriter(
        engine=engine,
        tokenizer=tokenizer,
        cache=cache,
        template=find_template(teacher.prompt),
        history_turns=teacher.history_turns,
        max_prompt_tokens=budget,
        sampling=Sampling(teacher.max_new_tokens, beams, teacher.temperature),
        samples=teacher.samples,
        retry=_retry(teacher),
    )


def open_choosing(
    teacher: GeneratingTeacherConfig, group_name: str, field: str
) -> tuple[ChoosingEngine, PromptTokenizer, int]:
    """Return a model's engine for choosing between answers, its tokenizer and the budget of a prompt in tokens.

    Args:
        field: the configuration section, for messages.

    Raises as `open_rewriter`.
    """
    return _opened(teacher, group_name, 1, field)


def open_writing(teacher: GeneratingTeacherConfig, group_name: str, field: str) -> tuple[Engine, PromptTokenizer, int]:
    """Return a model's engine for writing freely, its tokenizer and the budget of a prompt; see `open_choosing`."""
    return _opened(teacher, group_name, teacher.max_new_tokens, field)


class _OpenedEngine(Engine, ChoosingEngine, Protocol):
    """Every engine does both."""


def _opened(
    teacher: GeneratingTeacherConfig, group_name: str, new_tokens: int, field: str
) -> tuple[_OpenedEngine, PromptTokenizer, int]:
    if isinstance(teacher, OpenAiTeacherConfig):
        return *_endpoint(teacher, field), teacher.max_prompt_tokens
    if isinstance(teacher, VllmTeacherConfig):
        tokenizer, budget = _tokenizer(teacher, new_tokens)
        return _vllm(teacher, group_name), tokenizer, budget
    import torch

    torch.set_num_threads(max(1, int(teacher.workers.cpus)))
    tokenizer, budget = _tokenizer(teacher, new_tokens)
    return _LazyTransformers(teacher, tokenizer), tokenizer, budget


def check_prompts(teacher: GeneratingTeacherConfig) -> None:
    """Raise ConfigError when a teacher names a prompt that does not exist, or leaves it too few tokens for an answer."""
    for field, name in (("prompt", teacher.prompt), ("retry.prompt", teacher.retry.prompt)):
        fewest = find_template(name).fewest_new_tokens if name else 0
        if teacher.max_new_tokens < fewest:
            raise ConfigError(
                f"teachers.{teacher.name}.max_new_tokens is {teacher.max_new_tokens}, and with {field}: {name} the model "
                f"thinks before it writes the query; give it at least {fewest}"
            )


def shows_answer(teacher: TeacherConfig) -> bool:
    """Return whether a teacher's prompts show the answer to the question that is rewritten."""
    return any(template.shows_answer for template in _templates(teacher))


def shows_facts(teacher: TeacherConfig) -> bool:
    """Return whether a teacher's prompts show facts about the user."""
    return any(template.shows_facts for template in _templates(teacher))


def _templates(teacher: TeacherConfig) -> list[PromptTemplate]:
    if isinstance(teacher, RecordedTeacherConfig):
        return []
    return [find_template(name) for name in (teacher.prompt, teacher.retry.prompt) if name]


def _retry(teacher: GeneratingTeacherConfig) -> Retry:
    template = find_template(teacher.retry.prompt) if teacher.retry.prompt else None
    return Retry(teacher.retry.tries, teacher.retry.temperature, template=template)


def check_teacher(teacher: GeneratingTeacherConfig, field: str | None = None) -> None:
    """Raise ConfigError when an endpoint's key is missing, nobody answers there, or it has no such model; `field` as for
    `engine_identity`."""
    if isinstance(teacher, OpenAiTeacherConfig):
        from raydistill.teachers.openai_engine import api_key_of, check_endpoint

        section = field or _section(teacher)
        check_endpoint(teacher.base_url, teacher.model, api_key_of(teacher.api_key_env, section), section)


def _section(teacher: GeneratingTeacherConfig) -> str:
    return f"teachers.{teacher.name}"


def _endpoint(teacher: OpenAiTeacherConfig, field: str) -> tuple[_OpenedEngine, PromptTokenizer]:
    from raydistill.teachers.openai_engine import OpenAiEngine, Patience, api_key_of
    from raydistill.teachers.openai_protocol import Wording

    actors = teacher.workers.actors
    patience = Patience(
        concurrency=teacher.concurrency,
        requests_per_minute=teacher.requests_per_minute and teacher.requests_per_minute / actors,
        tokens_per_minute=teacher.tokens_per_minute and teacher.tokens_per_minute / actors,
        connect_timeout_s=teacher.connect_timeout_s,
        answer_timeout_s=teacher.answer_timeout_s,
        retries=teacher.retries,
        first_wait_s=teacher.retry_wait_s,
    )
    stop_at_newline = find_template(teacher.prompt).stop_at_newline
    wording = Wording(teacher.model, teacher.api, teacher.extra_body, stop_at_newline)
    key = api_key_of(teacher.api_key_env, field)
    return OpenAiEngine(teacher.base_url, wording, patience, key), _RemoteTokenizer(teacher.api == "chat")


class _RemoteTokenizer:
    """What rendering needs to know of a model elsewhere: its server applies the chat template, and tokens are estimated."""

    def __init__(self, has_chat_template: bool) -> None:
        self.has_chat_template = has_chat_template

    def count_tokens(self, prompt: str) -> int:
        from raydistill.teachers.openai_protocol import estimated_tokens

        return estimated_tokens(prompt)

    def as_chat(self, message: str) -> str:
        return message


def _vllm(teacher: VllmTeacherConfig, group_name: str) -> _OpenedEngine:
    from raydistill.teachers.engine_actor import EngineActor
    from raydistill.teachers.vllm_engine import VllmEngine

    make = partial(
        VllmEngine,
        teacher.model,
        teacher.revision,
        teacher.dtype,
        teacher.tensor_parallel_size,
        find_template(teacher.prompt).stop_at_newline,
        teacher.trust_remote_code,
        teacher.engine_args,
    )
    return EngineActor(make, [{"GPU": 1}] * teacher.tensor_parallel_size, group_name, teacher.answer_timeout_s)


def _tokenizer(teacher: TransformersTeacherConfig | VllmTeacherConfig, new_tokens: int) -> tuple[Any, int]:
    """Return the tokenizer of a model that is loaded here, and the budget of a prompt in tokens before so many new ones."""
    from raydistill.teachers.transformers_engine import ModelTokenizer, model_positions

    budget = teacher.max_prompt_tokens
    positions, shared = model_positions(teacher.model, teacher.revision, teacher.trust_remote_code)
    if positions:
        # Rather show fewer turns than hand the model a prompt that it cannot take.
        budget = max(1, min(budget, positions - (new_tokens if shared else 0)))
    return ModelTokenizer(teacher.model, teacher.revision, teacher.trust_remote_code), budget


class _LazyTransformers:
    """The transformers engine, loaded when there is something to generate."""

    def __init__(self, config: TransformersTeacherConfig, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        """Generate with the loaded engine."""
        return self._engine.generate(prompts, sampling)

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Choices:
        """Choose with the loaded engine."""
        return self._engine.choose(prompts, options)

    @cached_property
    def _engine(self) -> _OpenedEngine:
        from raydistill.teachers.transformers_engine import TransformersEngine

        config = self._config
        return TransformersEngine(
            config.model,
            self._tokenizer,
            revision=config.revision,
            dtype=config.dtype,
            batch_tokens=config.batch_tokens,
            stop_at_newline=find_template(config.prompt).stop_at_newline,
            trust_remote_code=config.trust_remote_code,
            device=None if config.workers.gpus else "cpu",
        )
