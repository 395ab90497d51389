"""Adapters, frozen layers and gradient checkpointing: what is trained, and that plain models come out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders.adaptation import is_adapted, transformer_layers
from raydistill.encoders.checkpoint import load_student, save_student
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.encoders.tokens import padded, tokenize
from raydistill.errors import ConfigError

Folder = Callable[..., Path]
HEADS = [("Bert", "mlm"), ("DistilBert", "mlm"), ("Roberta", "mlm"), ("ModernBert", "mlm"), ("Bert", "identity")]
ALL = [*HEADS, ("Llama", "decoder"), ("Qwen3", "decoder"), ("GPT2", "decoder")]


def model_of(tiny_folder: Folder, architecture: str, head: str, **more: Any) -> SpladeModel:
    folder = tiny_folder(architecture, head != "identity")
    return SpladeModel.from_config(StudentConfig(model=str(folder), head=head, text=TextConfig(max_tokens=64), **more))


@pytest.fixture
def ids_and_mask(tiny_tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    return padded(tokenize(tiny_tokenizer, texts, 64), 0)


def trained(model: SpladeModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_a_little(model: SpladeModel, ids_and_mask: Any) -> None:
    optimizer = torch.optim.SGD(model.parameter_groups(0.05, weight_decay=0.0))
    for _ in range(3):
        optimizer.zero_grad()
        (model(*ids_and_mask) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("architecture", "head"), ALL)
def test_lora_trains_adapters_and_the_head_and_merges_to_equal_vectors(
    architecture: str,
    head: str,
    tiny_folder: Folder,
    ids_and_mask: Any,
    tiny_tokenizer: Any,
    texts: list[str],
    tmp_path: Path,
) -> None:
    model = model_of(tiny_folder, architecture, head, lora={"rank": 2, "alpha": 8.0})
    plain = model_of(tiny_folder, architecture, head)
    torch.testing.assert_close(model(*ids_and_mask), plain(*ids_and_mask), msg="fresh adapters change nothing")
    assert model.fused
    names = trained(model)
    assert any(".lora_A." in name for name in names)
    own = {"vocabulary_head.scale", "vocabulary_head.bias"} if head != "mlm" else set()
    assert own <= names
    assert (head == "mlm") == any(".lora_" not in name for name in names - own), "an MLM head's own weights are trained too"
    assert not any("embed" in name or name.endswith(("lm_head.weight", "decoder.weight")) for name in names)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_a_little(model, ids_and_mask)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= names
    assert any(".lora_B." in name for name in changed)
    merged = model.merged()
    assert not is_adapted(merged.backbone)
    assert is_adapted(model.backbone), "training goes on with the adapters"
    assert merged.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(merged(*ids_and_mask), model(*ids_and_mask), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged(*ids_and_mask), plain(*ids_and_mask), atol=1e-3)
    save_student(model, tiny_tokenizer, tmp_path, TextConfig(max_tokens=64), "card")
    loaded = load_student(tmp_path).encoder(device="cpu").encode_queries(texts)
    ours = SpladeEncoder(merged, tiny_tokenizer, 64, device="cpu").encode_queries(texts)
    np.testing.assert_array_equal(loaded.to_dense(), ours.to_dense())


def test_lora_reaches_only_the_named_modules(tiny_folder: Folder) -> None:
    model = model_of(tiny_folder, "Llama", "decoder", lora={"rank": 2, "targets": ["q_proj", "v_proj"]})
    adapted = {name.split(".")[-4] for name in trained(model) if ".lora_" in name}
    assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("head", "architecture", "targets", "message"),
    [
        ("decoder", "Llama", ["nothing"], r"student\.lora\.targets is \('nothing',\), which fits no module"),
        ("decoder", "Llama", ["lm_head"], "the vocabulary's own matrix"),
        ("mlm", "Bert", ["decoder"], "the vocabulary's own matrix"),
        ("identity", "Bert", ["word_embeddings"], "the vocabulary's own matrix"),
    ],
)
def test_lora_on_what_is_not_there_or_not_read_is_refused(
    head: str, architecture: str, targets: list[str], message: str, tiny_folder: Folder
) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(tiny_folder, architecture, head, lora={"targets": targets})


def test_lora_without_peft_names_the_extra(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'raydistill\[lora\]'"):
        model_of(tiny_folder, "Bert", "mlm", lora={})


@pytest.mark.parametrize(("architecture", "head"), ALL)
def test_frozen_layers_and_embeddings_keep_their_values(
    architecture: str, head: str, tiny_folder: Folder, ids_and_mask: Any
) -> None:
    model = model_of(tiny_folder, architecture, head, freeze={"embeddings": True, "layers": 1})
    layers = transformer_layers(model.backbone)
    assert len(layers) == 2
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_a_little(model, ids_and_mask)
    changed = {id(p) for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert not changed & {id(p) for p in layers[0].parameters()}
    assert changed & {id(p) for p in layers[1].parameters()}
    assert id(model.backbone.get_input_embeddings().weight) not in changed
    assert not any(p.requires_grad for name, p in model.named_parameters() if "embeddings." in name or ".wpe." in name)
    grouped = [id(p) for group in model.parameter_groups(1e-3, 0.0) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_freezing_all_layers_is_refused(tiny_folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"student\.freeze\.layers is 2, but the model has 2 layers.*at most 1"):
        model_of(tiny_folder, "Bert", "mlm", freeze={"layers": 2})


@pytest.mark.parametrize(
    ("architecture", "head", "adaptation"),
    [
        ("Bert", "mlm", {}),
        ("Bert", "mlm", {"freeze": {"embeddings": True, "layers": 1}}),
        ("ModernBert", "mlm", {"lora": {"rank": 2}}),
        ("Bert", "identity", {}),
        ("Llama", "decoder", {}),
        ("Llama", "decoder", {"lora": {"rank": 2}}),
        ("Qwen3", "decoder", {"freeze": {"layers": 1}}),
    ],
)
def test_gradient_checkpointing_changes_no_gradient_and_recomputes(
    architecture: str, head: str, adaptation: dict[str, Any], tiny_folder: Folder, ids_and_mask: Any
) -> None:
    gradients, passes = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = model_of(tiny_folder, architecture, head, gradient_checkpointing=checkpointing, **adaptation)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        calls: list[int] = []
        last = transformer_layers(model.backbone)[-1]
        next(iter(last.children())).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.train()
        model(*ids_and_mask).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        passes.append(len(calls))
    assert passes == [1, 2], "the layer runs again in the backward pass"
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_long_context_encoder_reads_as_far_as_it_was_trained(tiny_folder: Folder, tiny_tokenizer: Any) -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=4096, local_attention=8, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2,
        sep_token_id=3,
    )  # fmt: skip
    model = SpladeModel(ModernBertForMaskedLM(config).eval(), "mlm")
    assert model.fused
    model.check_length(4096, "student.text.max_tokens")
    with pytest.raises(ConfigError, match="at most 4096 tokens"):
        model.check_length(4097, "student.text.max_tokens")
    encoder = SpladeEncoder(model, tiny_tokenizer, max_tokens=2048, device="cpu")
    # Only the end of the text tells these two apart: it must be read, though it is 1,500 tokens away.
    first, second = ("the old river " * 500 + end for end in ("paris", "war"))
    vectors = encoder.encode_queries([first, second, "paris"]).to_dense()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    np.testing.assert_allclose(encoder.encode_queries(["paris"]).to_dense()[0], vectors[2], atol=1e-4)


def test_models_without_a_position_table_or_limit_read_any_length(tiny_folder: Folder) -> None:
    model = model_of(tiny_folder, "Llama", "decoder")
    model.backbone.config = SimpleNamespace(vocab_size=30)
    model.check_length(1_000_000, "student.text.max_tokens")
