"""Reader of TopiOCQA retriever files: one JSON list of turns, each with its whole history and its gold passages.

Format (Adlakha et al., arXiv 2110.00768, retriever data, "all_history"): records {conv_id, turn_id (from 1), question,
answers, positive_ctxs: [{passage_id, title, text}], ...}; `question` is q_1 [SEP] a_1 [SEP] ... [SEP] q_n, oldest first.
Passage ids are kept as they are: they begin at 1 there and in `full_wiki_segments.tsv`. A query id is "{conv_id}_{turn_id}".
A turn that later histories show but that has no record of its own is part of its conversation, without a judgement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raydistill.conversations.qrels import Qrels
from raydistill.conversations.records import Conversation, Turn
from raydistill.conversations.rows import BadRow, Quarantine, RowError, identifier, json_list, optional_text, required_text
from raydistill.conversations.sources import ConversationFile

_SEPARATOR = "[SEP]"


@dataclass(slots=True)
class _Draft:
    """What is known of a conversation while its records are read; keys are depths, from 1."""

    questions: dict[int, str] = field(default_factory=dict)
    answers: dict[int, str] = field(default_factory=dict)
    past_questions: dict[int, str] = field(default_factory=dict)
    past_answers: dict[int, str] = field(default_factory=dict)


def read_topiocqa(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read a TopiOCQA retriever file; a malformed record goes to the quarantine. DataError when it is no JSON list."""
    drafts: dict[str, _Draft] = {}
    qrels: Qrels = {}
    for number, record in enumerate(json_list(uri, "TopiOCQA retriever files"), start=1):
        try:
            _add(record, drafts, qrels)
        except RowError as error:
            quarantine.add(BadRow(f"{uri}: record {number}", str(error)))
    conversations = tuple(_conversation(conversation_id, draft) for conversation_id, draft in drafts.items())
    return ConversationFile(uri, conversations, qrels=qrels)


def _add(record: Any, drafts: dict[str, _Draft], qrels: Qrels) -> None:
    if not isinstance(record, dict):
        raise RowError("is not a JSON object")
    conversation_id, depth = identifier(record, "conv_id"), _depth(record)
    pieces = [piece.strip() for piece in required_text(record, "question").split(_SEPARATOR)]
    if len(pieces) != 2 * depth - 1:
        raise RowError(
            f"turn {depth} of conversation {conversation_id!r} needs {2 * depth - 1} utterances joined by {_SEPARATOR} "
            f"in 'question' but has {len(pieces)}; use the all_history variant of the file"
        )
    if not all(pieces[0::2]):
        raise RowError(f"turn {depth} of conversation {conversation_id!r} has an empty question")
    gold = _gold(record)
    draft = drafts.get(conversation_id) or _Draft()
    if depth in draft.questions:
        raise RowError(f"query id '{conversation_id}_{depth}' is used twice")
    drafts[conversation_id] = draft
    draft.questions[depth] = pieces[-1]
    draft.answers[depth] = _own_answer(record)
    for past, (asked, answered) in enumerate(zip(pieces[0:-1:2], pieces[1::2], strict=True), start=1):
        draft.past_questions[past] = asked
        draft.past_answers[past] = answered
    if gold:
        qrels[f"{conversation_id}_{depth}"] = gold


def _depth(record: dict[str, Any]) -> int:
    text = identifier(record, "turn_id")
    if not text.isdecimal() or int(text) < 1:
        raise RowError(f"turn_id must be an integer from 1, not {text!r}")
    return int(text)


def _gold(record: dict[str, Any]) -> dict[str, int]:
    contexts = record.get("positive_ctxs") or []
    if not isinstance(contexts, list) or not all(isinstance(context, dict) for context in contexts):
        raise RowError("field 'positive_ctxs' must be a list of objects")
    return {identifier(context, "passage_id"): 1 for context in contexts}


def _own_answer(record: dict[str, Any]) -> str:
    answers = record.get("answers")
    if isinstance(answers, list) and answers and isinstance(answers[0], str):
        return optional_text({"answers": answers[0]}, "answers").strip()
    return ""


def _conversation(conversation_id: str, draft: _Draft) -> Conversation:
    # A later history tells what was really said in the conversation; the record's own answer stands in for the last turn.
    questions = {**draft.past_questions, **draft.questions}
    answers = {**draft.answers, **draft.past_answers}
    turns = (
        Turn(f"{conversation_id}_{depth}", depth, questions[depth], answers.get(depth, "")) for depth in sorted(questions)
    )
    return Conversation(conversation_id, tuple(turns))
