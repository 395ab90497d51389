"""Reader of QReCC, in its original form and in that of the SCAI-QReCC shared task; a JSON list or JSON lines.

Original (Anantha et al., arXiv 2010.04898): {Conversation_no, Turn_no, Context: [q_1, a_1, ...], Question, Rewrite, Answer,
Answer_URL, Conversation_source}. SCAI: the same with Truth_rewrite, Truth_answer and Truth_passages (ids, which are URLs)
instead; its question file has none of these. `split` takes a Conversation_source: trec, quac or nq.

Protocol: that of SCAI. Passages of Truth_passages have grade 1; a turn without any is unjudged, so measures leave it out:
of 16,451 test turns 8,209 have gold. The original script scores such turns 0 and judges a passage by the overlap of its
text with the answer, which no qrels express; so the original form has no judgements, and can teach but not test. A query id
is "{Conversation_no}_{Turn_no}". Turn numbers of the original form are not always those of the turns' histories (SCAI
corrected them): there the history counts and differences are noted; in the SCAI form a difference is a malformed record.
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


def read_qrecc(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read a QReCC file; a malformed record goes to the quarantine. DataError when it is neither JSON list nor lines."""
    file = _File()
    for row in json_records(uri, "QReCC files"):
        if isinstance(row, BadRow):
            quarantine.add(row)
            continue
        place, record = row
        try:
            file.add(record)
        except RowError as error:
            quarantine.add(BadRow(place, str(error)))
    conversations = file.histories.conversations()
    notes = worded_otherwise_note(file.histories.worded_otherwise)
    if file.renumbered:
        notes.append(f"{file.renumbered} turns have another Turn_no than their Context says; the Context counts")
    return ConversationFile(uri, conversations, file.splits, file.qrels, notes=tuple(notes))


class _File:
    """What is read so far."""

    def __init__(self) -> None:
        self.histories = Histories()
        self.qrels: Qrels = {}
        self.splits: dict[str, str] = {}
        self.renumbered = 0

    def add(self, record: Any) -> None:
        if not isinstance(record, dict):
            raise RowError("is not a JSON object")
        conversation_id, number = identifier(record, "Conversation_no"), turn_number(record, "Turn_no", digits=True)
        if "Question" not in record and "Truth_rewrite" in record:
            raise RowError("has no field 'Question': this is the ground truth alone; take the file that has both")
        original = "Rewrite" in record
        past = exchanges([utterance.strip() for utterance in text_list(record, "Context")])
        depth = len(past) + 1
        if depth != number and not original:
            raise RowError(
                f"turn {number} of conversation {conversation_id!r} needs {2 * number - 2} utterances in 'Context' but has "
                f"{2 * depth - 2}; turns are numbered from 1"
            )
        rewrite, answer = ("Rewrite", "Answer") if original else ("Truth_rewrite", "Truth_answer")
        turn = Turn(
            f"{conversation_id}_{number}",
            depth,
            required_text(record, "Question").strip(),
            optional_text(record, answer).strip(),
            optional_text(record, rewrite).strip(),
        )
        gold = [identifier({"id": passage_id}, "id") for passage_id in text_list(record, "Truth_passages")]
        source = optional_text(record, "Conversation_source")
        self.histories.add(conversation_id, turn, past)
        self.renumbered += depth != number
        self.splits[conversation_id] = source
        if gold:
            self.qrels[turn.query_id] = dict.fromkeys(gold, 1)
