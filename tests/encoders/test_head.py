"""The memory-lean SPLADE head equals its definition, in value and in gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raydistill.encoders.head import _Packed, _pooled_on_cpu, _upper_bound, max_pool_logits, splade_head


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


@pytest.mark.parametrize("kind", ["plain", "negative", "masked", "one token", "equal tokens", "no text", "no bias"])
def test_gradcheck(kind: str) -> None:
    hidden, weight, bias, mask = random_case(3, 3, 1 if kind == "one token" else 5, 4, 11)
    if kind == "negative":
        bias = bias - 100
    elif kind == "masked":
        mask[0], mask[1] = False, True
    elif kind == "one token":
        mask[:2] = True
    elif kind == "equal tokens":
        hidden[:, 1:] = hidden[:, :1]
    elif kind == "no text":
        hidden, mask = hidden[:0], mask[:0]
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    pooled = splade_head(hidden, weight, bias, mask, 4)
    assert pooled.gt(0).any() == (kind not in ("negative", "no text")), "the case must be what it is called"
    if kind == "equal tokens":  # where tokens tie there is no derivative in one of them alone
        inputs[0] = hidden.detach()
    if kind == "no bias":
        assert torch.autograd.gradcheck(lambda h, w: splade_head(h, w, None, mask, 4), inputs[:2])
    else:
        assert torch.autograd.gradcheck(lambda h, w, b: splade_head(h, w, b, mask, 4), tuple(inputs))


def test_of_equal_tokens_the_first_unmasked_one_gets_the_gradient() -> None:
    hidden, weight, bias, mask = random_case(3, 2, 4, 4, 11)
    hidden[:] = hidden[:, :1].clone()
    mask[0], mask[1] = True, torch.tensor([False, True, True, False])
    hidden.requires_grad_()
    splade_head(hidden, weight, bias, mask).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.ne(0).any(2).tolist() == [[True, False, False, False], [False, True, False, False]]


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(0, 4),
    length=st.integers(1, 6),
    width=st.integers(1, 40),
    terms=st.integers(1, 60),
    size=st.sampled_from([1e-3, 1.0, 1e4]),
    level=st.floats(-1.5, 1.5),
)
@settings(max_examples=60, deadline=None)
def test_the_short_cut_through_bfloat16_loses_no_active_term(
    seed: int, batch: int, length: int, width: int, terms: int, size: float, level: float
) -> None:
    hidden, weight, bias, mask = (tensor.float() for tensor in random_case(seed, batch, length, width, terms))
    hidden, kept = hidden * size, mask.bool()
    # Every third term is hardly active in the first text: what rounding could lose.
    bias = bias * level * size
    if batch and kept[0].any():
        bias[::3] = -(hidden[0, kept[0]] @ weight.T).amax(0)[::3] * (1 - 1e-4)
    texts = _Packed(hidden, kept, torch.float32)
    pooled, positions = _pooled_on_cpu(texts, weight, bias, 16, with_positions=True, short_cut=True)
    expected, _ = _pooled_on_cpu(texts, weight, bias, 16, with_positions=False, short_cut=False)
    rounding = 1e-6 * width**0.5 * size * 10
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=max(1e-5, rounding))
    assert positions is not None
    logits = hidden @ weight.T + bias
    there = logits.gather(1, positions.long().unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(
        torch.log1p(there.relu())[pooled > 0], pooled[pooled > 0], rtol=1e-5, atol=max(1e-5, rounding)
    )


def test_the_bound_of_the_short_cut_holds_where_all_rounding_errors_add_up() -> None:
    # 1 + 2^-8 lies half-way between two bfloat16 numbers and is rounded down: every product loses the same.
    states = torch.full((1, 64), 1 + 2.0**-8)
    rounded = states.bfloat16().float()
    approximate = (rounded @ rounded.T).bfloat16().float().squeeze(0)
    exact = (states @ states.T).squeeze(0)
    assert approximate < exact
    assert _upper_bound(approximate, states, states.norm(dim=1)) >= exact


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.vocabulary = nn.Linear(6, 6), nn.Linear(6, 30)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        states = self.body(hidden).tanh()
        return splade_head(states, self.vocabulary.weight, self.vocabulary.bias, mask) * 2


@pytest.mark.parametrize("how", ["compiled", "checkpointed", "checkpointed, reentrant"])
def test_compilation_and_checkpointing_change_nothing(how: str) -> None:
    torch.manual_seed(0)
    student = Student()
    hidden, mask = torch.randn(3, 5, 6, requires_grad=True), torch.rand(3, 5) < 0.7
    run = {
        # Not Inductor, which needs a C++ compiler: what is ours stays outside the graph that it would compile.
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
    with torch.no_grad():
        torch.testing.assert_close(run(hidden, mask), results[0][0])


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
