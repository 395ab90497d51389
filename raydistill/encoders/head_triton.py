"""Triton kernels of the SPLADE head for NVIDIA GPUs: maxima of logits with their positions, and sums of weighted rows.

`head` imports this module where it is used, chooses it and owns the rest: bias, ReLU, logarithm, which terms are active.
The kernels have run in Triton's interpreter only, which checks their arithmetic: never compiled or timed on a GPU. Products
of float16 have run, those of bfloat16 not at all: the interpreter multiplies their bit patterns as integers. Tile sizes are
chosen among a few by timing at first use.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SMALLEST_TILE = 16
"""Fewest rows of a product that tensor cores take."""
LARGEST_TOKEN_TILE = 128
ENTRY_TILE = 16


@triton.jit
def _maxima_kernel(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    mask,
    spans,
    maxima,
    positions,
    length,
    terms,
    width,
    TOKENS: tl.constexpr,  # noqa: N803
    TERMS: tl.constexpr,  # noqa: N803
    INNER: tl.constexpr,  # noqa: N803
):
    """One program: one text, TERMS terms. Texts run fastest, so that programs side by side read the same rows of weight."""
    text = tl.program_id(0).to(tl.int64)
    term = tl.program_id(1).to(tl.int64) * TERMS + tl.arange(0, TERMS)
    term_exists = term < terms
    best = tl.full([TERMS], float("-inf"), tl.float32)
    place = tl.zeros([TERMS], tl.int32)
    # Padding outside [first, last) is not even multiplied.
    first = tl.load(spans + text * 2)
    last = tl.load(spans + text * 2 + 1)
    for start in range(first, last, TOKENS):
        token = start + tl.arange(0, TOKENS)
        kept = tl.load(mask + text * length + token, mask=token < last, other=0) != 0
        states = hidden + (text * length + token)[:, None] * width
        logits = tl.zeros([TOKENS, TERMS], tl.float32)
        for inner in range(0, width, INNER):
            column = inner + tl.arange(0, INNER)
            exists = column < width
            left = tl.load(states + column[None, :], mask=kept[:, None] & exists[None, :], other=0.0)
            rows = weight + term[None, :] * width + column[:, None]
            right = tl.load(rows, mask=exists[:, None] & term_exists[None, :], other=0.0)
            logits = tl.dot(left, right, logits)
        logits = tl.where(kept[:, None], logits, float("-inf"))
        tile_best = tl.max(logits, 0)
        # The first of equal ones: the smallest token of the tile that attains its maximum, if that exceeds earlier tiles'.
        attains = (logits == tile_best[None, :]) & kept[:, None]
        tile_place = tl.min(tl.where(attains, token[:, None], length), 0)
        better = tile_best > best
        place = tl.where(better, tile_place, place)
        best = tl.where(better, tile_best, best)
    output = text * terms + term
    tl.store(maxima + output, best, mask=term_exists)
    tl.store(positions + output, place, mask=term_exists)


_tuned_maxima_kernel = triton.autotune(
    configs=[
        triton.Config({"TERMS": 128, "INNER": 64}, num_warps=8, num_stages=3),
        triton.Config({"TERMS": 128, "INNER": 64}, num_warps=4, num_stages=3),
        triton.Config({"TERMS": 256, "INNER": 64}, num_warps=8, num_stages=3),
        triton.Config({"TERMS": 64, "INNER": 32}, num_warps=4, num_stages=4),
    ],
    key=["TOKENS", "width"],
)(_maxima_kernel)


@triton.jit
def _sums_kernel(  # type: ignore[no-untyped-def]
    table,
    index,
    values,
    starts,
    sums,
    width,
    ENTRIES: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """One program: one segment, COLUMNS columns; no atomics, so the same result every time."""
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column_exists = column < width
    first = tl.load(starts + segment)
    last = tl.load(starts + segment + 1)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        exists = entry < last
        row = tl.load(index + entry, mask=exists, other=0)
        value = tl.load(values + entry, mask=exists, other=0.0)
        there = exists[:, None] & column_exists[None, :]
        rows = tl.load(table + row[:, None] * width + column[None, :], mask=there, other=0.0)
        total += tl.sum(value[:, None] * rows.to(tl.float32), 0)
    tl.store(sums + segment * width + column, total.to(sums.dtype.element_ty), mask=column_exists)


def max_pool_logits(
    hidden: Tensor, weight: Tensor, mask: Tensor, tile: tuple[int, int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return (max_l hidden_l . weight_v, its first position) over unmasked positions.

    Products of float16 or bfloat16 are added up in float32; maxima differ from a float32 product of the same numbers by its
    own rounding alone, and positions only where two logits are that close. A NaN among unmasked logits is passed over.

    Args:
        hidden: float16 or bfloat16 [B, L, H].
        weight: [V, H], of the same dtype.
        mask: bool [B, L].
        tile: tokens, terms and inner columns at a time, powers of two of at least 16; None: tuned at first use.

    Returns:
        Maxima, float32 [B, V], -inf for a row without unmasked positions; positions, int32 [B, V].
    """
    batch, length, width = hidden.shape
    terms = weight.shape[0]
    maxima = hidden.new_empty((batch, terms), dtype=torch.float32)
    positions = hidden.new_empty((batch, terms), dtype=torch.int32)
    if batch == 0:
        return maxima, positions
    places = torch.arange(length, device=mask.device)
    first = torch.where(mask, places, length).amin(1)
    last = torch.where(mask, places + 1, 0).amax(1)
    spans = torch.stack([first, last], 1).to(torch.int32)
    tensors = (hidden.contiguous(), weight.contiguous(), mask.to(torch.int8), spans, maxima, positions)

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        return batch, triton.cdiv(terms, meta["TERMS"])

    with torch.cuda.device_of(hidden):
        if tile is None:
            tokens = min(LARGEST_TOKEN_TILE, max(SMALLEST_TILE, triton.next_power_of_2(length)))
            _tuned_maxima_kernel[grid](*tensors, length, terms, width, TOKENS=tokens)
        else:
            _maxima_kernel[grid](*tensors, length, terms, width, *tile)
    return maxima, positions


def sums_of_rows(table: Tensor, index: Tensor, values: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sum_e values_e * table[index_e] over the entries of each segment, [S, H] in `dtype`, added up in float32.

    Args:
        table: [N, H], float16, bfloat16 or float32.
        index: int64 [E]; entries of a segment stand together.
        values: float32 [E].
        starts: int64 [S]; where each segment starts; it ends where the next one starts.
    """
    count, width = len(starts), table.shape[1]
    sums = table.new_empty((count, width), dtype=dtype)
    if count == 0:
        return sums
    ends = torch.cat([starts, starts.new_tensor([len(index)])])
    columns = min(256, max(SMALLEST_TILE, triton.next_power_of_2(width)))
    grid = (count, triton.cdiv(width, columns))
    with torch.cuda.device_of(table):
        _sums_kernel[grid](table.contiguous(), index, values, ends, sums, width, ENTRY_TILE, columns)
    return sums
