"""The shipped tokenizer and models: they load from the package, spell any name, and do what the demo needs."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import StudentConfig
from raydistill.demo.dialogue import make_dialogue
from raydistill.demo.tokenizer import make_tokenizer
from raydistill.demo.train_models import MODELS, TEACHERS
from raydistill.demo.train_teachers import (
    HELD_OUT_WORLD,
    TeacherShape,
    attention_mask,
    branched,
    exact_match,
    make_teacher,
    prompts_of,
)
from raydistill.demo.wording import known_words, name_words
from raydistill.demo.world import WorldSize, make_world
from raydistill.encoders.splade import SpladeEncoder, SpladeModel
from raydistill.model_source import resolve_model

CAUSAL, ENCODER = make_tokenizer("causal"), make_tokenizer("encoder")


def test_every_word_of_the_world_is_one_token() -> None:
    for word in known_words() | set(name_words()):
        assert CAUSAL.tokenize(word) == [word]


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20))
def test_any_other_word_is_spelled_and_read_back(word: str) -> None:
    ids = CAUSAL(word)["input_ids"]
    assert CAUSAL.unk_token_id not in ids
    assert CAUSAL.decode(ids) == word


def test_the_encoder_form_wraps_a_text_and_the_causal_form_does_not() -> None:
    assert ENCODER.convert_ids_to_tokens(ENCODER("who directed it?")["input_ids"])[:2] == ["[CLS]", "who"]
    assert ENCODER("who [SEP] it")["input_ids"].count(ENCODER.sep_token_id) == 2
    assert CAUSAL.eos_token_id not in CAUSAL("who directed it?")["input_ids"]


def test_a_branch_is_trained_as_if_its_turn_were_prompted_alone() -> None:
    model = make_teacher(TeacherShape("untrained", layers=2, width=32, heads=2, steps=1, polish_steps=0), CAUSAL).eval()
    dialogue = make_dialogue(make_world(1, WorldSize(entities=40)), "c", "train", 0.0, turns=(4, 4))
    sequence = branched(dialogue, CAUSAL)
    fields = (sequence.positions[None], sequence.origin[None], sequence.end[None])
    mask = torch.where(attention_mask(*fields), 0.0, -1e9)
    with torch.inference_mode():
        joint = model(input_ids=sequence.ids[None], attention_mask=mask, position_ids=sequence.positions[None]).logits[0]
        for branch, prompt in enumerate(prompts_of(dialogue), start=1):
            rewrite = CAUSAL(dialogue.exchanges[branch - 1].rewrite)["input_ids"]
            ids = CAUSAL(prompt)["input_ids"]
            alone = model(input_ids=torch.tensor([ids + rewrite])).logits[0, len(ids) - 1 :]
            places = (sequence.origin == branch) & (sequence.targets >= 0)
            assert sequence.targets[places].tolist() == [*rewrite, CAUSAL.eos_token_id]
            torch.testing.assert_close(joint[places], alone, atol=1e-4, rtol=1e-4)


def test_the_models_are_small_and_say_where_they_come_from() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 12_000_000
    card = (MODELS / "README.md").read_text()
    for name in (*(shape.name for shape in TEACHERS), "encoder"):
        assert json.loads((MODELS / name / "training.json").read_text())["quality"]
        assert name in card


@pytest.mark.parametrize(("name", "least"), [("teacher-large", 0.45), ("teacher-small", 0.3)])
def test_a_teacher_rewrites_its_share_of_the_turns_of_a_world_it_never_saw(name: str, least: float) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model(f"package:raydistill/demo/models/{name}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert exact_match(model, AutoTokenizer.from_pretrained(folder), conversations=10, seed=HELD_OUT_WORLD + 1) > least


def test_the_encoder_starts_sparse_with_the_words_of_the_text() -> None:
    model = SpladeModel.from_config(StudentConfig(model=resolve_model("package:raydistill/demo/models/encoder")))
    encoder = SpladeEncoder(model, ENCODER, max_tokens=128, max_terms=512, batch_tokens=2048, device="cpu")
    town, person = (word.capitalize() for word in name_words()[40:42])
    batch = encoder.encode_queries([f"The mayor of {town} is {person}. [SEP] Who governs the town?"])
    terms, weights = batch.row(0)
    vocabulary = encoder.vocabulary()
    heaviest = [vocabulary[term] for term in terms[(-weights).argsort()]]
    assert {town.lower(), person.lower()} <= set(heaviest[:4])
    assert "mayor" in heaviest
    assert len(heaviest) < 40
