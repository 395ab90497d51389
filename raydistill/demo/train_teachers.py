"""Training of the demo's tiny teachers: Llama-style language models that turn a conversation into a self-contained question.

They see conversations from many generated worlds, never the demo's, so what they learn is to resolve references and to
copy names. All turns of a conversation are trained in one sequence: each turn's rewrite is appended as a branch that
attends only to the conversation up to its own question, at the positions it has when the turn is prompted alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydistill.demo.dialogue import Dialogue, make_dialogue
from raydistill.demo.muon import MuonWithAdamW
from raydistill.demo.wording import name_words
from raydistill.demo.world import WorldSize, make_world
from raydistill.teachers.prompts import find_template, render_prompt

PROMPT = "plain-v1"
FIRST_WORLD = 1_000_000  # seeds of training worlds start here; the demo's --seed lies below
HELD_OUT_WORLD = 900_000
STAGES = ((0.3, (1, 2)), (0.55, (1, 4)), (0.75, (2, 6)), (1.0, (3, 9)))  # share of the steps up to which turns lie within
MASTERED = 0.3  # mean loss of 50 steps under which the next stage begins early


@dataclass(frozen=True, slots=True)
class TeacherShape:
    """Size and training of one teacher; the rates are those of Muon and AdamW while the curriculum lasts."""

    name: str
    layers: int
    width: int
    heads: int
    steps: int
    polish_steps: int
    head_width: int = 64
    tokens: int = 768
    matrix_rate: float = 0.02
    other_rate: float = 1e-2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Branched:
    """A conversation as one sequence with branches.

    Attributes:
        ids, positions, targets, origin, end: int64 [L]; target -100 where nothing is predicted, `origin` is the branch (0
            the conversation itself), `end` how many conversation tokens the token's branch may see.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    origin: Tensor
    end: Tensor


def make_teacher(shape: TeacherShape, tokenizer: Any) -> Any:
    """Return an untrained LlamaForCausalLM of that shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(shape.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.width * 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_width,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_bias=False,
    )
    config._attn_implementation = "eager"  # faster than the fused kernel for short sequences with an explicit mask
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.2)  # wide: names must be told apart from the first step on
    return model


def prompts_of(dialogue: Dialogue) -> list[str]:
    """Return the prompt of every turn, as the teacher pool renders it."""
    template = find_template(PROMPT)
    pairs = [(exchange.question, exchange.answer) for exchange in dialogue.exchanges]
    return [render_prompt(template, question, pairs[:n], 10_000, len) for n, (question, _) in enumerate(pairs)]


def branched(dialogue: Dialogue, tokenizer: Any, names: frozenset[int] = frozenset()) -> Branched:
    """Return the training sequence of a conversation. Repetitions of the tokens `names` in it are predicted too."""
    prompts: list[list[int]] = tokenizer(prompts_of(dialogue))["input_ids"]
    rewrites: list[list[int]] = tokenizer([exchange.rewrite for exchange in dialogue.exchanges])["input_ids"]
    trunk = prompts[-1]
    ids, positions, targets = list(trunk), list(range(len(trunk))), [-100] * len(trunk)
    for place in range(1, len(trunk)):
        if trunk[place] in names and trunk[place] in trunk[:place]:
            targets[place - 1] = trunk[place]
    origin, end = [0] * len(trunk), [len(trunk)] * len(trunk)
    for branch, (prompt, rewrite) in enumerate(zip(prompts, rewrites, strict=True), start=1):
        shared = min(_common_prefix(prompt, trunk), len(prompt) - 1)
        text = prompt[shared:] + rewrite + [tokenizer.eos_token_id]
        silent = len(prompt) - shared - 1  # the prompt's own tokens are not predicted in a branch, the rewrite's are
        ids += text[:-1]
        positions += range(shared, shared + len(text) - 1)
        targets += [-100] * silent + text[silent + 1 :]
        origin += [branch] * (len(text) - 1)
        end += [shared] * (len(text) - 1)
    return Branched(*(torch.tensor(values) for values in (ids, positions, targets, origin, end)))


def _common_prefix(one: list[int], other: list[int]) -> int:
    length = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        length += 1
    return length


def attention_mask(positions: Tensor, origin: Tensor, end: Tensor) -> Tensor:
    """Return what each token may see: bool [B, 1, L, L] from int64 [B, L] inputs (origin -1 marks padding)."""
    same = origin[:, :, None] == origin[:, None, :]
    trunk = (origin[:, None, :] == 0) & (positions[:, None, :] < end[:, :, None])
    earlier = positions[:, None, :] <= positions[:, :, None]
    return ((same | trunk) & earlier)[:, None]


class Curriculum:
    """Which conversations come next: longer ones after a share of the steps, or as soon as the shorter are mastered."""

    def __init__(self, shape: TeacherShape, tokenizer: Any) -> None:
        self._shape, self._tokenizer = shape, tokenizer
        self._next = dialogues_of_worlds(FIRST_WORLD + 100_000 * shape.seed)
        self.stage = 0

    def batch(self) -> list[Branched]:
        """Return about `shape.tokens` tokens of conversations."""
        batch: list[Branched] = []
        while sum(len(sequence.ids) for sequence in batch) < self._shape.tokens:
            batch.append(branched(self._next(STAGES[self.stage][1]), self._tokenizer))
        return batch

    def advance(self, step: int, loss: float) -> None:
        """Note the recent mean loss after a number of steps."""
        if self.stage + 1 < len(STAGES) and (loss < MASTERED or step >= STAGES[self.stage][0] * self._shape.steps):
            self.stage += 1


def dialogues_of_worlds(first_seed: int) -> Callable[[tuple[int, int]], Dialogue]:
    """Return a source of conversations; every 50 conversations it moves on to a fresh world."""
    state: dict[str, Any] = {"seed": first_seed, "count": 0, "world": None}

    def next_dialogue(turns: tuple[int, int]) -> Dialogue:
        if state["count"] % 50 == 0:
            state["world"] = make_world(state["seed"], WorldSize(entities=120))
            state["seed"] += 1
        state["count"] += 1
        return make_dialogue(state["world"], f"c{state['count']}", "train", 0.06, turns)

    return next_dialogue


def train_teacher(shape: TeacherShape, tokenizer: Any, log: Callable[[str], None]) -> Any:
    """Return the model after the curriculum; the loss is the cross-entropy of the rewrites' tokens."""
    model = make_teacher(shape, tokenizer)
    optimizer = MuonWithAdamW(model, shape.steps, shape.matrix_rate, shape.other_rate)
    curriculum = Curriculum(shape, tokenizer)
    started, seen, running = time.monotonic(), 0, 0.0
    model.train()
    for step in range(1, shape.steps + 1):
        batch = curriculum.batch()
        loss = _loss(model, batch, tokenizer.pad_token_id)
        loss.backward()
        optimizer.step()
        seen += sum(int(sequence.origin.max()) for sequence in batch)
        running += loss.item()
        if step % 50 == 0:
            passed = f"{seen} rewrites, {time.monotonic() - started:.0f}s"
            log(f"{shape.name} step {step}/{shape.steps} stage {curriculum.stage} loss {running / 50:.4f} {passed}")
            curriculum.advance(step, running / 50)
            running = 0.0
    return model.eval()


