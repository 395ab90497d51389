"""A language model that writes by rule about the animals' passages, in a process or behind HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from raydistill.teachers.engine import Generation, Sampling

_PASSAGE = re.compile(r"Passage: (\w+) the \w+ (.*)")


def written(prompt: str) -> str:
    """Return what it writes: a question with the passage's words, a message with "it" in it, the trait as the answer."""
    if "wants to know:" in prompt:
        wanted = prompt.rpartition("wants to know: ")[2].strip()
        return re.sub(r"the \w+", "it", wanted, count=1)
    found = _PASSAGE.search(prompt)
    assert found is not None, prompt
    animal, trait = found.groups()
    if "Question:" in prompt:
        return f"it {trait}"
    kind = "keywords" if "keywords" in prompt.partition("Passage:")[0] else "question"
    return f"{animal} {trait}" if kind == "keywords" else f"is it true that the {animal} {trait}?"


class Scripted:
    """An engine that answers by a function, and remembers what it was asked."""

    def __init__(self, answer: Callable[[str], str] = written) -> None:
        self._answer = answer
        self.prompts: list[str] = []

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        """See `Engine`."""
        self.prompts += prompts
        return [Generation(self._answer(prompt), 1, 1, "stop") for prompt in prompts]


class Words:
    """A tokenizer to which a token is a word."""

    has_chat_template = False

    def count_tokens(self, prompt: str) -> int:
        """See `PromptTokenizer`."""
        return len(prompt.split())

    def as_chat(self, message: str) -> str:
        """See `PromptTokenizer`."""
        return message
