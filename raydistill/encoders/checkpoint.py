"""Students as folders: an ordinary Hugging Face checkpoint that sentence_transformers loads too, with equal vectors.

Layout: the backbone and tokenizer at the top, as `from_pretrained` wants them; `raydistill.json` for what only raydistill
needs (the head and the text form) and `head.safetensors` for parameters that a head has of its own; `modules.json` and
one small folder a module for `sentence_transformers.SparseEncoder`, which knows `top_terms` as `max_active_dims` (where
weights at the limit tie, it does not say which stay; here the lower term ids do). Its modules cannot express a decoder that
pools the last token, nor a table whose weights depend on the part of the conversation: such folders have no `modules.json`,
and `load_student(folder).encoder()` is the way to load them. Local folders only: moving them to and from a store is done
elsewhere.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from raydistill.config import Attention, HeadKind, Pooling, StudentConfig, TextConfig
from raydistill.encoders.adaptation import adapt
from raydistill.encoders.backbones import load_backbone, pooling_of_checkpoint
from raydistill.encoders.calibration import silent_terms
from raydistill.encoders.documents import load_tokenizer
from raydistill.encoders.heads import TermTable
from raydistill.encoders.splade import SpladeEncoder, SpladeModel, load_model
from raydistill.errors import ConfigError
from raydistill.model_source import model_config, resolve_model

FORMAT_VERSION = 2
LATER_FORMAT_VERSION = 3
"""Of students that pool by the sum or keep their heaviest terms only: a release that reads format 2 would do neither."""
SETTINGS_FILE = "raydistill.json"
HEAD_FILE = "head.safetensors"
DENSE_FOLDER = "1_Dense"
TABLE_FOLDER = "0_SparseStaticEmbedding"
# The names of sentence_transformers 5; version 6 still resolves them, so both load the folder.
MODULE_TYPES = {
    "masked_lm": "sentence_transformers.sparse_encoder.models.MLMTransformer",
    "transformer": "sentence_transformers.models.Transformer",
    "dense": "sentence_transformers.models.Dense",
    "pooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
    "table": "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
}
CARD_HEADER = """---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags:
- sentence-transformers
- sparse-encoder
- splade
- conversational-search
- raydistill
---
"""


USE = """
## Use

```python
from sentence_transformers import SparseEncoder

encoder = SparseEncoder("path/to/this/folder", device="cpu")
vectors = encoder.encode(["and who directed it? {sep} It came out in 1982. {sep} When was Blade Runner made?"])
```
"""
USE_HERE = """
## Use

`sentence_transformers` has no modules for this head ({reason}); load it with raydistill:

```python
from raydistill.encoders.checkpoint import load_student

encoder = load_student("path/to/this/folder").encoder()
vectors = encoder.encode_queries(["and who directed it? {sep} It came out in 1982. {sep} When was Blade Runner made?"])
```
"""


@dataclass(frozen=True)
class Student:
    """A student as it is stored.

    Attributes:
        model: float32, on the CPU, in evaluation mode.
        tokenizer: its Hugging Face tokenizer.
        text: how conversations become its input.
    """

    model: SpladeModel
    tokenizer: Any
    text: TextConfig

    def encoder(self, batch_tokens: int = 8192, device: str | None = None, max_terms: int | None = None) -> SpladeEncoder:
        """Return the encoder of texts that are already in the student's form."""
        return SpladeEncoder(self.model, self.tokenizer, self.text.max_tokens, max_terms, batch_tokens, device)


@dataclass(frozen=True)
class _Settings:
    """What `raydistill.json` says."""

    head: HeadKind
    text: TextConfig
    attention: Attention | None
    pooling: Pooling | None
    separator: int | None
    top_terms: int | None


