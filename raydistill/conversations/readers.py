"""The way from one conversation source of the configuration to checked records; one module beside this one a file format.

How several sources become the training conversations is in `training`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

from raydistill.config import ConversationSource
from raydistill.conversations.cast import read_cast
from raydistill.conversations.hub import dataset_fingerprint, read_dataset
from raydistill.conversations.ikat import read_ikat
from raydistill.conversations.mtrag import read_mtrag
from raydistill.conversations.mtrag_tasks import read_mtrag_tasks
from raydistill.conversations.prepared import read_prepared
from raydistill.conversations.qrecc import read_qrecc
from raydistill.conversations.qrels import Qrels, add_judgement, judgement_rows
from raydistill.conversations.queries import read_beir, read_trec_topics, read_tsv_queries
from raydistill.conversations.records import Conversation, ConversationSet, Turn
from raydistill.conversations.releases import release_note, require_release
from raydistill.conversations.rows import BadRow, Quarantine
from raydistill.conversations.sources import ConversationFile
from raydistill.conversations.topiocqa import read_topiocqa
from raydistill.errors import DataError
from raydistill.storage.files import input_fingerprint

READERS: dict[str, Callable[[str, Quarantine], ConversationFile]] = {
    "mtrag": read_mtrag,
    "mtrag-tasks": read_mtrag_tasks,
    "topiocqa": read_topiocqa,
    "qrecc": read_qrecc,
    "cast": read_cast,
    "ikat": read_ikat,
    "beir": read_beir,
    "tsv": read_tsv_queries,
    "trec": read_trec_topics,
    "prepared": read_prepared,
}
_FORMAT_VERSION = 2


def read_conversations(source: ConversationSource, reader: str, max_bad_rows: int) -> ConversationSet:
    """Read and check a source: conversations in file order, judgements of their turns, and the rows left out.

    Args:
        source: what to read; its own reader counts before `reader`, its name is kept with every conversation.
        reader: format of a source that names none.
        max_bad_rows: malformed rows that may be left out.

    A malformed conversation, a duplicate id, and a judgement of a query that the whole file (before the split filter) does
    not hold are quarantined. Judgements of conversations that were quarantined are dropped without being counted again.

    Raises:
        DataError: more than `max_bad_rows` malformed rows, nothing left to read, or an unknown reader; names file and line.
        StorageError: a file that does not exist or cannot be read.
    """
    reader = source.reader or reader
    file, quarantine = read_whole(source, reader, max_bad_rows)
    if source.persona:
        file = _with_persona(file)
    notes = file_notes(file, reader, source)
    kept = _of_split(file, source)
    query_ids = {turn.query_id for conversation in kept for turn in conversation.turns}
    prefix = f"{source.name}:" if source.prefix_ids else ""
    return ConversationSet(
        conversations=tuple(_prefixed(one, source.name or "", prefix) for one in kept),
        qrels={f"{prefix}{query_id}": grades for query_id, grades in file.qrels.items() if query_id in query_ids},
        fingerprint=source_fingerprint(source, reader),
        quarantined=tuple(quarantine.rows),
        notes=notes,
        gold_texts=file.gold_texts,
    )


def read_whole(source: ConversationSource, reader: str, max_bad_rows: int) -> tuple[ConversationFile, Quarantine]:
    """Return all that a source holds, whatever its split, name and persona settings; see `read_conversations`."""
    quarantine = Quarantine(max_bad_rows)
    if source.dataset is not None:
        file = read_dataset(source, quarantine)
    elif reader in READERS:
        file = READERS[reader](source.conversations, quarantine)
    else:
        known = ", ".join(sorted(READERS))
        raise DataError(
            f"there is no conversation reader {reader!r}; data.reader can be {known}; or give a source "
            "reader: huggingface and a section dataset"
        )
    if not file.conversations:
        empty = "no conversation" if not quarantine.rows else "no usable conversation"
        raise DataError(f"{file.uri}: holds {empty}; check the path and data.reader")
    if source.qrels is not None:
        file = replace(file, qrels=_judgements(source.qrels, file, quarantine), gold_texts={})
    if source.judged_only:
        judged = [one for one in file.conversations if any(file.qrels.get(turn.query_id) for turn in one.asked)]
        if not judged:
            raise DataError(f"{file.uri}: judged_only is set, and no turn has a judgement; check qrels, or leave it out")
        file = replace(file, conversations=tuple(judged))
    return file, quarantine


def file_notes(file: ConversationFile, reader: str, source: ConversationSource) -> tuple[str, ...]:
    """Return the sentences that the whole file deserves. Raises DataError when it is not the release that was asked for."""
    conversations = len({one.conversation_id for one in file.conversations})
    queries = [turn.query_id for one in file.conversations for turn in one.asked]
    judged = sum(bool(file.qrels.get(query_id)) for query_id in queries)
    if source.release is not None:
        require_release(source.release, file.uri, conversations, len(queries), judged)
    note = release_note(reader, conversations, len(queries), judged)
    return tuple(f"{file.uri}: {each}" for each in (*file.notes, *([note] if note else [])))


def _with_persona(file: ConversationFile) -> ConversationFile:
    """Put what is known of the user before each conversation, as what the user said first; it is never asked."""
    if not any(one.facts for one in file.conversations):
        raise DataError(f"{file.uri}: persona needs the facts of iKAT topics, which this file does not have; leave it out")
    conversations = []
    for one in file.conversations:
        facts = " ".join(one.facts)
        known = (Turn(f"{one.conversation_id}_persona", 0, facts),) if facts else ()
        conversations.append(replace(one, turns=(*known, *one.turns), asked_before=len(known)))
    return replace(file, conversations=tuple(conversations))


def _prefixed(conversation: Conversation, source: str, prefix: str) -> Conversation:
    turns = tuple(replace(turn, query_id=f"{prefix}{turn.query_id}") for turn in conversation.turns)
    return replace(conversation, conversation_id=f"{prefix}{conversation.conversation_id}", turns=turns, source=source)


def _judgements(uri: str, file: ConversationFile, quarantine: Quarantine) -> Qrels:
    known = {turn.query_id for conversation in file.conversations for turn in conversation.turns}
    qrels: Qrels = {}
    for row in judgement_rows(uri):
        if isinstance(row, BadRow):
            quarantine.add(row)
        elif row.query_id in known:
            contradiction = add_judgement(qrels, row)
            if contradiction:
                quarantine.add(contradiction)
        elif row.query_id not in file.left_out:
            quarantine.add(BadRow(row.place, f"judges query {row.query_id!r}, which {file.uri} does not hold"))
    return qrels


def _of_split(file: ConversationFile, source: ConversationSource) -> list[Conversation]:
    if source.split is None:
        return list(file.conversations)
    kept = [one for one in file.conversations if file.splits.get(one.conversation_id) == source.split]
    if not kept:
        found = sorted({split for split in file.splits.values() if split})
        known = f"its splits are {', '.join(found)}" if found else "none of its records has a split; leave split out"
        raise DataError(f"{file.uri}: no conversation has split {source.split!r}; {known}")
    return kept


def source_fingerprint(source: ConversationSource, reader: str) -> str:
    """Return the identity of what a source gives: its files' content and the settings that change what is read of them."""
    uri, dataset = source.conversations, source.dataset
    content = input_fingerprint([uri]) if dataset is None else dataset_fingerprint(uri, dataset)
    settings = {
        "format": _FORMAT_VERSION,
        "reader": reader,
        "split": source.split,
        "persona": source.persona,
        "judged_only": source.judged_only,
        "name": source.name,
        "prefix_ids": source.prefix_ids,
        "columns": None if dataset is None else dataset.columns.model_dump(),
        "conversations": content,
        "qrels": None if source.qrels is None else input_fingerprint([source.qrels]),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
