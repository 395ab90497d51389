"""Training of the demo's encoder, the stand-in for a pretrained checkpoint that one would take from a hub.

Masked-LM training on passages and conversations of generated worlds, repeated names masked more often than other words,
so that the encoder knows which mentions belong together. The last phases are lexical warm-up: the max-pooled activations of
any text are pulled to the text's own words, so that the checkpoint starts sparse, as a plain SPLADE model does. No rewrite
and no teacher is involved: before distillation it reads a conversation as one bag of words.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydistill.config import TextConfig
from raydistill.conversations.text import student_text
from raydistill.demo.dialogue import make_dialogue
from raydistill.demo.muon import MuonWithAdamW
from raydistill.demo.wording import name_words
from raydistill.demo.world import WorldSize, make_world

FIRST_WORLD = 2_000_000  # seeds of training worlds start here, apart from the demo's and the teachers'
TEXT = TextConfig(max_tokens=128, utterance_words=64, answer_words=64)
NAME_WEIGHT, WORD_WEIGHT, EVERYDAY_WEIGHT = 1.6, 0.9, 0.3  # activations that the lexical warm-up aims at


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Size and training of the encoder; `lexical_share` is the share of the steps with lexical warm-up, at the end."""

    layers: int = 3
    width: int = 128
    heads: int = 4
    steps: int = 1000
    tokens: int = 1024
    matrix_rate: float = 0.02
    other_rate: float = 5e-3
    lexical_share: float = 0.2
    warm_up_steps: int = 500
    warm_up_rate: float = 1e-3
    seed: int = 0


def make_encoder(shape: EncoderShape, tokenizer: Any) -> Any:
    """Return an untrained ModernBertForMaskedLM of that shape (pre-norm and rotary positions train fastest)."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(shape.seed)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.width * 2,
        max_position_embeddings=256,
        global_attn_every_n_layers=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        cls_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    config._attn_implementation = "eager"  # faster than the fused kernel for short sequences
    model = ModernBertForMaskedLM(config)
    torch.nn.init.normal_(model.model.embeddings.tok_embeddings.weight, std=0.2)
    return model


def texts(seed: int) -> Iterator[str]:
    """Yield conversations in the student's form and passages of ever new worlds."""
    rng = random.Random(f"texts {seed}")
    for world_seed in range(FIRST_WORLD + 100_000 * seed, FIRST_WORLD + 100_000 * (seed + 1)):
        world = make_world(world_seed, WorldSize(entities=120))
        passages = rng.sample(world.passages, 60)
        for number in range(60):
            dialogue = make_dialogue(world, f"c{number}", "train", 0.06, turns=(2, 8))
            pairs = [(exchange.question, exchange.answer) for exchange in dialogue.exchanges]
            question, answer = pairs[-1]
            yield student_text(answer, [*pairs[:-1], (question, "")], TEXT, "[SEP]")
            yield passages[number].title + "\n" + passages[number].text


class Masker:
    """Masks word tokens, and mentions of names that occur elsewhere in the text, which can be told from the context."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._rng = random.Random(f"mask {seed}")
        self._mask = tokenizer.mask_token_id
        self._names = frozenset(tokenizer.convert_tokens_to_ids(list(name_words())))
        self._special = frozenset(tokenizer.all_special_ids)
        self._size = len(tokenizer)

    def __call__(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Return (input ids, targets); -100 where nothing is to be told."""
        masked, targets = list(ids), [-100] * len(ids)
        left = {token: ids.count(token) for token in set(ids) & self._names}
        for place, token in enumerate(ids):
            if token in self._special:
                continue
            share = 0.12
            if token in self._names:
                share = 0.4 if left[token] > 1 else 0.02
            if self._rng.random() >= share:
                continue
            targets[place] = token
            if token in self._names:
                left[token] -= 1
            chance = self._rng.random()
            if chance < 0.85:
                masked[place] = self._mask
            elif chance < 0.9:
                masked[place] = self._rng.randrange(self._size)
        return masked, targets


def lexical_weights(tokenizer: Any) -> Tensor:
    """Return the activation that each term of a text should have: float32 [V]."""
    weights = torch.full((len(tokenizer),), EVERYDAY_WEIGHT)
    for word, number in tokenizer.get_vocab().items():
        if word.isalpha() and len(word) > 4:
            weights[number] = WORD_WEIGHT
    weights[tokenizer.convert_tokens_to_ids(list(name_words()))] = NAME_WEIGHT
    weights[tokenizer.all_special_ids] = 0.0
    for mark in ".,:;!?'\"-":
        weights[tokenizer.convert_tokens_to_ids(mark)] = 0.0
    return weights


