"""The tokenizer of the demo's models: WordPiece over the world's words, name words, digit pairs and single letters.

One vocabulary serves the two teachers and the student. Any other word is spelled in letters. The language models' form
adds no special tokens ([SEP] ends what they generate); the encoder's form wraps a text in [CLS] ... [SEP].
"""

from __future__ import annotations

import string
from typing import Any

from raydistill.demo.wording import known_words, name_words

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PUNCTUATION = tuple(".,:;!?'\"()-<>|/#*&%+=@$^~_`{}[]\\")
PROMPT_WORDS = ("user", "system", "assistant", "agent", "question", "rewrite", "rewritten", "query", "conversation")
PIECES = (
    "ing",
    "ed",
    "er",
    "ly",
    "tion",
    "th",
    "he",
    "in",
    "on",
    "an",
    "re",
    "es",
    "or",
    "en",
    "at",
    "is",
    "it",
    "al",
    "ar",
    "st",
)


def vocabulary(prompt_words: tuple[str, ...] = PROMPT_WORDS) -> dict[str, int]:
    """Return token -> id: specials, letters and digits alone and as continuation, digit pairs, words, name words."""
    letters = string.ascii_lowercase + string.digits
    pairs = [f"{number:02d}" for number in range(100)]
    tokens = [
        *SPECIAL_TOKENS,
        *PUNCTUATION,
        *letters,
        *(f"##{letter}" for letter in letters),
        *pairs,
        *(f"##{piece}" for piece in (*pairs, *PIECES)),
        *sorted(known_words() | set(prompt_words)),
        *name_words(),
    ]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def make_tokenizer(form: str) -> Any:
    """Return the Hugging Face fast tokenizer; `form` is "encoder" or "causal"."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    backend = Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]", max_input_chars_per_word=60))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    if form == "encoder":
        special = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    if form == "causal":
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=512, padding_side="left" if form == "causal" else "right", **names
    )
