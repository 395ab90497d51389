"""Prompts: released wordings stay, the question stays whole, the oldest turns go first."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.errors import ConfigError
from raydistill.teachers.prompts import TEMPLATES, find_template, render_prompt

HISTORY = [("who founded Rome?", "Romulus,\nthey say."), ("when?", ""), ("and Ostia?", "Ancus Marcius did.")]
PLAIN = find_template("plain-v1")
ZERO_SHOT = find_template("zero-shot-v1")


def words(prompt: str) -> int:
    return len(prompt.split())


def test_plain_is_one_line_an_utterance_and_a_cue() -> None:
    assert render_prompt(PLAIN, "by  whom?", HISTORY, 1000, words) == (
        "user: who founded Rome?\nsystem: Romulus, they say.\nuser: when?\nuser: and Ostia?\nsystem: Ancus Marcius did.\n"
        "user: by whom?\nrewrite:"
    )


def test_zero_shot_ends_with_its_cue_or_goes_through_the_chat_template() -> None:
    prompt = render_prompt(ZERO_SHOT, "by whom?", HISTORY, 1000, words)
    assert prompt.endswith("user: by whom?\n\nRewritten question:")
    assert "Rewrite the user's last question" in prompt
    chat = render_prompt(ZERO_SHOT, "by whom?", HISTORY, 1000, words, lambda message: f"<s>{message}</s>")
    assert chat.startswith("<s>Below is")
    assert chat.endswith("user: by whom?</s>")
    assert render_prompt(PLAIN, "q?", [], 1000, words, lambda message: f"<s>{message}</s>") == "user: q?\nrewrite:"


def test_few_shot_shows_its_examples_in_the_form_that_is_asked_for() -> None:
    prompt = render_prompt(find_template("few-shot-v1"), "by whom?", HISTORY, 1000, words)
    assert prompt.count("Conversation:") == prompt.count("Rewritten question:") == 4
    assert "user: When was it first performed?\n\nRewritten question: When was Beethoven's opera Fidelio first" in prompt
    assert prompt.endswith("user: by whom?\n\nRewritten question:")


def test_the_answer_is_shown_by_templates_that_know_of_it_and_given_up_before_the_question() -> None:
    template = find_template("answer-aware-v1")

    def prompt(budget: int, answer: str = "Romulus.") -> str:
        return render_prompt(template, "by whom?", HISTORY, budget, words, answer=answer)

    assert prompt(1000).endswith("user: by whom?\nsystem: Romulus.\n\nRewritten question:")
    assert prompt(1000, "").endswith("user: by whom?\n\nRewritten question:")
    shortest = words(prompt(0, ""))
    assert prompt(shortest + 1).endswith("user: by whom?\n\nRewritten question:")
    assert prompt(shortest + 2).endswith("Conversation:\nuser: by whom?\nsystem: Romulus.\n\nRewritten question:")
    assert "Romulus." not in render_prompt(ZERO_SHOT, "by whom?", [], 1000, words, answer="Romulus.")


def test_facts_are_shown_by_templates_that_know_of_them_the_last_left_out_first_after_the_history() -> None:
    template, facts = find_template("personal-v1"), ("I run.", "I have two sisters.")

    def prompt(budget: int) -> str:
        return render_prompt(template, "what shoes?", HISTORY, budget, words, facts=facts)

    assert "Facts about the user:\n- I run.\n- I have two sisters.\n\nConversation:\nuser: who founded Rome?" in prompt(1000)
    bare = words(prompt(0))
    one = prompt(bare + 7)
    assert "- I run.\n\nConversation:\nuser: what shoes?\n" in one
    assert "sisters" not in one
    assert "Facts" not in prompt(bare + 6)
    assert "Facts" not in render_prompt(ZERO_SHOT, "what shoes?", [], 1000, words, facts=facts)


def test_released_templates_never_change() -> None:
    released = {
        "zero-shot-v1": "d8788870d85fda92",
        "plain-v1": "4b1ea9712aff2d6d",
        "few-shot-v1": "cd1efae3cee475a1",
        "chain-of-thought-v1": "356327e9b74d05f9",
        "answer-aware-v1": "ef873624f0e93b6f",
        "personal-v1": "5848a0cc268f983b",
    }
    assert set(released) == set(TEMPLATES)
    prompts = {
        name: render_prompt(TEMPLATES[name], "by whom?", HISTORY, 1000, words, answer="Romulus.", facts=("I run.",))
        for name in released
    }
    assert {name: hashlib.sha256(prompt.encode()).hexdigest()[:16] for name, prompt in prompts.items()} == released


@given(st.lists(st.tuples(st.text("ab ", min_size=1), st.text("ab ")), max_size=6), st.integers(0, 40))
def test_the_question_is_kept_and_the_most_recent_turns_that_fit(history: list[tuple[str, str]], budget: int) -> None:
    prompt = render_prompt(PLAIN, "what now?", history, budget, words)
    fitting = [render_prompt(PLAIN, "what now?", history[n:], 10_000, words) for n in range(len(history) + 1)]
    assert prompt.endswith("user: what now?\nrewrite:")
    assert prompt == next((each for each in fitting if words(each) <= budget), fitting[-1])


def test_an_unknown_template_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"no prompt 'few-shot'; the prompts are answer-aware-v1, .*, zero-shot-v1"):
        find_template("few-shot")
