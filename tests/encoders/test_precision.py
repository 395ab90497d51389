"""Which precision makes a processor slower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydistill.encoders.precision import emulates_bf16, multiplies_bf16, slow_precision

CPU = torch.device("cpu")


def test_emulated_bfloat16_is_named_with_the_field_and_the_fix() -> None:
    told = slow_precision("bf16", CPU, True, "train.precision")
    assert told is not None
    assert "train.precision is bf16" in told
    assert "train.precision=fp32" in told


@pytest.mark.parametrize(
    ("precision", "device", "emulated"),
    [("fp32", "cpu", True), ("bf16", "cpu", False), ("bf16", "cuda", True), ("fp16", "cuda", True)],
)
def test_nothing_is_said_where_it_is_not_slow(precision: str, device: str, emulated: bool) -> None:
    assert slow_precision(precision, torch.device(device), emulated, "train.precision") is None


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the CPU's instructions are read from /proc/cpuinfo")
def test_this_machine_is_told_by_its_own_instructions() -> None:
    told = Path("/proc/cpuinfo").read_text().splitlines()
    flags = {flag for line in told if line.startswith("flags") for flag in line.split()}
    assert multiplies_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)
    assert emulates_bf16() == ("sse2" in flags and not multiplies_bf16())
