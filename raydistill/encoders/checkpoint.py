"""Students as folders: an ordinary Hugging Face checkpoint that sentence_transformers loads too, with equal vectors.

Layout: the backbone and tokenizer at the top, as `from_pretrained` wants them; `modules.json` and one small folder a
module for `sentence_transformers.SparseEncoder`; `raydistill.json` for what only raydistill needs (the head and the
text form). Local folders only: moving them to and from a store is done elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from raydistill.config import TextConfig
from raydistill.encoders.documents import load_tokenizer
from raydistill.encoders.splade import HeadKind, SpladeEncoder, SpladeModel, load_model
from raydistill.errors import ConfigError

FORMAT_VERSION = 1
SETTINGS_FILE = "raydistill.json"
DENSE_FOLDER = "1_Dense"
# The names of sentence_transformers 5; version 6 still resolves them, so both load the folder.
MODULE_TYPES = {
    "masked_lm": "sentence_transformers.sparse_encoder.models.MLMTransformer",
    "transformer": "sentence_transformers.models.Transformer",
    "dense": "sentence_transformers.models.Dense",
    "pooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
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


def save_student(model: SpladeModel, tokenizer: Any, folder: Path | str, text: TextConfig, card: str) -> None:
    """Write a student into a folder, made if missing; files of the same name are overwritten.

    Args:
        model: any device and floating dtype.
        tokenizer: its Hugging Face tokenizer.
        folder: a local folder.
        text: how conversations become the student's input; `max_tokens` is also sentence_transformers' limit.
        card: README.md of the folder, Markdown; a metadata header is put before it unless it has one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings: dict[str, Any] = {"format_version": FORMAT_VERSION, "head": model.head, "text": text.model_dump()}
    if model.identity is not None:
        settings["scale"] = float(model.identity.scale.detach().float().item())
        _save_identity_head(model, folder)
    _write_json(folder / SETTINGS_FILE, settings)
    _save_sentence_transformers_files(model.head, folder, text.max_tokens)
    (folder / "README.md").write_text(card if card.startswith("---") else CARD_HEADER + card, encoding="utf-8")


def load_student(folder: Path | str, trust_remote_code: bool = False) -> Student:
    """Load what `save_student` wrote, or a plain Hugging Face folder with an MLM head (then with default text settings).

    trust_remote_code lets the folder's own Python code run, for architectures that transformers does not have.
    Raises ConfigError when the folder holds no such model, or was written by a newer format.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no Hugging Face model (config.json is missing)")
    head, text, scale = _read_settings(folder)
    model = load_model(str(folder), None, head, trust_remote_code, field="student")
    if model.identity is not None:
        bias = load_file(folder / DENSE_FOLDER / "model.safetensors")["linear.bias"]
        with torch.no_grad():
            model.identity.bias.copy_(bias)
            model.identity.scale.fill_(scale)
    return Student(model, load_tokenizer(str(folder), None, trust_remote_code, "student.model"), text)


def _read_settings(folder: Path) -> tuple[HeadKind, TextConfig, float]:
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return "mlm", TextConfig(), 1.0
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        version, head = settings["format_version"], settings["head"]
        if version != FORMAT_VERSION:
            raise ConfigError(f"{path} has format {version}, this release reads {FORMAT_VERSION}; update raydistill")
        if head not in ("mlm", "identity"):
            raise ConfigError(f"{path}: head is {head!r}, it must be mlm or identity")
        return head, TextConfig(**settings["text"]), float(settings.get("scale", 1.0))
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"{path} is not a raydistill settings file ({error}); export the student again") from error


def _save_identity_head(model: SpladeModel, folder: Path) -> None:
    identity = model.identity
    assert identity is not None
    weight = (identity.scale * identity.weight).detach().float().cpu().contiguous()
    bias = identity.bias.detach().float().cpu().contiguous()
    (folder / DENSE_FOLDER).mkdir(exist_ok=True)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / DENSE_FOLDER / "model.safetensors")
    _write_json(
        folder / DENSE_FOLDER / "config.json",
        {
            "in_features": weight.shape[1],
            "out_features": weight.shape[0],
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
            "module_input_name": "token_embeddings",
            "module_output_name": "token_embeddings",
        },
    )


def _save_sentence_transformers_files(head: HeadKind, folder: Path, max_tokens: int) -> None:
    kinds = ["masked_lm", "pooling"] if head == "mlm" else ["transformer", "dense", "pooling"]
    paths = ["", "1_SpladePooling"] if head == "mlm" else ["", DENSE_FOLDER, "2_SpladePooling"]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": MODULE_TYPES[kind]}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    _write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "SparseEncoder", "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "dot"},
    )
    (folder / paths[-1]).mkdir(exist_ok=True)
    _write_json(folder / paths[-1] / "config.json", {"pooling_strategy": "max", "activation_function": "relu"})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
