"""From what a language model wrote to a query, or to the typed reason why there is none. Retrying and falling back live in
`rewriting`.

The rules follow what instruction-tuned models really return when asked for a rewrite: a label before it, quotes around it,
a note in parentheses after it, an answer or remarks about the task in its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raydistill.teachers.engine import Failure

MIN_WORDS = 3
MAX_ANSWER_WORDS = 40
MAX_QUERY_WORDS = 100

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_MARKUP_BEFORE, _MARKUP_AFTER = " \t>#*_`-", " \t*_`"
_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\s぀-ヿ㐀-鿿가-힯]+")
_QUOTES = "\"'“”‘’«»`"
_LABEL_WORDS = re.compile(
    r"rewrit|rewrote|rephras|reformulat|stand-?\s?alone|self-contained|\bquery\b|\bquestion\b|\bstatement\b|\boutput\b|"
    r"\bas follows\b|^(?:sure|certainly|of course|q|a|user|answer)\b",
    re.IGNORECASE,
)
_MAX_LABEL_WORDS, _MAX_LABELS = 30, 4
_QUESTION_START = re.compile(
    r"^(?:what|which|who|whom|whose|when|where|why|how|is|are|was|were|do|does|did|can|could|will|would|should|has|have|had|"
    r"name|tell|explain|list|give|describe|compare)\b",
    re.IGNORECASE,
)
_QUOTED_END = re.compile(r"[:,]\s*[\"“]([^\"“”]{8,})[\"”]?[.]?$")
_NOTE = re.compile(r"(?<=[.?!])\s*\((?=(?:\S+\s+){5}).*$", re.DOTALL)
_REFUSAL = re.compile(
    r"^(?:i(?:'m| am) (?:sorry|unable|not able)|sorry\b|i apologi[sz]e|as an? (?:ai|language model)|unfortunately\b|"
    r"i (?:cannot|can't|can not|could not|couldn't|won't)\b)|"
    r"\bi (?:cannot|can't|could not|couldn't) (?:rewrite|generate|determine|accurately|provide|create|identify|understand)|"
    r"^without (?:any|more|additional|further|specific)?\s*(?:context|information)|"
    r"\bnot (?:provide|have|contain|give) (?:enough|any|sufficient|specific)?\s*(?:context|information)\b|"
    r"\black(?:s|ing)? (?:sufficient |enough |the necessary )?context",
    re.IGNORECASE,
)
_REMARKS = re.compile(
    r"^(?:the|this|your|our) (?:user|assistant|system|conversation|query|(?:current |last |rewritten )?question)(?:'s)?\b"
    r"(?! (?:of|interface|experience|manual|account|agreement|guide|id|name|group|plan|language|rate|time|parameter))|"
    r"\b(?:stand-?alone|rewritten|rephrased|reformulated) (?:query|question)\b|"
    r"\b(?:the|this|your) query (?:is|was|seems|appears|can|asks)\b|"
    r"\b(?:user|your) (?:is asking|is inquiring|current question|intent)|"
    r"\bthe user(?:'s)? (?:original|has|does|did|is|current|interest)\b|"
    r"\b(?:conversation|context|chat) (?:history )?(?:provided|does not|doesn't|did not|didn't)\b|"
    r"\bi assume you(?:'re| are)\b|\bmentioned in the conversation\b",
    re.IGNORECASE,
)
# A lead-in that a query may have too ("Considering what was said about x, how ...?"): a remark only when nothing is asked.
_LEAD_IN = re.compile(
    r"^(?:given|based on|considering|regarding) (?:the|our|your) (?:previous |prior )?"
    r"(?:conversation|context|goal|discussion)",
    re.IGNORECASE,
)
_AFTER_QUESTION = re.compile(r"(?<=[?])\s+(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class ParsedRewrite:
    """A query, or "" and the reason why the raw text holds none."""

    text: str
    failure: Failure | None


def parse_rewrite(raw: str, question: str, finish_reason: str = "stop", marker: str = "") -> ParsedRewrite:
    """Return the query that a model's answer holds.

    The first line that has something in it is taken, labels ("Rewrite:", "Here is the rewritten question:"), enclosing
    quotes, mark-up, reasoning between think tags, and notes or remarks after the end of the question removed; of remarks
    that end in a quoted query, the quoted query. Then, in this order:

    - EMPTY: nothing was written.
    - REFUSAL: the model says that it cannot, or that context is missing.
    - CHATTY: only a label or lead-in; remarks about the task or the user; or an answer: more than 40 words without a
      question mark, or more than 100 words, unless the question itself is half as long.
    - TRUNCATED: generation ended by length in the middle of the line.
    - TOO_SHORT: under 3 words, unless it repeats the question, which may be that short ("Clusters").

    A rewrite that equals the question is no failure: a question that needs no context stays as it is.

    Args:
        raw: everything the model wrote.
        question: the last user utterance.
        finish_reason: "length" when generation ended by its limit, "refusal" when the server says that it refused; anything
            else counts as complete.
        marker: what the line of the query begins with, for a model that was asked to think first; what comes before the last
            such line is left out. Without such a line: REFUSAL, TRUNCATED where generation ended by length, else CHATTY.
    """
    if finish_reason == "refusal":
        return ParsedRewrite("", Failure.REFUSAL)
    answer = without_thinking(raw)
    if marker and answer.strip():
        marked = _marked(answer, marker)
        if marked is None:
            refused = _REFUSAL.search(answer.strip())
            cut = Failure.TRUNCATED if finish_reason == "length" else Failure.CHATTY
            return ParsedRewrite("", Failure.REFUSAL if refused else cut)
        answer = marked
    line, rest = _first_query_line(answer)
    if not line:
        return ParsedRewrite("", Failure.CHATTY if answer.strip() else Failure.EMPTY)
    repeats = _letters(line) == _letters(question)
    failure = None if repeats else _failure(line, question, finish_reason == "length" and not rest.strip())
    return ParsedRewrite("" if failure else line, failure)


def without_thinking(raw: str) -> str:
    """Return what a model wrote without its reasoning between think tags."""
    return _THINKING.sub("", raw)


def is_refusal(text: str) -> bool:
    """Return whether a text says that its writer cannot, or that context is missing."""
    return _REFUSAL.search(text) is not None


def _marked(answer: str, marker: str) -> str | None:
    """Return everything behind the last marker that begins a line, mark-up aside; None where there is none."""
    begins = re.compile(rf"^[\s>#*_`-]*{re.escape(marker.rstrip(':'))}[*_`]*:", re.IGNORECASE | re.MULTILINE)
    found = list(begins.finditer(answer))
    return answer[found[-1].end() :] if found else None


def _failure(line: str, question: str, cut: bool) -> Failure | None:
    if _REFUSAL.search(line):
        return Failure.REFUSAL
    asks = line.endswith("?") and _QUESTION_START.match(line)
    if _REMARKS.search(line) and not asks and not _REMARKS.search(question):
        return Failure.CHATTY
    if _LEAD_IN.search(line) and "?" not in line:
        return Failure.CHATTY
    words, asked = len(_WORD.findall(line)), len(_WORD.findall(question))
    is_answer = words > MAX_ANSWER_WORDS and "?" not in line
    if words > 2 * asked and (is_answer or words > MAX_QUERY_WORDS):
        return Failure.CHATTY
    if line.endswith(":"):
        return Failure.CHATTY
    if cut:
        return Failure.TRUNCATED
    if words < MIN_WORDS:
        return Failure.TOO_SHORT
    return None


def _first_query_line(answer: str) -> tuple[str, str]:
    """Return the first line with a query in it, cleaned, and everything behind that line; ("", "") when there is none."""
    rest = answer.lstrip()
    while rest:
        line, _, rest = rest.partition("\n")
        line = _cleaned(line)
        if line:
            return line, rest
    return "", ""


def _cleaned(line: str) -> str:
    line = _without_markup(" ".join(line.split()))
    quoted = _QUOTED_END.search(line)
    if quoted and _LABEL_WORDS.search(line[: quoted.start()]) and not _QUESTION_START.match(line):
        return _without_quotes(quoted.group(1))
    return _without_quotes(_without_remark(_NOTE.sub("", _without_label(line))))


def _without_label(line: str) -> str:
    """Remove everything up to the first colon when it introduces the query; a lead-in with nothing behind it leaves ""."""
    for _ in range(_MAX_LABELS):
        head, colon, tail = line.partition(":")
        introduces = colon and len(head.split()) <= _MAX_LABEL_WORDS and _LABEL_WORDS.search(head)
        if not introduces or _QUESTION_START.match(head):
            break
        line = _without_markup(tail)
    return line


def _without_markup(line: str) -> str:
    return line.lstrip(_MARKUP_BEFORE).rstrip(_MARKUP_AFTER)


def _without_remark(line: str) -> str:
    """Remove remarks about the task that follow a first sentence that asks something."""
    asked, *remark = _AFTER_QUESTION.split(line, maxsplit=1)
    about_the_task = remark and (_REMARKS.search(remark[0]) or _REFUSAL.search(remark[0]))
    return asked if about_the_task and not _REMARKS.search(asked) else line


def _without_quotes(line: str) -> str:
    """Remove quotes that enclose the line, or a single stray one at either end; quotes around a part of it stay."""
    line = line.strip()
    if len(line) >= 2 and line[0] in _QUOTES and line[-1] in _QUOTES and not any(mark in line[1:-1] for mark in '"“”«»`'):
        return line[1:-1].strip()
    marks = sum(line.count(mark) for mark in '"“”«»`')
    if marks == 1 and (line[0] in '"“«`' or line[-1] in '"”»`'):
        return line.strip('"“”«»`').strip()
    return line


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
