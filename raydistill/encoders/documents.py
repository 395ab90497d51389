"""Which document encoder a configuration means: loads it, and says what of it belongs into a fingerprint.

The encoders themselves live in `lexical` and `splade`. Heavy imports happen inside the functions, so that the driver can
compute fingerprints without importing torch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from raydistill.config import (
    DocumentsConfig,
    LearnedDocumentsConfig,
    LexicalDocumentsConfig,
    Pooling,
    SpladeDocumentsConfig,
    StudentConfig,
    result_fields,
)
from raydistill.encoders import term_cache
from raydistill.encoders.interface import SparseEncoder
from raydistill.encoders.lexical import LexicalEncoder, LexicalStatistics, TermCounter
from raydistill.errors import ConfigError, first_line
from raydistill.model_source import check_length, model_config, model_identity, resolve_model
from raydistill.storage.artifacts import Artifact
from raydistill.storage.folders import fetch_folder

TOKENIZER_FILES = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_ADDED = ("min_weight", "precision")
MODEL_FILES = (
    *TOKENIZER_FILES,
    "*.safetensors",
    "*.bin",
    "modules.json",
    "raydistill.json",
    "*/config.json",
    "*/*.safetensors",
    "*.py",
    "*.model",
)


def load_document_encoder(
    documents: DocumentsConfig, student: StudentConfig, statistics: bytes | None = None, device: str | None = None
) -> SparseEncoder:
    """Return the encoder of the collection's passages and of the teachers' rewrites.

    Args:
        documents: which encoder.
        student: gives the vocabulary: the lexical encoder uses its tokenizer, a SPLADE one must share it.
        statistics: `LexicalStatistics.to_bytes()` of the whole collection; needed by the lexical encoder only.
        device: torch device of a SPLADE encoder; default a GPU where torch sees one, else the CPU.

    Raises ConfigError when a model cannot be loaded, statistics are missing, or the vocabularies differ.
    """
    if isinstance(documents, LexicalDocumentsConfig):
        if statistics is None:
            raise ConfigError(
                "documents.kind lexical needs the collection's statistics; count them before encoding passages"
            )
        counter = load_term_counter(student)
        counted = LexicalStatistics.from_bytes(statistics).resized(counter.vocabulary_size)
        return LexicalEncoder(counter, counted, k1=documents.k1, b=documents.b)
    if isinstance(documents, LearnedDocumentsConfig):
        with tempfile.TemporaryDirectory(prefix="raydistill-encoder-") as folder:
            fetch_folder(trained_encoder(documents), Path(folder))
            return _load_splade(_trained_splade(documents, folder), student, device)
    return _load_splade(documents, student, device)


def trained_encoder(documents: LearnedDocumentsConfig) -> Artifact:
    """Return the artifact of a learned document encoder; ConfigError while the chain has not trained it."""
    if documents.trained is None:
        raise ConfigError(
            "index.documents.kind is learned and its encoder is not trained yet; run the stage documents, or the whole chain"
        )
    return Artifact.from_json(documents.trained)


def _trained_splade(documents: LearnedDocumentsConfig, folder: str) -> SpladeDocumentsConfig:
    return SpladeDocumentsConfig(
        model=folder,
        max_tokens=documents.max_tokens,
        max_terms=documents.max_terms,
        min_weight=documents.min_weight,
        precision=documents.precision,
        batch_tokens=documents.batch_tokens,
        trust_remote_code=documents.trust_remote_code,
    )


def load_term_counter(student: StudentConfig) -> TermCounter:
    """Return the counter of terms over the student's vocabulary: what `count_statistics` of a lexical index takes.

    It comes out of this machine's cache where one was loaded before, see `term_cache`. Raises ConfigError when the student's
    tokenizer cannot be loaded or is not a fast one.
    """
    path = term_cache.entry(student, TOKENIZER_FILES)
    kept = None if path is None else term_cache.read(path)
    if kept is not None:
        return kept
    tokenizer = load_tokenizer(student.model, student.revision, student.trust_remote_code, "student.model")
    counter = TermCounter(tokenizer, max(len(tokenizer), _configured_vocabulary_size(student)))
    if path is not None:
        term_cache.write(path, counter)
    return counter


def load_tokenizer(model: str, revision: str | None, trust_remote_code: bool, field: str) -> Any:
    """Return the Hugging Face tokenizer of a hub id or folder; ConfigError naming `field` when there is none.

    One without a padding or separator token, as many language models' are, takes its end token for both: masked positions
    are never read, and between the turns of a conversation it says that a text has ended.
    """
    from transformers import AutoTokenizer

    folder = resolve_model(model, field)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{field}: no tokenizer could be loaded from {model!r}: {first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.sep_token is None:
        tokenizer.sep_token = tokenizer.eos_token
    return tokenizer


def check_positions(student: StudentConfig, documents: DocumentsConfig) -> None:
    """Raise ConfigError when a text may be longer than its model can read; reads the models' configurations only."""
    if student.head != "table":
        config = model_config(student.model, student.revision, student.trust_remote_code)
        check_length(config, student.text.max_tokens, student.model, "student.text.max_tokens")
    if isinstance(documents, LexicalDocumentsConfig):
        return
    config = model_config(documents.model, documents.revision, documents.trust_remote_code, "index.documents.model")
    check_length(config, documents.max_tokens, documents.model, "index.documents.max_tokens")
    if isinstance(documents, LearnedDocumentsConfig):
        check_length(config, documents.training.max_tokens, documents.model, "index.documents.training.max_tokens")


