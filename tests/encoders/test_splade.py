"""The student: both heads give SPLADE's weights, whatever the backbone and the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.encoders.calibration import silent_terms
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.encoders.tokens import padded, tokenize
from raydistill.errors import ConfigError

ARCHITECTURES = ["Bert", "DistilBert", "Roberta", "XLMRoberta", "ModernBert", "Electra"]
Folder = Callable[..., Path]


def student(folder: Path, head: str, pooling: Any = None, **text: Any) -> StudentConfig:
    return StudentConfig(model=str(folder), head=head, pooling=pooling, text=TextConfig(**{"max_tokens": 64, **text}))


@pytest.fixture
def ids_and_mask(tiny_tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return padded(tokenize(tiny_tokenizer, texts, 64), 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mlm_head_equals_pooled_logits(architecture: str, tiny_folder: Folder, ids_and_mask: Any) -> None:
    model = SpladeModel.from_config(student(tiny_folder(architecture), "mlm"))
    assert model.fused
    ids, mask = ids_and_mask
    logits = model.backbone(input_ids=ids, attention_mask=mask).logits
    assert logits.dim() == 3, "the backbone must stay an ordinary model outside the student's forward"
    expected = (torch.log1p(torch.relu(logits)) * mask.unsqueeze(-1)).amax(1)
    assert expected.gt(0).any()
    torch.testing.assert_close(model(ids, mask), expected, rtol=1e-5, atol=1e-5)


def by_definition(logits: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    weights = torch.log1p(torch.relu(logits)) * mask.unsqueeze(-1)
    return weights.sum(1) if pooling == "sum" else weights.amax(1)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("head", ["mlm", "identity"])
def test_gradients_equal_the_definition_under_weight_tying(
    head: str, pooling: str, tiny_folder: Folder, ids_and_mask: Any
) -> None:
    ids, mask = ids_and_mask
    gradients = []
    for ours in (True, False):
        model = SpladeModel.from_config(student(tiny_folder("Bert", head == "mlm"), head, pooling))
        assert model.fused
        if ours:
            pooled = model(ids, mask)
        elif model.vocabulary_head is None:
            logits = model.backbone(input_ids=ids, attention_mask=mask).logits
            pooled = by_definition(logits, mask, pooling)
        else:
            hidden = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            own = model.vocabulary_head
            logits = own.scale * (hidden @ model.backbone.get_input_embeddings().weight.T) + own.bias
            pooled = by_definition(logits, mask, pooling)
        (pooled**2).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("word_embeddings" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_padded_with_fully_masked_rows_trains(tiny_folder: Folder, ids_and_mask: Any) -> None:
    model = SpladeModel.from_config(student(tiny_folder("Bert", False), "identity"))
    ids, mask = (tensor.clone() for tensor in ids_and_mask)
    mask[1] = 0
    pooled = model(ids, mask)
    assert pooled[1].eq(0).all()
    assert pooled[0].gt(0).any()
    pooled.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


class Rescaled(nn.Module):
    """A backbone that works on its logits after the decoder, as some models do (soft caps, extra biases)."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.inner = backbone
        self.config = backbone.config

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        output.logits = 2.0 * output.logits + 0.1
        return output


def test_a_backbone_that_changes_its_logits_is_pooled_from_them(tiny_folder: Folder, ids_and_mask: Any) -> None:
    ids, mask = ids_and_mask
    backbone = Rescaled(SpladeModel.from_config(student(tiny_folder(), "mlm")).backbone).eval()
    for pooling in ("max", "sum"):
        model = SpladeModel(backbone, "mlm", pooling=pooling)
        assert not model.fused
        torch.testing.assert_close(model(ids, mask), by_definition(backbone(ids, mask).logits, mask, pooling))
    twice = SpladeModel(backbone, "mlm", pooling="sum", log_twice=True)
    weights = torch.log1p(torch.log1p(torch.relu(backbone(ids, mask).logits))) * mask.unsqueeze(-1)
    torch.testing.assert_close(twice(ids, mask), weights.sum(1))


