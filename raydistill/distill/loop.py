"""What every training worker runs: encode, gather, differentiate, step, checkpoint. DeepSpeed inside, no Ray.

A step has two halves. First the workers encode their share of the global batch and gather all query vectors; each then
computes the same loss and its gradient with respect to the vectors (`step.query_gradients`). Second, each worker sends
the gradient of its own rows through its encoder. With one micro-batch the first pass keeps its graph; with
accumulation the first pass runs without one and each micro-batch is encoded again (gradient caching, Gao et al., arXiv
2101.06983), so memory is that of one micro-batch and the result that of the whole batch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydistill.config import StudentConfig, TrainConfig
from raydistill.conversations.text import student_text
from raydistill.distill.step import StepTensors, query_gradients
from raydistill.distill.stream import CandidateStream, MinedQuery, Prefetch, StepBatch
from raydistill.encoders.checkpoint import SETTINGS_FILE, load_student
from raydistill.encoders.splade import SpladeModel
from raydistill.errors import TrainingError
from raydistill.model_source import resolve_model

Record = dict[str, float]
_CALIBRATION_QUERIES = 256
_POSITION = "position.json"


@dataclass(frozen=True)
class Workplace:
    """Where a worker stands: rank and number of workers, and the device it computes on."""

    rank: int
    workers: int
    device: torch.device


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its surroundings.

    Attributes:
        log: called on every worker with the record of every step.
        checkpoint: called on every worker with the optimizer step reached; saves `engine` through `save`.
    """

    log: Callable[[Record], None]
    checkpoint: Callable[[int, Trainer], None]


