"""The training of the student."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from raydistill.config.fields import Fraction, NonNegativeFloat, Operational, Section, WorkerConfig
from raydistill.config.sampling import SamplingConfig


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
