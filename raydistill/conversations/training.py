"""The training conversations: several sources as one set, and what is held out of them for validation.

A turn is known by its query id everywhere downstream (recorded rewrites, judgements, candidates), so ids are unique over
all training sources; a source whose file reuses another's ids is read with `prefix_ids`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from raydistill.config import ConversationSource, DataConfig, PassageSource, ValidationShare
from raydistill.conversations.pseudo import read_passage_conversations
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import Conversation, ConversationSet, Turn
from raydistill.errors import DataError
from raydistill.storage.hashing import canonical_json, sha256_hex


def read_training(data: DataConfig) -> tuple[ConversationSet, ConversationSet | None]:
    """Return the conversations to train on, of all sources in their order, and those of validation (None without any).

    Held-out conversations are not trained on, nor is a training conversation that holds a turn of one of them, whatever
    its ids (see `turn_identities`).

    Raises:
        DataError: a query id in two training sources; nothing to hold out or nothing left; and as `read_conversations`.
        StorageError: a file that does not exist or cannot be read.
    """
    found = _merged(data.train, [_read(source, data) for source in data.train])
    validation = data.validation
    if validation is None:
        return found, None
    if isinstance(validation, ValidationShare):
        made = {source.name or "" for source in data.train if isinstance(source, PassageSource)}
        return _share_held_out(found, validation, made)
    own = read_conversations(validation, data.reader, data.max_bad_rows)
    shares = _sharing(own.conversations)
    held_out = {_group(each) for each in found.conversations if shares(each)}
    return _chosen(found, lambda each: _group(each) not in held_out, ["without", own.fingerprint]), own


def turn_identities(conversation: Conversation) -> Iterator[tuple[Turn, set[tuple[str, str]]]]:
    """Yield every turn with what it is recognised by in another set of conversations; equal in one of them is the same.

    By query id and question; and by all that the user said so far, white space and case apart, from the second turn on
    (first questions are often alike by chance). So a conversation is recognised under other ids too, as `prefix_ids`
    gives it.
    """
    digest = hashlib.sha256()
    for position, turn in enumerate(conversation.turns):
        digest.update(" ".join(turn.question.casefold().split()).encode() + b"\0")
        yield turn, {(turn.query_id, turn.question), *([("", digest.hexdigest())] if position else [])}


def _sharing(conversations: Iterable[Conversation]) -> Callable[[Conversation], bool]:
    """Return whether a conversation has a turn that one of these has."""
    known = {identity for each in conversations for _, own in turn_identities(each) for identity in own}
    return lambda conversation: any(not known.isdisjoint(own) for _, own in turn_identities(conversation))


def _read(source: ConversationSource | PassageSource, data: DataConfig) -> ConversationSet:
    if isinstance(source, PassageSource):
        return read_passage_conversations(source, data)
    return read_conversations(source, data.reader, data.max_bad_rows)


def _merged(sources: Sequence[ConversationSource | PassageSource], sets: Sequence[ConversationSet]) -> ConversationSet:
    if len(sets) == 1:
        return sets[0]
    owner: dict[str, str] = {}
    for source, found in zip(sources, sets, strict=True):
        for query in found.queries():
            other = owner.setdefault(query.query_id, str(source.name))
            if other != source.name:
                raise DataError(
                    f"data.train: query id {query.query_id!r} is in source {other!r} and in source {source.name!r}, and a "
                    f"turn is known by its id; leave one of the two out, or set prefix_ids: true in source {source.name!r}"
                )
    return ConversationSet(
        conversations=tuple(conversation for found in sets for conversation in found.conversations),
        qrels={query_id: grades for found in sets for query_id, grades in found.qrels.items()},
        fingerprint=_fingerprint([found.fingerprint for found in sets]),
        quarantined=tuple(row for found in sets for row in found.quarantined),
        notes=tuple(note for found in sets for note in found.notes),
        gold_texts={passage_id: text for found in sets for passage_id, text in found.gold_texts.items()},
    )


def _share_held_out(
    found: ConversationSet, validation: ValidationShare, made: set[str]
) -> tuple[ConversationSet, ConversationSet]:
    """Split off judged conversations, a fold of them in the order of their hashes; paths of one tree stay together.

    Args:
        found: all training conversations.
        validation: which share of the judged conversations that are not made of passages; at least one is held out.
        made: names of the sources that are made of passages.
    """
    judged = {query_id for query_id, grades in found.qrels.items() if any(grade > 0 for grade in grades.values())}
    groups = {
        _group(each)
        for each in found.conversations
        if each.source not in made and any(turn.query_id in judged for turn in each.asked)
    }
    if not groups:
        raise DataError(
            "data.validation: no training conversation has a judged turn, so no share of them can be held out; add qrels to "
            "a training source, or name a validation source"
        )
    share, fold = validation.share, validation.fold
    first, last = (round(number * share * len(groups)) for number in (fold, fold + 1))
    # The first fold has one conversation at least, which the next ones must not have too.
    first, last = (max(1, first), last) if fold else (0, max(1, last))
    held_out = set(sorted(groups, key=_group_hash)[first:last])
    if not held_out:
        raise DataError(
            f"data.validation.fold is {fold}, and the {len(groups)} judged training conversations end before it; raise share"
        )
    shares = _sharing(each for each in found.conversations if _group(each) in held_out)
    left_out = {_group(each) for each in found.conversations if shares(each)}
    if all(_group(each) in left_out for each in found.conversations):
        raise DataError(
            f"data.validation.share is {share:g}, which holds out all of the {len(groups)} training conversations; lower "
            "it, or add conversations"
        )
    label = ["share", share, *(["fold", fold] if fold else [])]
    return (
        _chosen(found, lambda each: _group(each) not in left_out, [*label, "train"]),
        replace(_chosen(found, lambda each: _group(each) in held_out, [*label, "validation"]), quarantined=(), notes=()),
    )


def _chosen(found: ConversationSet, is_chosen: Callable[[Conversation], bool], label: Sequence[object]) -> ConversationSet:
    conversations = tuple(filter(is_chosen, found.conversations))
    if not conversations:
        raise DataError("data.validation holds every training conversation, so nothing is left to train on; name another")
    query_ids = {turn.query_id for each in conversations for turn in each.asked}
    return ConversationSet(
        conversations,
        {query_id: grades for query_id, grades in found.qrels.items() if query_id in query_ids},
        _fingerprint([found.fingerprint, *label]),
        found.quarantined,
        found.notes,
        found.gold_texts,
    )


def _group(conversation: Conversation) -> tuple[str, str]:
    return conversation.source, conversation.conversation_id


def _group_hash(group: tuple[str, str]) -> str:
    source, conversation_id = group
    return hashlib.sha256(conversation_id.encode()).hexdigest() + source


def _fingerprint(identity: Sequence[object]) -> str:
    return sha256_hex(canonical_json(list(identity)).encode())
