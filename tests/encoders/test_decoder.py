"""A causal language model as student: attention both ways or one, all tokens pooled or the last, wherever the padding is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders import backbones
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.head import SLICE_TERMS
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.encoders.tokens import padded, tokenize
from raydistill.errors import ConfigError

DECODERS = ["Llama", "Qwen3", "Mistral", "GPT2"]
VARIANTS = [("bidirectional", "max"), ("bidirectional", "last"), ("causal", "max"), ("causal", "last"), ("causal", "sum")]
Folder = Callable[..., Path]


def student(folder: Path, attention: str = "bidirectional", pooling: str = "max", **more: Any) -> StudentConfig:
    text = TextConfig(max_tokens=64)
    return StudentConfig(model=str(folder), head="decoder", attention=attention, pooling=pooling, text=text, **more)


def decoder(
    tiny_folder: Folder, architecture: str = "Llama", attention: str = "bidirectional", pooling: str = "max"
) -> SpladeModel:
    return SpladeModel.from_config(student(tiny_folder(architecture), attention, pooling))


def by_definition(model: SpladeModel, ids: Tensor, mask: Tensor) -> Tensor:
    """SPLADE over the language model's own logits, scaled and shifted; holds [B, L, V]."""
    assert model.vocabulary_head is not None
    logits = model.backbone(input_ids=ids, attention_mask=mask, use_cache=False).logits
    weights = torch.log1p(torch.relu(model.vocabulary_head.scale * logits + model.vocabulary_head.bias))
    if model.pooling == "max":
        return (weights * mask.unsqueeze(-1)).amax(1)
    if model.pooling == "sum":
        return (weights * mask.unsqueeze(-1)).sum(1)
    return weights[torch.arange(len(ids)), mask.sum(1) - 1]


