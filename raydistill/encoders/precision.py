"""What a processor computes in at a useful rate."""

from __future__ import annotations

import platform

import torch


def emulates_bf16() -> bool:
    """Whether this CPU is known to lack instructions for bfloat16 products; of others than x86 nothing is known."""
    return platform.machine().lower() in ("x86_64", "amd64") and not multiplies_bf16()


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products; without them they are emulated, slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def slow_precision(precision: str, device: torch.device, emulated: bool, field: str) -> str | None:
    """Return a warning when a precision makes the device slower instead of faster; None where it does not.

    Args:
        precision: fp32, bf16 or fp16.
        device: where it is computed.
        emulated: whether the CPU lacks instructions for bfloat16 (`emulates_bf16`).
        field: the configuration's field, for the warning.
    """
    if device.type != "cpu" or precision != "bf16" or not emulated:
        return None
    return (
        f"{field} is bf16, and this CPU has no instructions for bfloat16: its products are emulated, on some machines many "
        f"times slower than in float32; {field}=fp32 is what this one wants"
    )
