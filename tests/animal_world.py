"""Animals, their traits, and a tiny random student over the words of both: the material of tests that search for real."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

ANIMALS = ("otter", "badger", "heron", "lynx", "viper", "moose")
TRAITS = {
    "home": "lives in the forest near water",
    "food": "eats fish and small roots",
    "sleep": "sleeps during winter nights",
}


def write_corpus(path: Path) -> None:
    """Write the passages, one for each animal and trait, as gzipped JSON lines."""
    passages = [
        {"_id": f"{animal}/{name}", "title": animal, "text": f"the {animal} {trait}"}
        for animal in ANIMALS
        for name, trait in TRAITS.items()
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in passages).encode()))


def tiny_student(folder: Path) -> None:
    """Write a folder with a random two-layer masked language model over the words of the world."""
    import torch
    from transformers import BertForMaskedLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    BertForMaskedLM(tiny_bert(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_cross_encoder(folder: Path, labels: int = 1, tokenizer: Any = None) -> None:
    """Write a folder with a random two-layer cross-encoder over the words of the world, or with another tokenizer."""
    import torch
    from transformers import BertForSequenceClassification

    tokenizer = tokenizer or tiny_tokenizer()
    torch.manual_seed(1)
    config = tiny_bert(len(tokenizer))
    config.num_labels = labels
    # Large weights, so that scores of different texts differ clearly.
    config.initializer_range = 0.5
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_bert(vocabulary: int) -> Any:
    """Return the configuration of a two-layer BERT."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )


def tiny_tokenizer() -> Any:
    """Return a word tokenizer over the words of the world."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    text = " ".join([*TRAITS.values(), *ANIMALS, "tell me where the what food does it eat and when sleep lives home"])
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(text.split()))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