def document_encoder_settings(documents: DocumentsConfig, student: StudentConfig) -> dict[str, Any]:
    """Return what the document vectors depend on (collection statistics aside), as JSON values for a fingerprint.

    A model in a local folder counts by the content of its files, so that moving a folder changes nothing and
    retraining in place does; a hub id counts by id and revision.
    """
    if isinstance(documents, LearnedDocumentsConfig):
        # How it was trained is in the encoder's own fingerprint.
        kept = {"kind": documents.kind, "max_tokens": documents.max_tokens, "max_terms": documents.max_terms}
        return {**kept, **_uncommon(documents), "encoder": trained_encoder(documents).fingerprint}
    settings: dict[str, Any] = dict(result_fields(documents))
    if isinstance(documents, LexicalDocumentsConfig):
        settings["tokenizer"] = model_identity(student.model, student.revision, TOKENIZER_FILES, "student.model")
    else:
        settings = {name: value for name, value in settings.items() if name not in ("revision", *_ADDED)}
        settings |= _uncommon(documents)
        settings["model"] = model_identity(documents.model, documents.revision, MODEL_FILES, "index.documents.model")
    return settings


def _uncommon(documents: SpladeDocumentsConfig | LearnedDocumentsConfig) -> dict[str, Any]:
    """Return the later settings where they are not the default, so that indexes made before them keep their fingerprint."""
    defaults = type(documents).model_fields
    return {name: value for name in _ADDED if (value := getattr(documents, name)) != defaults[name].default}


def _load_splade(documents: SpladeDocumentsConfig, student: StudentConfig, device: str | None) -> SparseEncoder:
    # Imported here: the driver computes fingerprints without torch, and `checkpoint` imports this module.
    import torch

    from raydistill.encoders.checkpoint import SETTINGS_FILE, load_student
    from raydistill.encoders.splade import SpladeEncoder, load_model

    field = "index.documents"
    folder = resolve_model(documents.model, f"{field}.model")
    if (Path(folder) / SETTINGS_FILE).is_file():
        stored = load_student(folder, documents.trust_remote_code)
        model, tokenizer = stored.model, stored.tokenizer
        _check_pooling(documents, model.pooling)
    else:
        trust = documents.trust_remote_code
        model = load_model(documents.model, documents.revision, "mlm", trust, field, pooling=documents.pooling)
        tokenizer = load_tokenizer(documents.model, documents.revision, documents.trust_remote_code, f"{field}.model")
    model.check_length(documents.max_tokens, f"{field}.max_tokens")
    _check_same_vocabulary(tokenizer, documents.model, student)
    dtype = torch.bfloat16 if documents.precision == "bf16" else None
    kept = (documents.max_tokens, documents.max_terms, documents.batch_tokens)
    return SpladeEncoder(model, tokenizer, *kept, device, dtype, documents.min_weight)


def _check_pooling(documents: SpladeDocumentsConfig, stored: Pooling) -> None:
    if documents.pooling is not None and documents.pooling != stored:
        raise ConfigError(
            f"index.documents.pooling is {documents.pooling}, but {documents.model!r} is an exported encoder that pools by "
            f"{stored}; set index.documents.pooling to {stored}, or leave it out"
        )


def check_vocabulary(documents: SpladeDocumentsConfig | LearnedDocumentsConfig, student: StudentConfig) -> None:
    """Raise ConfigError when the document encoder's tokenizer has another vocabulary than the student's."""
    field = "index.documents.model"
    tokenizer = load_tokenizer(documents.model, documents.revision, documents.trust_remote_code, field)
    _check_same_vocabulary(tokenizer, documents.model, student)


def _check_same_vocabulary(tokenizer: Any, model: str, student: StudentConfig) -> None:
    students = load_tokenizer(student.model, student.revision, student.trust_remote_code, "student.model")
    if students.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"index.documents.model {model!r} and student.model {student.model!r} have different vocabularies, so their "
            "vectors cannot be compared; choose two models with the same tokenizer"
        )


def _configured_vocabulary_size(student: StudentConfig) -> int:
    config = model_config(student.model, student.revision, student.trust_remote_code)
    return int(getattr(config, "vocab_size", 0) or 0)
