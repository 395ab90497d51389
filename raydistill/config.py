"""The typed configuration of a run: one frozen model a stage, one for the chain. Loading lives in `config_loading`.

Every field is checked before Ray starts. Fields wrapped in `Operational[...]` say how a result is computed (workers,
batch sizes that do not change the outcome) and stay out of fingerprints; all the others are part of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)


class _Mark:
    """Annotation that keeps a field out of fingerprints."""


OPERATIONAL = _Mark()
T = TypeVar("T")
Operational = Annotated[T, OPERATIONAL]


class CommandLineValue(str):
    """A string given on the command line: a relative path in it starts at the current directory."""


def _absolute_location(value: Any, info: ValidationInfo) -> Any:
    """Make a relative path absolute: Ray workers run elsewhere and could not resolve it."""
    if not isinstance(value, str) or "://" in value or value.startswith(("/", "package:")):
        return value
    folder = (info.context or {}).get("folder") if not isinstance(value, CommandLineValue) else Path.cwd()
    if folder is None:
        raise ValueError(f"{value!r} is a relative path; give a URI or an absolute path")
    return str((Path(folder) / value).resolve())


def _absolute_model(value: Any, info: ValidationInfo) -> Any:
    """Make a model folder given as ./folder or ../folder absolute; anything else may be a hub id and stays."""
    return _absolute_location(value, info) if isinstance(value, str) and value.startswith((".", "~")) else value


# Where something lies is no part of a fingerprint; the stages put the content's own hash in its place.
Location = Annotated[str, OPERATIONAL, BeforeValidator(_absolute_location)]
"""A URI or path; relative paths start at the configuration file's folder."""
ModelSource = Annotated[str, OPERATIONAL, BeforeValidator(_absolute_model)]
"""A hub id, a folder, or package:NAME/FOLDER for a model inside an installed Python package (see model_source)."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Section(BaseModel):
    """Base of every section: immutable, unknown fields refused, defaults checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class WorkerConfig(Section):
    """A pool of Ray actors."""

    actors: Operational[PositiveInt] = 1
    """Number of actors."""
    cpus: Operational[PositiveFloat] = 1.0
    """CPUs reserved by each actor; also its number of compute threads."""
    gpus: Operational[NonNegativeFloat] = 0.0
    """GPUs reserved by each actor; fractions share one."""


class ConversationSource(Section):
    """Conversations with their judgements."""

    conversations: Location
    """URI or absolute path of the conversation file."""
    qrels: Operational[Location | None] = None
    """URI or absolute path of the qrels; None where the conversation file holds the gold passages or none exist."""
    split: str | None = None
    """Keep only conversations whose own split field has this value; None keeps all."""


class DataConfig(Section):
    """Where the corpus and the conversations come from."""

    reader: Literal["mtrag", "topiocqa"] = "mtrag"
    """Format of the conversation files (see raydistill.conversations)."""
    corpus: Operational[tuple[Location, ...]] = Field(min_length=1)
    """URIs or absolute paths of the corpus files; a trailing * expands."""
    corpus_format: Literal["jsonl", "tsv"] = "jsonl"
    """jsonl: BEIR records {_id, title, text}; tsv: header `id text title`. Compressed by suffix .gz, .bz2, .zst."""
    train: ConversationSource
    test: ConversationSource
    max_bad_rows: NonNegativeInt = 0
    """Malformed rows that may be quarantined, with place and reason, in each of corpus, training and test source."""


class TextConfig(Section):
    """How a conversation becomes the student's text: newest first, budgets in words."""

    max_tokens: PositiveInt = 256
    """Tokens after which the text is cut; the oldest turns go first."""
    utterance_words: PositiveInt = 64
    """Words kept of each user utterance in the history (the last question is never cut by this)."""
    answer_words: NonNegativeInt = 100
    """Words kept of each answer; 0 leaves answers out."""


class RecordedTeacherConfig(Section):
    """Rewrites that were made elsewhere, read from a file."""

    engine: Literal["recorded"] = "recorded"
    name: Name
    rewrites: Location
    """URI or absolute path of JSONL records {_id: query id, text}."""


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
    workers: WorkerConfig = WorkerConfig()


TeacherConfig = Annotated[RecordedTeacherConfig | TransformersTeacherConfig, Field(discriminator="engine")]


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
    batch_tokens: Operational[PositiveInt] = 8192
    trust_remote_code: bool = False


DocumentsConfig = Annotated[LexicalDocumentsConfig | SpladeDocumentsConfig, Field(discriminator="kind")]


