"""Prompt templates as versioned data, and their rendering within a token budget. Tokenizers come from the engine.

`plain-v1`, the format for tiny models trained on it, has one line an utterance and nothing else:

    user: q_1
    system: a_1
    ...
    user: q_n
    rewrite:

The prompt ends with the colon, without a space or line break; the model goes on with " the rewritten question" and ends
with a line break or its end-of-sequence token. An unknown answer leaves its `system:` line out.

A released template never changes: its name is part of every cache key. A better wording is a new name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.errors import ConfigError

_REWRITE_INSTRUCTION = (
    "Below is a conversation between a user and a system. Rewrite the user's last question as one search query that can be "
    "understood by someone who has not seen the conversation. Put names in place of pronouns, spell out what the question "
    "leaves unsaid, keep its meaning, and add nothing that the conversation does not say. If the question is already clear "
    "on its own, repeat it. Do not answer it and do not explain. Reply with the rewritten question alone, on a single line."
)


_FEW_SHOT_LEAD_IN = "Here are conversations with the rewritten question that is wanted."
_REASONING_INSTRUCTION = (
    "Below is a conversation between a user and a system. The user's last question is to become one search query that can "
    "be understood by someone who has not seen the conversation. First think, in at most three sentences: what do pronouns "
    "and phrases of the last question stand for, and what does it leave unsaid? Then write the query on a line of its own "
    "that begins with 'Query:'. It keeps the meaning of the question and adds nothing that the conversation does not say. "
    "If the question is already clear on its own, repeat it there. Do not answer the question."
)
_ANSWER_INSTRUCTION = (
    f"{_REWRITE_INSTRUCTION} Where the conversation ends with the system's answer to the last question, take from it which "
    "person, thing or aspect the user had in mind, but put nothing into the question that only the answer tells."
)
_PERSONAL_INSTRUCTION = (
    f"{_REWRITE_INSTRUCTION} The user has told some facts about themselves, listed before the conversation. Put those into "
    "the question, and only those, that decide what would be a good answer to it; most questions need none."
)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation with the rewrite that is wanted: the last question, and (question, answer) pairs before it."""

    history: tuple[tuple[str, str], ...]
    question: str
    rewrite: str


