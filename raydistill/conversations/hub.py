"""Conversations out of any Hugging Face data set, streamed through `datasets` with the columns that the source maps.

A data set is `hf://ORGANISATION/NAME` at a revision, or a folder on this machine that `load_dataset` can read (Parquet, JSON
lines, CSV; possibly compressed). Its own code never runs: `datasets` no longer can.

Protocol: what `columns.gold` names has grade 1; a turn without is unjudged and left out of measures, unless the source has
qrels. Ids are kept as they are; where the data set has none, a conversation is known by the number of its row (from 1) and a
query by "{conversation}_{turn}", turns from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raydistill.config import ConversationSource, DatasetPart, TurnColumns
from raydistill.conversations.histories import Histories, exchanges, worded_otherwise_note
from raydistill.conversations.qrels import Qrels
from raydistill.conversations.records import Turn
from raydistill.conversations.rows import BadRow, Quarantine, RowError, identifier, optional_text, required_text, turn_number
from raydistill.conversations.sources import ConversationFile
from raydistill.errors import DataError
from raydistill.storage.files import input_fingerprint
from raydistill.storage.hashing import canonical_json, sha256_hex
from raydistill.storage.local import absolute_path

_HUB = "hf://"
_ROLES = ("role", "from", "speaker")
_TEXTS = ("content", "value", "text")
_IDS = ("passage_id", "id", "_id", "docid", "doc_id", "document_id", "pid")
_USERS = frozenset({"user", "human", "questioner"})
_SYSTEMS = frozenset({"assistant", "agent", "gpt", "answerer", "bot", "model"})
_ASIDE = frozenset({"system", "tool"})


def read_dataset(source: ConversationSource, quarantine: Quarantine) -> ConversationFile:
    """Read the conversations of a Hugging Face data set; a malformed row goes to the quarantine.

    Raises DataError when it cannot be loaded, or lacks a column that is mapped.
    """
    assert source.dataset is not None  # the configuration sees to it
    rows = dataset_rows(source.conversations, source.dataset)
    return conversations_of_rows(rows, source.conversations, source.dataset.columns, quarantine)


def conversations_of_rows(
    rows: Iterable[dict[str, Any]], uri: str, columns: TurnColumns, quarantine: Quarantine
) -> ConversationFile:
    """Return the conversations that the rows of a data set hold; see `read_dataset`."""
    file = _File(columns)
    for number, row in enumerate(rows, start=1):
        if number == 1:
            _require_columns(uri, columns, row)
        try:
            file.add(row, number)
        except RowError as error:
            quarantine.add(BadRow(f"{uri}: row {number}", str(error)))
    conversations = file.histories.conversations()
    notes = worded_otherwise_note(file.histories.worded_otherwise)
    return ConversationFile(uri, conversations, qrels=file.qrels, notes=tuple(notes))


def dataset_rows(uri: str, settings: DatasetPart) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, one in memory at a time. Raises DataError when it cannot be loaded or read."""
    import datasets
    import pyarrow as pa

    path = uri[len(_HUB) :] if uri.startswith(_HUB) else str(_folder(uri))
    try:
        rows = datasets.load_dataset(
            path, name=settings.subset, split=settings.split, revision=settings.revision, streaming=True
        )
        yield from rows
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{uri}: split {settings.split!r} cannot be read as a Hugging Face data set ({reason}); check its name, "
            "dataset.split, dataset.subset and dataset.revision"
        ) from None


def dataset_fingerprint(uri: str, settings: DatasetPart) -> str:
    """Return the identity of what is read: revision and names on the hub, the files' bytes in a folder."""
    where = settings.model_dump(mode="json", include={"subset", "split", "revision"})
    if uri.startswith(_HUB):
        return sha256_hex(canonical_json([uri, where]).encode())
    files = sorted(path for path in _folder(uri).rglob("*") if path.is_file() and not path.name.startswith("."))
    return sha256_hex(canonical_json([input_fingerprint([str(path) for path in files]), where]).encode())


def _folder(uri: str) -> Path:
    if uri.startswith("s3://") or not (folder := absolute_path(uri)).is_dir():
        raise DataError(f"{uri}: is no folder on this machine; a data set is a folder, or hf://ORGANISATION/NAME")
    return folder