class StudentConfig(Section):
    """The query encoder that is trained."""

    model: ModelSource
    """Hub id or folder of a Hugging Face encoder."""
    revision: str | None = None
    head: Literal["mlm", "identity"] = "mlm"
    """mlm: the checkpoint's own masked-LM head. identity: logits = scale * (hidden . embedding) + bias, for encoders
    that ship without one."""
    active_share: Fraction = 0.003
    """identity head only: share of the vocabulary active on average before training; the bias is set to give it."""
    text: TextConfig = TextConfig()
    trust_remote_code: bool = False


class IndexConfig(Section):
    """How the corpus is sharded and stored."""

    name: Name = "passages"
    documents: DocumentsConfig = LexicalDocumentsConfig()
    passages_per_segment: PositiveInt = 1_000_000
    """Passages in a segment; also the most that one worker holds in memory."""
    impacts: Literal["f32", "f16", "u8"] = "f16"
    """Stored precision of impacts."""
    workers: WorkerConfig = WorkerConfig()


class ScoreConfig(Section):
    """Mining: which passages become candidates, and their exact score by every teacher."""

    top_k: PositiveInt = 1000
    """Passages retrieved for each teacher's rewrite; the candidates are their union and the gold passages."""
    queries_per_part: PositiveInt = 1024
    """Queries in one Parquet part, and the most that a crash can lose."""
    workers: WorkerConfig = WorkerConfig()


class SamplingConfig(Section):
    """Which candidates of a query enter a step: `top` best by the teachers' mean, the rest drawn from a rank window."""

    passages: PositiveInt = 17
    """Passages a query, one gold among them where the query has one."""
    top: NonNegativeInt = 0
    """Best-ranked candidates always taken."""
    first_rank: PositiveInt = 11
    """First rank (1-based) of the window that the others are drawn from; 11 keeps likely false negatives out."""
    last_rank: PositiveInt = 960
    """Last rank of the window."""

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        if self.first_rank > self.last_rank:
            raise ValueError(f"first_rank ({self.first_rank}) must not exceed last_rank ({self.last_rank})")
        if self.top >= self.passages:
            raise ValueError(f"top ({self.top}) must be smaller than passages ({self.passages}): one place is the gold's")
        return self


class ObjectiveConfig(Section):
    """L = (1 - contrastive_weight) KLD + contrastive_weight NCE + flops FLOPS(Q) + l1 L1(Q); see method notes in distill."""

    temperature: PositiveFloat = 1.0
    """tau of the KLD, for the teachers, and for the student unless student_temperature is given."""
    student_temperature: PositiveFloat | None = None
    """tau of the KLD for the student alone, where its scores live on another scale than the teachers'."""
    contrastive_weight: Fraction = 0.0
    contrastive_temperature: PositiveFloat = 1.0
    combine: Literal["mean", "max", "min", "zscore_mean"] = "mean"
    """How the teachers' scores of a passage become one."""
    flops_weight: NonNegativeFloat = 0.0
    l1_weight: NonNegativeFloat = 0.0
    ramp_share: Fraction = 0.33
    """Share of the optimizer steps over which the regularisers' weights grow (quadratically) to their full value."""


class TrainConfig(Section):
    """The student's training."""

    epochs: PositiveFloat = 5.0
    global_batch: PositiveInt = 16
    """Queries an optimizer step, over all workers."""
    micro_batch: Operational[PositiveInt] = 16
    """Queries a worker encodes at a time; accumulation is derived: global_batch = micro_batch x accumulation x workers."""
    learning_rate: PositiveFloat = 2e-5
    head_learning_rate: PositiveFloat | None = None
    """Learning rate of the identity head's scale and bias; None uses learning_rate."""
    weight_decay: NonNegativeFloat = 0.01
    warmup_share: Fraction = 0.01
    gradient_clip: PositiveFloat = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Operational[Literal[0, 1, 2, 3]] = 1
    """DeepSpeed ZeRO stage."""
    dropout: Fraction | None = None
    """Dropout of the encoder while training; None keeps the model's own."""
    seed: int = 42
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    shuffle_buffer: PositiveInt = 4096
    """Queries shuffled together in memory; parts are shuffled globally on top."""
    checkpoint_steps: Operational[PositiveInt] = 200
    """Optimizer steps between checkpoints."""
    log_steps: Operational[PositiveInt] = 10
    """Optimizer steps between records of loss, sparsity and pace."""
    max_failures: Operational[int] = 3
    """Worker failures after which training gives up; -1 never does."""
    workers: WorkerConfig = WorkerConfig()

    @model_validator(mode="after")
    def _devices_fit(self) -> TrainConfig:
        if self.workers.gpus not in (0.0, 1.0):
            raise ValueError(
                f"workers.gpus is {self.workers.gpus:g}: a training worker computes on the CPU (0) or on one whole GPU (1); "
                "use more workers.actors for more GPUs"
            )
        if self.precision == "fp16" and self.workers.gpus == 0:
            raise ValueError("precision fp16 needs a GPU (workers.gpus: 1); use bf16 or fp32 on the CPU")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        per_step = self.micro_batch * self.workers.actors
        if self.global_batch % per_step:
            raise ValueError(
                f"global_batch ({self.global_batch}) must be a multiple of micro_batch x workers.actors "
                f"({self.micro_batch} x {self.workers.actors} = {per_step}); change global_batch or micro_batch"
            )
        return self