def save_student(model: SpladeModel, tokenizer: Any, folder: Path | str, text: TextConfig, card: str) -> None:
    """Write a student into a folder, made if missing; files of the same name are overwritten.

    Args:
        model: any device and floating dtype; LoRA adapters are merged into the weights of what is written.
        tokenizer: its Hugging Face tokenizer.
        folder: a local folder.
        text: how conversations become the student's input; `max_tokens` is also sentence_transformers' limit.
        card: README.md of the folder, Markdown; a metadata header is put before it unless it has one, and how to load the
            folder after it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = model.merged()
    (model.config if model.backbone is None else model.backbone).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    version = FORMAT_VERSION if model.pooling != "sum" and model.top_terms is None else LATER_FORMAT_VERSION
    settings: dict[str, Any] = {"format_version": version, "head": model.head, "text": text.model_dump()}
    if model.head == "decoder":
        settings["attention"] = model.attention
    if model.head == "decoder" or model.pooling == "sum":
        settings["pooling"] = model.pooling
    if model.table is not None:
        settings["separator"] = model.table.separator
    if model.top_terms is not None:
        settings["top_terms"] = model.top_terms
    _write_json(folder / SETTINGS_FILE, settings)
    own = _head_tensors(model)
    if own:
        save_file(own, folder / HEAD_FILE)
    reason = beyond_sentence_transformers(model, tokenizer)
    if reason is None:
        _save_sentence_transformers_files(model, tokenizer, folder, text.max_tokens)
    else:
        (folder / "modules.json").unlink(missing_ok=True)
    card = card if card.startswith("---") else CARD_HEADER + card
    use = (USE if reason is None else USE_HERE).format(reason=reason, sep=tokenizer.sep_token or "")
    (folder / "README.md").write_text(card.rstrip() + "\n" + use, encoding="utf-8")


def load_student(folder: Path | str, trust_remote_code: bool = False) -> Student:
    """Load what `save_student` wrote, or a plain Hugging Face folder with an MLM head (then with default text settings).

    trust_remote_code lets the folder's own Python code run, for architectures that transformers does not have.
    Raises ConfigError when the folder holds no such model, or was written by a newer format.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no Hugging Face model (config.json is missing)")
    settings = _read_settings(folder)
    tokenizer = load_tokenizer(str(folder), None, trust_remote_code, "student.model")
    own = load_file(folder / HEAD_FILE) if (folder / HEAD_FILE).is_file() else {}
    if settings.head == "table":
        parts = len(own["log_factor"]) if "log_factor" in own else 1
        table = TermTable(silent_terms(tokenizer, len(own["weight"])), parts, settings.separator)
        table.load_state_dict(own)
        config = model_config(str(folder), None, trust_remote_code)
        model = SpladeModel(config, "table", table=table)
    else:
        head = (settings.attention, settings.pooling)
        model = load_model(str(folder), None, settings.head, trust_remote_code, "student", *head)
    if model.vocabulary_head is not None:
        with torch.no_grad():
            model.vocabulary_head.bias.copy_(own["bias"])
            model.vocabulary_head.scale.copy_(own["scale"])
    model.head_has_values = True
    model.top_terms = settings.top_terms
    return Student(model.eval(), tokenizer, settings.text)


def starting_model(student: StudentConfig) -> SpladeModel:
    """Return the model that a student's training starts from: an exported student as it is, else a fresh head.

    How many terms it keeps, which is no matter of its weights, is up to the configuration in either case.

    Raises ConfigError when the model cannot be loaded, or an exported student has another head than the configuration.
    """
    folder = Path(resolve_model(student.model, "student.model"))
    if (folder / SETTINGS_FILE).is_file():
        model = load_student(folder, student.trust_remote_code).model
        _check_agreement(model, student)
    else:
        model = _fresh_model(student)
    model.top_terms = student.top_terms
    return model


def _fresh_model(student: StudentConfig) -> SpladeModel:
    if student.head != "table":
        source = (student.model, student.revision, student.head, student.trust_remote_code)
        return load_model(*source, "student", student.attention, student.pooling)
    assert student.recency_parts is not None
    tokenizer = load_tokenizer(student.model, student.revision, student.trust_remote_code, "student.model")
    config = model_config(student.model, student.revision, student.trust_remote_code)
    config.vocab_size = max(len(tokenizer), int(config.vocab_size))
    config.architectures = None
    separator = tokenizer.sep_token_id if student.recency_parts > 1 else None
    table = TermTable(silent_terms(tokenizer, config.vocab_size), student.recency_parts, separator)
    return SpladeModel(config, "table", table=table).eval()


def check_start(student: StudentConfig, field: str = "student") -> None:
    """Raise ConfigError for what of a local model `SpladeModel.from_config` would refuse, without reading its weights.

    Architecture, weights that the head needs, layers to freeze and modules to adapt are checked. Models on a hub are left to
    the workers, which fetch them, and exported students to their own settings.

    Args:
        field: the configuration section that named the model, for messages.
    """
    folder = Path(resolve_model(student.model, f"{field}.model"))
    if student.head == "table" or not folder.is_dir() or (folder / SETTINGS_FILE).is_file():
        return
    if student.head == "mlm":
        pooling_of_checkpoint(student.model, student.revision, field, student.pooling)
    with _quiet_loading():
        backbone = load_backbone(
            student.model, student.revision, student.head, student.trust_remote_code, field, device="meta"
        )
    adapt(backbone, student)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep the reports of transformers off the terminal: what matters of them becomes an error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        transformers_logging.enable_progress_bar()


