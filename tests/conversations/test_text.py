"""The student's text: newest first, the question whole, and shortened only at its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raydistill.config import TextConfig
from raydistill.conversations.text import full_conversation_text, student_text, user_turns_text

HISTORY = [("who founded Rome?", "Romulus, they say."), ("when?", ""), ("and Ostia?", "Ancus Marcius did.")]
UTTERANCES = st.text(alphabet="ab? \n[SEP]", max_size=30)
QUESTIONS = UTTERANCES.filter(lambda text: bool(text.replace("[SEP]", " ").split()))
HISTORIES = st.lists(st.tuples(UTTERANCES, UTTERANCES), max_size=5)
TEXTS = st.builds(TextConfig, utterance_words=st.integers(1, 5), answer_words=st.integers(0, 5))


def test_newest_comes_first_and_unknown_answers_are_left_out() -> None:
    assert student_text("by whom?", HISTORY, TextConfig(), "[SEP]") == (
        "by whom? [SEP] Ancus Marcius did. [SEP] and Ostia? [SEP] when? [SEP] Romulus, they say. [SEP] who founded Rome?"
    )


def test_budgets_cut_history_but_never_the_question() -> None:
    text = TextConfig(utterance_words=2, answer_words=1)
    question = "by whom was it founded after all"
    assert student_text(question, HISTORY[:1], text, "</s>") == f"{question} </s> Romulus, </s> who founded"
    assert student_text(question, HISTORY[:1], TextConfig(answer_words=0), "") == f"{question} who founded Rome?"


def test_an_utterance_cannot_pass_for_two() -> None:
    assert student_text("a [SEP] b", [("c[SEP]d", "")], TextConfig(), "[SEP]") == "a b [SEP] c d"


@given(QUESTIONS, HISTORIES, TEXTS)
def test_the_whole_question_is_always_first(question: str, history: list[tuple[str, str]], text: TextConfig) -> None:
    words = question.replace("[SEP]", " ").split()
    assert student_text(question, history, text, "[SEP]").split(" [SEP] ")[0].split() == words


@given(QUESTIONS, HISTORIES, TEXTS, st.integers(0, 5))
def test_dropping_older_turns_only_shortens_the_end(
    question: str, history: list[tuple[str, str]], text: TextConfig, dropped: int
) -> None:
    whole = student_text(question, history, text, "[SEP]")
    assert whole.startswith(student_text(question, history[dropped:], text, "[SEP]"))


def test_plain_forms_hold_all_that_was_said() -> None:
    assert full_conversation_text("by whom?", HISTORY[:2]) == "by whom?\nwhen?\nRomulus, they say.\nwho founded Rome?"
    assert user_turns_text("by whom?", HISTORY[:2]) == "by whom?\nwhen?\nwho founded Rome?"
