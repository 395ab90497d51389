"""Where conversations, judgements and the corpus come from, and how a conversation becomes text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from raydistill.config.fields import Location, NonNegativeInt, Operational, Section


class ConversationSource(Section):
    """Conversations with their judgements."""

    conversations: Location
    """URI or absolute path of the conversation file."""
    qrels: Operational[Location | None] = None
    """URI or absolute path of the qrels; None where the conversation file holds the gold passages or none exist."""
    split: str | None = None
    """Keep only conversations whose own split field has this value; None keeps all."""


class DataConfig(Section):
    """Where the corpus and the conversations come from."""

    reader: Literal["mtrag", "topiocqa"] = "mtrag"
    """Format of the conversation files (see raydistill.conversations)."""
    corpus: Operational[tuple[Location, ...]] = Field(min_length=1)
    """URIs or absolute paths of the corpus files; a trailing * expands."""
    corpus_format: Literal["jsonl", "tsv"] = "jsonl"
    """jsonl: BEIR records {_id, title, text}; tsv: header `id text title`. Compressed by suffix .gz, .bz2, .zst."""
    train: ConversationSource
    test: ConversationSource
    max_bad_rows: NonNegativeInt = 0
    """Malformed rows that may be quarantined, with place and reason, in each of corpus, training and test source."""


class TextConfig(Section):
    """How a conversation becomes the student's text: newest first, budgets in words."""

    max_tokens: PositiveInt = 256
    """Tokens after which the text is cut; the oldest turns go first."""
    utterance_words: PositiveInt = 64
    """Words kept of each user utterance in the history (the last question is never cut by this)."""
    answer_words: NonNegativeInt = 100
    """Words kept of each answer; 0 leaves answers out."""