def train_encoder(shape: EncoderShape, tokenizer: Any, log: Callable[[str], None]) -> Any:
    """Return the trained model."""
    model = make_encoder(shape, tokenizer)
    optimizer = MuonWithAdamW(model, shape.steps, shape.matrix_rate, shape.other_rate)
    masker, weights, source = Masker(tokenizer, shape.seed), lexical_weights(tokenizer), texts(shape.seed)
    started, sums = time.monotonic(), torch.zeros(3)
    model.train()
    for step in range(1, shape.steps + 1):
        ids = _batch(source, tokenizer, shape.tokens)
        told, right, loss = _masked_loss(model, [masker(row) for row in ids])
        lexical = torch.zeros(())
        if step > shape.steps * (1 - shape.lexical_share):
            lexical = _lexical_loss(model, ids, weights)
        (loss + lexical).backward()
        optimizer.step()
        sums += torch.tensor([loss.item(), right / max(1, told), lexical.item()])
        if step % 50 == 0:
            mean = (sums / 50).tolist()
            passed = f"{time.monotonic() - started:.0f}s"
            log(f"encoder step {step}/{shape.steps} mlm {mean[0]:.3f} right {mean[1]:.3f} lexical {mean[2]:.4f} {passed}")
            sums.zero_()
    return model.eval()


def warm_up(model: Any, shape: EncoderShape, tokenizer: Any, log: Callable[[str], None]) -> Any:
    """Train the lexical activations alone, with a third of the masked-LM loss against forgetting; return the model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.warm_up_rate, betas=(0.9, 0.98), weight_decay=0.0)
    masker, weights, source = Masker(tokenizer, shape.seed + 1), lexical_weights(tokenizer), texts(shape.seed + 1)
    started, sums = time.monotonic(), torch.zeros(2)
    model.train()
    for step in range(1, shape.warm_up_steps + 1):
        share = min(1.0, step / 20, max(0.02, (shape.warm_up_steps - step) / (0.5 * shape.warm_up_steps)))
        for group in optimizer.param_groups:
            group["lr"] = shape.warm_up_rate * share
        ids = _batch(source, tokenizer, shape.tokens)
        lexical = _lexical_loss(model, ids, weights)
        loss = torch.zeros(())
        if step % 3 == 0:
            loss = _masked_loss(model, [masker(row) for row in ids])[2]
        (lexical + loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums += torch.tensor([lexical.item(), loss.item()])
        if step % 50 == 0:
            passed = f"{time.monotonic() - started:.0f}s"
            log(f"warm-up step {step}/{shape.warm_up_steps} lexical {sums[0] / 50:.4f} mlm {sums[1] / 50 * 3:.3f} {passed}")
            sums.zero_()
    return model.eval()


def _batch(source: Iterator[str], tokenizer: Any, tokens: int) -> list[list[int]]:
    rows: list[list[int]] = []
    while sum(map(len, rows)) < tokens:
        rows += tokenizer([next(source) for _ in range(8)], truncation=True, max_length=TEXT.max_tokens)["input_ids"]
    return rows


def _padded(rows: list[list[int]], value: int) -> Tensor:
    columns = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=value)


def _hidden(model: Any, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    ids = _padded(rows, 0)
    mask = _padded([[1] * len(row) for row in rows], 0)
    return model.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def _logits(model: Any, hidden: Tensor) -> Tensor:
    return model.decoder(model.head(hidden))


def _masked_loss(model: Any, rows: list[tuple[list[int], list[int]]]) -> tuple[int, int, Tensor]:
    targets = _padded([row[1] for row in rows], -100)
    predicted = targets >= 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, _ = _hidden(model, [row[0] for row in rows])
        logits = _logits(model, hidden[predicted]).float()
    wanted = targets[predicted]
    loss = torch.nn.functional.cross_entropy(logits, wanted)
    return len(wanted), int((logits.argmax(1) == wanted).sum()), loss


def _lexical_loss(model: Any, rows: list[list[int]], weights: Tensor) -> Tensor:
    """Return the squared error of log(1 + relu(max logit)) against the weights of the text's own terms, a sum over terms."""
    wanted = torch.zeros(len(rows), len(weights))
    for number, row in enumerate(rows):
        wanted[number, row] = weights[row]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, mask = _hidden(model, rows)
        logits = _logits(model, hidden)
    pooled = logits.float().masked_fill(mask[:, :, None] == 0, -1e4).amax(1)
    # Below zero the ReLU has no gradient: the pre-activation is kept a little under it instead of far away.
    active = torch.log1p(pooled.clamp(min=0)) + torch.where(pooled < 0, 0.1 * (pooled + 1).clamp(max=0), 0.0)
    return (active - wanted).square().sum(1).mean() / 10


@torch.inference_mode()
def lexical_fidelity(model: Any, tokenizer: Any, count: int = 200) -> dict[str, float]:
    """Return how well activations mirror texts of a held-out world: recall of the text's words, active terms a word."""
    source = texts(99)  # a block of world seeds that training never reaches
    ids = tokenizer([next(source) for _ in range(count)], truncation=True, max_length=TEXT.max_tokens)["input_ids"]
    weights = lexical_weights(tokenizer)
    found, active, words = 0, 0, 0
    for row in ids:
        hidden, _ = _hidden(model, [row])
        on = _logits(model, hidden)[0].amax(0) > 0
        own = {token for token in row if weights[token] > 0}
        found += sum(bool(on[token]) for token in own)
        active += int(on.sum())
        words += len(own)
    return {"recall": found / words, "active_per_word": active / words}
