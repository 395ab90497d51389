"""A stored student comes back the same, here and in sentence_transformers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders.checkpoint import Student, load_student, save_student
from raydistill.encoders.documents import load_term_counter
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.errors import ConfigError

TEXT = TextConfig(max_tokens=32, utterance_words=9, answer_words=3)
Folder = Callable[..., Path]


STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": ("Bert", {}),
    "identity": ("Bert", {}),
    "decoder": ("Llama", {}),
    "decoder, tied": ("Qwen3", {}),
    "decoder, window": ("Mistral", {}),
    "decoder, positions": ("GPT2", {}),
    "decoder, causal": ("Llama", {"attention": "causal"}),
    "decoder, last": ("Llama", {"attention": "causal", "pooling": "last"}),
    "mlm, sum": ("Bert", {"pooling": "sum"}),
    "identity, sum": ("Bert", {"pooling": "sum"}),
    "decoder, sum": ("Llama", {"pooling": "sum"}),
    "mlm, top": ("Bert", {"top_terms": 3}),
    "identity, sum, top": ("Bert", {"pooling": "sum", "top_terms": 3}),
    "decoder, top": ("Llama", {"top_terms": 3}),
    "table, top": ("Bert", {"recency_parts": 1, "table_start": "ones", "top_terms": 3}),
    "table, parts, top": ("Bert", {"recency_parts": 3, "table_start": "ones", "top_terms": 3}),
    "table": ("Bert", {"recency_parts": 1, "table_start": "ones"}),
    "table, parts": ("Bert", {"recency_parts": 3, "table_start": "ones"}),
}
BEYOND = ["decoder, last", "table, parts", "table, parts, top"]


def tiny_student(
    kind: str, tiny_folder: Folder, tokenizer: Any, texts: list[str], architecture: str | None = None, **more: Any
) -> Student:
    """A student of a kind, with starting values that tell its terms apart."""
    head = kind.split(",")[0]
    usual, fields = STUDENTS[kind]
    folder = tiny_folder(architecture or usual, head in ("mlm", "table"))
    fields = {**fields, **({"active_share": 0.3} if head in ("identity", "decoder") else {}), **more}
    config = StudentConfig(model=str(folder), head=head, text=TEXT, **fields)
    model = SpladeModel.from_config(config)
    model.start_head(texts, tokenizer, config)
    if model.table is not None:
        with torch.no_grad():
            model.table.weight.mul_(torch.linspace(-0.2, 2.0, model.vocabulary_size))
            if model.table.log_factor is not None:
                model.table.log_factor.copy_(torch.tensor([0.0, -0.4, -1.0]))
    return Student(model, tokenizer, TEXT)


@pytest.mark.parametrize("kind", STUDENTS)
def test_round_trip_is_equal_to_the_bit(
    kind: str, tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    stored = tiny_student(kind, tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path / "a", stored.text, "# A student\n")
    loaded = load_student(tmp_path / "a")
    for name in ("head", "attention", "pooling", "top_terms", "head_has_values", "vocabulary_size"):
        assert getattr(loaded.model, name) == getattr(stored.model, name), name
    assert loaded.text == TEXT
    for (name, before), after in zip(stored.model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(before, after), name
    ours, theirs = (s.encoder(device="cpu").encode_queries(texts) for s in (stored, loaded))
    assert ours.nnz > 0
    if "top" in kind:
        assert ours.lengths().max() == 3
    np.testing.assert_array_equal(ours.to_dense(), theirs.to_dense())
    assert "# A student" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        *((kind, None) for kind in STUDENTS if kind not in BEYOND),
        *(("mlm", architecture) for architecture in ("DistilBert", "Roberta", "ModernBert")),
    ],
)
def test_sentence_transformers_gives_equal_vectors(
    kind: str, architecture: str | None, tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder

    stored = tiny_student(kind, tiny_folder, tiny_tokenizer, texts, architecture)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    theirs = SparseEncoder(str(tmp_path), device="cpu")
    if stored.model.table is None:
        assert theirs.max_seq_length == 32
    expected = theirs.encode(texts, convert_to_sparse_tensor=False).float().cpu().numpy()
    ours = stored.encoder(device="cpu").encode_queries(texts)
    assert ours.nnz > 0
    np.testing.assert_allclose(ours.to_dense(), expected, atol=1e-5)
    assert "from sentence_transformers" in (tmp_path / "README.md").read_text()


def test_padding_on_the_left_gives_equal_vectors_too(
    tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder

    stored = tiny_student("decoder", tiny_folder, tiny_tokenizer, texts)
    left = copy.deepcopy(tiny_tokenizer)
    left.padding_side = "left"
    save_student(stored.model, left, tmp_path, stored.text, "card")
    expected = SparseEncoder(str(tmp_path), device="cpu").encode(texts, convert_to_sparse_tensor=False).cpu().numpy()
    np.testing.assert_allclose(load_student(tmp_path).encoder().encode_queries(texts).to_dense(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", BEYOND)
def test_a_folder_says_when_sentence_transformers_cannot_express_it(
    kind: str, tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    save_student(tiny_student("mlm", tiny_folder, tiny_tokenizer, texts).model, tiny_tokenizer, tmp_path, TEXT, "card")
    assert (tmp_path / "modules.json").is_file()
    stored = tiny_student(kind, tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    card = (tmp_path / "README.md").read_text()
    assert "load_student" in card
    assert "from sentence_transformers" not in card
    assert not (tmp_path / "modules.json").exists()


@pytest.mark.parametrize("kind", STUDENTS)
def test_an_exported_student_goes_on_with_the_head_it_learned(
    kind: str, tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    stored = tiny_student(kind, tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    fields = STUDENTS[kind][1]
    config = StudentConfig(model=str(tmp_path), head=stored.model.head, text=TEXT, **fields)
    model = SpladeModel.from_config(config)
    model.start_head(["tolstoy"], tiny_tokenizer, config)
    for name, value in stored.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_another_head_than_the_exported_one_is_refused(
    tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    stored = tiny_student("decoder", tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    with pytest.raises(ConfigError, match=r"student\.head is mlm.*exported student with head decoder; set student\.head"):
        SpladeModel.from_config(StudentConfig(model=str(tmp_path), text=TEXT))
    with pytest.raises(ConfigError, match=r"student\.pooling is last.*set student\.pooling to max"):
        SpladeModel.from_config(StudentConfig(model=str(tmp_path), head="decoder", pooling="last", text=TEXT))


@pytest.mark.parametrize("head", ["mlm", "identity"])
def test_a_student_of_sums_starts_where_nothing_is_said_and_is_refused_where_another_pooling_is(
    head: str, tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    stored = tiny_student(f"{head}, sum", tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    assert SpladeModel.from_config(StudentConfig(model=str(tmp_path), head=head, text=TEXT)).pooling == "sum"
    with pytest.raises(ConfigError, match=r"student\.pooling is max.*set student\.pooling to sum"):
        SpladeModel.from_config(StudentConfig(model=str(tmp_path), head=head, pooling="max", text=TEXT))


def test_releases_without_sums_refuse_them_and_read_all_others(
    tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    for kind in STUDENTS:
        stored = tiny_student(kind, tiny_folder, tiny_tokenizer, texts)
        save_student(stored.model, stored.tokenizer, tmp_path / kind, stored.text, "card")
        written = json.loads((tmp_path / kind / "raydistill.json").read_text())
        assert written["format_version"] == (3 if "sum" in kind or "top" in kind else 2), kind


def test_how_many_terms_are_kept_is_up_to_the_configuration(
    tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    stored = tiny_student("mlm, top", tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    assert SpladeModel.from_config(StudentConfig(model=str(tmp_path), text=TEXT)).top_terms is None
    assert SpladeModel.from_config(StudentConfig(model=str(tmp_path), top_terms=7, text=TEXT)).top_terms == 7


def test_an_exported_table_is_a_folder_to_build_indexes_for(
    tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    stored = tiny_student("table, parts", tiny_folder, tiny_tokenizer, texts)
    save_student(stored.model, stored.tokenizer, tmp_path, stored.text, "card")
    exported = StudentConfig(model=str(tmp_path), head="table", recency_parts=3, text=TEXT)
    assert load_term_counter(exported).vocabulary_size == stored.model.vocabulary_size
    assert (tmp_path / "config.json").is_file()
    assert not (tmp_path / "model.safetensors").exists()


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
