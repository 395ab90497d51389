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

from raydistill.errors import ConfigError

_REWRITE_INSTRUCTION = (
    "Below is a conversation between a user and a system. Rewrite the user's last question as one search query that can be "
    "understood by someone who has not seen the conversation. Put names in place of pronouns, spell out what the question "
    "leaves unsaid, keep its meaning, and add nothing that the conversation does not say. If the question is already clear "
    "on its own, repeat it. Do not answer it and do not explain. Reply with the rewritten question alone, on a single line."
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


TEMPLATES: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        PromptTemplate(
            name="zero-shot-v1",
            instruction=_REWRITE_INSTRUCTION,
            heading="Conversation:",
            cue="Rewritten question:",
            blank_line_before_cue=True,
            chat=True,
        ),
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
) -> str:
    """Return the prompt with as many of the most recent turns as fit the budget.

    Args:
        question: the last user utterance; always kept whole, even when it alone exceeds the budget.
        history: (question, answer) pairs, oldest first; left out from the oldest on.
        max_tokens: budget of the whole prompt.
        count_tokens: length of a rendered prompt in the model's tokens.
        as_chat: the tokenizer's chat template applied to one user message; None where it has none.
    """
    wrap = as_chat if template.chat else None
    for first in range(len(history)):
        prompt = _prompt(template, question, history[first:], wrap)
        if count_tokens(prompt) <= max_tokens:
            return prompt
    return _prompt(template, question, (), wrap)


def _prompt(
    template: PromptTemplate, question: str, history: Sequence[tuple[str, str]], wrap: Callable[[str], str] | None
) -> str:
    lines = [template.instruction, ""] if template.instruction else []
    if template.heading:
        lines.append(template.heading)
    for asked, answered in history:
        lines.append(template.user_label + _one_line(asked))
        if answered.strip():
            lines.append(template.system_label + _one_line(answered))
    lines.append(template.user_label + _one_line(question))
    if wrap is not None:
        return wrap("\n".join(lines))
    if template.blank_line_before_cue:
        lines.append("")
    return "\n".join([*lines, template.cue])


def _one_line(utterance: str) -> str:
    return " ".join(utterance.split())
