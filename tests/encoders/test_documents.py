"""A documents configuration names one encoder, over the student's vocabulary, and its fingerprint follows content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.config import LexicalDocumentsConfig, SpladeDocumentsConfig, StudentConfig, TextConfig
from raydistill.encoders.checkpoint import load_student, save_student, starting_model
from raydistill.encoders.documents import document_encoder_settings, load_document_encoder, load_term_counter
from raydistill.encoders.lexical import LexicalEncoder, count_statistics
from raydistill.errors import ConfigError

Folder = Callable[..., Path]


def student(folder: Path) -> StudentConfig:
    return StudentConfig(model=str(folder), text=TextConfig(max_tokens=64))


def test_lexical_documents_use_the_students_tokenizer(tiny_folder: Folder, tiny_tokenizer: Any, texts: list[str]) -> None:
    config = student(tiny_folder())
    statistics = count_statistics(load_term_counter(config), texts)
    encoder = load_document_encoder(LexicalDocumentsConfig(k1=1.2, b=0.75), config, statistics.to_bytes())
    expected = LexicalEncoder(tiny_tokenizer, statistics, k1=1.2, b=0.75)
    np.testing.assert_array_equal(encoder.encode_passages(texts).to_dense(), expected.encode_passages(texts).to_dense())
    names = encoder.vocabulary()
    seen = {names[term] for term in encoder.encode_queries(["Who wrote it? [SEP] the rivers"]).term_ids}
    assert seen == {"who", "wrote", "it", "the", "river", "##s"}


def test_lexical_vectors_have_as_many_columns_as_the_student(tiny_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder(), tmp_path / "m")
    config_file = tmp_path / "m" / "config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "vocab_size": 64}))
    config = student(tmp_path / "m")
    counted_by_tokenizer = count_statistics(load_term_counter(student(tiny_folder())), ["paris"])
    assert len(counted_by_tokenizer.document_frequency) < 64
    encoder = load_document_encoder(LexicalDocumentsConfig(), config, counted_by_tokenizer.to_bytes())
    assert encoder.vocabulary_size == 64


def test_lexical_documents_need_statistics(tiny_folder: Folder) -> None:
    with pytest.raises(ConfigError, match="statistics"):
        load_document_encoder(LexicalDocumentsConfig(), student(tiny_folder()), None)


def test_splade_documents_from_plain_and_exported_folders(tiny_folder: Folder, texts: list[str], tmp_path: Path) -> None:
    folder = tiny_folder("DistilBert")
    plain = SpladeDocumentsConfig(model=str(folder), max_tokens=64, max_terms=4)
    encoder = load_document_encoder(plain, student(folder), device="cpu")
    passages = encoder.encode_passages(texts)
    passages.validate()
    assert passages.lengths().max() == 4
    stored = load_student(folder)
    save_student(stored.model, stored.tokenizer, tmp_path, TextConfig(max_tokens=64), "card")
    moved = plain.model_copy(update={"model": str(tmp_path)})
    exported = load_document_encoder(moved, student(folder), device="cpu")
    np.testing.assert_array_equal(exported.encode_passages(texts).weights, passages.weights)
    with pytest.raises(ConfigError, match=r"index\.documents\.pooling is sum.*exported encoder that pools by max"):
        load_document_encoder(moved.model_copy(update={"pooling": "sum"}), student(folder), device="cpu")


def test_splade_documents_saved_by_sentence_transformers(tiny_folder: Folder, texts: list[str], tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    theirs = SparseEncoder(str(tiny_folder()), device="cpu", max_active_dims=None)
    theirs.save(str(tmp_path))
    config = SpladeDocumentsConfig(model=str(tmp_path), max_tokens=64)
    encoder = load_document_encoder(config, student(tiny_folder()), device="cpu")
    theirs.max_seq_length = 64
    expected = theirs.encode(texts, convert_to_sparse_tensor=False).cpu().numpy()
    np.testing.assert_allclose(encoder.encode_passages(texts).to_dense(), expected, atol=1e-5)


@pytest.mark.parametrize("folder", ["1_SpladePooling", "document_1_SpladePooling"])
@pytest.mark.parametrize(("strategy", "activation"), [("max", "log1p_relu"), ("sum", "relu"), ("sum", "log1p_relu")])
def test_the_poolings_of_other_checkpoints_are_honoured_or_refused(
    folder: str, strategy: str, activation: str, tiny_folder: Folder, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder

    other = tmp_path / "other"
    SparseEncoder(str(tiny_folder()), device="cpu").save(str(other))
    settings = other / "1_SpladePooling" / "config.json"
    pooling = json.loads(settings.read_text())
    settings.write_text(json.dumps({**pooling, "pooling_strategy": strategy, "activation_function": activation}))
    theirs = SparseEncoder(str(other), device="cpu")
    theirs.max_seq_length = 64
    expected = theirs.encode(texts, convert_to_sparse_tensor=False).cpu().numpy()
    (other / "1_SpladePooling").rename(other / folder)
    documents = SpladeDocumentsConfig(model=str(other), max_tokens=64)
    encoder = load_document_encoder(documents, student(tiny_folder()), device="cpu")
    np.testing.assert_allclose(encoder.encode_passages(texts).to_dense(), expected, atol=1e-5)
    different = "max" if strategy == "sum" else "sum"
    with pytest.raises(ConfigError, match=rf"index\.documents\.pooling is {different}.*set index\.documents\.pooling to"):
        load_document_encoder(documents.model_copy(update={"pooling": different}), student(tiny_folder()), device="cpu")
    (other / folder / "config.json").write_text(json.dumps({**pooling, "pooling_strategy": "mean"}))
    with pytest.raises(ConfigError, match=r"index\.documents\.model: .* pools by mean of relu"):
        load_document_encoder(documents, student(tiny_folder()), device="cpu")


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_a_checkpoint_of_the_second_logarithm_is_exported_and_trained_as_one(
    strategy: str, tiny_folder: Folder, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder

    source, exported = tmp_path / "source", tmp_path / "exported"
    shutil.copytree(tiny_folder(), source)
    (source / "1_SpladePooling").mkdir()
    settings = {"pooling_strategy": strategy, "activation_function": "log1p_relu"}
    (source / "1_SpladePooling" / "config.json").write_text(json.dumps(settings))
    start = starting_model(student(source))
    assert (start.pooling, start.log_twice) == (strategy, True)
    stored = load_student(source)
    save_student(stored.model, stored.tokenizer, exported, TextConfig(max_tokens=64), "card")
    texts = texts[:-1]  # the last is cut where the folder says
    vectors = load_student(exported).encoder(device="cpu").encode_queries(texts).to_dense()
    if strategy == "max":
        once = load_student(tiny_folder()).encoder(device="cpu").encode_queries(texts).to_dense()
        np.testing.assert_allclose(vectors, np.log1p(once), atol=1e-5)
    theirs = SparseEncoder(str(exported), device="cpu").encode(texts, convert_to_sparse_tensor=False).cpu().numpy()
    np.testing.assert_allclose(vectors, theirs, atol=1e-5)


@pytest.mark.parametrize("pooling", [None, "max", "sum"])
def test_a_naver_folder_gives_the_vectors_of_its_definition(pooling: Any, tiny_folder: Folder, texts: list[str]) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    # Nothing but a masked LM and its tokenizer; the pooling is in the paper (SPLADE v2, arXiv 2109.10086; v1, 2107.05720).
    folder = tiny_folder("DistilBert")
    assert not (folder / "modules.json").exists()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(folder)(batch["input_ids"], batch["attention_mask"]).logits
    weights = torch.log1p(torch.relu(logits)) * batch["attention_mask"].unsqueeze(-1)
    expected = weights.sum(1) if pooling == "sum" else weights.amax(1)
    documents = SpladeDocumentsConfig(model=str(folder), max_tokens=64, pooling=pooling)
    encoder = load_document_encoder(documents, student(folder), None, "cpu")
    np.testing.assert_allclose(encoder.encode_passages(texts).to_dense(), expected.numpy(), atol=1e-5)


def test_another_vocabulary_is_refused(tiny_folder: Folder, minilm: str) -> None:
    documents = SpladeDocumentsConfig(model=str(tiny_folder()), max_tokens=64)
    with pytest.raises(ConfigError, match="different vocabularies"):
        load_document_encoder(documents, StudentConfig(model=minilm, head="identity"), device="cpu")


def test_a_folder_that_does_not_exist_is_named(tiny_folder: Folder, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"index\.documents\.model: the folder .*nothing' does not exist"):
        load_document_encoder(SpladeDocumentsConfig(model=missing), student(tiny_folder()), device="cpu")
    with pytest.raises(ConfigError, match=r"student\.model: the folder"):
        load_term_counter(StudentConfig(model=missing))


def test_settings_follow_content_and_not_place(tiny_folder: Folder, tmp_path: Path) -> None:
    for kind in (LexicalDocumentsConfig(), SpladeDocumentsConfig(model=str(tiny_folder()))):
        copy = tmp_path / kind.kind
        shutil.copytree(tiny_folder(), copy)
        moved = kind.model_copy(update={"model": str(copy)}) if isinstance(kind, SpladeDocumentsConfig) else kind
        before = document_encoder_settings(kind, student(tiny_folder()))
        assert json.loads(json.dumps(before)) == document_encoder_settings(moved, student(copy))
        (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
        assert document_encoder_settings(moved, student(copy)) != before


def test_what_prunes_or_rounds_vectors_is_in_the_fingerprint(tiny_folder: Folder, texts: list[str]) -> None:
    plain = SpladeDocumentsConfig(model=str(tiny_folder()), max_tokens=64)
    config = student(tiny_folder())
    settings = document_encoder_settings(plain, config)
    assert set(settings) == {"kind", "max_terms", "max_tokens", "model", "trust_remote_code"}
    whole = load_document_encoder(plain, config, device="cpu").encode_passages(texts)
    for changes in ({"min_weight": float(np.median(whole.weights))}, {"precision": "bf16"}, {"pooling": "sum"}):
        changed = plain.model_copy(update=changes)
        assert document_encoder_settings(changed, config) == {**settings, **changes}
        found = load_document_encoder(changed, config, device="cpu").encode_passages(texts)
        assert not np.array_equal(found.to_dense(), whole.to_dense())


def test_settings_of_hub_models_need_no_download_and_leave_out_batch_sizes() -> None:
    hub = StudentConfig(model="some/student", revision="abc")
    settings = document_encoder_settings(SpladeDocumentsConfig(model="some/splade", batch_tokens=7), hub)
    assert settings["model"] == "some/splade@main"
    assert "batch_tokens" not in settings
    lexical = document_encoder_settings(LexicalDocumentsConfig(), hub)
    assert lexical["tokenizer"] == "some/student@abc"