def engine_settings(config: TrainConfig, workers: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration; accumulation follows from the fixed global batch."""
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.global_batch // (config.micro_batch * workers),
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "steps_per_print": 1_000_000_000,
    }


def learning_rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at optimizer step `step` (0-based): linear warm-up, then linear decay to 0."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


class Trainer:
    """A student, its DeepSpeed engine and its position in the stream."""

    def __init__(
        self, student: StudentConfig, config: TrainConfig, stream: CandidateStream, tokenizer: Any, place: Workplace
    ) -> None:
        self._student = student
        self._config = config
        self._stream = stream
        self._place = place
        self._tokenizer = tokenizer
        self.steps = stream.steps(config.epochs)
        self.step = 0
        torch.manual_seed(config.seed)
        model = self._starting_model()
        if config.dropout is not None:
            _set_dropout(model, config.dropout)
        self.engine = _deepspeed_engine(model.to(place.device), config, place)

    def _starting_model(self) -> SpladeModel:
        student = self._student
        folder = Path(resolve_model(student.model, "student.model"))
        if (folder / SETTINGS_FILE).is_file():
            # An earlier student of ours goes on with the head that it learned.
            return load_student(folder, student.trust_remote_code).model
        model = SpladeModel.from_config(student)
        if student.head == "identity":
            texts = [self.text(query) for query in self._stream.sample_queries(_CALIBRATION_QUERIES)]
            model.calibrate(texts, self._tokenizer, student.active_share, student.text.max_tokens)
        return model

    def text(self, query: MinedQuery) -> str:
        """Return the student's text form of a mined query."""
        return student_text(query.question, query.history, self._student.text, self._tokenizer.sep_token or "")

    def run(self, hooks: Hooks) -> None:
        """Train from the current step to the last, calling the hooks on the way.

        Raises TrainingError when the loss is no number or no query has a term left.
        """
        first = self.step
        batches = Prefetch(lambda: self._stream.batches(first))
        try:
            while self.step < self.steps:
                started = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - started
                values = self._train_step(batch)
                self.step += 1
                self._check(values)
                seconds = time.perf_counter() - started
                hooks.log({**values, "step": self.step, "epoch": batch.epoch, **self._pace(seconds, waited)})
                if self.step % self._config.checkpoint_steps == 0 or self.step == self.steps:
                    hooks.checkpoint(self.step, self)
        finally:
            batches.close()

    def save(self, folder: Path) -> None:
        """Write this worker's part of a checkpoint; every worker must call it."""
        position = {"step": self.step, **self._layout()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _POSITION).write_text(json.dumps(position))
        self.engine.save_checkpoint(str(folder), tag="state")

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint. Raises TrainingError when it is unreadable, or of another layout of workers."""
        position = json.loads((folder / _POSITION).read_text())
        for name, field in (("workers", "train.workers.actors"), ("zero_stage", "train.zero_stage")):
            # DeepSpeed's own message for this is an AssertionError without text, after the fact.
            if position[name] != self._layout()[name]:
                raise TrainingError(
                    f"the checkpoint at step {position['step']} was written with {field}={position[name]} and cannot be "
                    f"continued with {self._layout()[name]}; set it back, or change another training field to start anew"
                )
        path, _ = self.engine.load_checkpoint(str(folder), tag="state")
        if path is None:
            raise TrainingError(f"the checkpoint in {folder} holds no DeepSpeed state; remove it to start again")
        self.step = int(position["step"])

    def full_model(self) -> SpladeModel | None:
        """Return the whole student in float32 on rank 0 (None elsewhere).

        Every worker must call it, for its shards, and the engine must not be used afterwards.
        """
        _restore_whole(self.engine.module)
        return self.engine.module.float() if self._place.rank == 0 else None

    def _layout(self) -> dict[str, int]:
        return {"workers": self._place.workers, "zero_stage": self._config.zero_stage}

    def _train_step(self, batch: StepBatch) -> Record:
        share = learning_rate_share(self.step, self.steps, self._config.warmup_share)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        size = self._config.global_batch // self._place.workers
        mine = slice(self._place.rank * size, (self._place.rank + 1) * size)
        texts = [self.text(query) for query in batch.queries[mine]]
        pieces = [texts[start : start + self._config.micro_batch] for start in range(0, size, self._config.micro_batch)]
        keep_graph = len(pieces) == 1
        with torch.set_grad_enabled(keep_graph):
            vectors = [self._encode(piece, number) for number, piece in enumerate(pieces)]
        gathered = _gathered(torch.cat([vector.detach() for vector in vectors]), self._place)
        objective = self._config.objective
        ramp_steps = round(objective.ramp_share * self.steps)
        tensors = StepTensors.of(batch, self._place.device)
        gradients, values = query_gradients(gathered, tensors, objective, self.step, ramp_steps)
        # DeepSpeed averages over workers and micro-batches; the loss is already that of the global batch.
        undo_average = self._place.workers * len(pieces)
        for number, gradient in enumerate(gradients[mine].split(self._config.micro_batch)):
            vector = vectors[number] if keep_graph else self._encode(pieces[number], number)
            self.engine.backward((vector * gradient).sum() * undo_average)
            self.engine.step()
        norm = self.engine.get_global_grad_norm()
        if norm is not None:  # DeepSpeed keeps none without ZeRO in fp32
            values["gradient_norm"] = float(norm)
        values["learning_rate"] = self._config.learning_rate * share
        return values

    def _encode(self, texts: Sequence[str], piece: int) -> Tensor:
        # Seeded by position and not by history: dropout is the same in both passes of a step and after any resume.
        torch.manual_seed(hash((self._config.seed, self.step, self._place.rank, piece)) % 2**63)
        tokens = self._tokenizer(
            list(texts), truncation=True, max_length=self._student.text.max_tokens, padding=True, return_tensors="pt"
        ).to(self._place.device)
        return self.engine(tokens["input_ids"], tokens["attention_mask"]).float()

    def _check(self, values: Record) -> None:
        if not _is_number(values["loss"]):
            raise TrainingError(
                f"the loss is {values['loss']} at step {self.step}; lower train.learning_rate, or set train.precision "
                "to bf16 or fp32"
            )
        if values["l0"] == 0.0:
            raise TrainingError(
                f"no query has a non-zero term left at step {self.step}, so no gradient can bring one back; lower "
                "train.learning_rate or train.head_learning_rate, or the regularisers' weights"
            )

    def _pace(self, seconds: float, waited: float) -> Record:
        return {"queries_per_second": self._config.global_batch / seconds, "data_wait_share": waited / seconds}


def _deepspeed_engine(model: SpladeModel, config: TrainConfig, place: Workplace) -> Any:
    if place.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    # Without this DeepSpeed compiles a shared-memory extension at first use (a C++ compiler and 48 s).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if place.device.type == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
    groups = model.parameter_groups(config.learning_rate, config.weight_decay, config.head_learning_rate)
    for group in groups:
        group["initial_lr"] = group["lr"]
    optimizer = torch.optim.AdamW(groups)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=engine_settings(config, place.workers))
    engine.train()
    return engine


def _gathered(vectors: Tensor, place: Workplace) -> Tensor:
    """[b, V] of this worker -> [B, V] of all, in order of rank; no gradient."""
    if place.workers == 1:
        return vectors
    gathered = vectors.new_empty((place.workers * vectors.shape[0], vectors.shape[1]))
    torch.distributed.all_gather_into_tensor(gathered, vectors.contiguous())
    return gathered


def _restore_whole(model: torch.nn.Module) -> None:
    """Replace shards and rounded copies by whole float32 parameters: those that the optimizer kept, where it did."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    parameters = list(model.parameters())
    kept = [safe_get_full_fp32_param(parameter) if parameter.requires_grad else None for parameter in parameters]
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(sharded):
        gathered = [parameter.detach().float().clone() for parameter in parameters]
    for parameter, exact, value in zip(parameters, kept, gathered, strict=True):
        parameter.data = value if exact is None else exact.float().reshape(value.shape)


def _set_dropout(model: torch.nn.Module, share: float) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", share)  # noqa: B010 (a plain float attribute, unknown to the type)


def _is_number(value: float) -> bool:
    return value == value and abs(value) != float("inf")
