"""What `raydistill synthesize` writes: conversations about a run's passages, by a language model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from raydistill.config.chain import RayConfig
from raydistill.config.fields import Fraction, Location, Name, NonNegativeFloat, Operational, Section
from raydistill.config.teachers import GeneratingTeacherConfig

TurnKind = Literal["question", "keywords", "claim"]
_KINDS: dict[TurnKind, float] = {"question": 0.7, "keywords": 0.2, "claim": 0.1}
_OF_REWRITING = ("prompt", "history_turns", "samples", "retry", "spend", "turns_per_task")


class SynthesisConfig(Section):
    """Conversations that a language model writes from passages, as further training conversations."""

    dataset: Name
    """Name of what is written; configurations read it as ROOT/datasets/DATASET/train.json, with reader: prepared."""
    run: Location
    """YAML file of a run: its corpus is written about, its root takes what is written, and its index is asked."""
    llm: Annotated[GeneratingTeacherConfig, Field(discriminator="engine")]
    """The model and what runs it, as of a teacher: {engine: transformers, model: …, max_new_tokens: …, temperature: …,
    workers: …}. Its name can be left out; what only rewriting needs is refused."""
    conversations: PositiveInt = 1000
    """Conversations that are begun; those that fail at their first turn are left out."""
    turns: Annotated[int, Field(ge=1, le=20)] = 4
    """Turns of a conversation."""
    kinds: dict[TurnKind, NonNegativeFloat] = Field(default_factory=lambda: dict(_KINDS))
    """How often a turn is a question, a keyword query, a statement to be checked; relative to each other."""
    topic_switch: Fraction = 0.25
    """Share of later turns that go on to another passage."""
    depth: NonNegativeInt = 20
    """A turn is kept if the run's index finds its passage among so many for the self-contained question; 0: all are kept."""
    min_words: PositiveInt = 20
    """Shorter passages are not written about."""
    seed: NonNegativeInt = 0
    conversations_per_task: Operational[PositiveInt] = 32
    """Conversations that a worker writes side by side and stores as one part."""
    ray: Operational[RayConfig] = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _model_is_named(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("llm"), dict):
            return {**given, "llm": {"name": given.get("dataset"), **given["llm"]}}
        return given

    @model_validator(mode="after")
    def _nothing_is_inert(self) -> SynthesisConfig:
        fields = type(self.llm).model_fields
        idle = [name for name in _OF_REWRITING if name in fields and getattr(self.llm, name) != fields[name].default]
        if idle:
            raise ValueError(f"llm.{idle[0]} is set, and only rewriting has it; leave it out")
        if not any(self.kinds.values()):
            raise ValueError("kinds: every weight is 0; give at least one kind of turn a weight")
        return self
