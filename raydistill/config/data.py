"""Where conversations, judgements and the corpus come from, and how a conversation becomes text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from raydistill.config.fields import Added, Location, Name, NonNegativeInt, Operational, Section

Reader = Literal[
    "mtrag", "mtrag-tasks", "topiocqa", "qrecc", "cast", "ikat", "beir", "tsv", "trec", "prepared", "huggingface"
]
ReleaseName = Literal[
    "topiocqa-train",
    "topiocqa-dev",
    "topiocqa-train-older",
    "topiocqa-dev-older",
    "qrecc-train",
    "qrecc-test",
    "cast-2019",
    "cast-2020",
    "cast-2021",
    "cast-2022",
    "ikat-2023",
    "ikat-2024",
    "ikat-2025",
    "mtrag-tasks",
    "mtrag-un-tasks",
]


class TurnColumns(Section):
    """Which columns of a data set hold what. Either every row is a turn (question), or a conversation (messages)."""

    question: str | None = None
    """The user's question; every row is a turn."""
    messages: str | None = None
    """All that was said: messages with a role (user, assistant) and a text, or strings by turns; a row is a conversation."""
    conversation: str | None = None
    """Id of the conversation; None: every row is one of its own, known by its number."""
    turn: str | None = None
    """Number of the turn, from 1; checked against what precedes it."""
    history: str | None = None
    """What was said before, like messages; None: the earlier rows of the same conversation."""
    answer: str | None = None
    """What was answered."""
    rewrite: str | None = None
    """The question made self-contained."""
    topic: Added[str | None] = None
    """What the turn is about, for the report's table of turns that change it."""
    query_id: str | None = None
    """Id of the query; None: conversation and turn joined by `_`."""
    gold: str | None = None
    """Relevant passages: an id, a list of ids, or of objects with an id; with messages, those of the last question."""

    @model_validator(mode="after")
    def _a_row_is_one_thing(self) -> TurnColumns:
        if (self.question is None) == (self.messages is None):
            raise ValueError("name either question (a row is a turn) or messages (a row is a conversation)")
        of_a_turn = ("turn", "history", "answer", "rewrite", "topic", "query_id")
        per_turn = [name for name in of_a_turn if getattr(self, name) is not None]
        if self.messages is not None and per_turn:
            raise ValueError(f"{per_turn[0]} is of a single turn, but with messages a row is a conversation; leave it out")
        return self


class DatasetPart(Section):
    """What of a Hugging Face data set is read."""

    split: str = "train"
    """Split of the data set."""
    subset: str | None = None
    """Its configuration, where it has several."""
    revision: str | None = None
    """Commit or tag; required on the hub, where names alone do not say what was read."""


class DatasetConfig(DatasetPart):
    """What of a Hugging Face data set is read as conversations, and how."""

    columns: TurnColumns
    """Which columns hold what."""


class ConversationSource(Section):
    """Conversations with their judgements."""

    name: Name | None = None
    """Name of the source, kept with every turn; required where there are several training sources."""
    reader: Reader | None = None
    """Format of the file; None takes data.reader."""
    conversations: Location
    """URI or absolute path of the conversation file; with reader huggingface a folder, or hf://ORGANISATION/NAME."""
    dataset: DatasetConfig | None = None
    """Only with reader huggingface: what of the data set is read, and how."""
    qrels: Operational[Location | None] = None
    """URI or absolute path of the qrels; None where the conversation file holds the gold passages or none exist. A source
    without them still teaches: teachers and student score the same passages, whatever they are."""
    split: str | None = None
    """Keep only conversations whose own split field has this value; None keeps all."""
    judged_only: bool = False
    """Keep only conversations in which a turn is judged: files of queries often hold those of all splits."""
    persona: bool = False
    """Let what is known of the user open every conversation, as what the user said first (iKAT). Being the oldest utterance,
    it is what truncation drops first, and student.text.utterance_words cuts it like any other."""
    release: Operational[ReleaseName | None] = None
    """Release that the file must be, by its numbers of conversations, turns and judged turns; None only warns of a file
    that is nearly a known release, or an old one."""
    prefix_ids: bool = False
    """Put `NAME:` before every conversation and query id, for files whose ids another source uses too. The qrels keep the
    file's own ids; files of recorded rewrites must use the prefixed ones."""

    @model_validator(mode="after")
    def _prefix_has_a_name(self) -> ConversationSource:
        if self.prefix_ids and self.name is None:
            raise ValueError("prefix_ids puts the source's name before its ids, and it has no name; add one")
        return self

    @model_validator(mode="after")
    def _dataset_has_its_reader(self) -> ConversationSource:
        if (self.dataset is not None) != (self.reader == "huggingface"):
            raise ValueError("reader: huggingface and the section dataset go together; give both or neither")
        if self.dataset is not None and self.conversations.startswith("hf://") and self.dataset.revision is None:
            raise ValueError("a data set of the hub needs dataset.revision, a commit or tag, or nobody knows what was read")
        return self


class PassageSource(Section):
    """Conversations made of passages of the corpus, as further training queries (see raydistill.conversations.pseudo)."""

    reader: Literal["passages"]
    name: Name | None = None
    """Name of the source, kept with every turn; required where there are several training sources."""
    sample: PositiveInt
    """Passages that become topics, the same ones for the same corpus and seed."""
    topics: PositiveInt = 2
    """Passages that one conversation visits, one after the other."""
    seed: NonNegativeInt = 0


