"""The teachers: who rewrites the conversations' last turns."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, WrapValidator, field_validator, model_validator
from pydantic_core import PydanticCustomError

from raydistill.config.fields import (
    Added,
    Fraction,
    Location,
    ModelSource,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Operational,
    PoolConfig,
    Section,
)

IN_CONVERSATIONS = "conversations"
"""In the place of a file of rewrites: those that the conversation files themselves hold."""
AS_ASKED = "questions"
"""In the place of a file of rewrites: every turn's question as the user asked it."""
WITHOUT_FILE = (IN_CONVERSATIONS, AS_ASKED)

_BY_STUDENT = "@student"


def as_read_by_student(teacher: str) -> str:
    """Return the name under which a teacher's rewrites stand as an earlier student encodes them; no teacher can have it."""
    return teacher + _BY_STUDENT


def who_rewrote(name: str) -> str:
    """Return whose rewrites the scores under a name are of: the teacher's name, with or without an earlier student's."""
    return name.removesuffix(_BY_STUDENT)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_path(value: Any, as_location: Callable[[Any], Any]) -> Any:
    return value if value in WITHOUT_FILE else as_location(value)


RewritesLocation = Annotated[Location, WrapValidator(_no_path)]


class RecordedTeacherConfig(Section):
    """Rewrites that were made elsewhere. A turn that they lack goes without this teacher; a training source, or the whole
    test set, may go without it."""

    engine: Literal["recorded"] = "recorded"
    name: Name
    rewrites: Annotated[Operational[tuple[RewritesLocation, ...]], BeforeValidator(_as_list), Field(min_length=1)]
    """One place or a list of them: URI or absolute path of JSONL records {_id: query id, text} or of a .tsv with lines
    `query id<TAB>text`; `conversations` for the rewrites that the conversation files themselves hold (human ones in CAsT and
    iKAT, made ones of passages); `questions` for the turns' own questions as they were asked: a second opinion where a
    rewrite strays. Where several have a text, a file's counts first, then the conversation's."""


class RetryConfig(Section):
    """What is done about an answer that holds no rewrite; after that, the last utterance stands in and is marked."""

    tries: NonNegativeInt = 1
    """Further tries at most."""
    temperature: PositiveFloat = 0.7
    """Of their sampling: decoding as before would repeat the answer."""
    prompt: str | None = None
    """Another prompt template; None for the same."""


class SpendConfig(Section):
    """Which training turns a teacher is asked about. Turns of the test set are always asked: they are what is measured."""

    skip: Literal["nothing", "first turns", "self-contained"] = "first turns"
    """Turns that are their own rewrite and are not asked: those without a history; with self-contained also those for which
    `student` gives nearly one vector with the conversation and without it."""
    student: Location | None = None
    """self-contained: folder of an earlier student, or the address of a student artifact."""
    agreement: Fraction = 0.9
    """self-contained: least cosine of the student's two vectors."""
    order: Literal["as they come", "disagreement"] = "as they come"
    """What a budget is spent on first; disagreement: turns that the teachers `among` have rewritten most differently."""
    among: tuple[Name, ...] = ()
    """Teachers without a budget of their own, at least two; they are asked before."""
    calls: PositiveInt | None = None
    """Turns that are asked at most. Of the limits that are given, the tightest holds."""
    tokens: PositiveInt | None = None
    """Prompt and new tokens at most, estimated beforehand (3 bytes of the prompt a token, and max_new_tokens)."""
    dollars: PositiveFloat | None = None
    """Cost at most by the same estimate."""
    prompt_price: NonNegativeFloat = 0.0
    """Dollars a million prompt tokens."""
    generated_price: NonNegativeFloat = 0.0
    """Dollars a million new tokens."""

    @model_validator(mode="after")
    def _fits_together(self) -> SpendConfig:
        if (self.skip == "self-contained") != (self.student is not None):
            raise ValueError(
                f"skip is {self.skip} and student {self.student or 'not set'}; self-contained turns are told by a student: "
                "set both or neither"
            )
        if self.order == "disagreement" and len(self.among) < 2:
            raise ValueError(
                f"order is disagreement, and among names {len(self.among)} teachers; name two or more, who are asked before"
            )
        if self.order != "disagreement" and self.among:
            raise ValueError("among is set, and only order: disagreement goes by it; set that, or leave among out")
        limits = (self.calls, self.tokens, self.dollars)
        if self.order == "disagreement" and not any(limits):
            raise ValueError("order is disagreement, and nothing is limited; set calls, tokens or dollars")
        if self.dollars is not None and not self.prompt_price + self.generated_price:
            raise ValueError(
                "dollars is set, and no price; set prompt_price and generated_price, in dollars a million tokens"
            )
        return self


