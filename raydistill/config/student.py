"""The student: the query encoder that is trained, its head, and which of its weights are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from raydistill.config.data import TextConfig
from raydistill.config.fields import Added, ModelSource, NonNegativeInt, Operational, Section

HeadKind = Literal["mlm", "identity", "decoder", "table"]
Attention = Literal["causal", "bidirectional"]
Pooling = Literal["max", "sum", "last"]

# The fields that belong to some heads only, with the values they have there when nothing is said. Elsewhere they are None,
# and naming them is refused: a field that changes nothing would mislead.
_HEAD_DEFAULTS: dict[str, dict[str, Any]] = {
    "mlm": {"pooling": None},
    "identity": {"active_share": 0.003, "pooling": None},
    "decoder": {"active_share": 0.003, "attention": "bidirectional", "pooling": "max"},
    "table": {"table_start": "idf", "recency_parts": 12},
}
_HEAD_FIELDS = sorted({name for fields in _HEAD_DEFAULTS.values() for name in fields})


class LoraConfig(Section):
    """Low-rank adapters in place of full training (Hu et al., arXiv 2106.09685); needs `pip install raydistill[lora]`."""

    rank: PositiveInt = 16
    """Rank of the update of each adapted matrix."""
    alpha: PositiveFloat = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout before the adapters; `train.dropout` overrides it where that is set."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Ends of the names of the modules to adapt, e.g. [q_proj, v_proj]; all-linear: all of them but the vocabulary's."""

    @field_validator("targets", mode="before")
    @classmethod
    def _list_or_all(cls, targets: Any) -> Any:
        if targets != "all-linear" and (not targets or not isinstance(targets, (list, tuple))):
            raise ValueError("must be a list of names, such as [q_proj], or all-linear")
        return targets


class FreezeConfig(Section):
    """Weights that keep their starting values."""

    embeddings: bool = False
    """Word, position and type embeddings, and with them a head that is tied to the word embeddings."""
    layers: NonNegativeInt = 0
    """Number of transformer layers kept, counted from the input; less than the model has."""

    @model_validator(mode="after")
    def _not_inert(self) -> FreezeConfig:
        if not self.embeddings and self.layers == 0:
            raise ValueError("freeze names nothing to keep; set embeddings: true or layers above 0, or leave freeze out")
        return self


class StudentConfig(Section):
    """The query encoder that is trained."""

    model: ModelSource
    """Hub id or folder of a Hugging Face model, or of an exported student, or the address of a finished student or document
    encoder, ROOT/artifacts/student/NAME-ID: training then goes on from it. A table takes its tokenizer only."""
    revision: str | None = None
    head: HeadKind = "mlm"
    """mlm: the checkpoint's own masked-LM head. identity: logits = scale * (hidden . embedding) + bias, for encoders that
    ship without one. decoder: a causal language model, logits = scale * (hidden . lm_head) + bias. table: a learned weight
    a term and no transformer at all (inference-free)."""
    active_share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """identity and decoder: share of the vocabulary active on average before training, reached by the bias (0.003)."""
    attention: Attention | None = None
    """decoder: whether a token sees the tokens after it (bidirectional, the default) or not (causal)."""
    pooling: Pooling | None = None
    """How a term's values at the tokens become its weight: their maximum (max, SPLADE v2; the default), their sum (sum,
    SPLADE v1, arXiv 2107.05720), or of a decoder the last token's (last). mlm: left out, what the checkpoint says of itself
    holds. A sum costs more to train: its backward multiplies with the vocabulary, where a maximum's follows active terms."""
    table_start: Literal["idf", "ones"] | None = None
    """table: where the weights start: log(1 + 1 / share of passages with the term) (idf, the default), or ones, which over
    lexical passages is BM25 (their vectors hold the idf already)."""
    recency_parts: PositiveInt | None = None
    """table: utterances and answers, newest first, that have a learned factor of their own (12); older ones share the last.
    1: a term counts the same wherever it occurs."""
    top_terms: Added[PositiveInt | None] = None
    """Heaviest terms of a query that are kept, of equal ones those with lower ids; the rest are 0, in training and in
    encoding alike, and no gradient reaches them (top-k activation, VDR, arXiv 2212.07699). None keeps all."""
    lora: LoraConfig | None = None
    freeze: FreezeConfig | None = None
    gradient_checkpointing: Operational[bool] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    text: TextConfig = TextConfig()
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_head(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        defaults = _HEAD_DEFAULTS.get(str(data.get("head", "mlm")), {})
        return {**data, **{name: value for name, value in defaults.items() if data.get(name) is None}}

    @model_validator(mode="after")
    def _only_fields_that_count(self) -> StudentConfig:
        for name in _HEAD_FIELDS:
            value = getattr(self, name)
            if value is not None and name not in _HEAD_DEFAULTS[self.head]:
                heads = " or ".join(head for head, fields in _HEAD_DEFAULTS.items() if name in fields)
                raise ValueError(
                    f"{name} is {value!r}, but only head {heads} uses it and head is {self.head}; remove {name}"
                )
        if self.pooling == "last" and self.head != "decoder":
            raise ValueError(
                "pooling is 'last', but only head decoder has a last token that has seen all others, and head is "
                f"{self.head}; take max or sum"
            )
        if self.head == "table" and (self.lora or self.freeze or self.gradient_checkpointing):
            raise ValueError(
                "a table has no transformer: remove lora, freeze and gradient_checkpointing, or choose another head"
            )
        if self.lora and self.freeze:
            raise ValueError("lora keeps all of the model's own weights as they are already; remove freeze or lora")
        return self