def _require_columns(uri: str, columns: TurnColumns, row: Mapping[str, Any]) -> None:
    for field, name in columns.model_dump(exclude_none=True).items():
        if name not in row:
            raise DataError(
                f"{uri}: has no column {name!r}, which dataset.columns.{field} names; its columns are {', '.join(row)}"
            )


class _File:
    """What is read so far."""

    def __init__(self, columns: TurnColumns) -> None:
        self.histories = Histories()
        self.qrels: Qrels = {}
        self._columns = columns
        self._said: dict[str, list[tuple[str, str]]] = {}

    def add(self, row: dict[str, Any], number: int) -> None:
        """Add a row. Raises RowError, and then nothing of it is added."""
        columns = self._columns
        conversation = identifier(row, columns.conversation) if columns.conversation else str(number)
        gold = _gold(row.get(columns.gold)) if columns.gold else []
        added = self._conversation(row, conversation) if columns.messages else self._turn(row, conversation)
        if gold:
            self.qrels[added] = dict.fromkeys(gold, 1)

    def _turn(self, row: dict[str, Any], conversation: str) -> str:
        columns = self._columns
        question = required_text(row, columns.question or "").strip()
        past = _pairs(row.get(columns.history)) if columns.history else list(self._said.get(conversation, ()))
        depth = len(past) + 1
        if columns.turn and turn_number(row, columns.turn, digits=True) != depth:
            raise RowError(
                f"is turn {row[columns.turn]!r} of conversation {conversation!r}, but {depth - 1} exchanges precede it"
            )
        answer = optional_text(row, columns.answer).strip() if columns.answer else ""
        rewrite = optional_text(row, columns.rewrite).strip() if columns.rewrite else ""
        topic = optional_text(row, columns.topic).strip() if columns.topic else ""
        query_id = identifier(row, columns.query_id) if columns.query_id else f"{conversation}_{depth}"
        self.histories.add(conversation, Turn(query_id, depth, question, answer, rewrite, topic), past)
        if not columns.history:
            self._said.setdefault(conversation, []).append((question, answer))
        return query_id

    def _conversation(self, row: dict[str, Any], conversation: str) -> str:
        """Add a conversation that is a row, and return the id of its last question."""
        if conversation in self._said:
            raise RowError(f"conversation {conversation!r} is there twice")
        pairs = _pairs(row.get(self._columns.messages or ""), open_end=True)
        if not pairs:
            raise RowError(f"conversation {conversation!r} has no question")
        self._said[conversation] = pairs
        for depth, (question, answer) in enumerate(pairs, start=1):
            self.histories.add(conversation, Turn(f"{conversation}_{depth}", depth, question, answer), pairs[: depth - 1])
        return f"{conversation}_{len(pairs)}"


def _pairs(value: Any, open_end: bool = False) -> list[tuple[str, str]]:
    """Return utterances (strings by turns, or objects with a role and a text) as (question, answer) pairs. Raises RowError.

    Args:
        open_end: whether the last question may lack an answer, which is then "".
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("what was said must be a list of strings or of messages")
    if all(isinstance(each, str) for each in value):
        said = [optional_text({"said": each}, "said").strip() for each in value]
        return exchanges([*said, ""] if open_end and len(said) % 2 else said)
    pairs: list[tuple[str, str]] = []
    for number, message in enumerate(value, start=1):
        role, text = _message(message, number)
        if role in _USERS:
            pairs.append((text, ""))
        elif role in _SYSTEMS and pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]} {text}".strip())
        elif role not in _ASIDE:
            raise RowError(f"message {number} is by {role!r}; roles are user and assistant, and a user begins")
    if any(not question for question, _ in pairs):
        raise RowError("a message of the user is empty")
    return pairs


def _message(message: Any, number: int) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise RowError(f"message {number} is neither a string nor an object with a role and a text")
    role = next((name for name in _ROLES if name in message), "role")
    text = next((name for name in _TEXTS if name in message), "content")
    return optional_text(message, role).strip().lower(), optional_text(message, text).strip()


def _gold(value: Any) -> list[str]:
    """Return passage ids: of one id, a list of ids, or (a list of) objects with an id."""
    if value is None or value == "":
        return []
    found = []
    for each in value if isinstance(value, list) else [value]:
        name = next((name for name in _IDS if name in each), "id") if isinstance(each, dict) else "id"
        found.append(identifier(each if isinstance(each, dict) else {"id": each}, name))
    return found
