"""Whole float32 tensors out of, and into, whatever layout DeepSpeed keeps: parameters and Adam's moments by name.

DeepSpeed holds the values that AdamW updates ("masters") in one of four ways: as the parameters themselves (fp32 without
ZeRO), as one float32 copy a parameter (half precision without ZeRO), as one flat float32 partition a group and worker
(ZeRO 1 and 2), or as flat partitions of parameters that are sharded themselves (ZeRO 3, each padded to a multiple of the
workers). This module is the only one that knows. One parameter is whole at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["parameter", "exp_avg", "exp_avg_sq"]
KINDS: tuple[Kind, ...] = ("parameter", "exp_avg", "exp_avg_sq")
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class WholeState:
    """The state of a training as DeepSpeed holds it, read and written by parameter name.

    Attributes:
        names: of the trainable parameters, tied ones once, in the same order on every worker.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._parameters = {name: each for name, each in engine.module.named_parameters() if each.requires_grad}
        self.names = tuple(self._parameters)
        self._masters = _masters(engine)
        self._adam = engine.optimizer if isinstance(engine.optimizer, torch.optim.AdamW) else engine.optimizer.optimizer
        for master in self._flat_or_whole_masters():
            # Made here and not at the first step, so that every layout begins alike and there is something to restore.
            state = self._adam.state[master]
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(master, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(master, requires_grad=False)
        if engine.zero_optimization_stage() in (1, 2):
            engine.optimizer._lazy_init_hp_params_optimizer_state()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter, and of its moments."""
        parameter = self._parameters[name]
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def read(self, name: str, kind: Kind) -> Tensor:
        """Return a whole tensor, float32; every worker must call it. The caller may keep but not change it."""
        import deepspeed.utils as shards

        parameter = self._parameters[name]
        if self._masters is not None:
            master = self._masters[name]
            return (master if kind == "parameter" else self._adam.state[master][kind]).detach().float()
        if kind == "parameter":
            value = shards.safe_get_full_fp32_param(parameter)
        else:
            value = shards.safe_get_full_optimizer_state(parameter, kind)
        return value.detach().float().reshape(self.shape(name))

    def write(self, name: str, kind: Kind, value: Tensor) -> None:
        """Set a whole tensor from float32 of its shape; every worker must call it with the same value."""
        parameter = self._parameters[name]
        value = value.to(parameter.device)
        if self._masters is not None:
            master = self._masters[name]
            target = master if kind == "parameter" else self._adam.state[master][kind]
            target.data.copy_(value)
            if kind == "parameter":
                parameter.data.copy_(value)
        elif hasattr(parameter, "ds_id"):
            self._write_sharded(parameter, kind, value)
        else:
            import deepspeed.utils as shards

            if kind == "parameter":
                shards.safe_set_full_fp32_param(parameter, value)
                parameter.data.copy_(value)
            else:
                shards.safe_set_full_optimizer_state(parameter, value, kind)

    @property
    def adam_steps(self) -> int:
        """Steps that AdamW has taken; fewer than optimizer steps where fp16 overflowed."""
        return int(next(iter(self._adam.state.values()))["step"])

    @adam_steps.setter
    def adam_steps(self, steps: int) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(float(steps))

    @property
    def loss_scaler(self) -> dict[str, float]:
        """The state of fp16's dynamic loss scaling; empty for other precisions."""
        if not self._engine.fp16_enabled():
            return {}
        scaler = self._scaler()
        return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}

    @loss_scaler.setter
    def loss_scaler(self, fields: dict[str, float]) -> None:
        if not self._engine.fp16_enabled():
            return
        scaler = self._scaler()
        for name, value in fields.items():
            if hasattr(scaler, name):
                setattr(scaler, name, value)

    def _scaler(self) -> Any:
        optimizer = self._engine.optimizer
        return optimizer.loss_scaler if hasattr(optimizer, "loss_scaler") else optimizer.loss_scale_config

    def _flat_or_whole_masters(self) -> Iterator[Tensor]:
        optimizer = self._engine.optimizer
        if self._masters is not None:
            yield from self._masters.values()
        elif self._engine.zero_optimization_stage() == 3:
            yield from optimizer.fp32_partitioned_groups_flat
        else:
            yield from optimizer.single_partition_of_fp32_groups

    def _write_sharded(self, parameter: Any, kind: Kind, value: Tensor) -> None:
        """Write this worker's part. DeepSpeed's own setter of whole values fails where the last part is padded."""
        import deepspeed.utils as shards

        size = parameter.ds_tensor.numel()
        rank = torch.distributed.get_rank(parameter.ds_process_group)
        part = value.new_zeros(size)
        own = value.flatten()[rank * size : (rank + 1) * size]
        part[: own.numel()] = own
        if kind != "parameter":
            shards.safe_set_local_optimizer_state(parameter, part, kind)
            return
        shards.safe_set_local_fp32_param(parameter, part)
        parameter.ds_tensor.data.copy_(part)
        if parameter.data.numel() == value.numel():  # small parameters stay whole on every worker
            parameter.data.copy_(value.reshape(parameter.data.shape))


def _masters(engine: Any) -> dict[str, Tensor] | None:
    """Return the whole float32 tensor that AdamW updates for each parameter by name; None where they are partitioned."""
    if engine.zero_optimization():
        return None
    named = [(name, each) for name, each in engine.module.named_parameters() if each.requires_grad]
    if isinstance(engine.optimizer, torch.optim.AdamW):
        return dict(named)
    optimizer = engine.optimizer
    pairs = zip(chain(*optimizer.fp16_groups), chain(*optimizer.fp32_groups), strict=True)
    master_of = {id(half): master for half, master in pairs}
    return {name: master_of[id(each)] for name, each in named}


def load_parameters(model: nn.Module, value_of: Callable[[str], Tensor]) -> None:
    """Copy whole values into the trainable parameters of a model that no engine holds."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(value_of(name))
