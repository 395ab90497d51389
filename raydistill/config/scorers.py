"""Scorers: models that read a query and passages, and say how well they fit. Their scores join those of the teachers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from raydistill.config.dense import BiEncoderConfig
from raydistill.config.fields import Name, Operational, Section, WorkerConfig
from raydistill.config.rerank import CrossEncoderConfig, QueryText
from raydistill.config.teachers import GeneratingTeacherConfig

CONVERSATION_FORMS: tuple[QueryText, ...] = ("last turn", "all user turns", "full conversation")
_OF_REWRITING = (
    "prompt",
    "max_new_tokens",
    "temperature",
    "samples",
    "retry",
    "history_turns",
    "turns_per_task",
    "num_beams",
    "spend",
)


class _Scorer(Section):
    """What every scorer is asked."""

    name: Name
    """Under this name its scores stand beside the teachers'."""
    depth: PositiveInt = 50
    """Candidates of a turn that it scores: those that are best by the mean of the teachers, and the gold passages."""
    query: str = "full conversation"
    """What it reads as the query: last turn, all user turns or full conversation (newest utterance first), or the name of a
    teacher, for that teacher's rewrite."""
    turns_per_task: Operational[PositiveInt] = 32
    """Turns handed to an actor at a time, and the most that a crash can lose."""
    calibrate: bool = False
    """Turn scores into log-odds of being relevant by Platt's scaling, fitted on the gold passages of the training turns; the
    other passages that were scored count as not relevant."""


class CrossEncoderScorerConfig(_Scorer):
    """A cross-encoder: its logit, or with two outputs the second less the first."""

    kind: Literal["cross-encoder"] = "cross-encoder"
    encoder: CrossEncoderConfig

    @property
    def workers(self) -> WorkerConfig:
        """The pool that it runs on."""
        return self.encoder.workers


class BiEncoderScorerConfig(_Scorer):
    """A dense encoder: the cosine similarity of query and passage, times a scale."""

    kind: Literal["bi-encoder"] = "bi-encoder"
    encoder: BiEncoderConfig
    scale: Annotated[float, Field(gt=0.0)] = 20.0
    """What cosines are multiplied with, which makes logits of them: one over the temperature that the encoder was trained
    with (20 is sentence-transformers' own)."""

    @property
    def workers(self) -> WorkerConfig:
        """The pool that it runs on."""
        return self.encoder.workers


class LlmScorerConfig(_Scorer):
    """A language model that is asked about passages."""

    kind: Literal["llm"] = "llm"
    method: Literal["pointwise", "listwise", "pairwise"] = "pointwise"
    """pointwise: yes or no for each passage. listwise: a window of passages at a time, ordered by the log-probabilities of
    their letters (FIRST). pairwise: passages against each other, in both orders. See raydistill.scoring.judges."""
    prompt: str | None = None
    """A prompt of raydistill.scoring.prompts; None: pointwise-v1, listwise-v1 or pairwise-v1. utility-v1 asks whether to
    keep a passage as evidence."""
    options: tuple[str, ...] | None = None
    """pointwise: the two answers, the good one first, in place of the prompt's, each a single token of the model."""
    window: Annotated[int, Field(ge=2, le=26)] = 20
    """listwise: passages in a prompt."""
    step: PositiveInt = 10
    """listwise: places by which the window moves towards the top."""
    opponents: PositiveInt = 10
    """pairwise: about how many others a passage is compared with."""
    llm: Annotated[GeneratingTeacherConfig, Field(discriminator="engine")]
    """The model and what runs it, as of a teacher: {engine: transformers, model: …, max_prompt_tokens: …, workers: …}. Its
    name can be left out; what only rewriting needs is refused."""

    @property
    def workers(self) -> WorkerConfig:
        """The pool that it runs on."""
        return self.llm.workers

    @model_validator(mode="before")
    @classmethod
    def _model_is_named_as_the_scorer(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("llm"), dict):
            return {**given, "llm": {"name": given.get("name"), **given["llm"]}}
        return given

    @model_validator(mode="after")
    def _nothing_is_inert(self) -> LlmScorerConfig:
        fields = type(self.llm).model_fields
        set_ = [name for name in _OF_REWRITING if name in fields and getattr(self.llm, name) != fields[name].default]
        if set_:
            raise ValueError(
                f"llm.{set_[0]} is set, and a scorer only chooses between answers, so it changes nothing; leave it out"
            )
        own = {"window": "listwise", "step": "listwise", "opponents": "pairwise", "options": "pointwise"}
        idle = [
            name
            for name, method in own.items()
            if method != self.method and getattr(self, name) != type(self).model_fields[name].default
        ]
        if idle:
            raise ValueError(f"{idle[0]} is set, and only method {own[idle[0]]} has it, not {self.method}; leave it out")
        if self.step >= self.window:
            raise ValueError(
                f"step is {self.step} and window {self.window}, so no passage would go on from one window into the next; "
                "lower step"
            )
        if self.options is not None and (len(self.options) != 2 or self.options[0] == self.options[1]):
            raise ValueError(f"options are {list(self.options)}; give two that differ, the good one first")
        return self


ScorerConfig = Annotated[CrossEncoderScorerConfig | BiEncoderScorerConfig | LlmScorerConfig, Field(discriminator="kind")]