_EXAMPLES = (
    Example(
        (("Who wrote the opera Fidelio?", "Ludwig van Beethoven wrote it; it is his only opera."),),
        "When was it first performed?",
        "When was Beethoven's opera Fidelio first performed?",
    ),
    Example(
        (
            ("How do heat pumps work?", "They move heat from the air or the ground into a house."),
            ("Are they loud?", "Modern ones are about as loud as a refrigerator."),
        ),
        "And what about the costs?",
        "How much does it cost to buy and run a heat pump?",
    ),
    Example(
        (("What is the capital of Peru?", "Lima."),),
        "How do I descale a coffee machine?",
        "How do I descale a coffee machine?",
    ),
)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The wording around a conversation.

    Attributes:
        name: with its version, for example "zero-shot-v1".
        instruction: text before the conversation; "" for none.
        heading: line between instruction and conversation; "" for none.
        user_label, system_label: what an utterance's line begins with.
        cue: last line, after which the model writes.
        blank_line_before_cue: whether an empty line sets the cue off.
        chat: present the text as a user message through the tokenizer's chat template, when it has one; the cue is then
            left out, because the template itself cues the model.
        stop_at_newline: whether generation ends with the first line that has something in it.
        examples: worked ones, shown before the conversation.
        marker: what the line of the query begins with, when the model writes more than the query; "" when it does not.
        shows_answer: whether the answer to the last question is shown, where it is given.
        shows_facts: whether the user's facts are shown, where there are any.
        fewest_new_tokens: that an answer may need; a smaller limit would cut answers off as a rule.
    """

    name: str
    instruction: str = ""
    heading: str = ""
    user_label: str = "user: "
    system_label: str = "system: "
    cue: str = "rewrite:"
    blank_line_before_cue: bool = False
    chat: bool = False
    stop_at_newline: bool = False
    examples: tuple[Example, ...] = ()
    marker: str = ""
    shows_answer: bool = False
    shows_facts: bool = False
    fewest_new_tokens: int = 1


def _in_chat(name: str, instruction: str, **more: Any) -> PromptTemplate:
    usual: dict[str, Any] = {
        "heading": "Conversation:",
        "cue": "Rewritten question:",
        "blank_line_before_cue": True,
        "chat": True,
    }
    return PromptTemplate(name=name, instruction=instruction, **{**usual, **more})


TEMPLATES: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        _in_chat("zero-shot-v1", _REWRITE_INSTRUCTION),
        _in_chat("few-shot-v1", _REWRITE_INSTRUCTION, examples=_EXAMPLES),
        _in_chat("chain-of-thought-v1", _REASONING_INSTRUCTION, cue="Thoughts:", marker="Query:", fewest_new_tokens=128),
        _in_chat("answer-aware-v1", _ANSWER_INSTRUCTION, shows_answer=True),
        _in_chat("personal-v1", _PERSONAL_INSTRUCTION, shows_facts=True),
        PromptTemplate(name="plain-v1", stop_at_newline=True),
    )
}


def find_template(name: str) -> PromptTemplate:
    """Return a template by name. Raises ConfigError naming those that exist."""
    if name not in TEMPLATES:
        raise ConfigError(f"teachers: there is no prompt {name!r}; the prompts are {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def render_prompt(
    template: PromptTemplate,
    question: str,
    history: Sequence[tuple[str, str]],
    max_tokens: int,
    count_tokens: Callable[[str], int],
    as_chat: Callable[[str], str] | None = None,
    answer: str = "",
    facts: Sequence[str] = (),
) -> str:
    """Return the prompt with as many of the most recent turns as fit the budget; then as many of the first facts, then the
    answer.

    Args:
        question: the last user utterance; always kept whole, even when it alone exceeds the budget.
        history: (question, answer) pairs, oldest first; left out from the oldest on.
        max_tokens: budget of the whole prompt.
        count_tokens: length of a rendered prompt in the model's tokens.
        as_chat: the tokenizer's chat template applied to one user message; None where it has none.
        answer: to the question; left out by templates that do not show it.
        facts: of the user, likewise.
    """
    wrap = as_chat if template.chat else None
    shown, told = answer if template.shows_answer else "", facts if template.shows_facts else ()
    for first in range(len(history)):
        prompt = _prompt(template, question, history[first:], wrap, shown, told)
        if count_tokens(prompt) <= max_tokens:
            return prompt
    for number in range(len(told), 0, -1):
        prompt = _prompt(template, question, (), wrap, shown, told[:number])
        if count_tokens(prompt) <= max_tokens:
            return prompt
    prompt = _prompt(template, question, (), wrap, shown)
    return prompt if not shown or count_tokens(prompt) <= max_tokens else _prompt(template, question, (), wrap)


def _prompt(
    template: PromptTemplate,
    question: str,
    history: Sequence[tuple[str, str]],
    wrap: Callable[[str], str] | None,
    answer: str = "",
    facts: Sequence[str] = (),
) -> str:
    lines = [template.instruction, ""] if template.instruction else []
    if template.examples:
        lines += [_FEW_SHOT_LEAD_IN, ""]
    for example in template.examples:
        lines += [template.heading, *_utterances(template, example.history, example.question), ""]
        lines += [f"{template.cue} {example.rewrite}", ""]
    if facts:
        lines += ["Facts about the user:", *(f"- {_one_line(fact)}" for fact in facts), ""]
    if template.heading:
        lines.append(template.heading)
    lines += _utterances(template, history, question)
    if answer.strip():
        lines.append(template.system_label + _one_line(answer))
    if wrap is not None:
        return wrap("\n".join(lines))
    if template.blank_line_before_cue:
        lines.append("")
    return "\n".join([*lines, template.cue])


def _utterances(template: PromptTemplate, history: Sequence[tuple[str, str]], question: str) -> list[str]:
    lines = []
    for asked, answered in history:
        lines.append(template.user_label + _one_line(asked))
        if answered.strip():
            lines.append(template.system_label + _one_line(answered))
    return [*lines, template.user_label + _one_line(question)]


def _one_line(utterance: str) -> str:
    return " ".join(utterance.split())
