"""Triton kernels of the SPLADE head for NVIDIA GPUs: maxima of logits with their positions, and sums of weighted rows.

`head` imports this module where it is used, chooses it and owns the rest: bias, ReLU, logarithm, which terms are active.
Tiles come through tensor descriptors, which Hopper GPUs load without their threads' help; on older ones Triton makes plain
loads of them. Tests run the kernels in Triton's interpreter, with products of float16 (it multiplies the bit patterns of
bfloat16 as integers), and on a GPU where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

SMALLEST_TILE = 16
"""Fewest rows of a product that tensor cores take."""
LARGEST_TOKEN_TILE = 256
ENTRY_TILE = 16


@triton.jit
def _maxima_kernel(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    mask,
    maxima,
    positions,
    texts,
    length,
    terms,
    width,
    programs,
    TOKENS: tl.constexpr,  # noqa: N803
    TERMS: tl.constexpr,  # noqa: N803
    INNER: tl.constexpr,  # noqa: N803
    LENGTH: tl.constexpr,  # noqa: N803
    ONE_TILE: tl.constexpr,  # noqa: N803
    PLACES: tl.constexpr,  # noqa: N803
):
    """One program: some pairs of a text and TERMS terms, one after the other.

    Texts run fastest, so that programs side by side read the same rows of weight. The product is [terms, tokens], so that a
    maximum over tokens stays within a few threads. Where a text is one tile of tokens, loading for the next pair begins
    while this one is multiplied.
    """
    pairs = tl.cdiv(terms, TERMS) * texts
    for pair in tl.range(tl.program_id(0), pairs, programs, flatten=ONE_TILE):
        text = pair % texts
        first_term = pair // texts * TERMS
        row = text * length
        flags = mask + text.to(tl.int64) * length
        if ONE_TILE:
            logits = tl.zeros([TERMS, TOKENS], tl.float32)
            for inner in range(0, width, INNER):
                logits = tl.dot(weight.load([first_term, inner]), hidden.load([row, inner]).T, logits)
            token = tl.arange(0, TOKENS)
            kept = tl.load(flags + token, mask=token < length, other=0) != 0
            logits = tl.where(kept[None, :], logits, float("-inf"))
            if PLACES:
                best, place = tl.max(logits, 1, return_indices=True)
            else:
                best = tl.max(logits, 1)
        else:
            best = tl.full([TERMS], float("-inf"), tl.float32)
            place = tl.zeros([TERMS], tl.int32)
            # Padding outside [first, last) is not even multiplied.
            everywhere = tl.arange(0, LENGTH)
            counts = tl.load(flags + everywhere, mask=everywhere < length, other=0) != 0
            first = tl.min(tl.where(counts, everywhere, length), 0)
            last = tl.max(tl.where(counts, everywhere + 1, 0), 0)
            for start in range(first, last, TOKENS):
                logits = tl.zeros([TERMS, TOKENS], tl.float32)
                for inner in range(0, width, INNER):
                    logits = tl.dot(weight.load([first_term, inner]), hidden.load([row + start, inner]).T, logits)
                token = start + tl.arange(0, TOKENS)
                kept = tl.load(flags + token, mask=token < last, other=0) != 0
                logits = tl.where(kept[None, :], logits, float("-inf"))
                if PLACES:
                    # The first of equal ones: the first of a tile, if it exceeds those of earlier tiles.
                    tile_best, tile_place = tl.max(logits, 1, return_indices=True)
                    place = tl.where(tile_best > best, start + tile_place, place)
                    best = tl.maximum(best, tile_best)
                else:
                    best = tl.maximum(best, tl.max(logits, 1))
        term = first_term + tl.arange(0, TERMS)
        output = text.to(tl.int64) * terms + term
        tl.store(maxima + output, best, mask=term < terms)
        if PLACES:
            tl.store(positions + output, place, mask=term < terms)


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


@dataclass(frozen=True)
class Tile:
    """What a program works on at a time, and how.

    Attributes:
        tokens, terms, inner: rows of hidden, rows of weight, and columns of both: powers of two, at least 16 each.
        warps: of a program. stages: loads in flight. programs: that one multiprocessor runs side by side.
    """

    tokens: int
    terms: int
    inner: int = 64
    warps: int = 8
    stages: int = 3
    programs: int = 1

    @property
    def shared_bytes(self) -> int:
        """Shared memory that the loads in flight take, with half-precision numbers."""
        return self.stages * (self.tokens + self.terms) * self.inner * 2


def tile_for(length: int, shared_bytes: int) -> Tile:
    """Return the tile for texts padded to `length` tokens, on a device with so much shared memory a program.

    What fits an H100 was the fastest of those tried on one (`benchmarks/head.py` times the result).
    """
    tokens = max(SMALLEST_TILE, triton.next_power_of_2(length))
    if tokens == SMALLEST_TILE:
        best = Tile(tokens, 128, warps=4, stages=4, programs=2)
    elif tokens == 2 * SMALLEST_TILE:
        best = Tile(tokens, 256, programs=2)
    elif tokens == LARGEST_TOKEN_TILE:
        best = Tile(tokens, 128)
    else:
        best = Tile(min(tokens, LARGEST_TOKEN_TILE // 2), 256)
    tokens = min(tokens, 128)
    smaller = (Tile(tokens, 128, warps=4), Tile(tokens, 128, warps=4, stages=2), Tile(min(tokens, 64), 64, 32, 4, 2))
    return next(tile for tile in (best, *smaller) if tile.shared_bytes <= shared_bytes)


def max_pool_logits(
    hidden: Tensor, weight: Tensor, mask: Tensor, with_positions: bool = True, tile: Tile | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return (max_l hidden_l . weight_v, its first position) over unmasked positions.

    Products of float16 or bfloat16 are added up in float32; maxima differ from a float32 product of the same numbers by its
    own rounding alone, and positions only where two logits are that close. A NaN among unmasked logits is passed over.

    Args:
        hidden: float16 or bfloat16 [B, L, H]; H a multiple of 8.
        weight: [V, H], of the same dtype.
        mask: bool [B, L].
        with_positions: whether positions are wanted; they cost a tenth of the time.
        tile: default `tile_for` the device.

    Returns:
        Maxima, float32 [B, V], -inf for a row without unmasked positions; positions, int32 [B, V], or None.
    """
    batch, length, width = hidden.shape
    terms = weight.shape[0]
    maxima = hidden.new_empty((batch, terms), dtype=torch.float32)
    positions = hidden.new_empty((batch, terms), dtype=torch.int32) if with_positions else None
    if batch == 0 or terms == 0:
        return maxima, positions
    if hidden.device.type == "cuda":
        properties = torch.cuda.get_device_properties(hidden.device)
        tile = tile or tile_for(length, properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]
        multiprocessors = properties.multi_processor_count
    else:
        tile, multiprocessors = tile or tile_for(length, 2**16), 1
    programs = min(multiprocessors * tile.programs, batch * triton.cdiv(terms, tile.terms))
    states = TensorDescriptor.from_tensor(hidden.reshape(batch * length, width).contiguous(), [tile.tokens, tile.inner])
    rows = TensorDescriptor.from_tensor(weight.contiguous(), [tile.terms, tile.inner])
    with torch.cuda.device_of(hidden):
        _maxima_kernel[(programs,)](
            states,
            rows,
            mask.contiguous().view(torch.int8),
            maxima,
            positions if positions is not None else maxima,
            batch,
            length,
            terms,
            width,
            programs,
            tile.tokens,
            tile.terms,
            tile.inner,
            triton.next_power_of_2(length),
            length <= tile.tokens,
            with_positions,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
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