@pytest.fixture
def ids_and_mask(tiny_tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    return padded(tokenize(tiny_tokenizer, texts, 64), 0)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize(("attention", "pooling"), VARIANTS)
def test_weights_and_gradients_equal_the_definition(
    architecture: str,
    attention: str,
    pooling: str,
    tiny_folder: Folder,
    ids_and_mask: Any,
    texts: list[str],
    tiny_tokenizer: Any,
) -> None:
    results = []
    for ours in (True, False):
        model = decoder(tiny_folder, architecture, attention, pooling)
        model.calibrate(texts, tiny_tokenizer, 0.3, 64)
        pooled = model(*ids_and_mask) if ours else by_definition(model, *ids_and_mask)
        (pooled**2).sum().backward()
        results.append((pooled.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert results[0][0].gt(0).any()
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_later_tokens_reach_earlier_states_exactly_when_asked(
    architecture: str, attention: str, implementation: str, tiny_folder: Folder
) -> None:
    model = decoder(tiny_folder, architecture, attention)
    model.backbone.set_attn_implementation(implementation)
    ids = torch.tensor([[7, 8, 9, 10], [7, 8, 9, 11]])
    padded_on_the_left = torch.tensor([[6, 7, 8, 9, 10], [6, 7, 8, 9, 11]]), torch.tensor([[0, 1, 1, 1, 1]] * 2)
    for (tokens, mask), before_last in (((ids, torch.ones_like(ids)), slice(0, 3)), (padded_on_the_left, slice(1, 4))):
        with torch.no_grad():
            first, second = backbones.token_states(model.backbone, tokens, mask)[:, before_last]
        assert torch.allclose(first, second, atol=1e-6) == (attention == "causal")


@given(seed=st.integers(0, 500), padding=st.integers(0, 5), variant=st.sampled_from(VARIANTS))
@settings(max_examples=25, deadline=None)
def test_padding_on_either_side_changes_nothing(
    seed: int, padding: int, variant: tuple[str, str], tiny_folder: Folder
) -> None:
    for architecture in ("Llama", "GPT2"):
        model = _loaded(tiny_folder, architecture, *variant)
        ids = torch.randint(4, model.vocabulary_size, (3, 5), generator=torch.Generator().manual_seed(seed))
        fill, nothing = torch.full((3, padding), 6), torch.zeros(3, padding, dtype=torch.long)
        mask = torch.ones_like(ids)
        with torch.no_grad():
            plain = model(ids, mask)
            right = model(torch.cat([ids, fill], 1), torch.cat([mask, nothing], 1))
            left = model(torch.cat([fill, ids], 1), torch.cat([nothing, mask], 1))
        torch.testing.assert_close(right, plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(left, plain, rtol=1e-4, atol=1e-5)


_MODELS: dict[tuple[str, str, str], SpladeModel] = {}


def _loaded(tiny_folder: Folder, architecture: str, attention: str, pooling: str) -> SpladeModel:
    key = (architecture, attention, pooling)
    if key not in _MODELS:
        _MODELS[key] = decoder(tiny_folder, *key)
    return _MODELS[key]


@given(order=st.permutations(range(4)), variant=st.sampled_from(VARIANTS))
@settings(max_examples=20, deadline=None)
def test_permuting_the_batch_permutes_the_vectors(order: list[int], variant: tuple[str, str], tiny_folder: Folder) -> None:
    model = _loaded(tiny_folder, "Llama", *variant)
    ids = torch.randint(4, model.vocabulary_size, (4, 6), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(6) < torch.tensor([[6], [2], [4], [5]])).long()
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask)[order], model(ids[order], mask[order]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("attention", "pooling"), VARIANTS)
def test_a_fully_masked_row_is_zero_and_trains(attention: str, pooling: str, tiny_folder: Folder, ids_and_mask: Any) -> None:
    model = decoder(tiny_folder, "Llama", attention, pooling)
    ids, mask = (tensor.clone() for tensor in ids_and_mask)
    mask[1] = 0
    pooled = model(ids, mask)
    assert pooled[1].eq(0).all()
    assert pooled[0].gt(0).any()
    pooled.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize(("attention", "pooling"), VARIANTS)
def test_calibration_makes_dense_logits_sparse(
    architecture: str, attention: str, pooling: str, tiny_folder: Folder, tiny_tokenizer: Any
) -> None:
    model = decoder(tiny_folder, architecture, attention, pooling)
    sample = ["the capital of france", "who wrote war peace", "the old river", "tolstoy was born in paris", "she is it"]
    ids, mask = padded(tokenize(tiny_tokenizer, sample, 64), 0)
    with torch.no_grad():
        before = model(ids, mask).gt(0).float().mean().item()
        model.start_head(sample, tiny_tokenizer, student(tiny_folder(architecture), attention, pooling, active_share=0.1))
        weights = model(ids, mask)
    assert before > 0.3, "raw logits of a language model are positive for much of the vocabulary"
    assert weights.gt(0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert weights[:, :6].eq(0).all(), "special tokens stay silent"


def test_starting_values_are_given_once(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    config = student(tiny_folder("Llama"), active_share=0.2)
    model = SpladeModel.from_config(config)
    assert not model.head_has_values
    model.start_head(texts, tiny_tokenizer, config)
    assert model.head_has_values
    assert model.vocabulary_head is not None
    bias = model.vocabulary_head.bias.clone()
    model.start_head(texts[:2], tiny_tokenizer, config)
    assert torch.equal(model.vocabulary_head.bias, bias)


def test_an_encoder_of_a_decoder_keeps_the_contract(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    encoder = SpladeEncoder(decoder(tiny_folder), tiny_tokenizer, max_tokens=64, device="cpu", batch_tokens=60)
    assert isinstance(encoder, SparseEncoder)
    together = encoder.encode_queries(texts)
    together.validate()
    alone = SparseBatch.concatenate([encoder.encode_queries([text]) for text in texts])
    np.testing.assert_allclose(together.to_dense(), alone.to_dense(), atol=1e-4)
    assert len(encoder.vocabulary()) == encoder.vocabulary_size


def test_no_tensor_of_batch_length_vocabulary_is_ever_held(tiny_folder: Folder) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    terms, batch, length = 3000, 4, 32
    config = LlamaConfig(vocab_size=terms, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    model = SpladeModel(LlamaForCausalLM(config), "decoder", "bidirectional", "max")
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.layout == torch.strided:
                largest = max(largest, out.numel())
            return out

    with Watch():
        model(torch.randint(0, terms, (batch, length)), torch.ones(batch, length, dtype=torch.long)).sum().backward()
    assert terms / 2 > SLICE_TERMS
    assert 0 < largest <= batch * length * SLICE_TERMS, "the largest tensor must be a slice of the vocabulary"


def test_a_causal_model_that_ignores_its_configuration_is_refused(tiny_folder: Folder) -> None:
    model = decoder(tiny_folder, "Llama", "causal")

    class Deaf(type(model.backbone.model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Any:
            length = input_ids.shape[1]
            triangle = torch.ones(length, length, dtype=torch.bool).tril().expand(len(input_ids), 1, length, length)
            return super().forward(input_ids=input_ids, attention_mask=triangle, **more)

    backbone = model.backbone
    backbone.model.__class__ = Deaf
    with pytest.raises(ConfigError, match=r"student\.attention is bidirectional.*set it to causal"):
        SpladeModel(backbone, "decoder", "bidirectional", "max")


def test_a_checkpoint_without_its_head_is_refused(tiny_folder: Folder, tmp_path: Path, tiny_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"student\.model.*could not be loaded as AutoModelForCausalLM"):
        SpladeModel.from_config(student(tiny_folder("ModernBert")))
    decoder(tiny_folder).backbone.base_model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"lacks weights of its own architecture: lm_head\.weight"):
        SpladeModel.from_config(student(tmp_path))


def test_a_tokenizer_without_padding_and_separator_takes_its_end_token(tiny_tokenizer: Any, tmp_path: Path) -> None:
    from raydistill.encoders.documents import load_tokenizer

    bare = copy.deepcopy(tiny_tokenizer)
    bare.pad_token, bare.sep_token, bare.eos_token = None, None, "[SEP]"
    bare.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), None, False, "student.model")
    assert loaded(["paris", "the old city"], padding=True)["input_ids"][0][-1] == 3
    assert loaded.sep_token == "[SEP]"
