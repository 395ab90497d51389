"""The memory-lean head of sums equals its definition, in value and in gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raydistill.encoders.head_sum import LEAST_SLICE_TERMS, SLICE_LOGITS, splade_sum_head
from tests.encoders.test_head import random_case


def by_definition(hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, log_twice: bool = False) -> Tensor:
    weights = torch.log1p(torch.relu(nn.functional.linear(hidden, weight, bias)))
    weights = torch.log1p(weights) if log_twice else weights
    return (weights * mask.unsqueeze(-1).to(weights.dtype)).sum(1)


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(0, 4),
    length=st.integers(1, 6),
    width=st.integers(1, 5),
    terms=st.integers(1, 20),
    slice_terms=st.integers(1, 24),
    with_bias=st.booleans(),
    log_twice=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_values_and_gradients_equal_the_definition(
    seed: int, batch: int, length: int, width: int, terms: int, slice_terms: int, with_bias: bool, log_twice: bool
) -> None:
    hidden, weight, bias, mask = random_case(seed, batch, length, width, terms)
    generator = torch.Generator().manual_seed(seed + 1)
    upstream = torch.randn(batch, terms, dtype=torch.float64, generator=generator)
    # Distillation gives most terms no gradient at all: those of no passage.
    upstream = upstream * (torch.rand(batch, terms, generator=generator) < 0.5)
    results = []
    for head in (partial(splade_sum_head, slice_terms=slice_terms), by_definition):
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, *([bias] if with_bias else []))]
        pooled = head(inputs[0], inputs[1], inputs[2] if with_bias else None, mask, log_twice=log_twice)
        results.append((pooled.detach(), *torch.autograd.grad((pooled * upstream).sum(), inputs)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        without_gradient = splade_sum_head(hidden, weight, bias if with_bias else None, mask, log_twice, slice_terms)
    torch.testing.assert_close(without_gradient, results[0][0], rtol=0, atol=0)


@pytest.mark.parametrize("log_twice", [False, True])
@pytest.mark.parametrize("kind", ["plain", "negative", "masked", "one token", "equal tokens", "no text", "no bias"])
def test_gradcheck(kind: str, log_twice: bool) -> None:
    hidden, weight, bias, mask = random_case(3, 3, 1 if kind == "one token" else 5, 4, 11)
    if kind == "negative":
        bias = bias - 100
    elif kind == "masked":
        mask[0], mask[1] = False, True
    elif kind == "one token":
        mask[:2] = True
    elif kind == "equal tokens":
        hidden[:, 1:] = hidden[:, :1].clone()
    elif kind == "no text":
        hidden, mask = hidden[:0], mask[:0]
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    pooled = splade_sum_head(hidden, weight, bias, mask, log_twice, 4)
    assert pooled.gt(0).any() == (kind not in ("negative", "no text")), "the case must be what it is called"
    if kind == "no bias":
        assert torch.autograd.gradcheck(lambda h, w: splade_sum_head(h, w, None, mask, log_twice, 4), inputs[:2])
    else:
        assert torch.autograd.gradcheck(lambda h, w, b: splade_sum_head(h, w, b, mask, log_twice, 4), tuple(inputs))


@given(seed=st.integers(0, 1000), parts=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_sum_of_a_text_is_the_sum_over_its_parts(seed: int, parts: int) -> None:
    hidden, weight, bias, mask = random_case(seed, 2, 10, 4, 13)
    pieces = zip(hidden.tensor_split(parts, 1), mask.tensor_split(parts, 1), strict=True)
    whole = splade_sum_head(hidden, weight, bias, mask)
    torch.testing.assert_close(whole, sum(splade_sum_head(h, weight, bias, m) for h, m in pieces))


def test_masked_positions_are_nothing_even_when_their_states_are_nan() -> None:
    hidden, weight, bias, mask = random_case(4, 3, 5, 4, 11)
    mask[1] = False
    mask[0, :2] = True
    hidden[~mask] = torch.nan
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias.abs() + 1)]
    pooled = splade_sum_head(*inputs, mask)
    pooled.sum().backward()
    assert pooled[1].eq(0).all()
    assert pooled[0].gt(0).any()
    for tensor in inputs:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert hidden.grad is not None
    assert hidden.grad[~mask].eq(0).all()
    assert not hidden.grad[mask].eq(0).all()


def test_a_state_that_is_no_number_is_seen_in_the_weights() -> None:
    hidden, weight, bias, mask = random_case(4, 2, 5, 4, 11)
    mask[:] = True
    hidden[1, 2] = torch.nan
    pooled = splade_sum_head(hidden, weight, bias, mask)
    assert pooled[0].isfinite().all()
    assert pooled[1].isnan().all()


def test_tied_weight_receives_both_gradients() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(13, 4).double()
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    gradients = []
    for head in (splade_sum_head, by_definition):
        embedding.zero_grad()
        head(embedding(ids).tanh(), embedding.weight, None, mask).sum().backward()
        assert embedding.weight.grad is not None
        gradients.append(embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.vocabulary = nn.Linear(6, 6), nn.Linear(6, 30)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        states = self.body(hidden).tanh()
        return splade_sum_head(states, self.vocabulary.weight, self.vocabulary.bias, mask, slice_terms=7) * 2


@pytest.mark.parametrize("how", ["compiled", "checkpointed", "checkpointed, reentrant"])
def test_compilation_and_checkpointing_change_nothing(how: str) -> None:
    torch.manual_seed(0)
    student = Student()
    hidden, mask = torch.randn(3, 5, 6, requires_grad=True), torch.rand(3, 5) < 0.7
    run = {
        "compiled": torch.compile(student, backend="aot_eager"),
        "checkpointed": partial(checkpoint, student, use_reentrant=False),
        "checkpointed, reentrant": partial(checkpoint, student, use_reentrant=True),
    }[how]
    results = []
    for forward in (student, run):
        inputs = [hidden, *student.parameters()]
        for tensor in inputs:
            tensor.grad = None
        pooled = forward(hidden, mask)
        pooled.square().sum().backward()
        results.append([pooled.detach(), *(tensor.grad for tensor in inputs)])
    assert results[0][0].gt(0).any()
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("how", ["autocast", "bf16 inputs"])
def test_half_precision_gives_float32_weights_and_gradients_in_the_inputs_dtype(how: str) -> None:
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(5, 4, 8, 32, 50))
    exact = by_definition(hidden, weight, bias, mask)
    dtype = torch.float32 if how == "autocast" else torch.bfloat16
    inputs = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        pooled = splade_sum_head(*inputs, mask)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, exact, rtol=0.05, atol=0.1)
    pooled.sum().backward()
    # The same products in plain torch: rounding a logit near 0 changes its sign, and with it the whole gradient.
    reference = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        by_definition(*reference, mask).float().sum().backward()
    for ours, expected in zip(inputs, reference, strict=True):
        assert ours.grad is not None
        assert expected.grad is not None
        assert ours.grad.dtype == dtype
        assert (ours.grad.float() - expected.grad.float()).norm() < 0.05 * expected.grad.float().norm()


@pytest.mark.parametrize("slice_terms", [256, None])
def test_no_tensor_of_batch_length_vocabulary_is_ever_held(slice_terms: int | None) -> None:
    tokens = 4 * 64 if slice_terms else 64 * 1024
    terms = 5000 if slice_terms else 2 * LEAST_SLICE_TERMS
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(7, 4, tokens // 4, 8, terms))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.layout == torch.strided:
                largest = max(largest, out.numel())
            return out

    hidden.requires_grad_()
    weight.requires_grad_()
    with Watch():
        splade_sum_head(hidden, weight, bias, mask, slice_terms=slice_terms).sum().backward()
    assert tokens * terms / 2 >= (tokens * slice_terms if slice_terms else SLICE_LOGITS)
    assert 0 < largest <= (tokens * slice_terms if slice_terms else SLICE_LOGITS)


def test_terms_without_weight_or_gradient_are_not_multiplied_again() -> None:
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(7, 4, 8, 8, 4000))
    rows = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.mm.default:
                rows.append(args[1].shape[1])
            return func(*args, **(kwargs or {}))

    hidden.requires_grad_()
    pooled = splade_sum_head(hidden, weight, bias, mask, slice_terms=100)
    asked = pooled.detach().gt(0).any(0).nonzero().squeeze(1)[:30]
    with Watch():
        pooled[:, asked].sum().backward()
    assert rows == [30, 8], "the logits of 30 terms, and the gradient of the states"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_equals_cpu() -> None:
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(8, 3, 7, 16, 100))
    results = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight, bias)]
        pooled = splade_sum_head(*inputs, mask.to(device), slice_terms=32)
        pooled.sum().backward()
        results.append([pooled.detach().cpu(), *(tensor.grad.cpu() for tensor in inputs if tensor.grad is not None)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
