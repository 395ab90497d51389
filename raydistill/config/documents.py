"""The document encoder: what turns passages, and the teachers' rewrites, into sparse vectors, and how one is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from raydistill.config.data import TextConfig
from raydistill.config.dense import DenseEncoderConfig
from raydistill.config.fields import (
    Added,
    Fraction,
    Location,
    ModelSource,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Operational,
    Section,
    WorkerConfig,
)
from raydistill.config.objective import Objective
from raydistill.config.regularisation import RegularisationConfig
from raydistill.config.student import StudentConfig
from raydistill.config.train import TrainConfig

QueryForm = Literal["last_turn", "user_turns", "rewrites"]
DOCUMENT_TEACHERS = ("recorded", "dense", "lexical")
"""Whose scores a document objective can name: the recorded runs', the dense teacher's, BM25's."""


class LexicalDocumentsConfig(Section):
    """BM25 impacts over the student's vocabulary: no trained document model is needed."""

    kind: Literal["lexical"] = "lexical"
    k1: NonNegativeFloat = 0.9
    b: Fraction = 0.4


class SpladeDocumentsConfig(Section):
    """A trained SPLADE document encoder, frozen; it also encodes the teachers' rewrites."""

    kind: Literal["splade"] = "splade"
    model: ModelSource
    """Hub id or folder."""
    revision: str | None = None
    max_tokens: PositiveInt = 256
    max_terms: PositiveInt = 512
    """Heaviest terms kept of a passage."""
    pooling: Added[Literal["max", "sum"] | None] = None
    """As for the student. None: what the checkpoint says of itself, or else max; one of SPLADE v1 that says nothing, as
    naver's folders do, wants sum."""
    min_weight: NonNegativeFloat = 0.0
    """Terms of a passage that are not heavier are dropped."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What encoding computes in. On an H100 bf16 was 2.8 and 4 times as fast (6 and 12 layers); on a CPU measure first
    (benchmarks/encoder.py)."""
    batch_tokens: Operational[PositiveInt] = 8192
    trust_remote_code: bool = False


class RecordedRunConfig(Section):
    """Scores that another system once gave to the training conversations' turns: a scoring teacher."""

    name: Name
    run: Location
    """URI or path of a TREC run; scores are column 5. Queries that are no turn of data.train are never read from it."""
    queries: QueryForm = "last_turn"
    """What text the run was made with: the last user utterance, all user utterances (newest first), or a rewrite."""
    rewrites: Operational[Location | None] = None
    """URI or path of JSONL records {_id: query id, text}; for queries: rewrites."""
    weight: PositiveFloat = 1.0
    """How often a query of this run is drawn, relative to those of other runs."""

    @model_validator(mode="after")
    def _rewrites_where_they_are_read(self) -> RecordedRunConfig:
        if (self.queries == "rewrites") != (self.rewrites is not None):
            raise ValueError(
                f"queries is {self.queries} and rewrites is {self.rewrites!r}; a file of rewrites belongs to "
                "queries: rewrites, and to nothing else"
            )
        return self


