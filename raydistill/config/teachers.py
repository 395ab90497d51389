"""The teachers: who rewrites the conversations' last turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, WrapValidator

from raydistill.config.fields import (
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


class TransformersTeacherConfig(Section):
    """A language model run by transformers inside Ray actors."""

    engine: Literal["transformers"] = "transformers"
    name: Name
    model: ModelSource
    """Hub id or folder of a causal or seq2seq language model."""
    revision: str | None = None
    """Hub revision; name a commit for results that stay the same."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    prompt: str = "zero-shot-v1"
    """Name of a prompt template in raydistill.teachers.prompts."""
    max_new_tokens: PositiveInt = 64
    num_beams: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    """0 decodes greedily (or by beam search)."""
    history_turns: NonNegativeInt = 12
    """Most recent turns of history shown to the model."""
    max_prompt_tokens: PositiveInt = 2048
    """Prompt budget in tokens; oldest turns are left out first, the question never."""
    batch_tokens: Operational[PositiveInt] = 8192
    """Upper bound on padded prompt tokens in a batch."""
    turns_per_task: Operational[PositiveInt] = 128
    """Turns handed to an actor at a time, and the most that a crash can lose."""
    trust_remote_code: bool = False
    workers: PoolConfig = PoolConfig()


TeacherConfig = Annotated[RecordedTeacherConfig | TransformersTeacherConfig, Field(discriminator="engine")]
