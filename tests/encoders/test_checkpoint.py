"""A stored student comes back the same, here and in sentence_transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders.checkpoint import Student, load_student, save_student
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.errors import ConfigError

TEXT = TextConfig(max_tokens=32, utterance_words=9, answer_words=3)
Folder = Callable[..., Path]


def tiny_student(head: str, tiny_folder: Folder, tokenizer: Any, texts: list[str], architecture: str = "Bert") -> Student:
    folder = tiny_folder(architecture, head == "mlm")
    model = SpladeModel.from_config(StudentConfig(model=str(folder), head=head, text=TEXT))
    if head == "identity":
        model.calibrate(texts, tokenizer, 0.3, 32)
    return Student(model, tokenizer, TEXT)


@pytest.mark.parametrize("head", ["mlm", "identity"])
def test_round_trip_is_equal_to_the_bit(
    head: str, tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    stored = tiny_student(head, tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path / "a", stored.text, "# A student\n")
    loaded = load_student(tmp_path / "a")
    assert (loaded.model.head, loaded.text) == (head, TEXT)
    for (name, before), after in zip(stored.model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(before, after), name
    ours, theirs = (s.encoder(device="cpu").encode_queries(texts) for s in (stored, loaded))
    np.testing.assert_array_equal(ours.weights, theirs.weights)
    assert "# A student" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(
    ("head", "architecture"),
    [("mlm", "Bert"), ("mlm", "DistilBert"), ("mlm", "Roberta"), ("mlm", "ModernBert"), ("identity", "Bert")],
)
def test_sentence_transformers_gives_equal_vectors(
    head: str, architecture: str, tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder

    stored = tiny_student(head, tiny_folder, tiny_tokenizer, texts, architecture)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    theirs = SparseEncoder(str(tmp_path), device="cpu")
    assert theirs.max_seq_length == 32
    expected = theirs.encode(texts, convert_to_sparse_tensor=False).float().cpu().numpy()
    ours = stored.encoder(device="cpu").encode_queries(texts)
    assert ours.nnz > 0
    np.testing.assert_allclose(ours.to_dense(), expected, atol=1e-5)


def test_minilm_with_an_identity_head_in_sentence_transformers(minilm: str, tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    from raydistill.encoders.documents import load_tokenizer

    tokenizer = load_tokenizer(minilm, None, False, "student.model")
    model = SpladeModel.from_config(StudentConfig(model=minilm, head="identity"))
    queries = ["who wrote war and peace", "and when was he born [SEP] Leo Tolstoy wrote it. [SEP] who wrote war and peace"]
    model.calibrate(queries, tokenizer, 0.003)
    save_student(model, tokenizer, tmp_path, TextConfig(), "card")
    expected = SparseEncoder(str(tmp_path), device="cpu").encode(queries, convert_to_sparse_tensor=False).cpu().numpy()
    ours = SpladeEncoder(model, tokenizer, device="cpu").encode_queries(queries)
    np.testing.assert_allclose(ours.to_dense(), expected, atol=1e-5)


def test_a_plain_mlm_folder_is_a_student_with_default_text(tiny_folder: Folder) -> None:
    loaded = load_student(tiny_folder())
    assert (loaded.model.head, loaded.text) == ("mlm", TextConfig())


def test_broken_folders_are_refused_in_a_sentence(
    tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        load_student(tmp_path)
    stored = tiny_student("mlm", tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    path = tmp_path / "raydistill.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "format_version": 99}))
    with pytest.raises(ConfigError, match="format 99"):
        load_student(tmp_path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not a raydistill settings file"):
        load_student(tmp_path)
