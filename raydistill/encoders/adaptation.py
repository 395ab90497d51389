"""Which weights of a student's backbone are trained: LoRA adapters, frozen layers; and gradient checkpointing.

Everything works in place on a loaded backbone. Heads with parameters of their own stand outside the backbone and are
always trained.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from raydistill.config import FreezeConfig, LoraConfig, StudentConfig
from raydistill.errors import ConfigError

_ADAPTER = "default"


def adapt(backbone: Any, student: StudentConfig) -> None:
    """Apply what the configuration says of LoRA, freezing and gradient checkpointing to a backbone, in place.

    Raises ConfigError naming the field when the model has not what it asks for, or peft is not installed.
    """
    if student.lora is not None:
        _add_lora(backbone, student.lora)
    if student.freeze is not None:
        _freeze(backbone, student.freeze)
    if student.gradient_checkpointing:
        try:
            backbone.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(
                f"student.gradient_checkpointing: {student.model!r} does not support it; set it to false"
            ) from error
        # Transformers makes the embeddings' output require a gradient, for reentrant checkpoints only; here that would send
        # the backward pass through frozen layers for nothing.
        backbone.disable_input_require_grads()


def transformer_layers(backbone: Any) -> nn.ModuleList:
    """Return the backbone's list of transformer layers, from the input up; ConfigError when there is no single one."""
    number = getattr(backbone.config, "num_hidden_layers", None)
    found = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    # Lists inside layers (experts, heads) may have as many members by chance: the outermost comes first.
    if not found:
        raise ConfigError(
            f"student.freeze.layers: {type(backbone).__name__} has no list of {number} layers; set it to 0 and choose "
            "embeddings, or leave freeze out"
        )
    return found[0]


def is_adapted(backbone: Any) -> bool:
    """Whether LoRA adapters have been added."""
    return any(hasattr(module, "lora_A") for module in backbone.modules())


def merged_backbone(backbone: Any) -> Any:
    """Return a model of the same class with the adapters' updates added to the weights; the given one stays as it is.

    Weights must be whole (not ZeRO-3 shards). All are copied, so memory for a second model is needed.
    """
    state: dict[str, torch.Tensor] = {}
    updates: dict[str, torch.Tensor] = {}
    for name, module in backbone.named_modules():
        if hasattr(module, "lora_A"):
            updates[f"{name}.weight"] = module.get_delta_weight(_ADAPTER).detach()
    for name, value in backbone.state_dict().items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        update = updates.get(plain)
        state[plain] = value if update is None else value + update.to(value)
    model = type(backbone)(copy.deepcopy(backbone.config))
    model.load_state_dict(state)
    example = next(backbone.parameters())
    return model.to(device=example.device, dtype=example.dtype).eval()


def _add_lora(backbone: Any, lora: LoraConfig) -> None:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("student.lora needs the package peft on every node: pip install 'raydistill[lora]'") from error
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )
    head = _head_parameters(backbone)
    try:
        peft.inject_adapter_in_model(settings, backbone, _ADAPTER)
    except ValueError as error:
        raise ConfigError(
            f"student.lora.targets is {lora.targets!r}, which fits no module of {type(backbone).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    for module in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
        if hasattr(module, "lora_A") or hasattr(module, "lora_embedding_A"):
            raise ConfigError(
                f"student.lora.targets is {lora.targets!r}, which includes the vocabulary's own matrix: the head reads that "
                "matrix itself, so an adapter beside it would change nothing; leave it out"
            )
    for name, parameter in backbone.named_parameters():
        if id(parameter) in head and ".base_layer." not in name:
            parameter.requires_grad_(True)


def _head_parameters(backbone: Any) -> set[int]:
    """Ids of what is trained of a model beside its base model, the vocabulary's matrix excepted (it is large, or tied)."""
    if backbone.base_model is backbone:
        return set()
    base = {id(parameter) for parameter in backbone.base_model.parameters()}
    output = backbone.get_output_embeddings()
    matrix = set() if output is None else {id(output.weight)}
    return {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad} - base - matrix


def _freeze(backbone: Any, freeze: FreezeConfig) -> None:
    if freeze.embeddings:
        for name, module in backbone.base_model.named_modules():
            if isinstance(module, nn.Embedding) or name.split(".")[-1] == "embeddings":  # with their norm and projection
                module.requires_grad_(False)
    if freeze.layers == 0:
        return
    layers = transformer_layers(backbone)
    if freeze.layers >= len(layers):
        raise ConfigError(
            f"student.freeze.layers is {freeze.layers}, but the model has {len(layers)} layers and at least one must be "
            f"trained; set it to at most {len(layers) - 1}"
        )
    for layer in layers[: freeze.layers]:
        layer.requires_grad_(False)
