"""Prompts that ask a language model how passages fit a query, as versioned data. A released one never changes: its name is
part of every cache key.

    pointwise-v1    one passage; the answer is yes or no (the wording of instructed rerankers such as Qwen3-Reranker, Zhang
                    et al., arXiv 2506.05176)
    utility-v1      one passage; yes or no, whether it is worth keeping as evidence for an answer: select rather than rank
    listwise-v1     several passages with a letter each; the answer is the letter of the best (FIRST, Reddy et al., arXiv
                    2406.15657, reads the ranking from the letters' log-probabilities)
    pairwise-v1     two passages; the answer is A or B (PRP, Qin et al., arXiv 2306.17563)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from raydistill.errors import ConfigError

Method = Literal["pointwise", "listwise", "pairwise"]
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class ScoringPrompt:
    """The wording around a query and passages.

    Attributes:
        name: with its version.
        method: what it can be used for.
        instruction: the first paragraph.
        cue: the last line, which the answer follows, where there is no chat template.
        options: the answers; of a pointwise prompt the good one first.
        label: what a pointwise prompt calls the passage.
    """

    name: str
    method: Method
    instruction: str
    cue: str
    options: tuple[str, ...]
    label: str = "Document"


_DOCUMENT = (
    "Judge whether the document meets the search need expressed by the query. The query may be the last question of a "
    'conversation. Answer with "yes" or "no" only.'
)
_UTILITY = (
    "Someone is about to answer the query and may keep only passages that are useful evidence: the passage must state "
    "something that the answer needs, not merely be about the same subject. The query may be the last question of a "
    'conversation. Should this passage be kept? Answer with "yes" or "no" only.'
)
_LISTWISE = (
    "Below are a query, which may be the last question of a conversation, and passages, each with a letter. Which passage "
    "answers the query best? Answer with its letter only."
)
_PAIRWISE = (
    "Below are a query, which may be the last question of a conversation, and two passages. Which of the two answers the "
    'query better? Answer with "A" or "B" only.'
)

PROMPTS: dict[str, ScoringPrompt] = {
    prompt.name: prompt
    for prompt in (
        ScoringPrompt("pointwise-v1", "pointwise", _DOCUMENT, "Answer:", ("yes", "no")),
        ScoringPrompt("utility-v1", "pointwise", _UTILITY, "Answer:", ("yes", "no"), label="Passage"),
        ScoringPrompt("listwise-v1", "listwise", _LISTWISE, "Best passage:", LETTERS),
        ScoringPrompt("pairwise-v1", "pairwise", _PAIRWISE, "Better passage:", ("A", "B")),
    )
}


def find_prompt(name: str, method: Method) -> ScoringPrompt:
    """Return a prompt by name. Raises ConfigError when there is none, or it is for another method."""
    fitting = sorted(prompt.name for prompt in PROMPTS.values() if prompt.method == method)
    found = PROMPTS.get(name)
    if found is None or found.method != method:
        kind = "is no prompt" if found is None else f"is a {found.method} prompt"
        raise ConfigError(f"scorers: {name!r} {kind}; those for method {method} are {', '.join(fitting)}")
    return found


def render(
    prompt: ScoringPrompt,
    query: str,
    passages: Sequence[str],
    max_tokens: int,
    count_tokens: Callable[[str], int],
    as_chat: Callable[[str], str] | None = None,
) -> str:
    """Return a prompt within a budget of tokens: the longest passages are cut first, at their ends, and all to about one
    length; the query is never cut.

    Args:
        passages: one for pointwise prompts, two for pairwise ones, 2 to 26 for listwise ones.
        max_tokens: budget of the whole prompt.
        count_tokens: length of a rendered prompt in the model's tokens.
        as_chat: the tokenizer's chat template applied to one user message; None where it has none.
    """
    words = [passage.split() for passage in passages]

    def made(longest: int) -> str:
        return _rendered(prompt, query, [" ".join(each[:longest]) for each in words], as_chat)

    high = max(map(len, words), default=0)
    whole = made(high)
    if count_tokens(whole) <= max_tokens:
        return whole
    low = 0  # the prompt with no word of any passage: nothing shorter can be had
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_tokens(made(middle)) <= max_tokens else (low, middle)
    return made(low)


def _rendered(prompt: ScoringPrompt, query: str, passages: Sequence[str], as_chat: Callable[[str], str] | None) -> str:
    lines = [prompt.instruction, "", f"Query: {' '.join(query.split())}", ""]
    if prompt.method == "pointwise":
        lines.append(f"{prompt.label}: {passages[0]}")
    else:
        lines += [f"[{letter}] {passage}" for letter, passage in zip(LETTERS, passages, strict=False)]
    if as_chat is not None:
        return as_chat("\n".join(lines))
    return "\n".join([*lines, "", prompt.cue])
