"""The arithmetic of the Triton kernels, in Triton's interpreter: on CPU tensors, in a process of its own.

Triton decides at its import whether it interprets, so the parent starts `python FILE`, which prints what it found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

SHAPES = {
    # batch, length, width, terms: multiples of no tile; one token; one of everything; one tile of tokens, and several
    "odd": (3, 21, 24, 70),
    "one token": (2, 1, 16, 33),
    "smallest": (1, 1, 8, 1),
    "one token tile": (4, 13, 40, 37),
    "several token tiles": (2, 50, 24, 40),
    "no text": (0, 5, 16, 20),
    "no term": (2, 5, 16, 0),
}
DTYPES = ("float16", "bfloat16")
MULTIPLIED = ("float16",)
"""The interpreter keeps bfloat16 as bit patterns and multiplies those as integers: such products need a GPU to be tested."""
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed (its wheels are for Linux)")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), environment.get("PYTHONPATH")]))
    ended = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("dtype", MULTIPLIED)
@pytest.mark.parametrize("shape", SHAPES)
def test_maxima_and_their_first_positions_are_those_of_the_definition(
    shape: str, dtype: str, found: dict[str, dict[str, float]]
) -> None:
    assert found[f"{shape} {dtype}"]["maxima"] <= TOLERANCE
    assert found[f"{shape} {dtype}"]["positions"] == 0, "positions must attain the maximum, the first one that does"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_weighted_rows_are_those_of_the_dense_product(
    shape: str, dtype: str, found: dict[str, dict[str, float]]
) -> None:
    assert found[f"{shape} {dtype}"]["sums over terms"] <= TOLERANCE
    assert found[f"{shape} {dtype}"]["sums over tokens"] <= TOLERANCE


def test_of_equal_logits_the_first_position_wins_within_and_across_tiles(found: dict[str, dict[str, float]]) -> None:
    assert found["ties"] == {"within": 1, "across": 2, "empty row is -inf": 1}


def test_a_tile_fits_the_device_and_the_texts() -> None:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed (its wheels are for Linux)")
    from raydistill.encoders.head_triton import LARGEST_TOKEN_TILE, SMALLEST_TILE, tile_for

    # What a program can have of an H100, an A100, an L4 and a T4.
    for shared in (232_448, 166_912, 101_376, 65_536):
        for length in (1, 16, 17, 64, 100, 128, 129, 256, 257, 4096):
            tile = tile_for(length, shared)
            assert tile.shared_bytes <= shared
            assert SMALLEST_TILE <= tile.tokens <= LARGEST_TOKEN_TILE
            assert tile.tokens >= min(length, 64)


gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("triton") is None, reason="needs an NVIDIA GPU and triton"
)
GPU_SHAPES = [(3, 21, 24, 70), (5, 128, 384, 3001), (4, 300, 384, 30_522), (2, 40, 768, 250_002), (3, 1, 8, 5)]


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", GPU_SHAPES)
def test_on_a_gpu_the_maxima_are_attained_where_the_positions_say(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    from raydistill.encoders.head_triton import max_pool_logits

    hidden, weight, mask = (tensor.cuda() for tensor in case(*shape, dtype))
    logits = (hidden.float() @ weight.float().T).masked_fill(~mask.unsqueeze(-1), -torch.inf)
    maxima, positions = max_pool_logits(hidden, weight, mask)
    assert positions is not None
    torch.testing.assert_close(maxima, logits.amax(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.gather(1, positions.unsqueeze(1).long())[:, 0], maxima, rtol=1e-4, atol=1e-4)
    without, nowhere = max_pool_logits(hidden, weight, mask, with_positions=False)
    assert nowhere is None
    torch.testing.assert_close(without, maxima, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", GPU_SHAPES)
def test_on_a_gpu_the_head_equals_the_definition(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from raydistill.encoders.head import max_pool_logits, splade_head

    hidden, weight, mask = (tensor.cuda() for tensor in case(*shape, dtype))
    inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    pooled = splade_head(*inputs, None, mask)
    found = torch.autograd.grad(pooled.sum(), inputs)
    logits = (hidden.float() @ weight.float().T).masked_fill(~mask.unsqueeze(-1), -torch.inf)
    torch.testing.assert_close(pooled, torch.log1p(torch.relu(logits.amax(1))), rtol=1e-4, atol=1e-4)
    # Where two logits are equal but for rounding, either position is right: the gradient follows the head's own.
    positions = max_pool_logits(hidden, weight, mask, with_positions=True)[1]
    assert positions is not None
    routed = torch.zeros_like(logits).scatter_(1, positions.unsqueeze(1).long(), torch.exp(-pooled).unsqueeze(1))
    routed *= (pooled > 0).unsqueeze(1)
    wanted = routed @ weight.float(), torch.einsum("blv,blh->vh", routed, hidden.float())
    # Half a unit in the last place of what is stored.
    unit = torch.finfo(dtype).eps
    for ours, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.float(), expected, rtol=unit, atol=1e-4)


def case(batch: int, length: int, width: int, terms: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch + length + width + terms)
    hidden = torch.randn(batch, length, width, generator=generator).to(dtype)
    weight = (torch.randn(terms, width, generator=generator) / width**0.5).to(dtype)
    mask = torch.rand(batch, length, generator=generator) < 0.7
    mask[:1] = False  # the first row is fully masked
    mask[1:2, -1] = True
    return hidden, weight, mask


def deviations(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, float]:
    """Return the largest differences of the kernels' results from those of plain torch in float32."""
    from raydistill.encoders.head_triton import Tile, max_pool_logits, sums_of_rows

    hidden, weight, mask = case(*shape, dtype)
    logits = (hidden.float() @ weight.float().T).masked_fill(~mask.unsqueeze(-1), -torch.inf)
    expected, first = logits.max(1)
    grad_logits = torch.where(expected > 0, torch.rand(expected.shape), 0.0)
    texts, terms = grad_logits.nonzero(as_tuple=True)
    values, places = grad_logits[texts, terms], texts * shape[1] + first[texts, terms]
    routed = torch.zeros(shape[0] * shape[1], shape[3]).index_put_((places, terms), values)
    states = hidden.reshape(shape[0] * shape[1], shape[2])

    def summed(table: torch.Tensor, index: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
        order = segment.argsort(stable=True)
        starts = torch.searchsorted(segment[order], torch.arange(count))
        return sums_of_rows(table, index[order], values[order], starts, torch.float32)

    def largest(difference: torch.Tensor) -> float:
        return float(difference.abs().amax()) if difference.numel() else 0.0

    result = {
        "sums over terms": largest(summed(weight, terms, places, len(states)) - routed @ weight.float()),
        "sums over tokens": largest(summed(states, places, terms, len(weight)) - routed.T @ states.float()),
    }
    if str(dtype).removeprefix("torch.") in MULTIPLIED:
        tile = Tile(16, 32, 16)
        maxima, positions = max_pool_logits(hidden, weight, mask, tile=tile)
        assert positions is not None
        full = mask.any(1)
        assert maxima[~full].eq(-torch.inf).all()
        assert torch.equal(max_pool_logits(hidden, weight, mask, with_positions=False, tile=tile)[0], maxima)
        result["maxima"] = largest(maxima[full] - expected[full])
        result["positions"] = largest((positions[full] - first[full]).float())
    return result


def ties() -> dict[str, int]:
    from raydistill.encoders.head_triton import Tile, max_pool_logits

    hidden = torch.ones(3, 40, 16, dtype=torch.float16)
    hidden[0, 0] = -1
    hidden[1, :2] = -1  # equal from position 2 on, in three tiles of tokens
    hidden[1, 3:17] = -1
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[2] = False
    maxima, positions = max_pool_logits(hidden, torch.ones(1, 16, dtype=torch.float16), mask, tile=Tile(16, 16, 16))
    assert positions is not None
    empty = int(maxima[2, 0] == -torch.inf)
    return {"within": int(positions[0, 0]), "across": int(positions[1, 0]), "empty row is -inf": empty}


if __name__ == "__main__":
    torch.manual_seed(0)
    found_here: dict[str, dict[str, float]] = {
        f"{name} {dtype}": deviations(shape, getattr(torch, dtype)) for name, shape in SHAPES.items() for dtype in DTYPES
    }
    print(json.dumps({**found_here, "ties": ties()}))
