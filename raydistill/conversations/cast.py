"""Reader of CAsT topics of 2019 to 2022: one JSON list of topics, each turn with its human rewrite where the file has it.

Formats (TREC CAsT; Dalton et al., arXiv 2003.13624): records {number, turn: [...]}. Turns of 2019 to 2021 are {number,
raw_utterance, manual_rewritten_utterance (not 2019), passage (2021: the text answered with)}; answers that are only named
by a passage id stay unknown. Topics of 2022 are trees: {number, parent, participant: User or System, utterance or response};
or flattened, one record a path, so that paths repeat what they share. Both become one conversation a path in which shared
turns are history and are asked only once. A query id is "{topic}_{turn}", as in the qrels ("132_2-1" in 2022).

Protocol: judgements are those of NIST alone, canonical results and provenance name passages of licensed collections and give
none. Turns without a judgement are left out of measures (2020: 208 of 216 have one). Binary measures of 2020 count grades
from 2, so ask for `R(rel=2)@100`. Qrels of 2021 judge documents, not passages. The human rewrites of 2019 are a file of
their own (TSV), which a recorded teacher reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from raydistill.conversations.records import Conversation, Turn
from raydistill.conversations.rows import BadRow, Quarantine, RowError, identifier, json_list, spoken_text
from raydistill.conversations.sources import ConversationFile

_USER, _SYSTEM = "User", "System"


def read_cast(uri: str, quarantine: Quarantine) -> ConversationFile:
    """Read a CAsT topic file; a record (a topic, a tree, or one flattened path) that is malformed is quarantined whole."""
    conversations: list[Conversation] = []
    asked: dict[str, str] = {}
    left_out: set[str] = set()
    seen: dict[str, int] = {}
    for position, record in enumerate(json_list(uri, "CAsT topic files"), start=1):
        try:
            earlier = seen.setdefault(json.dumps(record, sort_keys=True), position)
            if earlier != position:
                raise RowError(f"is record {earlier} again")
            found, questions = _conversations(record, asked)
        except RowError as error:
            quarantine.add(BadRow(f"{uri}: record {position}", str(error)))
            left_out.update(_readable_ids(record))
            continue
        conversations += found
        asked |= questions
    return ConversationFile(uri, tuple(conversations), left_out=frozenset(left_out - asked.keys()))


def _conversations(record: Any, asked: dict[str, str]) -> tuple[list[Conversation], dict[str, str]]:
    """Return the conversations of a record, and its questions by query id.

    Args:
        record: a topic.
        asked: the questions of earlier records, by query id.
    """
    if not isinstance(record, dict):
        raise RowError("is not a JSON object")
    topic = identifier(record, "number")
    turns = record.get("turn")
    if not isinstance(turns, list) or not turns:
        raise RowError(f"topic {topic!r} has no turns (field 'turn' must be a list with at least one)")
    try:
        if not all(isinstance(turn, dict) for turn in turns):
            raise RowError("a turn is not a JSON object")
        paths = _tree_paths(topic, turns) if any("participant" in turn for turn in turns) else [_path(topic, turns)]
        return _asked_once(topic, paths, asked)
    except RowError as error:
        raise RowError(f"topic {topic!r}: {error}") from None


def _path(topic: str, turns: list[dict[str, Any]]) -> list[Turn]:
    read: list[Turn] = []
    for turn in turns:
        number = identifier(turn, "number")
        if any(earlier.query_id == f"{topic}_{number}" for earlier in read):
            raise RowError(f"turn {number!r} is there twice")
        answer = spoken_text(turn, "passage") or spoken_text(turn, "response")
        read.append(replace(_question(topic, number, turn, depth=len(read) + 1), answer=answer))
    return read


def _question(topic: str, number: str, turn: dict[str, Any], depth: int) -> Turn:
    question = spoken_text(turn, "raw_utterance") or spoken_text(turn, "utterance")
    if not question:
        raise RowError(f"turn {number!r} has no utterance")
    return Turn(f"{topic}_{number}", depth, question, "", spoken_text(turn, "manual_rewritten_utterance"))


@dataclass(frozen=True, slots=True)
class _Node:
    """A turn of a tree: what one participant said, and to what."""

    number: str
    parent: str | None
    record: dict[str, Any]


def _tree_paths(topic: str, turns: list[dict[str, Any]]) -> Iterator[list[Turn]]:
    """Yield the paths from the root to every leaf, in the order of the leaves."""
    nodes: dict[str, _Node] = {}
    for turn in turns:
        number = identifier(turn, "number")
        if number in nodes:
            raise RowError(f"turn {number!r} is there twice")
        parent = identifier(turn, "parent") if turn.get("parent") is not None else None
        if parent is not None and parent not in nodes:
            raise RowError(f"turn {number!r} answers {parent!r}, which does not come before it")
        nodes[number] = _Node(number, parent, turn)
    parents = {node.parent for node in nodes.values()}
    for leaf in nodes.values():
        if leaf.number not in parents:
            yield _exchanges(topic, list(_ancestry(leaf, nodes))[::-1])


def _ancestry(leaf: _Node, nodes: dict[str, _Node]) -> Iterator[_Node]:
    node: _Node | None = leaf
    while node is not None:
        yield node
        node = nodes[node.parent] if node.parent is not None else None


def _exchanges(topic: str, path: list[_Node]) -> list[Turn]:
    """Return what was said along a path as exchanges of a question and what was answered."""
    turns: list[Turn] = []
    for node in path:
        participant = node.record.get("participant")
        if participant == _USER:
            turns.append(_question(topic, node.number, node.record, depth=len(turns) + 1))
        elif participant != _SYSTEM:
            raise RowError(f"turn {node.number!r} is by {participant!r}; it must be {_USER} or {_SYSTEM}")
        elif not turns or turns[-1].answer:
            raise RowError(f"turn {node.number!r} of the system answers no question")
        else:
            turns[-1] = replace(turns[-1], answer=spoken_text(node.record, "response"))
    return turns


def _asked_once(
    topic: str, paths: Iterator[list[Turn]] | list[list[Turn]], asked: dict[str, str]
) -> tuple[list[Conversation], dict[str, str]]:
    """Return the paths as conversations in which every turn is asked once, and the questions by query id.

    A path that asks nothing new (its last answer alone differs from another's) gives no conversation.
    """
    known = dict(asked)
    own: dict[str, str] = {}
    conversations = []
    for turns in paths:
        shared = next((n for n, turn in enumerate(turns) if turn.query_id not in known), len(turns))
        for turn in turns[:shared]:
            if known[turn.query_id] != turn.question:
                raise RowError(f"query id {turn.query_id!r} names another question in an earlier path")
        for turn in turns[shared:]:
            if turn.query_id in known:
                raise RowError(f"query id {turn.query_id!r} is of an earlier path, which goes another way")
        own |= {turn.query_id: turn.question for turn in turns[shared:]}
        known |= own
        if shared < len(turns):
            conversations.append(Conversation(topic, tuple(turns), asked_before=shared))
    return conversations, own


def _readable_ids(record: Any) -> set[str]:
    """Return the query ids of a malformed record, as far as they can be read."""
    if not isinstance(record, dict):
        return set()
    turns = record.get("turn")
    named = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return {f"{record.get('number')}_{turn.get('number')}" for turn in named}