def test_mlm_head_is_refused_without_its_weights(tiny_folder: Folder) -> None:
    folder = tiny_folder("Bert", False)
    with pytest.raises(ConfigError, match=r"student\.head: identity") as raised:
        SpladeModel.from_config(student(folder, "mlm"))
    assert str(folder) in str(raised.value)


def test_a_missing_model_and_a_long_text_are_sentences(tiny_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.model"):
        SpladeModel.from_config(student(tmp_path / "nothing", "mlm"))
    with pytest.raises(ConfigError, match="at most 80 tokens"):
        SpladeModel.from_config(student(tiny_folder(), "mlm", max_tokens=81))
    with pytest.raises(ConfigError, match="at most 79 tokens"):
        SpladeModel.from_config(student(tiny_folder("Roberta"), "mlm", max_tokens=80))


@pytest.mark.parametrize("head", ["mlm", "identity"])
def test_parameter_groups_hold_every_trained_parameter_once(head: str, tiny_folder: Folder) -> None:
    model = SpladeModel.from_config(student(tiny_folder("Bert", head == "mlm"), head))
    groups = model.parameter_groups(2e-5, weight_decay=0.1, head_learning_rate=3e-3)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(group["weight_decay"] == 0.0 for group in groups if any(p.dim() <= 1 for p in group["params"]))
    if model.vocabulary_head is not None:
        assert {id(p) for p in groups[-1]["params"]} == {id(model.vocabulary_head.scale), id(model.vocabulary_head.bias)}
        assert groups[-1]["lr"] == 3e-3


def tiny_encoder(tiny_folder: Folder, tokenizer: Any, **options: Any) -> SpladeEncoder:
    model = SpladeModel.from_config(student(tiny_folder(), "mlm"))
    return SpladeEncoder(model, tokenizer, **{"max_tokens": 64, "device": "cpu", **options})


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_vectors_do_not_depend_on_the_batch(
    batch_tokens: int, tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]
) -> None:
    encoder = tiny_encoder(tiny_folder, tiny_tokenizer, batch_tokens=batch_tokens)
    assert isinstance(encoder, SparseEncoder)
    together = encoder.encode_queries(texts)
    together.validate()
    alone = SparseBatch.concatenate([encoder.encode_queries([text]) for text in texts])
    np.testing.assert_allclose(together.to_dense(), alone.to_dense(), atol=1e-4)
    reversed_back = encoder.encode_queries(texts[::-1]).select(range(len(texts))[::-1])
    np.testing.assert_allclose(together.to_dense(), reversed_back.to_dense(), atol=1e-4)


def test_max_terms_keeps_the_heaviest_of_passages_only(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    encoder = tiny_encoder(tiny_folder, tiny_tokenizer, max_terms=3)
    whole = encoder.encode_queries(texts)
    cut = encoder.encode_passages(texts)
    assert whole.lengths().max() > 3
    assert cut.lengths().tolist() == np.minimum(whole.lengths(), 3).tolist()
    for number in range(len(texts)):
        np.testing.assert_allclose(np.sort(cut.row(number)[1]), np.sort(whole.row(number)[1])[-3:], atol=1e-4)
    cut.validate()


def test_no_texts_give_no_rows(tiny_folder: Folder, tiny_tokenizer: Any) -> None:
    assert len(tiny_encoder(tiny_folder, tiny_tokenizer).encode_passages([])) == 0


def test_placeholders_and_special_tokens_are_silent(tiny_tokenizer: Any) -> None:
    silent = silent_terms(tiny_tokenizer, len(tiny_tokenizer) + 2)
    assert silent.nonzero()[0].tolist() == [0, 1, 2, 3, 4, 5, len(tiny_tokenizer), len(tiny_tokenizer) + 1]
