"""Reader of TopiOCQA in both forms of its release, told apart record by record; a file is a JSON list or JSON lines.

Retriever files (Adlakha et al., arXiv 2110.00768, "all_history"): {conv_id, turn_id (from 1), question, answers,
positive_ctxs: [{passage_id, title, text}], ...}; `question` is q_1 [SEP] a_1 [SEP] ... [SEP] q_n, oldest first. The
original release: {Conversation_no, Turn_no, Question, Answer, Context: [q_1, a_1, ...], Gold_passage: {id, title, text}}.

Protocol: gold passages have grade 1, everything else counts as not relevant; every turn has one, and a turn without is kept
unjudged. Passage ids are kept as they are: they begin at 1 in all files and in `full_wiki_segments.tsv`, though some code
subtracts one; `wiki:`, which retrieval code puts before them, is taken off. The text of gold passages is kept, and compared
with the corpus. A query id is "{conv_id}_{turn_id}". A turn that later histories show but that has no record of its own is
part of its conversation, without a judgement; those before the first turn with a record are history only. A turn's topic, as
the paper has it, is the Wikipedia page that answers it: `Topic`, or the title of the first gold passage up to its section.
"""

from __future__ import annotations

from typing import Any

from raydistill.conversations.histories import Histories, exchanges, worded_otherwise_note
from raydistill.conversations.qrels import Qrels
from raydistill.conversations.records import Turn
from raydistill.conversations.rows import (
    BadRow,
    Quarantine,
    RowError,
    identifier,
    json_records,
    optional_text,
    required_text,
    text_list,
    turn_number,
)
from raydistill.conversations.sources import ConversationFile

_SEPARATOR = "[SEP]"
_ID_PREFIX = "wiki:"


def read_topiocqa(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read a TopiOCQA file; a malformed record goes to the quarantine. DataError when it holds no records at all."""
    histories, qrels, texts = Histories(), Qrels(), dict[str, str]()
    for row in json_records(uri, "TopiOCQA files"):
        if isinstance(row, BadRow):
            quarantine.add(row)
            continue
        place, record = row
        try:
            _add(record, histories, qrels, texts)
        except RowError as error:
            quarantine.add(BadRow(place, str(error)))
    conversations = histories.conversations()
    notes = worded_otherwise_note(histories.worded_otherwise)
    return ConversationFile(uri, conversations, qrels=qrels, gold_texts=texts, notes=tuple(notes))


def _add(record: Any, histories: Histories, qrels: Qrels, texts: dict[str, str]) -> None:
    if not isinstance(record, dict):
        raise RowError("is not a JSON object")
    original = "Conversation_no" in record
    conversation_id = identifier(record, "Conversation_no" if original else "conv_id")
    depth = turn_number(record, "Turn_no" if original else "turn_id", digits=True)
    said = _said(record, conversation_id, depth, original)
    gold = _gold(record.get("Gold_passage") and [record["Gold_passage"]], "Gold_passage", "id") if original else None
    gold = _gold(record.get("positive_ctxs"), "positive_ctxs", "passage_id") if gold is None else gold
    answer = optional_text(record, "Answer").strip() if original else _first_answer(record)
    turn = Turn(f"{conversation_id}_{depth}", depth, said[-1], answer, topic=_topic(record, original))
    histories.add(conversation_id, turn, exchanges(said[:-1]))
    if gold:
        qrels[turn.query_id] = dict.fromkeys(gold, 1)
    texts.update((passage_id, text) for passage_id, text in gold.items() if text)


def _said(record: dict[str, Any], conversation_id: str, depth: int, original: bool) -> list[str]:
    """Return everything that was said up to the record's question, oldest first."""
    if original:
        said = [*text_list(record, "Context"), required_text(record, "Question")]
        form = "in 'Context' and 'Question'"
    else:
        said = required_text(record, "question").split(_SEPARATOR)
        form = f"joined by {_SEPARATOR} in 'question'"
    said = [utterance.strip() for utterance in said]
    if len(said) != 2 * depth - 1:
        raise RowError(
            f"turn {depth} of conversation {conversation_id!r} needs {2 * depth - 1} utterances {form} but has "
            f"{len(said)}; use the all_history variant of the file, whose turns are numbered from 1"
        )
    if not all(said[0::2]):
        raise RowError(f"turn {depth} of conversation {conversation_id!r} has an empty question")
    return said


def _gold(contexts: Any, field: str, id_field: str) -> dict[str, str]:
    """Return gold passages: id -> text ("" when the file does not hold it)."""
    contexts = contexts or []
    if not isinstance(contexts, list) or not all(isinstance(context, dict) for context in contexts):
        raise RowError(f"field {field!r} must hold objects")
    return {
        identifier(context, id_field).removeprefix(_ID_PREFIX): optional_text(context, "text").strip()
        for context in contexts
    }


def _topic(record: dict[str, Any], original: bool) -> str:
    if original:
        return optional_text(record, "Topic").strip()
    contexts = record.get("positive_ctxs")
    title = optional_text(contexts[0], "title") if isinstance(contexts, list) and contexts else ""
    return title.split(_SEPARATOR)[0].strip()


def _first_answer(record: dict[str, Any]) -> str:
    answers = record.get("answers")
    if isinstance(answers, list) and answers and isinstance(answers[0], str):
        return optional_text({"answers": answers[0]}, "answers").strip()
    return ""
