"""What a document encoder is trained on, as values: turns with recorded scores, and passages' own sentences.

A training query is a text with passages and, where another system recorded them, its scores. Finding further passages for
them and storing them on Ray lives in `document_mining`; drawing batches in `document_stream`. Nothing here computes a
vector.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raydistill.config import QueryForm
from raydistill.conversations.records import ConversationalQuery, ConversationSet, Passage
from raydistill.conversations.text import user_turns_text
from raydistill.errors import DataError

Rankings = Mapping[str, Sequence[tuple[str, float]]]

_SENTENCE_END = re.compile(r"(?<=[.!?])[\s\"')\]]+")
_FEWEST_WORDS = 5
_MOST_WORDS = 40
_OWN_FORMS = ("sentence", "title_sentence")


@dataclass(frozen=True)
class RecordedQuery:
    """A training turn as one recorded run saw it.

    Attributes:
        query_id: of the turn; text: the form of it that the run was made with.
        gold: ids of the passages judged relevant.
        scores: passage id -> the run's score, for the passages it lists.
    """

    query_id: str
    text: str
    gold: tuple[str, ...]
    scores: Mapping[str, float]


def training_turns(
    train: ConversationSet, held_out: Mapping[str, ConversationSet], recorded: Container[str]
) -> list[ConversationalQuery]:
    """Return the turns of `train` that recorded runs know, the only ones that a document encoder may learn from.

    Recorded runs hold test queries as well, and their scores would be the answers to the examination. So turns are
    taken from here alone, and a set that shares a conversation or a turn with one that is measured on is refused. A
    turn that no run knows is none of them: a student can be given further conversations, and documents keep their encoder.

    Args:
        train: the training conversations.
        held_out: name of the configuration field -> conversations that are measured on, for instance "data.test".
        recorded: ids of the queries that the runs list.

    Raises DataError naming the conversation or turn that both sets hold.
    """
    turns = list(train.queries())
    for field, found in held_out.items():
        conversations = {one.conversation_id for one in found.conversations}
        asked = {query.query_id for query in found.queries()}
        shared = [f"conversation {one!r}" for one in (t.conversation_id for t in turns) if one in conversations]
        shared += [f"turn {turn.query_id!r}" for turn in turns if turn.query_id in asked]
        if shared:
            raise DataError(
                f"{shared[0]} is in data.train and in {field}, so the document encoder would be trained on what it is "
                "measured with; give the two sets splits that share nothing, or ids of their own (prefix_ids)"
            )
    return [turn for turn in turns if turn.query_id in recorded]


def turn_text(turn: ConversationalQuery, form: QueryForm, rewrites: Mapping[str, str]) -> str | None:
    """Return the text that a run was made with; None where the form is a rewrite and none is recorded."""
    if form == "last_turn":
        return turn.question
    if form == "user_turns":
        return user_turns_text(turn.question, [(past.question, "") for past in turn.history])
    return rewrites.get(turn.query_id) or None


def recorded_queries(
    turns: Sequence[ConversationalQuery],
    gold: Mapping[str, Sequence[str]],
    rankings: Rankings,
    form: QueryForm,
    rewrites: Mapping[str, str],
) -> list[RecordedQuery]:
    """Return what a recorded run says of the given turns; queries of the run that are not among them are left out.

    Args:
        turns: from `training_turns`.
        gold: query id -> ids of its relevant passages.
        rankings: query id -> (passage id, score) pairs of the run.
        form: what text of a turn the run was made with.
        rewrites: query id -> text, for the form "rewrites".
    """
    found = []
    for turn in turns:
        text = turn_text(turn, form, rewrites)
        if text is not None and turn.query_id in rankings:
            found.append(
                RecordedQuery(turn.query_id, text, tuple(gold.get(turn.query_id, ())), dict(rankings[turn.query_id]))
            )
    return found


def chosen_share(passage_id: str, seed: int) -> float:
    """Return a number in [0, 1) that decides whether a passage gives a query: below the wanted share, it does.

    A hash of id and seed, so that every worker decides alike for its own part of the collection.
    """
    return _hash(passage_id, seed, "chosen") / 2**64


def own_query(passage: Passage, seed: int) -> str | None:
    """Return one sentence of a passage as a query (inverse cloze, Lee et al., arXiv 1906.00300); None without one.

    Half of the queries begin with the title, as a rewritten question names what a sentence calls "it". The sentence
    stays in the passage: the targets are the teachers' scores, and matching words are what a sparse encoder is for.
    """
    body = passage.text.removeprefix(passage.title).strip() if passage.title else passage.text
    sentences = [words for words in map(str.split, _SENTENCE_END.split(body)) if len(words) >= _FEWEST_WORDS]
    if not sentences:
        return None
    sentence = " ".join(sentences[_hash(passage.passage_id, seed, "sentence") % len(sentences)][:_MOST_WORDS])
    form = _OWN_FORMS[_hash(passage.passage_id, seed, "form") % len(_OWN_FORMS)]
    return f"{passage.title} {sentence}" if form == "title_sentence" and passage.title else sentence


def own_queries(passages: Iterator[Passage], share: float, seed: int) -> Iterator[tuple[int, str]]:
    """Yield (position, query) of the passages that are chosen and have a sentence; about `share` of them."""
    for position, passage in enumerate(passages):
        if chosen_share(passage.passage_id, seed) < share:
            text = own_query(passage, seed)
            if text is not None:
                yield position, text


def _hash(passage_id: str, seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{passage_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
