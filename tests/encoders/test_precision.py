"""Which precision makes a processor slower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydistill.encoders.precision import multiplies_bf16, slow_precision

CPU = torch.device("cpu")


def test_emulated_bfloat16_is_named_with_the_field_and_the_fix() -> None:
    told = slow_precision("bf16", CPU, False, "train.precision")
    assert told is not None
    assert "train.precision is bf16" in told
    assert "train.precision=fp32" in told


@pytest.mark.parametrize(
    ("precision", "device", "has_bf16"),
    [("fp32", "cpu", False), ("bf16", "cpu", True), ("bf16", "cuda", False), ("fp16", "cuda", False)],
)
def test_nothing_is_said_where_it_is_not_slow(precision: str, device: str, has_bf16: bool) -> None:
    assert slow_precision(precision, torch.device(device), has_bf16, "train.precision") is None


def test_this_machine_is_told_by_its_own_instructions() -> None:
    told = Path("/proc/cpuinfo").read_text().splitlines()
    flags = {flag for line in told if line.startswith("flags") for flag in line.split()}
    assert multiplies_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)