class _GeneratingTeacher(Section):
    """What every teacher that writes rewrites with a language model is asked."""

    name: Name
    prompt: str = "zero-shot-v1"
    """Name of a prompt template in raydistill.teachers.prompts."""
    max_new_tokens: PositiveInt = 64
    temperature: NonNegativeFloat = 0.0
    """0 decodes greedily (or by beam search, where there are beams)."""
    samples: PositiveInt = 1
    """Answers a turn, each sampled with a seed of its own. The first that holds a rewrite counts; the others are kept as
    `alternatives` beside it."""
    retry: RetryConfig = RetryConfig()
    history_turns: NonNegativeInt = 12
    """Most recent turns of history shown to the model."""
    max_prompt_tokens: PositiveInt = 2048
    """Prompt budget in tokens; oldest turns are left out first, the question never."""
    turns_per_task: Operational[PositiveInt] = 128
    """Turns handed to an actor at a time, and the most that a crash can lose."""
    workers: PoolConfig = PoolConfig()
    spend: Added[SpendConfig | None] = None
    """Which training turns it is asked about; None: all."""

    @model_validator(mode="after")
    def _samples_differ(self) -> _GeneratingTeacher:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples is {self.samples} and temperature is 0, so all would be the same; raise temperature")
        return self


class TransformersTeacherConfig(_GeneratingTeacher):
    """A language model run by transformers inside Ray actors."""

    engine: Literal["transformers"] = "transformers"
    model: ModelSource
    """Hub id or folder of a causal or seq2seq language model."""
    revision: str | None = None
    """Hub revision; name a commit for results that stay the same."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    num_beams: PositiveInt = 1
    batch_tokens: Operational[PositiveInt] = 8192
    """Upper bound on padded prompt tokens in a batch."""
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _beams_or_samples(self) -> TransformersTeacherConfig:
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"num_beams is {self.num_beams} and temperature {self.temperature:g}, and an answer is either searched for "
                "or drawn; set one of them back (num_beams: 1, or temperature: 0)"
            )
        return self


class OpenAiTeacherConfig(_GeneratingTeacher):
    """A language model behind an endpoint that speaks the OpenAI protocol: a hosted one, or a server of one's own."""

    engine: Literal["openai"] = "openai"
    base_url: Operational[str]
    """Address up to and with the version, such as https://api.example.org/v1."""
    model: str
    """The model's id at the endpoint."""
    identity: str | None = None
    """What rewrites and the cache of generations know the model by; None: base_url and model. Give a model that changes its
    address a name of its own (such as mistral-7b-fp8), and what it has written is found again."""
    api: Literal["chat", "completions"] = "chat"
    """chat: /chat/completions, the prompt as the user's message; completions: /completions, the prompt as it is."""
    api_key_env: Operational[str | None] = None
    """Name of the environment variable that holds the API key, on every node. The key itself belongs in no configuration."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, such as {chat_template_kwargs: {enable_thinking: false}}; null leaves a field out
    ({max_tokens: null, max_completion_tokens: 64})."""
    concurrency: Operational[PositiveInt] = 16
    """Requests in flight at most, of each actor."""
    requests_per_minute: Operational[PositiveFloat | None] = None
    """Limit of the endpoint, shared evenly among the actors."""
    tokens_per_minute: Operational[PositiveFloat | None] = None
    """Likewise; prompts and answers count."""
    connect_timeout_s: Operational[PositiveFloat] = 10.0
    answer_timeout_s: Operational[PositiveFloat] = 120.0
    """To have a whole answer; then it is asked again."""
    retries: Operational[NonNegativeInt] = 5
    """Further tries of a request that met 429, 5xx, a broken connection, half an answer, or none."""
    retry_wait_s: Operational[PositiveFloat] = 1.0
    """Before the first of them; doubled each time up to a minute, less up to a half at random."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, base_url: str) -> str:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be http(s)://host[:port]/path, such as https://api.example.org/v1")
        if parts.username or parts.password:
            raise ValueError(
                "must hold no user or password; put a key into an environment variable and name it in api_key_env"
            )
        return base_url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise PydanticCustomError(
                "secret", "must be the name of an environment variable, such as OPENAI_API_KEY, and never the key itself"
            )
        return name


class VllmTeacherConfig(_GeneratingTeacher):
    """A language model run by vLLM, each of the pool's engines on GPUs of its own."""

    engine: Literal["vllm"] = "vllm"
    model: ModelSource
    """Hub id or folder of a causal language model."""
    revision: str | None = None
    """Hub revision; name a commit for results that stay the same."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    tensor_parallel_size: Operational[PositiveInt] = 1
    """GPUs of one node that share a model. `workers.actors` is the number of such engines."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vllm.LLM, such as {quantization: fp8, max_model_len: 8192}."""
    turns_per_task: Operational[PositiveInt] = 512
    """Turns handed to an engine at a time, and the most that a crash can lose."""
    answer_timeout_s: Operational[PositiveFloat] = 3600.0
    """For one task, the model's loading included; an engine that takes longer counts as hung and is ended."""
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _gpus_are_the_engine_s(self) -> VllmTeacherConfig:
        if self.workers.gpus:
            raise ValueError(
                f"workers.gpus is {self.workers.gpus:g}, and an engine takes tensor_parallel_size whole GPUs; leave it out"
            )
        return self


GeneratingTeacherConfig = TransformersTeacherConfig | OpenAiTeacherConfig | VllmTeacherConfig
TeacherConfig = Annotated[RecordedTeacherConfig | GeneratingTeacherConfig, Field(discriminator="engine")]