class EvaluateConfig(Section):
    """What is measured on the test conversations."""

    measures: tuple[str, ...] = Field(default=("nDCG@3", "nDCG@10", "R@10", "R@100", "RR"), min_length=1)
    """ir_measures names."""
    depth: PositiveInt = 100
    """Passages retrieved a query."""
    bootstrap_samples: PositiveInt = 1000
    """Resamples of the confidence intervals."""
    seed: int = 0
    queries_per_part: Operational[PositiveInt] = 256
    workers: WorkerConfig = WorkerConfig()

    @field_validator("measures")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        import ir_measures

        for name in names:
            try:
                ir_measures.parse_measure(name)
            except (ValueError, NameError, SyntaxError) as error:
                raise ValueError(f"{name!r} is no ir_measures name ({error}); nDCG@10, R@100 and RR are examples") from None
        return names

    @model_validator(mode="after")
    def _deep_enough(self) -> EvaluateConfig:
        import ir_measures

        for name in self.measures:
            cutoff = ir_measures.parse_measure(name).params.get("cutoff")
            if cutoff is not None and cutoff > self.depth:
                raise ValueError(
                    f"measures has {name}, but only depth ({self.depth}) passages are retrieved; raise evaluate.depth"
                )
        return self


class RayConfig(Section):
    """The Ray cluster the job uses."""

    address: Operational[str | None] = None
    """None joins the cluster that RAY_ADDRESS names (`ray job submit` sets it) or else starts a local one; auto joins the
    one that `ray start` began on this machine."""
    local_cpus: Operational[PositiveInt | None] = None
    """CPUs of the local cluster when one is started; None takes the machine's."""
    env_vars: Operational[dict[str, str]] = {}
    """Environment variables of every worker, for instance of the object store. Never put secrets here."""


class DistillConfig(Section):
    """The whole chain: teach, index, score, train, evaluate."""

    run: Name
    """Name of the run; its resolved config, checkpoints and report lie under {root}/runs/{run}."""
    root: Location
    """Run root: file:///absolute/path or s3://bucket/prefix."""
    data: DataConfig
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    student: StudentConfig
    index: IndexConfig = IndexConfig()
    score: ScoreConfig = ScoreConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ray: Operational[RayConfig] = RayConfig()

    @field_validator("root")
    @classmethod
    def _supported_root(cls, root: str) -> str:
        scheme, _, rest = root.partition("://")
        known = (scheme == "s3" and rest.strip("/")) or (scheme == "file" and rest.startswith("/")) or root.startswith("/")
        if not known:
            raise ValueError("must be s3://bucket/prefix, file:///absolute/path or a path")
        return root.rstrip("/")

    @model_validator(mode="after")
    def _teachers_have_their_own_names(self) -> DistillConfig:
        names = [teacher.name for teacher in self.teachers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"teachers: the name {twice[0]!r} is used twice; results are stored by name")
        return self


def operational_fields(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of the fields that stay out of fingerprints."""
    return frozenset(name for name, field in model.model_fields.items() if OPERATIONAL in field.metadata)


def result_fields(section: Any) -> Any:
    """Return a plain structure of the fields that change the result, recursively; the input of fingerprints."""
    if isinstance(section, BaseModel):
        skipped = operational_fields(type(section))
        return {
            name: result_fields(getattr(section, name)) for name in sorted(type(section).model_fields) if name not in skipped
        }
    if isinstance(section, (tuple, list)):
        return [result_fields(item) for item in section]
    return section