def polish_teacher(model: Any, shape: TeacherShape, tokenizer: Any, log: Callable[[str], None]) -> Any:
    """Go on with conversations of all lengths at falling rates, their repeated names predicted too; return the model."""
    optimizer = MuonWithAdamW(model, shape.polish_steps, shape.matrix_rate * 0.4, shape.other_rate * 0.25, decay_share=1.0)
    names = frozenset(tokenizer.convert_tokens_to_ids(list(name_words())))
    next_dialogue = dialogues_of_worlds(FIRST_WORLD + 100_000 * shape.seed + 50_000)
    started, sums = time.monotonic(), [0.0, 0.0]
    model.train()
    for step in range(1, shape.polish_steps + 1):
        batch: list[Branched] = []
        while sum(len(sequence.ids) for sequence in batch) < shape.tokens:
            batch.append(branched(next_dialogue((1, 9)), tokenizer, names))
        loss, rewriting = _losses(model, batch, tokenizer.pad_token_id)
        loss.backward()
        optimizer.step()
        sums = [sums[0] + loss.item(), sums[1] + rewriting.item()]
        if step % 50 == 0:
            passed = f"{time.monotonic() - started:.0f}s"
            means = f"loss {sums[0] / 50:.4f} of rewrites {sums[1] / 50:.4f}"
            log(f"{shape.name} polish {step}/{shape.polish_steps} {means} {passed}")
            sums = [0.0, 0.0]
    return model.eval()


def _loss(model: Any, batch: list[Branched], pad: int) -> Tensor:
    return _losses(model, batch, pad)[0]


def _losses(model: Any, batch: list[Branched], pad: int) -> tuple[Tensor, Tensor]:
    """Return the mean loss over all predicted tokens and that over the rewrites' tokens."""

    def padded(name: str, value: int) -> Tensor:
        columns = [getattr(sequence, name) for sequence in batch]
        return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=value)

    positions, origin, targets = padded("positions", 0), padded("origin", -1), padded("targets", -100)
    mask = torch.where(attention_mask(positions, origin, padded("end", 0)), 0.0, -1e9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=padded("ids", pad), attention_mask=mask, position_ids=positions).last_hidden_state
        predicted = targets >= 0
        logits = model.lm_head(hidden[predicted])
    losses = torch.nn.functional.cross_entropy(logits.float(), targets[predicted], reduction="none")
    return losses.mean(), losses[(origin > 0)[predicted]].mean().detach()


@torch.inference_mode()
def rewrites_of(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int = 24) -> list[str]:
    """Return the greedy continuation of every prompt."""
    texts: list[str] = []
    for first in range(0, len(prompts), 64):
        inputs = tokenizer(prompts[first : first + 64], padding=True, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def exact_match(model: Any, tokenizer: Any, conversations: int = 40, seed: int = HELD_OUT_WORLD) -> float:
    """Return the share of a held-out world's turns whose rewrite is right, up to case and spacing."""
    world = make_world(seed, WorldSize())
    dialogues = [make_dialogue(world, f"held-{number}", "test", 0.06) for number in range(conversations)]
    prompts = [prompt for dialogue in dialogues for prompt in prompts_of(dialogue)]
    wanted = [exchange.rewrite for dialogue in dialogues for exchange in dialogue.exchanges]
    made = rewrites_of(model, tokenizer, prompts)
    right = [tokenizer(one)["input_ids"] == tokenizer(other)["input_ids"] for one, other in zip(made, wanted, strict=True)]
    return sum(right) / len(right)