class ValidationShare(Section):
    """Validation conversations held out of the training conversations."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the training conversations with judgements that is held out, whole, by a hash of their ids. Conversations
    made of passages are never held out."""
    fold: Added[NonNegativeInt] = 0
    """Which share of them: 0 the first in the order of the hashes, 1 the next one. Folds do not overlap, so runs with
    share 0.2 and the folds 0 to 4 hold out every judged conversation once (cross-validation)."""

    @model_validator(mode="after")
    def _fold_is_within(self) -> ValidationShare:
        if round((self.fold + 1) * self.share, 6) > 1:
            last = int(1 / self.share + 1e-6) - 1
            raise ValueError(
                f"fold is {self.fold}, and a share of {self.share:g} leaves the folds 0 to {last}; lower fold or share"
            )
        return self


def _training_kind(value: Any) -> str:
    reader = value.get("reader") if isinstance(value, dict) else getattr(value, "reader", None)
    return "passage source" if reader == "passages" else "conversation source"


def _validation_kind(value: Any) -> str:
    if isinstance(value, dict):
        own = "share" not in value and bool(set(value) & set(ConversationSource.model_fields))
    else:
        own = isinstance(value, ConversationSource)
    return "conversation source" if own else "validation share"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (dict, Section)) else value


TrainingSource = Annotated[
    Annotated[ConversationSource, Tag("conversation source")] | Annotated[PassageSource, Tag("passage source")],
    Discriminator(_training_kind),
]
ValidationSource = Annotated[
    Annotated[ConversationSource, Tag("conversation source")] | Annotated[ValidationShare, Tag("validation share")],
    Discriminator(_validation_kind),
]


CorpusFormat = Literal["jsonl", "tsv", "msmarco", "parquet", "prepared", "huggingface"]


class PassageColumns(Section):
    """Names of the fields of a passage in corpus files; None finds the usual ones (see conversations.passages)."""

    id: str | None = None
    """Field of the passage's id, a string or an integer."""
    text: str | None = None
    """Field of its text."""
    title: str | None = None
    """Field of its title; a passage may have none."""


class CorpusConfig(Section):
    """Files of passages."""

    corpus: Operational[tuple[Location, ...]] = Field(min_length=1)
    """URIs or absolute paths of the corpus files; a trailing * expands."""
    corpus_format: CorpusFormat = "jsonl"
    """jsonl: records {_id, title, text} or {id, contents}; tsv: header `id text title`; msmarco: lines `id text` without a
    header; parquet. Compressed by suffix .gz, .bz2, .zst. prepared: what `raydistill prepare` made, named by its
    datasets/NAME/corpus.json. huggingface: data sets, each a folder or hf://ORGANISATION/NAME."""
    corpus_dataset: DatasetPart | None = None
    """Only with corpus_format huggingface: what of the data sets is read; {} is all of split train."""
    corpus_columns: PassageColumns = PassageColumns()
    """Names of the fields, where they are not the usual ones (not for msmarco)."""
    max_bad_rows: NonNegativeInt = 0
    """Malformed rows that may be quarantined, with place and reason, in each of corpus and conversation sources."""

    @model_validator(mode="after")
    def _corpus_dataset_has_its_format(self) -> CorpusConfig:
        if (self.corpus_dataset is not None) != (self.corpus_format == "huggingface"):
            raise ValueError("corpus_format: huggingface and corpus_dataset go together; give both ({} will do) or neither")
        unpinned = [uri for uri in self.corpus if uri.startswith("hf://")]
        if self.corpus_dataset is not None and unpinned and self.corpus_dataset.revision is None:
            raise ValueError(
                "a data set of the hub needs corpus_dataset.revision (a commit or tag), or nobody knows what was read"
            )
        return self


class DataConfig(CorpusConfig):
    """Where the corpus and the conversations come from."""

    reader: Reader = "mtrag"
    """Format of the conversation files (see raydistill.conversations), for sources that do not name their own."""
    train: Annotated[tuple[TrainingSource, ...], BeforeValidator(_as_list), Field(min_length=1)]
    """One source or a list of them. Query ids are unique over all of them (see prefix_ids)."""
    validation: ValidationSource | None = None
    """{share: ...} or a source of its own; None trains without looking at held-out turns. Conversations held out are not
    trained on."""
    test: ConversationSource

    @model_validator(mode="after")
    def _sources_have_their_own_names(self) -> DataConfig:
        names = [source.name for source in self.train]
        if len(names) > 1 and None in names:
            raise ValueError(f"train: source number {names.index(None) + 1} of {len(names)} has no name; add name: to it")
        twice = sorted({name for name in names if name is not None and names.count(name) > 1})
        if twice:
            raise ValueError(f"train: the name {twice[0]!r} is used by two sources; turns are told apart by it")
        return self

    @model_validator(mode="after")
    def _something_to_hold_out(self) -> DataConfig:
        made = all(isinstance(source, PassageSource) for source in self.train)
        if made and isinstance(self.validation, ValidationShare):
            raise ValueError(
                "validation: a share of the training conversations is asked for, and all of them are made of passages; "
                "name a source of its own"
            )
        return self


class TextConfig(Section):
    """How a conversation becomes the student's text: newest first, budgets in words."""

    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Tokens after which the text is cut, special tokens included; the oldest turns go first."""
    utterance_words: PositiveInt = 64
    """Words kept of each user utterance in the history (the last question is never cut by this)."""
    answer_words: NonNegativeInt = 100
    """Words kept of each answer; 0 leaves answers out."""
