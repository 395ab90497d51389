"""What a processor computes in at a useful rate."""

from __future__ import annotations

import torch


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products; without them they are emulated, slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def slow_precision(precision: str, device: torch.device, has_bf16: bool, field: str) -> str | None:
    """Return a warning when a precision makes the device slower instead of faster; None where it does not.

    Args:
        precision: fp32, bf16 or fp16.
        device: where it is computed.
        has_bf16: whether the CPU has instructions for bfloat16 (`multiplies_bf16`).
        field: the configuration's field, for the warning.
    """
    if device.type != "cpu" or precision != "bf16" or has_bf16:
        return None
    return (
        f"{field} is bf16, and this CPU has no instructions for bfloat16: its products are emulated, many times slower "
        f"than in float32; {field}=fp32 is what this machine wants"
    )