class DocumentTrainingConfig(Section):
    """The training of a document encoder: one encoder for queries and passages, both with gradients.

    Queries are turns of data.train with recorded scores, and sentences of the passages themselves.
    """

    runs: tuple[RecordedRunConfig, ...] = ()
    run_share: Fraction = 0.25
    """Share of the queries of every batch that come from recorded runs, where there are any."""
    own_queries: NonNegativeInt = 20_000
    """Sentences taken as queries, at most and about, over the whole collection; one a passage."""
    dense_teacher: DenseEncoderConfig | None = None
    lexical_weight: Added[PositiveFloat | None] = None
    """With a dense teacher: terms that name no teacher follow its cosine plus so many times BM25's score. A dense encoder
    misses names and numbers, which words find: 0.03 weighs BM25 half to three quarters as much as MiniLM's cosine, by
    their standard deviations over passages. None: the cosine alone."""
    negatives_depth: PositiveInt = 50
    """Passages that BM25 retrieves for each query, from which negatives are drawn."""
    passages: Annotated[int, Field(ge=2)] = 6
    """Passages drawn for a query. Those of the other queries in the batch count too, wherever a teacher scores them."""
    steps: PositiveInt = 1000
    """Optimizer steps."""
    global_batch: PositiveInt = 16
    """Queries an optimizer step, over all workers."""
    chunk: Operational[PositiveInt] = 16
    """Texts a worker encodes together; the result does not depend on it."""
    cache_gradients: Operational[bool] = True
    """Hold the graph of one chunk at a time and encode every text twice; false holds those of all chunks and encodes once,
    which is a quarter faster where memory is enough. The result is the same."""
    max_tokens: PositiveInt = 160
    """Tokens kept of a text while training; the index keeps `index.documents.max_tokens`."""
    objective: Objective = Objective.parse("kld(teacher=lexical, tau=2)")
    """Terms may name the teachers recorded (standardised for each query), dense (cosine) and lexical (BM25); terms that
    name none follow dense where there is one (with lexical_weight: and BM25), else lexical."""
    query_regularisation: RegularisationConfig = RegularisationConfig()
    passage_regularisation: RegularisationConfig = RegularisationConfig()
    learning_rate: PositiveFloat = 5e-5
    head_learning_rate: PositiveFloat | None = None
    """Learning rate of the identity head's scale and bias; None uses learning_rate."""
    weight_decay: NonNegativeFloat = 0.01
    warmup_share: Fraction = 0.05
    gradient_clip: PositiveFloat = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Operational[Literal[0, 1, 2, 3]] = 1
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Dropout of the encoder while training; None keeps the model's own."""
    seed: NonNegativeInt = 42
    readers: Operational[NonNegativeInt | None] = None
    """Processes that read, score with BM25 and tokenise batches ahead of a worker, as train.readers."""
    checkpoint_steps: Operational[PositiveInt] = 200
    log_steps: Operational[PositiveInt] = 10
    max_failures: Operational[Annotated[int, Field(ge=-1)]] = 3
    workers: WorkerConfig = WorkerConfig()

    @property
    def texts(self) -> int:
        """Texts of a global batch: queries and passages."""
        return self.global_batch * (1 + self.passages)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers whose scores a batch carries, in the order of its columns."""
        present = {"recorded": bool(self.runs), "dense": self.dense_teacher is not None, "lexical": True}
        return tuple(name for name in DOCUMENT_TEACHERS if present[name])

    @property
    def follows_lexical(self) -> bool:
        """Whether any term of the objective follows BM25's scores, by its name or in those that terms without a teacher
        follow."""
        is_heard = self.dense_teacher is None or self.lexical_weight is not None
        return "lexical" in self.objective.teacher_names or (is_heard and self.objective.hears_everybody)

    def loop_settings(self) -> TrainConfig:
        """Return what the engine of the training loop reads, in terms of texts: a chunk is its micro-batch."""
        whole = self.chunk * self.workers.actors
        return TrainConfig(
            global_batch=-(-self.texts // whole) * whole,
            micro_batch=self.chunk,
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            weight_decay=self.weight_decay,
            warmup_share=self.warmup_share,
            gradient_clip=self.gradient_clip,
            precision=self.precision,
            zero_stage=self.zero_stage,
            dropout=self.dropout,
            seed=self.seed,
            checkpoint_steps=self.checkpoint_steps,
            log_steps=self.log_steps,
            max_failures=self.max_failures,
            workers=self.workers,
        )

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> DocumentTrainingConfig:
        if not self.runs and not self.own_queries:
            raise ValueError("there are neither runs nor own_queries, so there is nothing to train on; give one of them")
        if self.lexical_weight is not None and self.dense_teacher is None:
            raise ValueError(
                f"lexical_weight is {self.lexical_weight:g} and there is no dense_teacher that BM25 could be added to; give "
                "one, or leave lexical_weight out: terms that name no teacher follow BM25 then"
            )
        if self.lexical_weight is not None and not self.objective.hears_everybody:
            raise ValueError(
                f"lexical_weight is {self.lexical_weight:g} and every term of the objective that follows scores names its "
                f"teacher ({self.objective}), so it would change nothing; take teacher= out of one, or leave it out"
            )
        if self.runs and self.run_share == 0:
            raise ValueError("run_share is 0, so no query of the runs would ever be drawn; raise it or leave runs out")
        names = [run.name for run in self.runs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"runs: the name {twice[0]!r} is used twice; give every run its own")
        return self

    @model_validator(mode="after")
    def _loop_can_run(self) -> DocumentTrainingConfig:
        try:
            self.loop_settings()
        except ValidationError as error:
            # Its own sentence, in the fields that both have by the same names.
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @model_validator(mode="after")
    def _graphs_can_be_held(self) -> DocumentTrainingConfig:
        if self.zero_stage == 3 and not self.cache_gradients:
            raise ValueError("cache_gradients is false, which zero_stage 3 cannot do: its shards serve one chunk at a time")
        return self

    @model_validator(mode="after")
    def _objective_can_be_computed(self) -> DocumentTrainingConfig:
        unknown = [name for name in self.objective.teacher_names if name not in self.teachers]
        if unknown:
            raise ValueError(
                f"objective names the teacher {unknown[0]!r}, but this training has {', '.join(self.teachers)}; "
                "recorded needs runs, dense needs dense_teacher"
            )
        if "recorded" in self.objective.teacher_names and self.passages < 3:
            raise ValueError(
                f"objective follows the recorded runs, which compare the passages that they list, and passages is "
                f"{self.passages}: with one relevant passage and one negative there is nothing to compare; use 3 or more"
            )
        if self.objective.needs_rewrites:
            raise ValueError("objective has a term that follows rewrites' vectors, which no document training has; drop it")
        for field in ("query_regularisation", "passage_regularisation"):
            target = getattr(self, field).target
            if getattr(self, field).per_depth or (target is not None and target.measure == "flops"):
                raise ValueError(
                    f"{field} may hold a target for l0 only, and not per_depth: FLOPS is measured against a fixed index, "
                    "which is what is being trained here, and passages have no turn depth"
                )
        return self


class LearnedDocumentsConfig(Section):
    """A SPLADE document encoder that this chain trains first, and then freezes, as a stage of its own."""

    kind: Literal["learned"] = "learned"
    model: ModelSource
    """Hub id or folder of the encoder to start from; it must share the student's vocabulary."""
    revision: str | None = None
    head: Literal["mlm", "identity"] = "mlm"
    """As for the student."""
    active_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.005
    """identity head only: share of the vocabulary active on average in a passage before training."""
    pooling: Added[Literal["max", "sum"] | None] = None
    """As for the student, which must have the same where it starts from this encoder."""
    trust_remote_code: bool = False
    max_tokens: PositiveInt = 256
    """Tokens kept of a passage when the index is built."""
    max_terms: PositiveInt = 512
    """Heaviest terms kept of a passage."""
    min_weight: NonNegativeFloat = 0.0
    """Terms of a passage that are not heavier are dropped when the index is built."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What encoding computes in, as for splade; `training.precision` is that of its training."""
    batch_tokens: Operational[PositiveInt] = 8192
    top_terms: Added[PositiveInt | None] = None
    """Heaviest terms of every text, query or passage, that are kept in training and ever after (VDR, arXiv 2212.07699):
    training then knows what the index keeps, where `max_terms` prunes the passages of a finished encoder. None keeps all.
    How many terms a student that starts from this encoder keeps is its own `top_terms`."""
    training: DocumentTrainingConfig = DocumentTrainingConfig()
    starts_student: bool = True
    """The student starts from the trained encoder, which reads queries in this space already, and not from student.model."""
    trained: Operational[dict[str, str] | None] = None
    """Address of the trained encoder's artifact; filled in by the chain."""

    def starting_model(self) -> StudentConfig:
        """Return the model to start from in the student's terms."""
        return StudentConfig(
            model=self.model,
            revision=self.revision,
            head=self.head,
            active_share=self.active_share if self.head == "identity" else None,
            pooling=self.pooling,
            top_terms=self.top_terms,
            text=TextConfig(max_tokens=self.max_tokens),
            trust_remote_code=self.trust_remote_code,
        )

    @model_validator(mode="after")
    def _top_terms_act(self) -> LearnedDocumentsConfig:
        if self.top_terms is None:
            return self
        if self.top_terms > self.max_terms:
            raise ValueError(
                f"top_terms is {self.top_terms}, but the index keeps max_terms {self.max_terms} terms of a passage, so "
                "training would count on terms that are dropped; lower top_terms or raise max_terms"
            )
        for field in ("query_regularisation", "passage_regularisation"):
            try:
                getattr(self.training, field).check_most_terms(self.top_terms)
            except ValueError as error:
                raise ValueError(f"training.{field} {error}") from None
        return self


DocumentsConfig = Annotated[
    LexicalDocumentsConfig | SpladeDocumentsConfig | LearnedDocumentsConfig, Field(discriminator="kind")
]