def beyond_sentence_transformers(model: SpladeModel, tokenizer: Any) -> str | None:
    """Return what of a student's head `sentence_transformers` has no module for; None where it loads the student."""
    if model.pooling == "last":
        return "a decoder that pools the last token"
    if model.table is None:
        return None
    if model.table.log_factor is not None:
        return "term weights that depend on the part of the conversation"
    if model.vocabulary_size != len(tokenizer.get_vocab()):
        return "a table with more columns than the tokenizer has terms"
    return None


def _check_agreement(model: SpladeModel, student: StudentConfig) -> None:
    stored: dict[str, Any] = {"head": model.head}
    if model.head == "decoder":
        stored["attention"] = model.attention
    if student.pooling is not None:
        stored["pooling"] = model.pooling
    if model.table is not None:
        stored["recency_parts"] = model.table.recency_parts
    for name, value in stored.items():
        if getattr(student, name) != value:
            raise ConfigError(
                f"student.{name} is {getattr(student, name)}, but {student.model!r} is an exported student with {name} "
                f"{value}; set student.{name} to {value}"
            )


def _read_settings(folder: Path) -> _Settings:
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return _Settings("mlm", TextConfig(), None, None, None, None)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, head = found["format_version"], found["head"]
        if version not in (FORMAT_VERSION, LATER_FORMAT_VERSION):
            raise ConfigError(
                f"{path} has format {version}, this release reads {FORMAT_VERSION} and {LATER_FORMAT_VERSION}; export the "
                "student with it"
            )
        if head not in get_args(HeadKind):
            raise ConfigError(f"{path}: head is {head!r}, it must be one of {', '.join(get_args(HeadKind))}")
        text = TextConfig(**found["text"])
        later = (found.get("pooling"), found.get("separator"), found.get("top_terms"))
        return _Settings(head, text, found.get("attention"), *later)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"{path} is not a raydistill settings file ({error}); export the student again") from error


def _head_tensors(model: SpladeModel) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    if model.table is not None:
        tensors = dict(model.table.state_dict())
    elif model.vocabulary_head is not None:
        tensors = {"scale": model.vocabulary_head.scale, "bias": model.vocabulary_head.bias}
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}


def _save_sentence_transformers_files(model: SpladeModel, tokenizer: Any, folder: Path, max_tokens: int) -> None:
    if model.table is not None:
        modules = {TABLE_FOLDER: "table"}
        _save_table_module(model.table, tokenizer, folder / TABLE_FOLDER, max_tokens)
    elif model.vocabulary_head is not None:
        modules = {"": "transformer", DENSE_FOLDER: "dense", "2_SpladePooling": "pooling"}
        _save_dense_module(model, folder / DENSE_FOLDER)
    else:
        modules = {"": "masked_lm", "1_SpladePooling": "pooling"}
    for path, kind in modules.items():
        if kind == "pooling":
            (folder / path).mkdir(exist_ok=True)
            activation = "log1p_relu" if model.log_twice else "relu"
            pooling = {"pooling_strategy": model.pooling, "activation_function": activation}
            _write_json(folder / path / "config.json", pooling)
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": MODULE_TYPES[kind]}
        for number, (path, kind) in enumerate(modules.items())
    ]
    _write_json(folder / "modules.json", listed)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    described: dict[str, Any] = {"model_type": "SparseEncoder", "prompts": {}, "default_prompt_name": None}
    described["similarity_fn_name"] = "dot"
    if model.top_terms is not None:
        described["max_active_dims"] = model.top_terms
    _write_json(folder / "config_sentence_transformers.json", described)


def _save_dense_module(model: SpladeModel, folder: Path) -> None:
    head = model.vocabulary_head
    assert head is not None
    weight = (head.scale * head.weight).detach().float().cpu().contiguous()
    bias = head.bias.detach().float().cpu().contiguous()
    folder.mkdir(exist_ok=True)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "model.safetensors")
    _write_json(
        folder / "config.json",
        {
            "in_features": weight.shape[1],
            "out_features": weight.shape[0],
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
            "module_input_name": "token_embeddings",
            "module_output_name": "token_embeddings",
        },
    )


def _save_table_module(table: TermTable, tokenizer: Any, folder: Path, max_tokens: int) -> None:
    folder.mkdir(exist_ok=True)
    weight = torch.relu(table.weight.detach().float().cpu()).contiguous()
    save_file({"weight": weight}, folder / "model.safetensors")
    _write_json(folder / "config.json", {"frozen": False})
    # It reads the text without special tokens and cuts it where the tokenizer says.
    without_special = copy.deepcopy(tokenizer)
    without_special.model_max_length = max_tokens - tokenizer.num_special_tokens_to_add()
    without_special.save_pretrained(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
