"""Conversations made of the corpus's own passages: further training queries where real conversations are few.

A passage becomes a topic of two turns, after the inverse cloze task (Lee et al., arXiv 1906.00300): its title is asked
first, its first sentence answers; then one of its other sentences is asked without the words of the title, as people leave
out what was just named. The rewrite of the second turn is title and sentence together, its gold passage the passage itself.
A conversation visits several topics one after the other, so that a student learns to take over what the last question
leaves out, and to leave behind what it does not. Everything is drawn by hashes of passage ids: the order of the corpus does
not matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raydistill.config import CorpusConfig, PassageColumns, PassageSource
from raydistill.conversations.passage_sampling import corpus_passages, id_hash, sampled
from raydistill.conversations.prepared import corpus_files, corpus_fingerprint
from raydistill.conversations.qrels import Qrels
from raydistill.conversations.records import Conversation, ConversationSet, Passage, Turn
from raydistill.errors import DataError
from raydistill.storage.hashing import canonical_json, sha256_hex

_FORMAT_VERSION = 1
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w+")
_SENTENCE_WORDS = range(6, 31)
_TITLE_WORDS = range(1, 13)
_LEAST_LEFT = 4


@dataclass(frozen=True, slots=True)
class Topic:
    """What a passage gives to talk about.

    Attributes:
        passage_id: the passage.
        title: what it is about, 1 to 12 words.
        opening: its first sentence.
        asked: (sentence without the title's words, whole sentence) pairs of the sentences that can be asked, at least one.
    """

    passage_id: str
    title: str
    opening: str
    asked: tuple[tuple[str, str], ...]


def passage_topic(passage: Passage) -> Topic | None:
    """Return the topic of a passage; None when it has no title, or no two sentences of 6 to 30 words without a link.

    A passage without a title field is titled by its first line when that is short and ends like no sentence.
    """
    title, body = _title_and_body(passage)
    if len(title.split()) not in _TITLE_WORDS:
        return None
    sentences = [" ".join(piece.split()) for piece in _SENTENCE_END.split(body)]
    opening, *others = [*filter(_is_spoken, sentences)] or [""]
    named = {word.casefold() for word in _WORD.findall(title)}
    asked = tuple((left, whole) for whole in others if len((left := _without(whole, named)).split()) >= _LEAST_LEFT)
    return Topic(passage.passage_id, title, opening, asked) if asked else None


def _is_spoken(sentence: str) -> bool:
    return len(sentence.split()) in _SENTENCE_WORDS and "://" not in sentence


def _title_and_body(passage: Passage) -> tuple[str, str]:
    title = " ".join(passage.title.replace("[SEP]", " ").split())
    text = passage.text.strip()
    if title:
        return title, text.removeprefix(passage.title)
    first, _, rest = text.partition("\n")
    return ("", text) if first.rstrip().endswith((".", "!", "?", ":", ";", ",")) else (" ".join(first.split()), rest)


def _without(sentence: str, named: set[str]) -> str:
    """Return the sentence without the words that hold nothing but what was named."""
    kept = [word for word in sentence.split() if not (found := _WORD.findall(word.casefold())) or not set(found) <= named]
    return " ".join(kept)


def read_passage_conversations(source: PassageSource, corpus: CorpusConfig) -> ConversationSet:
    """Return the conversations that a source makes of the corpus; reads all of it once, holding only the sample.

    Malformed rows of the corpus are passed over; preparing the corpus names and counts them.

    Raises:
        DataError: no passage can be a topic.
        StorageError: a corpus file that does not exist or cannot be read.
    """
    topics = sampled(corpus_passages(corpus), source.sample, source.seed, passage_topic)
    if not topics:
        files = corpus_files(corpus.corpus, corpus.corpus_format)
        raise DataError(
            f"data.train: no passage of the corpus ({files[0]}{' ...' if len(files) > 1 else ''}) has a title and two "
            "sentences, so no conversation can be made of passages; leave the source with reader: passages out"
        )
    name = source.name or "passages"
    qrels: Qrels = {}
    conversations = []
    for number, start in enumerate(range(0, len(topics), source.topics)):
        turns: list[Turn] = []
        for topic in topics[start : start + source.topics]:
            turns += _turns(topic, f"{name}:{topic.passage_id}", len(turns), source.seed)
            qrels[turns[-1].query_id] = {topic.passage_id: 1}
        conversations.append(Conversation(f"{name}:{number}", tuple(turns), source.name or ""))
    settings = {
        "format": _FORMAT_VERSION,
        "source": source.model_dump(mode="json"),
        "corpus": corpus_fingerprint(corpus),
        "corpus_format": corpus.corpus_format,
        **({"corpus_columns": corpus.corpus_columns.model_dump()} if corpus.corpus_columns != PassageColumns() else {}),
    }
    return ConversationSet(tuple(conversations), qrels, sha256_hex(canonical_json(settings).encode()))


def _turns(topic: Topic, prefix: str, before: int, seed: int) -> list[Turn]:
    left, whole = topic.asked[id_hash(seed, f"{topic.passage_id} sentence") % len(topic.asked)]
    return [
        Turn(f"{prefix}_1", before + 1, topic.title, topic.opening, topic.title),
        Turn(f"{prefix}_2", before + 2, left, "", f"{topic.title} {whole}"),
    ]
