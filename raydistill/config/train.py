"""The training of the student: optimisation, precision, validation on the way, checkpoints, logging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from raydistill.config.fields import (
    Added,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Operational,
    Section,
    WorkerConfig,
)
from raydistill.config.measures import cutoff_of, measure_name
from raydistill.config.objective import Kld, ListwiseCe, Objective
from raydistill.config.regularisation import RegularisationConfig
from raydistill.config.sampling import Importance, SamplingConfig
from raydistill.config.teachers import who_rewrote

Schedule = Literal["linear", "cosine", "constant"]
Combination = Literal["mean", "max", "min", "zscore_mean", "minmax_mean", "rank_fusion", "agreement", "feedback"]
WEIGHTED_COMBINATIONS: tuple[Combination, ...] = ("mean", "zscore_mean", "minmax_mean", "rank_fusion", "agreement")
"""Those in which a teacher can weigh more than another."""


class ValidationConfig(Section):
    """Measuring the student with the real index while it trains; without validation conversations nothing of this acts."""

    every_steps: PositiveInt = 50
    """Optimizer steps between validations; the last step is always validated."""
    measure: str = "nDCG@10"
    """The ir_measures name that chooses the best step."""
    measures: Operational[tuple[str, ...]] = ("nDCG@10", "R@100")
    """Further ir_measures names that are logged."""
    depth: PositiveInt = 100
    """Passages retrieved a query."""
    keep: Literal["best", "last"] = "best"
    """Which parameters become the student. With a sparsity target the best are looked for among the steps that hold it
    (within 5 %); where none does, the one that comes nearest is kept, and that is said."""
    patience: PositiveInt | None = None
    """Validations in a row without a new best after which training stops, counted from where the sparsity target is held;
    None trains to the end."""

    @field_validator("measure")
    @classmethod
    def _known_measure(cls, name: str) -> str:
        return measure_name(name)

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(measure_name, names))

    @model_validator(mode="after")
    def _deep_enough(self) -> ValidationConfig:
        for name in (self.measure, *self.measures):
            cutoff = cutoff_of(name)
            if cutoff is not None and cutoff > self.depth:
                raise ValueError(f"{name} asks for more than depth ({self.depth}) passages; raise validation.depth")
        return self


class MlflowConfig(Section):
    """An MLflow tracking server; user name, password or token come from the environment (MLFLOW_TRACKING_...)."""

    uri: str
    """Tracking URI, such as https://mlflow.example.org or file:///path."""
    experiment: str

    @field_validator("uri")
    @classmethod
    def _without_secrets(cls, uri: str) -> str:
        if "@" in urlsplit(uri).netloc:
            raise ValueError(
                "holds a user name or a password, and configurations are stored in the run root; take it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return uri


class LoggersConfig(Section):
    """Where training records go besides the run root. Secrets come from the environment only, never from here."""

    tensorboard: bool = False
    """Event files under {root}/runs/{run}/training/{fingerprint}/tensorboard."""
    wandb: Name | None = None
    """Weights & Biases project; the key is read from WANDB_API_KEY. Needs the package wandb."""
    mlflow: MlflowConfig | None = None
    """Needs the package mlflow."""


class TrainConfig(Section):
    """The student's training."""

    epochs: PositiveFloat = 5.0
    global_batch: PositiveInt = 16
    """Queries an optimizer step, over all workers."""
    micro_batch: Operational[PositiveInt] = 16
    """Queries a worker encodes at a time; accumulation is derived: global_batch = micro_batch x accumulation x workers. With
    dropout it decides which random masks are drawn, as a seed would."""
    learning_rate: PositiveFloat = 2e-5
    head_learning_rate: PositiveFloat | None = None
    """Learning rate of the identity head's scale and bias; None uses learning_rate."""
    weight_decay: NonNegativeFloat = 0.01
    schedule: Schedule = "linear"
    """What follows the warm-up: linear or cosine decay to 0, or no decay."""
    warmup_share: Fraction = 0.01
    """Share of the optimizer steps over which the learning rate grows linearly to its peak."""
    gradient_clip: PositiveFloat = 1.0
    """Largest norm of the gradient over all parameters; a longer one is scaled down to it."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Operational[Literal[0, 1, 2, 3]] = 1
    """DeepSpeed ZeRO stage; a checkpoint of any stage continues in any other. One worker in fp32 runs 1 and 2 as 0: there is
    nobody to share with."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Dropout of the encoder while training; None keeps the model's own."""
    seed: NonNegativeInt = 42
    averaged_seeds: Added[PositiveInt] = 1
    """Students trained one after the other from the same start, with `seed` and the seeds after it; the student is the mean
    of their parameters (a model soup, arXiv 2203.05482). It costs as many trainings, and a query no more."""
    sampling: SamplingConfig = SamplingConfig()
    objective: Objective = Objective.parse("kld")
    """What the student is trained to do: a weighted sum of terms, such as `0.9*kld(tau=1) + 0.1*infonce(tau=4)`."""
    combine: Combination = "mean"
    """How the teachers' scores of a passage become one: raydistill.teachers.combine defines each. Those that scale a
    teacher's scores first want a temperature of their own in the objective."""
    teacher_weights: Added[dict[Name, NonNegativeFloat] | None] = None
    """What teachers weigh in a combination that is a mean, by name; 1 for those that are not named. It is the weight of each
    of their lists (see score.student_encodes_rewrites)."""
    regularisation: RegularisationConfig = RegularisationConfig()
    shuffle_buffer: PositiveInt = 4096
    """Queries shuffled together in memory; parts are shuffled globally on top."""
    readers: Operational[NonNegativeInt | None] = None
    """Processes that read, join and tokenise batches ahead of a training worker; 0: a thread of the worker does it. None: 2
    for a worker with a GPU, which a thread would hold up, 0 without. workers.cpus should count them."""
    validation: ValidationConfig = ValidationConfig()
    checkpoint_steps: Operational[PositiveInt] = 200
    """Optimizer steps between checkpoints; they are uploaded while training goes on."""
    log_steps: Operational[PositiveInt] = 10
    """Optimizer steps between records of loss, sparsity and pace."""
    loggers: Operational[LoggersConfig] = LoggersConfig()
    max_failures: Operational[Annotated[int, Field(ge=-1)]] = 3
    """Worker failures after which training gives up; -1 never does. Announced preemptions do not count."""
    workers: WorkerConfig = WorkerConfig()
    min_workers: Operational[PositiveInt | None] = None
    """Fewest workers that training goes on with when nodes are lost, from the last checkpoint and with the same global
    batch; None insists on workers.actors."""

    @property
    def fewest_workers(self) -> WorkerConfig:
        """The workers without which no training can start."""
        return self.workers if self.min_workers is None else self.workers.model_copy(update={"actors": self.min_workers})

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
    def _weights_count(self) -> TrainConfig:
        weights = self.teacher_weights
        if weights and self.combine not in WEIGHTED_COMBINATIONS:
            raise ValueError(
                f"teacher_weights is set, and combine is {self.combine}, which takes none; set combine to "
                f"{', '.join(WEIGHTED_COMBINATIONS)}, or leave the weights out"
            )
        return self

    def weights_of(self, teachers: Sequence[str]) -> tuple[float, ...] | None:
        """Return the weights of teachers in their order; None where all weigh the same.

        A rewrite weighs the same whoever encoded it.
        """
        given = self.teacher_weights
        return tuple(given.get(who_rewrote(name), 1.0) for name in teachers) if given else None

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        per_step = self.micro_batch * self.workers.actors
        if self.global_batch % per_step:
            raise ValueError(
                f"global_batch ({self.global_batch}) must be a multiple of micro_batch x workers.actors "
                f"({self.micro_batch} x {self.workers.actors} = {per_step}); change global_batch or micro_batch"
            )
        return self

    @model_validator(mode="after")
    def _objective_can_learn(self) -> TrainConfig:
        self.objective.check_batch(self.sampling.passages, self.global_batch)
        terms = [term for _, term in self.objective.terms]
        if isinstance(self.sampling.policy, Importance) and not any(isinstance(term, Kld | ListwiseCe) for term in terms):
            raise ValueError(
                f"sampling.policy is {self.sampling.policy}, and what corrects for its draws is read by kld and listwise_ce "
                f"only, so {self.objective} would train on a biased sample; add one of them, or take another policy"
            )
        return self

    @model_validator(mode="after")
    def _elastic_range(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.workers.actors:
            raise ValueError(
                f"min_workers is {self.min_workers}, more than workers.actors ({self.workers.actors}); lower it, or leave "
                "it out"
            )
        return self
