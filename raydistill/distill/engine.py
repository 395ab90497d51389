"""DeepSpeed set up: its settings, the optimizer at step 0, the order of micro-batches, and agreement among workers.

Everything that knows DeepSpeed's settings is here; how its shards become whole tensors is in `whole_state`, what a
training step does with the engine in `loop`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from raydistill.config import TrainConfig
from raydistill.config.train import Schedule

T = TypeVar("T")


@dataclass(frozen=True)
class Workplace:
    """Where a worker stands: rank and number of workers, and the device it computes on."""

    rank: int
    workers: int
    device: torch.device


def micro_batches(rows: int, micro_batch: int, place: Workplace) -> list[slice]:
    """Return the rows of a batch that this worker encodes, one slice a micro-batch; the same number on every worker.

    A batch is cut into pieces of `micro_batch` rows whatever the number of workers, and each worker takes a run of
    neighbouring pieces. Where they do not divide, the last slices are empty: sharded workers must all run the same number
    of forward and backward passes.
    """
    pieces = -(-rows // micro_batch)
    own = -(-pieces // place.workers)
    starts = [(place.rank * own + number) * micro_batch for number in range(own)]
    return [slice(min(start, rows), min(start + micro_batch, rows)) for start in starts]


def effective_zero_stage(config: TrainConfig, workers: int) -> int:
    """Return the ZeRO stage that a number of workers runs.

    One worker has nobody to share optimizer states or gradients with: in fp32, stages 1 and 2 would only keep a second copy
    of parameters and gradients, so stage 0 takes their place. (In half precision stage 0 is another optimizer.)
    """
    return 0 if workers == 1 and config.precision == "fp32" and config.zero_stage in (1, 2) else config.zero_stage


def engine_settings(config: TrainConfig, workers: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration; accumulation follows from the fixed global batch."""
    pieces = -(-config.global_batch // config.micro_batch)
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": -(-pieces // workers),
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {"stage": effective_zero_stage(config, workers)},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "steps_per_print": 1_000_000_000,
    }


def start_engine(model: nn.Module, groups: list[dict[str, Any]], config: TrainConfig, place: Workplace) -> Any:
    """Return a DeepSpeed engine around a model in training mode, with AdamW at its step 0.

    Args:
        model: on the worker's device.
        groups: AdamW's parameter groups, each with "params", "lr" (the peak) and "weight_decay".
    """
    if place.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    # Without this DeepSpeed compiles a shared-memory extension at first use (a C++ compiler and 48 s).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if place.device.type == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
    for group in groups:
        group["initial_lr"] = group["lr"]
        # Some of DeepSpeed's optimizers step once with zero gradients while they are made: it must not decay weights.
        group["lr"] = 0.0
    # On the CPU the plain optimizer makes copies of the largest parameter, three at a time; the fused one makes none.
    optimizer = torch.optim.AdamW(groups, fused=place.device.type == "cpu")
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=engine_settings(config, place.workers))
    if place.workers == 1 and not engine.zero_optimization():
        # DeepSpeed would copy all gradients into one buffer, average them over one worker, and copy them back.
        engine.enable_backward_allreduce = False
    engine.train()
    return engine


def set_learning_rate(engine: Any, share: float) -> None:
    """Set every group's learning rate to a share of its peak."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share


def learning_rate_share(step: int, steps: int, warmup_share: float, schedule: Schedule = "linear") -> float:
    """Share of the peak learning rate at optimizer step `step` (0-based): linear warm-up, then what `schedule` says."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    left = max(0.0, (steps - step) / max(1, steps - warmup))
    return left if schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def unclipped_norm(engine: Any) -> float | None:
    """Return the norm of the averaged gradient where DeepSpeed itself keeps none (fp32 without ZeRO), else None.

    To be asked between the last backward pass of a step and the step.
    """
    if engine.zero_optimization() or engine.fp16_enabled() or engine.bfloat16_enabled():
        return None
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])))


def gathered(vectors: Tensor, place: Workplace) -> Tensor:
    """[b, V] of this worker -> [workers * b, V] of all, in order of rank; no gradient."""
    if place.workers == 1:
        return vectors
    every = vectors.new_empty((place.workers * vectors.shape[0], vectors.shape[1]))
    torch.distributed.all_gather_into_tensor(every, vectors.contiguous())
    return every


def gathered_objects(value: T, place: Workplace) -> list[T]:
    """Return the values of all workers in order of rank, on every worker."""
    if place.workers == 1:
        return [value]
    every: list[T] = [value] * place.workers
    torch.distributed.all_gather_object(every, value)
    return every


def any_worker(flag: bool, place: Workplace) -> bool:
    """Return on every worker whether the flag is up on one of them."""
    if place.workers == 1:
        return flag
    raised = torch.tensor(float(flag), device=place.device)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return bool(raised.item())


def gathered_on_first(value: T, place: Workplace) -> list[T]:
    """Return the values of all workers in order of rank on rank 0, and [] on the others."""
    if place.workers == 1:
        return [value]
    every: list[T] = [value] * place.workers if place.rank == 0 else []
    torch.distributed.gather_object(value, every if place.rank == 0 else None)
    return every


def from_first(value: T, place: Workplace) -> T:
    """Return rank 0's value on every worker."""
    if place.workers == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]
