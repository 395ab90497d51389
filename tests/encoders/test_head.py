"""The memory-lean SPLADE head equals its definition, in value and in gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raydistill.encoders.head import max_pool_logits, splade_head


def by_definition(hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    logits = nn.functional.linear(hidden, weight, bias)
    return (torch.log1p(torch.relu(logits)) * mask.unsqueeze(-1).to(logits.dtype)).amax(1)


def random_case(seed: int, batch: int, length: int, width: int, terms: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(terms, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(terms, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, length, generator=generator) < 0.7
    return hidden, weight, bias, mask


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 4),
    length=st.integers(1, 6),
    width=st.integers(1, 5),
    terms=st.integers(1, 20),
    slice_terms=st.integers(1, 24),
    with_bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_equal_the_definition(
    seed: int, batch: int, length: int, width: int, terms: int, slice_terms: int, with_bias: bool
) -> None:
    hidden, weight, bias, mask = random_case(seed, batch, length, width, terms)
    upstream = torch.randn(batch, terms, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    results = []
    for head in (partial(splade_head, slice_terms=slice_terms), by_definition):
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, *([bias] if with_bias else []))]
        pooled = head(inputs[0], inputs[1], inputs[2] if with_bias else None, mask)
        results.append((pooled.detach(), *torch.autograd.grad((pooled * upstream).sum(), inputs)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        without_gradient = splade_head(hidden, weight, bias if with_bias else None, mask, slice_terms)
    torch.testing.assert_close(without_gradient, results[0][0], rtol=0, atol=0)


def test_gradcheck() -> None:
    hidden, weight, bias, mask = random_case(3, 3, 5, 4, 11)
    inputs = tuple(tensor.requires_grad_() for tensor in (hidden, weight, bias))
    assert torch.autograd.gradcheck(lambda h, w, b: splade_head(h, w, b, mask, 4), inputs)


def test_masked_rows_are_zero_and_have_no_gradient_even_when_their_states_are_nan() -> None:
    hidden, weight, bias, mask = random_case(4, 3, 5, 4, 11)
    mask[1] = False
    mask[0] = True
    hidden[1] = torch.nan
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    pooled = splade_head(hidden, weight, bias.abs() + 1, mask)
    pooled.sum().backward()
    assert pooled[1].eq(0).all()
    assert pooled[0].gt(0).any()
    assert hidden.grad is not None
    assert hidden.grad[1].eq(0).all()
    assert not hidden.grad[0].eq(0).all()


def test_tied_weight_receives_both_gradients() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(13, 4).double()
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    gradients = []
    for head in (splade_head, by_definition):
        embedding.zero_grad()
        head(embedding(ids).tanh(), embedding.weight, None, mask).sum().backward()
        assert embedding.weight.grad is not None
        gradients.append(embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_bf16_input_gives_float32_weights_near_the_exact_ones() -> None:
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(5, 4, 8, 32, 50))
    exact = by_definition(hidden, weight, bias, mask)
    half = [tensor.bfloat16().requires_grad_() for tensor in (hidden, weight, bias)]
    pooled = splade_head(half[0], half[1], half[2], mask)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, exact, rtol=0.05, atol=0.05)
    pooled.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.bfloat16 for tensor in half)


def test_autocast_gives_gradients_in_the_parameters_dtype() -> None:
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(6, 2, 4, 8, 9))
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = splade_head(inputs[0], inputs[1], inputs[2], mask)
    pooled.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in inputs)
    torch.testing.assert_close(pooled, by_definition(inputs[0], inputs[1], inputs[2], mask), rtol=0.05, atol=0.05)


def test_no_tensor_of_batch_length_vocabulary_is_ever_held() -> None:
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(7, 4, 64, 8, 5000))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.layout == torch.strided:
                largest = max(largest, out.numel())
            return out

    hidden.requires_grad_()
    with Watch():
        splade_head(hidden, weight, bias, mask, slice_terms=256).sum().backward()
    assert 0 < largest <= 4 * 64 * 256, "the largest tensor must be a slice, not 4 * 64 * 5000"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_equals_cpu() -> None:
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(8, 3, 7, 16, 100))
    results = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight, bias)]
        pooled = splade_head(inputs[0], inputs[1], inputs[2], mask.to(device), 32)
        pooled.sum().backward()
        results.append([pooled.detach().cpu(), *(tensor.grad.cpu() for tensor in inputs if tensor.grad is not None)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_positions_are_positions_of_the_maximum() -> None:
    hidden, weight, _, mask = random_case(9, 3, 6, 4, 17)
    mask[:, 0] = True
    maxima, positions = max_pool_logits(hidden, weight, mask, 5, with_positions=True)
    assert positions is not None
    logits = hidden @ weight.T
    torch.testing.assert_close(logits.gather(1, positions.long().unsqueeze(1)).squeeze(1), maxima)
    assert mask.gather(1, positions.long()).all(), "a masked position must never win"
    torch.testing.assert_close(maxima, logits.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1))
